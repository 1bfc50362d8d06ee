package spill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// sealedBuffer is a record that is told by its seq.
type sealedBuffer struct {
	p        []byte
	released int
}

func (b *sealedBuffer) Bytes() []byte {
	if b.released > 0 {
		panic("a record is read after its release")
	}
	return b.p
}
func (b *sealedBuffer) Held() int64 { return int64(cap(b.p)) }
func (b *sealedBuffer) Release() {
	if b.released++; b.released > 1 {
		panic("a record was released twice")
	}
}

// sealedOf is the record of seq, of n bytes.
func sealedOf(seq record.Seq, n int) []byte {
	p := make([]byte, n, n+8)
	faultdisk.Noise(p, uint64(seq)<<32|uint64(n))
	return p
}

// allotment is some bytes of a disk.
type allotment struct {
	sync.Mutex
	left int64
}

func (a *allotment) Room() int64 {
	a.Lock()
	defer a.Unlock()
	return a.left
}
func (a *allotment) Take(n int64) bool {
	a.Lock()
	defer a.Unlock()
	if a.left < n {
		return false
	}
	a.left -= n
	return true
}
func (a *allotment) Give(n int64) {
	a.Lock()
	defer a.Unlock()
	a.left += n
}

// rig is a window with a disk, and what was put into it.
type rig struct {
	*Window
	disk  *Disk
	allot *allotment
	sizes map[record.Seq]int

	makes sync.Mutex
	made  []*sealedBuffer
}

const rigStream = 0xa2

// newRig makes a window of limit bytes whose files are on fs and may take so many segments.
func newRig(fs ioengine.FS, limit int64, segments int64) *rig {
	return newRigIn(fs, "/spill", limit, segments)
}

func newRigIn(fs ioengine.FS, dir string, limit int64, segments int64) *rig {
	r := &rig{Window: New(limit, 1), disk: NewDisk(fs, dir, 99), allot: &allotment{left: segments * SegmentBytes}, sizes: map[record.Seq]int{}}
	r.Spill(r.disk, r.allot, rigStream, func(sealed []byte) Buffer { return r.buffer(bytes.Clone(sealed)) })
	return r
}

func (r *rig) buffer(p []byte) *sealedBuffer {
	b := &sealedBuffer{p: p}
	r.makes.Lock()
	defer r.makes.Unlock()
	r.made = append(r.made, b)
	return b
}

// put puts the next record, of n bytes.
func (r *rig) put(n int) {
	seq := r.Next()
	r.sizes[seq] = n
	r.Put(&Record{Seq: seq, Through: record.Ticket(seq * 10), Oldest: int64(seq), Raw: 7, Buffer: r.buffer(sealedOf(seq, n))})
}

// lent says what is wrong with a record that was lent.
func (r *rig) lent(l *Record) error {
	if want := sealedOf(l.Seq, r.sizes[l.Seq]); !bytes.Equal(l.Bytes(), want) {
		return fmt.Errorf("seq %d is lent as %d bytes that were not put", l.Seq, len(l.Bytes()))
	}
	return nil
}

// drain lends and acknowledges all that stands there, in order.
func (r *rig) drain(ctx context.Context, from record.Seq) error {
	for seq := from; seq < r.Next(); seq++ {
		l, err := r.Lend(ctx, seq)
		if err != nil {
			return err
		}
		err = r.lent(l)
		if l.Seq != seq {
			err = errors.Join(err, fmt.Errorf("seq %d is lent as %d", seq, l.Seq))
		}
		l.Return()
		if _, e := r.Ack(seq); err != nil || e != nil {
			return errors.Join(err, e)
		}
	}
	return nil
}

// allReleased says what is wrong with the memory of all records once the window is empty.
func (r *rig) allReleased() error {
	r.makes.Lock()
	defer r.makes.Unlock()
	for i, b := range r.made {
		if b.released != 1 {
			return fmt.Errorf("buffer %d was released %d times", i, b.released)
		}
	}
	return nil
}

// moves are the two goroutines of a window, a step at a time.
type moves struct {
	evict, fetch func() // what is under way
	run          []*Record
}

