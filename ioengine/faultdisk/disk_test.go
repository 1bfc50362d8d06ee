package faultdisk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/ioengine"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, d *Disk, name string) ioengine.File {
	t.Helper()
	f, err := d.Open(name, ioengine.Create)
	ok(t, err)
	return f
}

func write(t *testing.T, f ioengine.File, off int64, b byte, n int) {
	t.Helper()
	_, err := f.WriteAt(bytes.Repeat([]byte{b}, n), off)
	ok(t, err)
}

// content returns a file's bytes; nil when it has no name.
func contents(t *testing.T, d *Disk, name string) []byte {
	t.Helper()
	f, err := d.Open(name, ioengine.ReadOnly)
	if err != nil {
		return nil
	}
	size, err := f.Size()
	ok(t, err)
	p := make([]byte, size)
	_, err = f.ReadAt(p, 0)
	ok(t, err)
	return p
}

func seeded(seed int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 7)) }

func TestCrashKeepsTheSyncedAlone(t *testing.T) {
	d := New(1)
	f := create(t, d, "f")
	write(t, f, 0, 'a', 1024)
	ok(t, f.Sync())
	if got := contents(t, d.Crash(seeded(0), KeepNone), "f"); got != nil {
		t.Error("a name that was never synced survives")
	}
	ok(t, d.SyncDir("/"))
	write(t, f, 512, 'b', 1024)
	got := contents(t, d.Crash(seeded(0), KeepNone), "f")
	if !bytes.Equal(got, bytes.Repeat([]byte("a"), 1024)) {
		t.Errorf("after a crash the file has %d bytes: %.20q", len(got), got)
	}
	if now := contents(t, d, "f"); len(now) != 1536 || now[512] != 'b' {
		t.Error("the crash reached back into the disk it was taken from")
	}
}

// Every sector is old or new, in every mixture, and never a mixture of bytes.
func TestCrashTearsBySector(t *testing.T) {
	for _, keep := range []Keep{KeepSome, KeepTorn} {
		seen := map[string]bool{}
		for seed := range 200 {
			d := New(1)
			f := create(t, d, "f")
			write(t, f, 0, 'a', 2048)
			ok(t, f.Sync())
			ok(t, d.SyncDir("/"))
			write(t, f, 256, 'b', 1536)
			got := contents(t, d.Crash(seeded(seed), keep), "f")
			shape := ""
			for _, part := range [][]byte{got[:256], got[256:512], got[512:1024], got[1024:1536], got[1536:1792], got[1792:]} {
				if !bytes.Equal(part, bytes.Repeat(part[:1], len(part))) {
					t.Fatalf("a sector is torn inside: %q", part)
				}
				shape += string(part[:1])
			}
			seen[shape] = true
		}
		if len(seen) != 16 {
			t.Errorf("keep %d: %d of 16 mixtures of four sectors were seen", keep, len(seen))
		}
		for shape := range seen {
			if shape[0] != 'a' || shape[5] != 'a' {
				t.Errorf("keep %d: bytes outside the write changed: %s", keep, shape)
			}
		}
	}
}

func TestCrashTearsTheLastAlone(t *testing.T) {
	for seed := range 50 {
		d := New(1)
		f, g := create(t, d, "f"), create(t, d, "g")
		ok(t, d.SyncDir("/"))
		write(t, f, 0, 'a', 1024)
		write(t, g, 0, 'b', 1024)
		crashed := d.Crash(seeded(seed), KeepTorn)
		if got := contents(t, crashed, "f"); !bytes.Equal(got, bytes.Repeat([]byte("a"), 1024)) {
			t.Fatalf("seed %d: the change before the last is not whole", seed)
		}
	}
}

func TestRenameIsWholeOrAbsent(t *testing.T) {
	seen := map[string]int{}
	for seed := range 100 {
		d := New(1)
		for _, name := range []string{"old", "new"} {
			f := create(t, d, name)
			write(t, f, 0, name[0], 1)
			ok(t, f.Sync())
		}
		ok(t, d.SyncDir("/"))
		ok(t, d.Rename("old", "new"))
		c := d.Crash(seeded(seed), KeepSome)
		seen[string(contents(t, c, "old"))+"/"+string(contents(t, c, "new"))]++
	}
	if seen["o/n"] == 0 || seen["/o"] == 0 || len(seen) != 2 {
		t.Errorf("after a crash around a rename: %v", seen)
	}
}

