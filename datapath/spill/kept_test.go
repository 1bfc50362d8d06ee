package spill

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	keptStream = 0x22
	keptLife   = 7
)

// keptConfig is that of a file in a memory-backed folder of the test's own.
func keptConfig(t testing.TB) KeptConfig {
	dir, err := os.MkdirTemp("/dev/shm", "hf")
	if err != nil {
		t.Skip("no memory-backed folder: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return KeptConfig{Name: filepath.Join(dir, "window"), Stream: keptStream, Group: 0x11, Lineage: 5, Page: 9, Boot: strings.Repeat("ab", 16), Bytes: 1 << 20}
}

// keeping is a window in a file, and what is needed to put records into it.
type keeping struct {
	t     testing.TB
	cfg   KeptConfig
	slabs Slabs
	w     *Window
}

// keep opens the file as a process does that begins.
func keep(t testing.TB, cfg KeptConfig) (k *keeping, c *Carried, why string) {
	t.Helper()
	k = &keeping{t: t, cfg: cfg, w: New(cfg.Bytes, 1)}
	c, why, err := k.slabs.Keep(cfg)
	if err != nil {
		t.Fatal(err)
	}
	k.w.KeepIn(k.slabs.Kept(), c)
	return k, c, why
}

func (k *keeping) close() {
	k.t.Helper()
	k.w.Leave()
	if err := k.slabs.Close(); err != nil {
		k.t.Error(err)
	}
}

// begin begins an incarnation at seq 1.
func (k *keeping) begin() {
	k.w.Reset(1)
	k.w.Begins(Standing{Incarnation: keptLife, Epoch: 1, OpensAt: 1})
}

// seal makes a record of n bytes of payload, as large as its content says.
func (k *keeping) seal(seq record.Seq, n int) *Record {
	k.t.Helper()
	b := record.NewBatch(record.Limits{Raw: 1 << 20, Extents: 64})
	data := bytes.Repeat([]byte{byte(seq)}, n)
	for off := 0; off < n; off += 32 << 10 {
		if !b.Add(record.Piece{Volume: 1, Off: int64(off), Len: int64(min(n-off, 32<<10)), Ticket: record.Ticket(10 * seq), Data: data[off:min(n, off+32<<10)]}) {
			k.t.Fatal("too large a record")
		}
	}
	slab := k.slabs.Get(b.Bound())
	id := record.Identity{Stream: keptStream, Epoch: 1, Incarnation: keptLife, Seq: seq}
	slab.P = b.Seal(slab.P, id, record.Time(1000+seq), record.NewCompressor())
	return &Record{Seq: seq, Through: record.Ticket(10 * seq), Oldest: int64(seq), Raw: int64(n), Buffer: slab}
}

// put puts the record of seq, and the stream counts as whole since the first.
func (k *keeping) put(seq record.Seq, n int) {
	k.t.Helper()
	k.w.PutAt(k.seal(seq, n), At{Last: record.Ticket(10 * seq), Time: record.Time(1000 + seq), Since: 1, Covered: 3})
}

// copyOf copies the file as it is at this moment, as a kill would leave it, but for the holes.
func (k *keeping) copyOf() KeptConfig {
	k.t.Helper()
	from, to := k.slabs.kept, k.cfg
	dir, err := os.MkdirTemp(filepath.Dir(k.cfg.Name), "copy")
	if err != nil {
		k.t.Fatal(err)
	}
	to.Name = filepath.Join(dir, "window")
	f, err := os.Create(to.Name)
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	write := func(at, n int64) {
		if _, err := f.WriteAt(from.mem[at:at+n], at); err != nil {
			k.t.Fatal(err)
		}
	}
	write(0, 2*standAt)
	for class := range from.mu.classes {
		for index := range from.written(class) {
			size := int64(1) << (class + slabMinBits)
			write(slabsAt+int64(class)*from.span+index*size, size)
		}
	}
	if err := f.Truncate(from.size()); err != nil {
		k.t.Fatal(err)
	}
	return to
}

// change changes bytes of a file.
func (c KeptConfig) change(t testing.TB, at int64, p ...byte) {
	t.Helper()
	f, err := os.OpenFile(c.Name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, at); err != nil {
		t.Fatal(err)
	}
}

// at is where a slab begins in the file.
func (k *keeping) at(b Buffer) int64 { return k.slabs.kept.offset(b.(*Slab)) }

// TestKeptCrashes ends a process at each step of what it does with the file, and has another one begin: it finds each
// record from the oldest not acknowledged to the last that stands whole, or none and why.
func TestKeptCrashes(t *testing.T) {
	const none = record.Seq(0)
	k, _, why := keep(t, keptConfig(t))
	defer k.close()
	if why != "there is none of an earlier process" {
		t.Errorf("an empty file: %q", why)
	}
	sealed := map[record.Seq][]byte{}
	put := func(seqs ...record.Seq) {
		for _, seq := range seqs {
			k.put(seq, int(seq)*3000)
			sealed[seq] = bytes.Clone(k.w.mu.records[len(k.w.mu.records)-1].Buffer.Bytes())
		}
	}
	var pending *Record
	for _, step := range []struct {
		name        string
		do          func()              // to the window
		hurt        func(c *KeptConfig) // what the next process finds; nil: nothing
		first, next record.Seq          // none: nothing is found
		why         string
	}{
		{"nothing was begun", func() {}, nil, none, none, "nothing was sent yet"},
		{"an incarnation begins", func() { k.begin() }, nil, 1, 1, ""},
		{"records are put", func() { put(1, 2, 3, 4, 5) }, nil, 1, 6, ""},
		{"one is sealed", func() { pending = k.seal(6, 18000) }, nil, 1, 6, ""},
		{"its header is half written", func() { copy(pending.Buffer.(*Slab).whole, "HFWR\x10\x00\x00\x00\x06") }, nil, 1, 6, ""},
		{"its header stands", func() { pending.Buffer.(*Slab).say(pending, keptLife) }, nil, 1, 6, ""},
		{"the standing is half written", func() {}, func(c *KeptConfig) {
			c.change(t, standAt+int64((k.slabs.kept.turn+1)&1)*standBytes+8, 0xff, 0xff, 0xff)
		}, 1, 6, ""},
		{"it is put", func() {
			sealed[6] = bytes.Clone(pending.Buffer.Bytes())
			k.w.PutAt(pending, At{Last: 60, Time: 1006, Since: 1, Covered: 3})
		}, nil, 1, 7, ""},
		{"an acknowledgement is told of, and nothing is freed", func() {
			k.w.mu.standing.First = 4
			k.w.tellLocked()
		}, nil, 4, 7, ""},
		{"it is carried out", func() {
			if _, err := k.w.Ack(3); err != nil {
				t.Error(err)
			}
		}, nil, 4, 7, ""},
		{"a record moves to a smaller slab", func() {
			r := k.seal(7, 30000)
			r.Buffer = k.slabs.Fit(r.Buffer.(*Slab))
			sealed[7] = bytes.Clone(r.Buffer.Bytes())
			k.w.PutAt(r, At{Last: 70, Time: 1007, Since: 1, Covered: 3})
		}, nil, 4, 8, ""},
		{"a record is damaged", func() {}, func(c *KeptConfig) {
			c.change(t, k.at(k.w.mu.records[1].Buffer)+slabHead+40, 0xff)
		}, none, none, "record 5 of it"},
		{"one of the middle is not there", func() {}, func(c *KeptConfig) { c.change(t, k.at(k.w.mu.records[1].Buffer), 0) }, none, none, "1 of its 4 records stood elsewhere"},
		{"one is another", func() {}, func(c *KeptConfig) {
			r := *k.w.mu.records[1]
			r.Seq = 99
			b := &Slab{whole: bytes.Clone(r.Buffer.(*Slab).whole)}
			b.P = b.whole[slabHead:][:len(r.Buffer.Bytes())]
			b.say(&r, keptLife)
			c.change(t, k.at(k.w.mu.records[1].Buffer), b.whole[:slabHead]...)
		}, none, none, "1 of its 4 records stood elsewhere"},
		{"one stands twice", func() {}, func(c *KeptConfig) {
			c.change(t, k.slabs.kept.offset(k.slabs.kept.slab(5, 9)), k.w.mu.records[1].Buffer.(*Slab).whole...)
		}, none, none, "two of its records are 5"},
		{"no standing is whole", func() {}, func(c *KeptConfig) {
			c.change(t, standAt, 0)
			c.change(t, standAt+standBytes, 0)
		}, none, none, "nothing was sent yet"},
		{"it is cut short", func() {}, func(c *KeptConfig) {
			if err := os.Truncate(c.Name, slabsAt); err != nil {
				t.Error(err)
			}
		}, none, none, "its file is damaged"},
		{"its header is damaged", func() {}, func(c *KeptConfig) { c.change(t, 9, 0xff) }, none, none, "its file is damaged"},
		{"the host restarted", func() {}, func(c *KeptConfig) { c.Boot = strings.Repeat("cd", 16) }, none, none, "the host restarted"},
		{"there is a new order page", func() {}, func(c *KeptConfig) { c.Page++ }, none, none, "the order page was made anew"},
		{"it is another stream's", func() {}, func(c *KeptConfig) { c.Stream++ }, none, none, "of another group"},
		{"it is of a later version", func() {}, func(c *KeptConfig) {
			head := c.header(k.slabs.kept.span)
			head[4] = keptVersion + 1
			seal(head)
			c.change(t, 0, head...)
		}, none, none, "of another version"},
		{"nothing of that is so", func() {}, nil, 4, 8, ""},
		{"one stands in the heap", func() {
			kept := k.slabs.kept
			k.slabs.kept = nil
			put(8)
			k.slabs.kept = kept
			put(9)
		}, nil, none, none, "1 of its 6 records stood elsewhere"},
		{"it was acknowledged", func() {
			if _, err := k.w.Ack(8); err != nil {
				t.Error(err)
			}
		}, nil, 9, 10, ""},
		{"what is free gives its memory back", func() {
			for range 8 {
				k.slabs.Trim()
			}
		}, nil, 9, 10, ""},
		{"a checkpoint is listed", func() { k.w.Listed(5) }, nil, 9, 10, ""},
		{"the incarnation ends", func() { k.w.Void() }, nil, none, none, "its incarnation had ended"},
		{"the window is emptied", func() { k.w.Reset(1) }, nil, none, none, "its incarnation had ended"},
		{"another one begins", func() { k.begin() }, nil, 1, 1, ""},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do()
			cfg := k.copyOf()
			if step.hurt != nil {
				step.hurt(&cfg)
			}
			n, c, why := keep(t, cfg)
			defer n.close()
			if step.first == none {
				if c != nil || !strings.Contains(why, step.why) {
					t.Fatalf("%+v is gone on with, and %q; want %q", c, why, step.why)
				}
				n.begin() // and the file is as a new one
				n.put(1, 100)
				return
			}
			if why != "" || c.First != step.first || c.Next != step.next || len(c.Records) != int(step.next-step.first) || c.Incarnation != keptLife || c.OpensAt != 1 {
				t.Fatalf("it finds %+v, %q; want %d to %d", c, why, step.first, step.next)
			}
			if step.next > 1 && (c.Through != record.Ticket(10*(step.next-1)) || c.Last != c.Through || c.Since != 1 || c.Covered != 3 || c.Time != record.Time(1000+step.next-1)) {
				t.Errorf("the stream stood at %+v", c.At)
			}
			for i, r := range c.Records {
				seq := c.First + record.Seq(i)
				if r.Seq != seq || r.Through != record.Ticket(10*seq) || r.Oldest != int64(seq) || !bytes.Equal(r.Buffer.Bytes(), sealed[seq]) {
					t.Errorf("in the place of record %d stands %d", seq, r.Seq)
				}
			}
			// It goes on: what comes next, and what is acknowledged, is as if nothing had been.
			n.put(c.Next, 5000)
			if a, err := n.w.Ack(c.Next); err != nil || a.Records != len(c.Records)+1 {
				t.Errorf("of %d records %d are acknowledged, %v", len(c.Records)+1, a.Records, err)
			}
		})
	}
}