// TestSpillModel holds memory and disk together to a list of records: whatever moves while something is put, lent,
// acknowledged or dropped, each is lent as it was put, and all memory goes back once.
func TestSpillModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := faultdisk.New(512)
		r := newRig(disk, 16<<10, rapid.Int64Range(1, 3).Draw(t, "segments"))
		if err := r.disk.Open(); err != nil {
			t.Fatal(err)
		}
		first, next := record.Seq(1), record.Seq(1)
		var lent []*Record
		var under moves
		broke := errors.New("broken")
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				for range rapid.IntRange(1, 8).Draw(t, "records") {
					r.put(rapid.IntRange(1, 5000).Draw(t, "bytes"))
					next++
				}
			},
			"evict": func(t *rapid.T) {
				if under.evict != nil {
					under.evict()
					under = moves{fetch: under.fetch}
					return
				}
				run, life := r.runToEvict()
				under.run = run
				if len(run) == 0 {
					r.sweep(false)
					return
				}
				fails := rapid.IntRange(0, 9).Draw(t, "fails") == 0
				var places []place
				err := broke
				if !fails {
					if places, err = r.spiller.files.write(life, run); err != nil {
						t.Fatal(err)
					}
				}
				under.evict = func() {
					r.evicted(life, run, places, err)
					r.mu.disk.rests = time.Time{}
				}
			},
			"fetch": func(t *rapid.T) {
				if under.fetch != nil {
					under.fetch()
					under.fetch = nil
					return
				}
				run, places, life := r.runToFetch()
				if len(run) == 0 {
					return
				}
				buffers := make([]Buffer, len(run))
				err := r.spiller.files.read(life, run, places, func(i int, sealed []byte) { buffers[i] = r.spiller.make(sealed) })
				if err != nil {
					t.Fatal(err)
				}
				under.fetch = func() { r.fetched(life, run, buffers, nil) }
			},
			"lend": func(t *rapid.T) {
				if first == next {
					return
				}
				seq := first + record.Seq(rapid.Uint64Range(0, uint64(next-first-1)).Draw(t, "seq"))
				if n := len(under.run); n > 0 && rapid.Bool().Draw(t, "one that goes") {
					seq = max(first, under.run[rapid.IntRange(0, n-1).Draw(t, "which")].Seq)
				}
				l := r.TryLend(seq)
				if l == nil {
					r.mu.Lock()
					r.wantLocked(seq)
					r.mu.Unlock()
					return
				}
				if l.Seq != seq {
					t.Fatalf("lent %d for %d", l.Seq, seq)
				}
				lent = append(lent, l)
			},
			"less memory": func(*rapid.T) { r.limit = max(2<<10, r.limit/2) },
			"more":        func(*rapid.T) { r.limit = 16 << 10 },
			"return": func(t *rapid.T) {
				if len(lent) > 0 {
					lent[0].Return()
					lent = lent[1:]
				}
			},
			"ack": func(t *rapid.T) {
				seq := first + record.Seq(rapid.Uint64Range(0, 6).Draw(t, "seq")) - 1
				if seq < next {
					if _, err := r.Ack(seq); err != nil {
						t.Fatal(err)
					}
					first = max(first, seq+1)
				}
			},
			"reset": func(t *rapid.T) {
				next += record.Seq(rapid.Uint64Range(0, 9).Draw(t, "next"))
				first = next
				r.Reset(next)
			},
			"": func(t *rapid.T) {
				for _, l := range lent {
					if err := r.lent(l); err != nil {
						t.Fatal(err)
					}
				}
				var memory, sealed int64
				onDisk := 0
				for _, rec := range r.mu.records {
					if rec.Buffer == nil {
						onDisk++
						memory += knownBytes
						sealed += int64(r.sizes[rec.Seq])
					} else {
						memory += rec.Buffer.Held()
					}
				}
				s, d := r.Stats(), r.SpillStats()
				if s.Records != int(next-first) || s.Bytes != memory || s.OnDisk != sealed || d.Records != onDisk || d.Bytes != sealed || d.Lost != nil {
					t.Fatalf("stats %+v, %+v; want %d records, %d bytes, %d on disk of %d", s, d, next-first, memory, onDisk, sealed)
				}
			},
		})
		for _, do := range []func(){under.evict, under.fetch} {
			if do != nil {
				do()
			}
		}
		for _, l := range lent {
			l.Return()
		}
		r.Reset(next)
		r.sweep(false)
		if err := r.allReleased(); err != nil {
			t.Fatal(err)
		}
		if names, err := disk.List("/spill"); err != nil || !slices.Equal(names, []string{lockName}) || r.SpillStats().Disk != 0 {
			t.Fatalf("%v stay, %d bytes of disk: %v", names, r.SpillStats().Disk, err)
		}
	})
}