func TestRemovedComesBackUntilSynced(t *testing.T) {
	d := New(1)
	create(t, d, "f")
	ok(t, d.SyncDir("/"))
	ok(t, d.Remove("f"))
	names := func(d *Disk) []string {
		l, err := d.List("/")
		ok(t, err)
		return l
	}
	if got := names(d.Crash(seeded(1), KeepNone)); !slices.Equal(got, []string{"f"}) {
		t.Errorf("a removal that was not synced is durable: %q", got)
	}
	ok(t, d.SyncDir("/"))
	if got := names(d.Crash(seeded(1), KeepNone)); len(got) != 0 {
		t.Errorf("a removal that was synced is undone: %q", got)
	}
}

func TestFailedSyncLosesWhatItWasFor(t *testing.T) {
	d := New(1)
	f := create(t, d, "f")
	ok(t, d.SyncDir("/"))
	write(t, f, 0, 'a', 512)
	d.Inject(Fault{Ops: OpSync, Err: syscall.EIO})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Sync: %v, want EIO", err)
	}
	write(t, f, 512, 'b', 512)
	ok(t, f.Sync())
	if got := contents(t, d, "f"); got[0] != 'a' {
		t.Error("the cache does not show what the failed sync lost")
	}
	if got := contents(t, d.Kill(), "f"); got[0] != 'a' {
		t.Error("nor to the next process")
	}
	if got := contents(t, d.Crash(seeded(1), KeepNone), "f"); got[0] != 0 || got[512] != 'b' {
		t.Errorf("after a crash: %q, %q; want a hole and b", got[0], got[512])
	}
}

func TestKillKeepsAllButSyncsNothing(t *testing.T) {
	d := New(1)
	f := create(t, d, "f")
	write(t, f, 0, 'a', 10)
	lock, err := d.Lock("lock")
	ok(t, err)
	defer lock.Close()
	k := d.Kill()
	if got := contents(t, k, "f"); len(got) != 10 {
		t.Error("a killed process loses what it wrote")
	}
	if l, err := k.Lock("lock"); err != nil || l.Close() != nil {
		t.Errorf("a killed process holds its lock: %v", err)
	}
	if got := contents(t, k.Crash(seeded(1), KeepNone), "f"); got != nil {
		t.Error("a kill made something durable")
	}
	write(t, f, 0, 'b', 10)
	if got := contents(t, k, "f"); got[0] != 'a' {
		t.Error("a killed process still writes")
	}
}

func TestFaults(t *testing.T) {
	d := New(1)
	f := create(t, d, "f")
	d.Inject(Fault{Ops: OpWrite, At: 2, Err: syscall.EIO, Short: true})
	write(t, f, 0, 'a', 2048)
	n, err := f.WriteAt(bytes.Repeat([]byte("b"), 2048), 0)
	if n != 1024 || !errors.Is(err, syscall.EIO) {
		t.Errorf("a short write: %d, %v", n, err)
	}
	if got := contents(t, d, "f"); got[1023] != 'b' || got[1024] != 'a' {
		t.Error("a short write left something else than its first half")
	}
	write(t, f, 0, 'c', 1)

	d.Inject(Fault{Ops: OpWrite, Lose: true})
	write(t, f, 0, 'd', 1)
	d.Inject(Fault{Ops: OpWrite, Shift: 512})
	write(t, f, 0, 'e', 1)
	if got := contents(t, d, "f"); got[0] != 'c' || got[512] != 'e' {
		t.Errorf("lost and misdirected writes gave %q, %q", got[0], got[512])
	}

	d.Inject(Fault{Ops: OpMutating, At: 1, Ever: true, Err: syscall.ENOSPC, Only: func(name string) bool { return name == "f" }})
	create(t, d, "g")
	for range 2 {
		if err := f.Truncate(0); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Truncate: %v, want ENOSPC", err)
		}
	}
	d.Heal()
	ok(t, f.Truncate(0))
	d.Inject(Fault{Ops: OpRead, Err: syscall.EIO})
	if _, err := f.Size(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Size: %v, want EIO", err)
	}
}