// TestKeptForgets: a record that stands beyond the window is none any more, though its memory cannot be taken: what is put under its
// number is what the next process finds.
func TestKeptForgets(t *testing.T) {
	k, _, _ := keep(t, keptConfig(t))
	defer k.close()
	k.begin()
	k.put(1, 3000)
	k.put(2, 3000)
	beyond := k.seal(3, 9000)
	beyond.Buffer.(*Slab).say(beyond, keptLife) // and then it is killed
	next := &keeping{t: t, cfg: k.copyOf(), w: New(k.cfg.Bytes, 1)}
	both, err := os.OpenFile(next.cfg.Name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	kept := &Kept{file: both}
	if why, err := kept.open(next.cfg); why != "" || err != nil {
		t.Fatal(why, err)
	}
	if kept.file, err = os.Open(next.cfg.Name); err != nil { // where nothing is punched
		t.Fatal(err)
	}
	if err := kept.punch(slabsAt, 4096); err == nil {
		t.Error("memory can be taken")
	}
	c, why := kept.scan(keptStream, &next.slabs)
	if c == nil || len(c.Records) != 2 {
		t.Fatalf("it finds %+v, %q", c, why)
	}
	if err := kept.file.Close(); err != nil {
		t.Error(err)
	}
	kept.file = both
	next.slabs.kept = kept
	next.w.KeepIn(kept, c)
	defer next.close()
	next.put(3, 100)
	want := bytes.Clone(next.w.mu.records[2].Buffer.Bytes())
	last, c, why := keep(t, next.copyOf())
	defer last.close()
	if c == nil || len(c.Records) != 3 || !bytes.Equal(c.Records[2].Buffer.Bytes(), want) {
		t.Errorf("it finds %+v, %q", c, why)
	}
}

// TestGoldenKept holds the format to what stands in testdata.
func TestGoldenKept(t *testing.T) {
	text, err := os.ReadFile("testdata/kept-1.hex")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	cfg := KeptConfig{Stream: 0xa2, Group: 0x11, Lineage: 5, Page: 9, Boot: strings.Repeat("ab", 16)}
	s := Standing{
		Incarnation: 7, Epoch: 2, OpensAt: 3, First: 12, Next: 15, Listed: 11, Freezes: true,
		At: At{Through: 1000, Last: 1001, Time: 1 << 60, Since: 6, Covered: 4},
	}
	p := append(cfg.header(72<<20), make([]byte, standBytes)...)
	s.put(p[keptHeader:], 33, true)
	b := &Slab{whole: make([]byte, 1<<slabMinBits)}
	b.P = append(b.whole[slabHead:slabHead], "what was sealed is kept as it is"...)
	b.say(&Record{Seq: 14, Through: 1000, Oldest: 77, Raw: 4096}, 7)
	p = append(p, b.whole[:slabHead+len(b.P)]...)
	if !bytes.Equal(p, golden) {
		t.Errorf("it is\n%x, golden is\n%x", p, golden)
	}
	if got, turn, alive, ok := standing(golden[keptHeader:][:standBytes]); got != s || turn != 33 || !alive || !ok {
		t.Errorf("read %+v, turn %d, %v, %v", got, turn, alive, ok)
	}
	copy(b.whole, golden[keptHeader+standBytes:])
	if r, inc := b.said(); r == nil || inc != 7 || r.Seq != 14 || r.Through != 1000 || r.Oldest != 77 || r.Raw != 4096 || string(r.Buffer.Bytes()) != "what was sealed is kept as it is" {
		t.Errorf("read %+v of %d", r, inc)
	}
}

// TestKeptElsewhere: where the file is in use, on a disk or in a folder that is not there, records stand in the heap.
func TestKeptElsewhere(t *testing.T) {
	cfg := keptConfig(t)
	k, _, _ := keep(t, cfg)
	var other Slabs
	if _, _, err := other.Keep(cfg); err == nil {
		t.Error("two have one file")
	}
	if RemoveKept(cfg.Name) {
		t.Error("a file in use was removed")
	}
	k.close()
	cfg.Name = filepath.Join(filepath.Dir(cfg.Name), "no", "folder")
	if _, _, err := other.Keep(cfg); err == nil {
		t.Error("a file stands in no folder")
	}
	if b := other.Get(100); b.whole != nil {
		t.Error("a slab is of no file")
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if RemoveKept(cfg.Name) || !RemoveKept(k.cfg.Name) {
		t.Error("what nobody uses is removed, and what is not there is not")
	}
}

// memfd makes a file in memory that has no folder, and its name.
func memfd(t *testing.T, content []byte, size int64) (*os.File, string) {
	t.Helper()
	fd, err := unix.MemfdCreate("window", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "window")
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f, fmt.Sprintf("/proc/self/fd/%d", fd)
}

// TestKeptFails has the system refuse each thing that a file needs: records stand in the heap then, and the file is let go of.
func TestKeptFails(t *testing.T) {
	base := keptConfig(t)
	sealed := func(seals int, content []byte, size int64) func(*testing.T) string {
		return func(t *testing.T) string {
			f, name := memfd(t, content, size)
			if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
				t.Fatal(err)
			}
			return name
		}
	}
	whole := Kept{span: spanUnit}
	for what, c := range map[string]struct {
		name func(t *testing.T) string
		want error
	}{
		"not in memory, wherever it is": {func(*testing.T) string { return "/proc/self/comm" }, errNotMemory},
		"a folder":                      {func(t *testing.T) string { return t.TempDir() }, unix.EISDIR},
		"somebody else's": {func(t *testing.T) string {
			name := filepath.Join(filepath.Dir(base.Name), "another's")
			if err := os.WriteFile(name, nil, 0); err != nil {
				t.Fatal(err)
			}
			return name
		}, unix.EACCES},
		"cannot be emptied":                      {sealed(unix.F_SEAL_SHRINK, []byte("HFWN"), 4), unix.EPERM},
		"cannot be as large as it must":          {sealed(unix.F_SEAL_GROW, nil, 0), unix.EPERM},
		"a new one cannot be mapped":             {sealed(unix.F_SEAL_WRITE, nil, 0), unix.EPERM},
		"one of a process before, neither":       {sealed(unix.F_SEAL_WRITE, base.header(spanUnit), whole.size()), unix.EPERM},
		"the file system has no room for a head": {func(t *testing.T) string { return filepath.Join(small(t, "4k"), "window") }, unix.ENOSPC},
	} {
		t.Run(what, func(t *testing.T) {
			cfg := base
			cfg.Name = c.name(t)
			var s Slabs
			failed := func() (err error) {
				as(t, c.want == unix.EACCES, func() { _, _, err = s.Keep(cfg) })
				return err
			}
			for range 2 { // the second finds it free
				if err := failed(); !errors.Is(err, c.want) {
					t.Fatalf("it is kept with %v, want %v", err, c.want)
				}
			}
			if b := s.Get(100); b.whole != nil || s.Kept() != nil {
				t.Error("a slab is of the file")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	f, _ := memfd(t, nil, 0)
	unread, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	if why, err := (&Kept{file: unread}).open(base); !errors.Is(err, unix.EBADF) {
		t.Errorf("one that cannot be read is opened with %q, %v", why, err)
	}
}

// as runs do, as nobody where that is asked for and it is root otherwise, whom nothing is forbidden.
func as(t *testing.T, nobody bool, do func()) {
	t.Helper()
	if !nobody || os.Geteuid() != 0 {
		do()
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with its goroutine
		err := unix.Setfsuid(65534)
		do()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// small mounts a file system in memory of that size, until the test ends.
func small(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("no file system of its own: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestKeptOverlap: who comes while another still has the file waits a moment for it; one that was removed, or made anew, between
// its opening and its lock is nobody's.
func TestKeptOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _, _ := keep(t, keptConfig(t))
		k.begin()
		k.put(1, 3000)
		next, done := &Slabs{}, make(chan struct{})
		go func() {
			defer close(done)
			if c, why, err := next.Keep(k.cfg); c == nil || why != "" || err != nil {
				t.Errorf("it finds %+v, %q, %v", c, why, err)
			}
		}()
		synctest.Wait() // until it waits
		k.close()
		<-done
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	})
	name := filepath.Join(t.TempDir(), "window")
	for _, c := range []struct {
		then func() error
		want error
	}{
		{func() error { return os.Remove(name) }, unix.EWOULDBLOCK},
		{func() error { return errors.Join(os.Remove(name), os.WriteFile(name, nil, 0o600)) }, unix.EWOULDBLOCK},
		{func() error { return nil }, nil},
	} {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.then(); err != nil {
			t.Fatal(err)
		}
		if err := claim(f, name); err != c.want {
			t.Errorf("a file is claimed with %v, want %v", err, c.want)
		}
		f.Close()
	}
}

// TestKeptIsFull: what the file has no place for stands in the heap; what is free loses its memory, and gets it back.
func TestKeptIsFull(t *testing.T) {
	k, _, _ := keep(t, keptConfig(t))
	defer k.close()
	all := make([]*Slab, 0, 32)
	for range 10 { // its area has 72 MiB
		all = append(all, k.slabs.Get(7<<20))
	}
	for i, b := range all {
		if (b.whole != nil) != (i < 9) {
			t.Errorf("slab %d: of the file is %v", i, b.whole != nil)
		}
		b.P = append(b.P, 1)
		b.Release()
	}
	c := &k.slabs.kept.mu.classes[11]
	k.slabs.Trim() // as many as were free since the last time: none
	k.slabs.Trim()
	if len(c.free) != 4 || len(c.bare) != 5 {
		t.Errorf("%d have memory, %d have none", len(c.free), len(c.bare))
	}
	for i := range 9 {
		b := k.slabs.Get(7 << 20)
		if b.whole == nil {
			t.Fatalf("slab %d is none of the file", i)
		}
		b.P = append(b.P, 1)
	}
}

// TestKeptGrowsNoMore: where the file system has no room left, or gives none, records stand in the heap, and those that the file
// has are as they were.
func TestKeptGrowsNoMore(t *testing.T) {
	cfg := keptConfig(t)
	k, _, _ := keep(t, cfg)
	defer k.close()
	of := func(b *Slab) bool {
		defer b.Release()
		return b.whole != nil
	}
	if !of(k.slabs.Get(100)) {
		t.Fatal("a slab is none of the file")
	}
	file := k.slabs.kept.file
	reads, err := os.Open(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	k.slabs.kept.file = reads // nothing can be allocated in it
	if of(k.slabs.Get(60000)) {
		t.Error("a slab that has no memory is given")
	}
	if err := reads.Close(); err != nil { // and nobody says how much there is
		t.Error(err)
	}
	if of(k.slabs.Get(60000)) {
		t.Error("a slab is given though nobody knows whether there is room")
	}
	if !of(k.slabs.Get(100)) {
		t.Error("one that has its memory is given no more")
	}
	k.slabs.kept.file = file
	if !of(k.slabs.Get(60000)) {
		t.Error("with room again there is none")
	}

	cfg.Name = filepath.Join(small(t, "1m"), "window")
	n, _, _ := keep(t, cfg)
	defer n.close()
	n.begin()
	var seq record.Seq
	for seq = 1; seq < 100; seq++ {
		if n.put(seq, 60000); n.w.mu.records[seq-1].Buffer.(*Slab).whole == nil {
			break
		}
	}
	if seq < 3 || seq > 90 {
		t.Errorf("record %d is the first that 1 MiB has no room for", seq)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Name, &fs); err != nil || int64(fs.Bavail)*fs.Bsize < 256<<10 {
		t.Errorf("%d KiB of 1024 are left to others, %v", int64(fs.Bavail)*fs.Bsize>>10, err)
	}
	for _, r := range n.w.mu.records {
		if err := whole(r, record.Identity{Stream: keptStream, Epoch: 1, Incarnation: keptLife, Seq: r.Seq}); err != nil {
			t.Errorf("record %d: %v", r.Seq, err)
		}
	}
}

// FuzzKept changes bytes of a file: what is found then is what stood there, or nothing.
func FuzzKept(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 4, 2})
	f.Add([]byte{1, 16, 32, 1, 1, 16, 160, 1})
	f.Add([]byte{2, 0, 8, 1, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, changes []byte) {
		k, _, _ := keep(t, keptConfig(t))
		defer k.close()
		k.begin()
		var sealed [][]byte
		for seq := range record.Seq(4) {
			k.put(seq+1, 3000)
			sealed = append(sealed, bytes.Clone(k.w.mu.records[seq].Buffer.Bytes()))
		}
		cfg := k.copyOf()
		for ; len(changes) >= 4; changes = changes[4:] {
			at := int64(changes[1])<<8 | int64(changes[2])
			if changes[0]%2 == 0 { // the first of slabs, of 4 KiB
				at += slabsAt
			}
			cfg.change(t, at, changes[3])
		}
		n, c, why := keep(t, cfg)
		defer n.close()
		if (c == nil) == (why == "") {
			t.Fatalf("%+v, %q", c, why)
		}
		if c == nil {
			return
		}
		for i, r := range c.Records {
			if seq := c.First + record.Seq(i); r.Seq != seq || seq > 4 || !bytes.Equal(r.Buffer.Bytes(), sealed[seq-1]) {
				t.Fatalf("in the place of record %d stands %d", seq, r.Seq)
			}
		}
	})
}