// spillingLimit is the memory of a window of spilling, in bytes.
const spillingLimit = 2 << 20

// spilling runs a window over disk in a bubble, with what is done in it.
func spilling(t *testing.T, fs ioengine.FS, segments int64, do func(ctx context.Context, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(fs, spillingLimit, segments)
		if err := r.disk.Open(); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		do(ctx, r)
		stop()
		wg.Wait()
		r.Reset(1)
		if err := errors.Join(r.allReleased(), r.disk.Close()); err != nil {
			t.Error(err)
		}
		if r.allot.left != segments*SegmentBytes {
			t.Errorf("%d bytes of disk are taken for ever", segments*SegmentBytes-r.allot.left)
		}
	})
}

// fill puts n records of 8 KiB, as fast as they find room.
func (r *rig) fill(ctx context.Context, n int) error {
	for range n {
		if err := r.Room(ctx); err != nil {
			return err
		}
		r.put(8 << 10)
		synctest.Wait()
	}
	return nil
}

// TestSpillAndBack: far more than memory holds stands on disk, comes back in order, and leaves nothing there.
func TestSpillAndBack(t *testing.T) {
	for _, align := range []int{1, 4096} {
		disk := faultdisk.New(align)
		spilling(t, disk, 100, func(ctx context.Context, r *rig) {
			if err := r.fill(ctx, 5000); err != nil { // 40 MiB: two files
				t.Fatal(err)
			}
			s, d := r.Stats(), r.SpillStats()
			if s.Bytes > spillingLimit || d.Bytes < 38<<20 || d.Disk < d.Bytes || d.Disk > d.Bytes+2*SegmentBytes || s.Oldest != 1 || d.Trouble != nil || !r.Spills(spillingLimit) {
				t.Errorf("%+v, %+v", s, d)
			}
			if d.Fetched > 0 {
				t.Errorf("%d bytes came back while nothing was sent", d.Fetched)
			}
			if err := r.drain(ctx, 1); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if d := r.SpillStats(); d.Records != 0 || d.Bytes != 0 || d.Disk != 0 {
				t.Errorf("%+v once all is acknowledged", d)
			}
		})
	}
}

// TestSpillOnARealDisk: the same through this machine's file system, past its cache where that can be.
func TestSpillOnARealDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spill")
	r := newRigIn(ioengine.OS(), dir, spillingLimit, 100)
	if err := r.disk.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	for range 5000 { // 40 MiB: two files
		if err := r.Room(ctx); err != nil {
			t.Fatal(err)
		}
		r.put(8 << 10)
	}
	if d := r.SpillStats(); d.Written < 37<<20 || d.Failures != 0 {
		t.Errorf("%+v", d)
	}
	if err := r.drain(ctx, 1); err != nil {
		t.Error(err)
	}
	stop()
	<-ended
	r.Reset(1)
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v stay: %v", names, err)
	}
	if err := errors.Join(r.allReleased(), r.disk.Close()); err != nil {
		t.Error(err)
	}
}