func TestLostSync(t *testing.T) {
	d := New(1)
	f := create(t, d, "f")
	ok(t, d.SyncDir("/"))
	write(t, f, 0, 'a', 1)
	d.Inject(Fault{Ops: OpSync, Lose: true})
	ok(t, f.Sync())
	if got := contents(t, d.Crash(seeded(1), KeepNone), "f"); len(got) != 0 {
		t.Error("a lost sync made its write durable")
	}
}

func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(1)
		f := create(t, d, "f")
		release := make(chan struct{})
		d.Inject(Fault{Ops: OpSync, Stall: release})
		done := make(chan error, 1)
		go func() { done <- f.Sync() }()
		synctest.Wait()
		select {
		case <-done:
			t.Error("Sync did not stall")
		default:
		}
		write(t, f, 0, 'a', 1) // others go on
		close(release)
		ok(t, <-done)
	})
}

func TestHookSeesEveryOperationOnce(t *testing.T) {
	d := New(1)
	var seen []Op
	d.OnOp(func(op Op, name string) {
		seen = append(seen, op)
		ok(t, d.Mkdir("inside")) // calls no hook
	})
	f := create(t, d, "f")
	write(t, f, 0, 'a', 1)
	ok(t, f.Sync())
	ok(t, f.Allocate(0, 10))
	ok(t, f.Zero(0, 1))
	ok(t, f.Truncate(5))
	ok(t, d.Rename("f", "g"))
	ok(t, d.SyncDir("/"))
	ok(t, d.Remove("g"))
	want := []Op{OpCreate, OpWrite, OpSync, OpAllocate, OpZero, OpTruncate, OpRename, OpSyncDir, OpRemove}
	if !slices.Equal(seen, want) {
		t.Errorf("hook saw %v, want %v", seen, want)
	}
	if d.Ops() != 2*len(want) {
		t.Errorf("Ops = %d", d.Ops())
	}
}

// TestHookThatWasTakenAwayHasEnded takes a hook away while it runs on another goroutine.
func TestHookThatWasTakenAwayHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(1)
		goOn, away := make(chan struct{}), make(chan struct{})
		calls := 0
		d.OnOp(func(Op, string) {
			<-goOn
			calls++
		})
		go func() { _ = d.Mkdir("a") }()
		synctest.Wait()
		go func() {
			d.OnOp(nil)
			close(away)
		}()
		synctest.Wait()
		select {
		case <-away:
			t.Error("the hook is taken away and still runs")
		default:
		}
		close(goOn)
		<-away
		ok(t, d.Mkdir("b"))
		if calls != 1 {
			t.Errorf("the hook was called %d times", calls)
		}
	})
}

func TestDirectWantsAlignment(t *testing.T) {
	d := New(512)
	f, err := d.Open("f", ioengine.Create|ioengine.Direct)
	ok(t, err)
	if f.Align() != 512 {
		t.Fatalf("Align = %d", f.Align())
	}
	p := make([]byte, 2048)
	if _, err := f.WriteAt(p[:513], 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("an odd length: %v, want EINVAL", err)
	}
	if _, err := f.ReadAt(p[:512], 1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("an odd place: %v, want EINVAL", err)
	}
}

func TestRot(t *testing.T) {
	d := New(1)
	f := create(t, d, "f")
	write(t, f, 0, 'a', 100)
	ok(t, f.Sync())
	ok(t, d.SyncDir("/"))
	ok(t, d.Rot("f", 10, 2))
	got := contents(t, d.Crash(seeded(1), KeepNone), "f")
	if got[9] != 'a' || got[10] == 'a' || got[11] == 'a' || got[12] != 'a' {
		t.Errorf("after rot: %q", got[8:14])
	}
	if err := d.Rot("f", 99, 2); err == nil {
		t.Error("rot past the end succeeds")
	}
}

func TestSameSeedSameCrash(t *testing.T) {
	build := func() *Disk {
		d := New(1)
		ok(t, d.Mkdir("d"))
		for _, name := range []string{"d/a", "d/b", "c"} {
			f := create(t, d, name)
			write(t, f, 0, name[0], 5000)
		}
		ok(t, d.Rename("c", "d/e"))
		return d
	}
	for seed := range 20 {
		x, y := build().Crash(seeded(seed), KeepSome), build().Crash(seeded(seed), KeepSome)
		for _, name := range []string{"d/a", "d/b", "c", "d/e"} {
			if !bytes.Equal(contents(t, x, name), contents(t, y, name)) {
				t.Fatalf("seed %d gives two disks", seed)
			}
		}
	}
}