// TestSpillKnown: what a window knows of records on disk counts as memory. Half of it may be that, whatever room the disk
// has; what stands there comes back all the same.
func TestSpillKnown(t *testing.T) {
	spilling(t, faultdisk.New(512), 100, func(ctx context.Context, r *rig) {
		held := make(holdings, 1)
		r.Join(held)
		holds := func() (bytes, told int64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.heldLocked(), held[0]
		}
		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		for n := 0; ; n++ {
			if err := r.Room(short); err != nil {
				break
			}
			if r.put(500); n%16 == 0 {
				synctest.Wait()
			}
			if bytes, told := holds(); bytes > spillingLimit+512 || told != bytes {
				t.Fatalf("%d bytes of memory are held, of %d; %d are told of", bytes, spillingLimit, told)
			}
		}
		synctest.Wait()
		d := r.SpillStats()
		if known := int64(d.Records) * knownBytes; known < spillingLimit*3/8 || known > spillingLimit*5/8 || d.Full || d.Trouble != nil {
			t.Errorf("%+v: %d bytes of %d are known of them", d, known, spillingLimit)
		}
		if r.Spills(spillingLimit/4) || !r.Spills(spillingLimit) {
			t.Error("it can give up memory that is not records")
		}
		if err := r.drain(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if bytes, told := holds(); bytes != 0 || told != 0 {
			t.Errorf("%d bytes are held of nothing, %d are told of", bytes, told)
		}
	})
}

// holdings is a share that has room, and what it was told last.
type holdings []int64

func (h holdings) Holds(bytes int64)           { h[0] = bytes }
func (h holdings) Await(context.Context) error { return nil }
func (h holdings) Room() int64                 { return spillingLimit }

// TestSpillBesideSender: a sender that goes on beside writers finds each record in order, and the disk is left when it has caught up.
func TestSpillBesideSender(t *testing.T) {
	spilling(t, faultdisk.New(512), 100, func(ctx context.Context, r *rig) {
		if err := r.fill(ctx, 1000); err != nil {
			t.Fatal(err)
		}
		seq := record.Seq(1)
		for range 2000 {
			if err := r.fill(ctx, 1); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				l, err := r.Lend(ctx, seq)
				if err == nil {
					err = r.lent(l)
				}
				if err != nil || l.Seq != seq {
					t.Fatalf("%d: %v", seq, err)
				}
				l.Return()
				if _, err := r.Ack(seq); err != nil {
					t.Fatal(err)
				}
				if seq++; seq == r.Next() {
					break
				}
			}
		}
		synctest.Wait()
		if d := r.SpillStats(); d.Records != 0 || d.Disk != 0 {
			t.Errorf("%+v when the sender has caught up", d)
		}
	})
}

// TestSpillFull: a disk that has no more room holds the feeder up and nobody else, and room made is used.
func TestSpillFull(t *testing.T) {
	for name, f := range map[string]func(disk *faultdisk.Disk) (segments int64, heal func()){
		"its part is taken": func(*faultdisk.Disk) (int64, func()) { return 1, nil },
		"no free space": func(disk *faultdisk.Disk) (int64, func()) {
			disk.SetFree(LeftFree + SegmentBytes - 1)
			return 100, func() { disk.SetFree(1 << 40) }
		},
		"ENOSPC": func(disk *faultdisk.Disk) (int64, func()) {
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAllocate, Ever: true, Err: syscall.ENOSPC})
			return 100, disk.Heal
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := faultdisk.New(512)
			segments, heal := f(disk)
			spilling(t, disk, segments, func(ctx context.Context, r *rig) {
				short, stop := context.WithTimeout(ctx, 55*time.Second)
				defer stop()
				if err := r.fill(short, 10_000); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("a full disk took it all: %v", err)
				}
				s, d := r.Stats(), r.SpillStats()
				if s.Bytes < spillingLimit || r.Spills(spillingLimit) || !d.Full && d.Trouble == nil || heal != nil && d.Disk != 0 || (d.Failures > 0) != (name == "ENOSPC") {
					t.Errorf("%+v, %+v", s, d)
				}
				if heal != nil {
					heal()
					if err := r.fill(ctx, 1000); err != nil || r.SpillStats().Bytes < 7<<20 {
						t.Errorf("%+v after there is room: %v", r.SpillStats(), err)
					}
				}
				if err := r.drain(ctx, 1); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// refuser is a part of a disk that others take just before this one.
type refuser struct{ allotment }

func (*refuser) Take(int64) bool { return false }

// TestSpillNotYet: a folder that was not looked at yet, and a part that others took, are trouble and no failures.
func TestSpillNotYet(t *testing.T) {
	for want, prepare := range map[error]func(*rig) error{
		errNotReady: func(*rig) error { return nil },
		errAllot: func(r *rig) error {
			r.spiller.files.allot = &refuser{allotment{left: 10 * SegmentBytes}}
			return r.disk.Open()
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(faultdisk.New(512), 1<<20, 10)
			if err := prepare(r); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
			defer stop()
			var wg sync.WaitGroup
			wg.Go(func() { r.Run(ctx) })
			if err := r.fill(ctx, 1000); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v: it was filled: %v", want, err)
			}
			if d := r.SpillStats(); !errors.Is(d.Trouble, want) || d.Failures != 0 {
				t.Errorf("%+v, want %v", d, want)
			}
			wg.Wait()
			r.Reset(1)
			if err := errors.Join(r.allReleased(), r.disk.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSpillTidied: files that somebody removed are gone, as they were to be: what stood in them comes back, and their part of
// the disk is given back.
func TestSpillTidied(t *testing.T) {
	disk := faultdisk.New(512)
	spilling(t, disk, 100, func(ctx context.Context, r *rig) {
		if err := r.fill(ctx, 1000); err != nil {
			t.Fatal(err)
		}
		names := spillFiles(t, disk)
		for _, name := range names {
			if err := disk.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.drain(ctx, 1); err != nil || len(names) == 0 {
			t.Fatalf("%d files: %v", len(names), err)
		}
		synctest.Wait()
		if d := r.SpillStats(); d.Failures != 0 || d.Trouble != nil || d.Disk != 0 {
			t.Errorf("%+v", d)
		}
	})
}

// TestSpillDamage: what does not come back as it was put is never lent, and that is said; after a Reset all is well.
func TestSpillDamage(t *testing.T) {
	for name, f := range map[string]func(disk *faultdisk.Disk, files []string) error{
		"a bit": func(disk *faultdisk.Disk, files []string) error { return disk.Rot(files[0], 5000, 1) },
		"a whole file": func(disk *faultdisk.Disk, files []string) error {
			return disk.Rot(files[0], 0, 1<<20)
		},
		"EIO": func(disk *faultdisk.Disk, _ []string) error {
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := faultdisk.New(512)
			spilling(t, disk, 100, func(ctx context.Context, r *rig) {
				damaged(ctx, t, r, func() error { return f(disk, spillFiles(t, disk)) })
			})
		})
	}
	for name, f := range map[string]faultdisk.Fault{
		"a write that left nothing": {Ops: faultdisk.OpWrite, At: 2, Lose: true},
		"a write elsewhere":         {Ops: faultdisk.OpWrite, At: 2, Shift: 4096},
	} {
		t.Run(name, func(t *testing.T) {
			disk := faultdisk.New(512)
			disk.Inject(f)
			spilling(t, disk, 100, func(ctx context.Context, r *rig) { damaged(ctx, t, r, func() error { return nil }) })
		})
	}
}

// damaged fills r, has something happen, and sees that what is lost is never lent.
func damaged(ctx context.Context, t *testing.T, r *rig, hurt func() error) {
	t.Helper()
	if err := r.fill(ctx, 1000); err != nil {
		t.Fatal(err)
	}
	if err := hurt(); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if err := r.drain(short, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("what is lost was lent: %v", err)
	}
	d := r.SpillStats()
	if d.Lost == nil || r.Spills(spillingLimit) || d.Failures != 1 {
		t.Fatalf("%+v", d)
	}
	r.Reset(5000)
	if d := r.SpillStats(); d.Lost != nil || d.Records != 0 {
		t.Fatalf("%+v after a reset", d)
	}
	if err := r.fill(ctx, 1000); err != nil {
		t.Fatal(err)
	}
	if err := r.drain(ctx, 5000); err != nil {
		t.Error(err)
	}
}

// spillFiles are the files of all windows on a disk.
func spillFiles(t *testing.T, fs ioengine.FS) (names []string) {
	t.Helper()
	all, err := fs.List("/spill")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if strings.HasSuffix(name, suffix) {
			names = append(names, "/spill/"+name)
		}
	}
	return names
}

// TestSpillHangs: a disk that does not answer keeps nobody from putting, lending and acknowledging what is in memory; what
// is on it counts as lost once somebody waits for it.
func TestSpillHangs(t *testing.T) {
	t.Run("write", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk, stall := faultdisk.New(512), make(chan struct{})
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite, Stall: stall})
			r := newRig(disk, 1<<20, 100)
			if err := r.disk.Open(); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() { defer close(ended); r.Run(ctx) }()
			short, end := context.WithTimeout(ctx, time.Minute)
			defer end()
			if err := r.fill(short, 1000); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("it has taken %+v: %v", r.Stats(), err)
			}
			if d := r.SpillStats(); !errors.Is(d.Trouble, errHangs) || d.Lost != nil || r.Spills(spillingLimit) {
				t.Errorf("%+v", d)
			}
			if err := r.drain(ctx, 1); err != nil {
				t.Error(err)
			}
			close(stall)
			if err := r.fill(ctx, 1000); err != nil || r.SpillStats().Bytes == 0 {
				t.Errorf("%+v once it answers: %v", r.SpillStats(), err)
			}
			stop()
			<-ended
		})
	})
	t.Run("read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			disk, stall := faultdisk.New(512), make(chan struct{})
			r := newRig(disk, 1<<20, 100)
			if err := r.disk.Open(); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() { defer close(ended); r.Run(ctx) }()
			if err := r.fill(ctx, 1000); err != nil {
				t.Fatal(err)
			}
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Stall: stall, Only: func(name string) bool { return strings.HasSuffix(name, suffix) }})
			short, end := context.WithTimeout(ctx, time.Minute)
			defer end()
			go func() { _ = r.drain(short, 1) }()
			time.Sleep(30 * time.Second)
			if d := r.SpillStats(); !errors.Is(d.Lost, errHangs) {
				t.Errorf("%+v", d)
			}
			r.Reset(5000)
			// Nothing goes to a disk that does not give back.
			short, end = context.WithTimeout(ctx, 10*time.Second)
			defer end()
			if err := r.fill(short, 1000); !errors.Is(err, context.DeadlineExceeded) || r.SpillStats().Bytes != 0 || r.SpillStats().Lost != nil {
				t.Errorf("%+v: %v", r.SpillStats(), err)
			}
			close(stall)
			if err := r.fill(ctx, 1000); err != nil || r.SpillStats().Bytes == 0 {
				t.Errorf("%+v once it answers: %v", r.SpillStats(), err)
			}
			if err := r.drain(ctx, 5000); err != nil {
				t.Error(err)
			}
			stop()
			<-ended
		})
	})
}

// TestSpillErrors fails each operation of the disk, once at each place: all comes back, or it is said that it does not.
func TestSpillErrors(t *testing.T) {
	var once faultdisk.OncePerSite
	last := record.Seq(3001)
	if testing.Short() {
		last = 1001
	}
	n := once.Each(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO}, func(f faultdisk.Fault) {
		synctest.Test(t, func(t *testing.T) {
			disk := faultdisk.New(512)
			if err := errors.Join(disk.Mkdir("/spill"), leave(disk)); err != nil {
				t.Fatal(err)
			}
			disk.Inject(f)
			r := newRig(disk, 1<<20, 100)
			if err := r.disk.Open(); err != nil { // as a source does: until it works
				if !errors.Is(err, syscall.EIO) || r.Spills(spillingLimit) {
					t.Errorf("%v", err)
				}
				if err := r.disk.Open(); err != nil {
					t.Fatal(err)
				}
			}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() { defer close(ended); r.Run(ctx) }()
			for next := record.Seq(1); next <= last; next += 1000 {
				r.Reset(next)
				if err := r.fill(ctx, 700); err != nil { // which waits while the disk rests
					t.Fatal(err)
				}
				short, end := context.WithTimeout(ctx, time.Minute)
				err := r.drain(short, next)
				end()
				if d := r.SpillStats(); err != nil && (d.Lost == nil || !errors.Is(err, context.DeadlineExceeded)) {
					t.Fatalf("%+v: %v", d, err)
				}
				time.Sleep(time.Minute)
			}
			stop()
			<-ended
			r.Reset(1)
			if err := errors.Join(r.allReleased(), r.disk.Close()); err != nil {
				t.Error(err)
			}
		})
	})
	if n < 9 {
		t.Errorf("the disk was used in %d places", n)
	}
}

// leave leaves a file behind that an earlier process wrote, and one of somebody else.
func leave(fs ioengine.FS) error {
	for _, name := range []string{"/spill/00000000000000a2-00000001" + suffix, "/spill/notes"} {
		f, err := fs.Open(name, ioengine.Create)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(entryOf(entry{stream: rigStream, seq: 1, owner: 98, life: 0}, []byte("old")), 0)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// TestSpillCrashes crashes the machine, and kills the process, at each operation: what is left is taken away by the
// next start, which begins empty, and nothing of somebody else's goes.
func TestSpillCrashes(t *testing.T) {
	disk := faultdisk.New(512)
	if err := errors.Join(disk.Mkdir("/spill"), leave(disk)); err != nil {
		t.Fatal(err)
	}
	rng, tried := rand.New(rand.NewPCG(1, 2)), 0
	var mu sync.Mutex
	disk.OnOp(func(op faultdisk.Op, name string) {
		mu.Lock()
		defer mu.Unlock()
		tried++
		for _, after := range []*faultdisk.Disk{disk.Kill(), disk.Crash(rng, faultdisk.KeepSome), disk.Crash(rng, faultdisk.KeepNone)} {
			d := NewDisk(after, "/spill", 100)
			if err := d.Open(); err != nil {
				t.Fatalf("operation %d, %v of %s: %v", tried, op, name, err)
			}
			if names := spillFiles(t, after); len(names) > 0 {
				t.Fatalf("operation %d, %v of %s: %v are left", tried, op, name, names)
			}
			if _, err := after.Open("/spill/notes", ioengine.ReadOnly); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	})
	spilling(t, disk, 100, func(ctx context.Context, r *rig) {
		if err := r.fill(ctx, 600); err != nil {
			t.Fatal(err)
		}
		if err := r.drain(ctx, 1); err != nil {
			t.Fatal(err)
		}
	})
	disk.OnOp(nil)
	if _, err := disk.Open("/spill/notes", ioengine.ReadOnly); err != nil || tried < 5 {
		t.Errorf("%d operations were tried; what is somebody else's: %v", tried, err)
	}
}

// TestOldEntriesAreNoRecords: what an earlier process, or an earlier life, has written at the very place does not come back.
func TestOldEntriesAreNoRecords(t *testing.T) {
	for name, old := range map[string]entry{
		"another process": {stream: rigStream, owner: 98, life: 1},
		"an earlier life": {stream: rigStream, owner: 99, life: 7},
		"another stream":  {stream: rigStream + 1, owner: 99, life: 1},
	} {
		t.Run(name, func(t *testing.T) {
			disk := faultdisk.New(512)
			spilling(t, disk, 100, func(ctx context.Context, r *rig) {
				damaged(ctx, t, r, func() error {
					f, err := disk.Open(spillFiles(t, disk)[0], 0)
					if err != nil {
						return err
					}
					sealed := sealedOf(66, 8<<10)
					for seq := record.Seq(60); seq < 80; seq++ { // whichever stands first
						e := old
						e.seq = seq
						if _, err := f.WriteAt(entryOf(e, sealed), int64(seq-60)*int64(space(len(sealed)))); err != nil {
							return err
						}
					}
					return f.Close()
				})
			})
		})
	}
}

// TestTwoProcesses: a folder is one process's.
func TestTwoProcesses(t *testing.T) {
	disk := faultdisk.New(512)
	one, two := NewDisk(disk, "/spill", 1), NewDisk(disk, "/spill", 2)
	if err := errors.Join(two.Close(), one.Open()); err != nil {
		t.Fatal(err)
	}
	if err := two.Open(); !errors.Is(err, ioengine.ErrLocked) {
		t.Fatalf("two have it: %v", err)
	}
	if err := errors.Join(one.Close(), two.Open(), two.Close()); err != nil {
		t.Fatal(err)
	}
}
