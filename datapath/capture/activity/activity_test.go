package activity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity/regions"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

func TestMain(m *testing.M) { os.Exit(faultdisk.RecordSites().AfterTests(m.Run())) }

const (
	someRegions = 10
	diskBytes   = someRegions*RegionBytes - 3*BlockBytes - 512
	idleTicks   = 2
)

var thisID = Identity{Boot: [16]byte{1, 2, 3}, Group: 0xa1a2, Volume: 3, Bytes: diskBytes}

// world is a disk with a log, and a target that is sent what is marked. Block b of the disk holds a count of
// writes in its first sector.
type world struct {
	t    testing.TB
	rng  *rand.Rand // of run
	luck *rand.Rand // of crashes
	disk *faultdisk.Disk
	file ioengine.File
	log  *Log

	mu      sync.Mutex // the volume's
	flying  map[int64]bool
	marked  map[int64]bool
	target  map[int64]uint64
	content map[int64]uint64
	state   regions.State

	crashing sync.Mutex
	crashes  int
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 0)), luck: rand.New(rand.NewPCG(seed, 1)), disk: faultdisk.New(512)}
	file, err := w.disk.Open("/disk", ioengine.Create)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Truncate(diskBytes), file.Sync(), w.disk.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	w.file = file
	w.flying, w.marked, w.target, w.content = map[int64]bool{}, map[int64]bool{}, map[int64]uint64{}, map[int64]uint64{}
	return w
}

func (w *world) config(id Identity) Config {
	return Config{
		FS: w.disk, Path: "/disk.log", ID: id, Idle: idleTicks, Lock: &w.mu, Log: slog.New(slog.DiscardHandler),
		Flush: w.file.Sync,
		Marks: func(into []uint64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for b := range w.marked {
				into[b/64] |= 1 << (b % 64)
			}
		},
		Busy: func(off, end int64) bool {
			for b := range w.flying {
				if b*BlockBytes >= off && b*BlockBytes < end {
					return true
				}
			}
			return false
		},
		Tell: func(s regions.State) { w.state = s },
	}
}

// open opens the log as the filter of a boot does, and holds what it tells against the truth.
func (w *world) open(id Identity) {
	found := Read(w.disk, "/disk.log", id)
	err := found.Tells(id.Boot, 0)
	if err == nil {
		w.mu.Lock()
		for b := range told(found) {
			w.marked[b] = true
		}
		w.mu.Unlock()
	}
	w.log = Open(w.config(id), found, err == nil)
}

func told(f *Found) map[int64]bool {
	words := make([]uint64, f.Words())
	f.Add(words, f.blocks())
	m := map[int64]bool{}
	for i, word := range words {
		for b := range 64 {
			if word>>b&1 == 1 {
				m[int64(i)*64+int64(b)] = true
			}
		}
	}
	return m
}

// begin begins a write of block b, as a volume does; end ends it.
func (w *world) begin(b int64) {
	w.mu.Lock()
	if c := w.log.EnterLocked(b*BlockBytes, b*BlockBytes+512); c != nil {
		w.mu.Unlock()
		w.log.Wait(c)
		w.mu.Lock()
	}
	w.flying[b], w.marked[b] = true, true
	w.content[b]++
	var p [512]byte
	binary.LittleEndian.PutUint64(p[:], w.content[b])
	w.mu.Unlock()
	if _, err := w.file.WriteAt(p[:], b*BlockBytes); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) end(b int64) {
	w.mu.Lock()
	delete(w.flying, b)
	w.mu.Unlock()
}

// arrive has what is marked, and not in flight, be at the target now: its marks go.
func (w *world) arrive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for b := range w.marked {
		if !w.flying[b] {
			w.target[b] = w.content[b]
			delete(w.marked, b)
		}
	}
}

// tick lets the idle time pass.
func (w *world) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range idleTicks + 1 {
		w.log.TickLocked()
	}
}

// run does some work, the same for every call of a world with that seed.
func (w *world) run(steps int) {
	blocks := []int64{0, 1, 5000, 5001, 9000, 20_000, 24_000, 30_000, (diskBytes - 1) / BlockBytes}
	var under []int64
	for range steps {
		switch w.rng.IntN(8) {
		case 0, 1, 2:
			b := blocks[w.rng.IntN(len(blocks))]
			w.mu.Lock()
			flies := w.flying[b]
			w.mu.Unlock()
			if !flies {
				w.begin(b)
				under = append(under, b)
			}
		case 3, 4:
			for _, b := range under {
				w.end(b)
			}
			under = under[:0]
		case 5:
			w.arrive()
		case 6:
			w.tick()
		case 7:
			w.log.Keep()
		}
	}
	for _, b := range under {
		w.end(b)
	}
}

// check crashes the host now, and holds what the next boot is told against what differs.
func (w *world) check(keep faultdisk.Keep) {
	w.mu.Lock()
	logged, target := w.state == regions.On, map[int64]uint64{}
	for b, n := range w.target {
		target[b] = n
	}
	after := w.disk.Crash(w.luck, keep)
	w.mu.Unlock()
	w.crashes++
	if !logged {
		return
	}
	id := thisID
	id.Boot[0] = 99
	found := Read(after, "/disk.log", id)
	if err := found.Tells(id.Boot, 0); err != nil {
		w.t.Errorf("crash %d: nothing is told: %v", w.crashes, err)
		return
	}
	may := told(found)
	file, err := after.Open("/disk", ioengine.ReadOnly)
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close()
	for b := range w.everWritten() {
		var p [8]byte
		if _, err := file.ReadAt(p[:], b*BlockBytes); err != nil {
			w.t.Fatal(err)
		}
		if n := binary.LittleEndian.Uint64(p[:]); n != target[b] && !may[b] {
			w.t.Errorf("crash %d: block %d holds write %d, the target %d, and nothing says that they may differ", w.crashes, b, n, target[b])
		}
	}
}

func (w *world) everWritten() map[int64]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := map[int64]bool{}
	for b := range w.content {
		m[b] = true
	}
	return m
}

// TestCrashAnywhere crashes the host at every operation on the store, of log and disk.
func TestCrashAnywhere(t *testing.T) {
	crashes := 0
	for seed := range uint64(10) {
		w := newWorld(t, seed)
		w.open(thisID)
		if w.state != regions.On {
			t.Fatal("no log")
		}
		w.disk.OnOp(func(faultdisk.Op, string) {
			w.crashing.Lock()
			defer w.crashing.Unlock()
			w.check([]faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}[w.crashes%3])
		})
		w.run(120)
		w.log.Close(func() uint64 { return 0 })
		w.disk.OnOp(nil)
		w.check(faultdisk.KeepSome)
		crashes += w.crashes
	}
	t.Logf("%d crashes", crashes)
}

// TestBootAfterBoot crashes again and again, each boot going on from what the one before left.
func TestBootAfterBoot(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed)
		id := thisID
		for boot := range byte(6) {
			id.Boot[0] = boot
			w.open(id)
			w.run(40)
			w.check(faultdisk.KeepSome)
			w.log.Abandon()
			if boot%3 == 2 {
				w.crash()
			}
		}
	}
}

// crash has the world go on from what a crash leaves.
func (w *world) crash() {
	w.disk = w.disk.Crash(w.luck, faultdisk.KeepSome)
	file, err := w.disk.Open("/disk", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.file, w.flying, w.marked = file, map[int64]bool{}, map[int64]bool{}
	for b := range w.content {
		var p [8]byte
		if _, err := file.ReadAt(p[:], b*BlockBytes); err != nil {
			w.t.Fatal(err)
		}
		w.content[b] = binary.LittleEndian.Uint64(p[:])
	}
}

// TestErrors fails each operation on the log: writes go on, it is said, and a new log is made.
func TestErrors(t *testing.T) {
	n := (&faultdisk.OncePerSite{}).Each(faultdisk.Fault{Err: syscall.EIO, Ops: faultdisk.OpAny, Only: func(name string) bool { return name != "/disk" }}, func(f faultdisk.Fault) {
		w := newWorld(t, 1)
		w.open(thisID)
		w.run(30)
		w.log.Close(func() uint64 { return 0 })
		w.disk.Inject(f)
		w.open(thisID)
		w.run(100)
		off := w.state != regions.On
		w.log.Close(func() uint64 { return 8 })
		w.disk.Heal()
		w.open(thisID)
		w.mu.Lock()
		w.log.failLocked(errors.New("a test"))
		w.mu.Unlock()
		if w.state != regions.Off {
			t.Error("a log that cannot be written says that it is whole")
		}
		w.disk.Inject(f)
		w.begin(9000)
		w.end(9000)
		w.log.Keep()
		w.log.Keep()
		w.run(30)
		w.disk.Heal()
		w.log.Keep()
		w.log.Keep()
		w.settle()
		if w.state != regions.On {
			t.Errorf("state %d after the store was healed (off before: %v)", w.state, off)
		}
		w.check(faultdisk.KeepSome)
		w.log.Abandon()
	})
	t.Logf("%d places", n)
}

// TestUnloggedIsNoted fails each write and sync of the log's file once, under writers, and crashes the host at every
// operation from then on: no write had begun by then of which the log that is found says nothing. So it is with no help
// from anybody who notes elsewhere that the disk is unlogged.
func TestUnloggedIsNoted(t *testing.T) {
	crashes, failed := 0, 0
	for at, more := 1, true; more; at++ {
		synctest.Test(t, func(t *testing.T) { // in which no write ever waits for too long
			w := newWorld(t, uint64(at))
			w.open(thisID)
			w.run(10)
			var seen atomic.Int64
			w.disk.Inject(faultdisk.Fault{Err: syscall.EIO, At: at, Ops: faultdisk.OpWrite | faultdisk.OpSync, Only: func(name string) bool {
				if name == "/disk" {
					return false
				}
				seen.Add(1)
				return true
			}})
			w.disk.OnOp(func(faultdisk.Op, string) {
				w.mu.Lock()
				defer w.mu.Unlock()
				crashes++
				if err := w.tells(); err != nil {
					t.Errorf("error at %d: %v", at, err)
				}
			})
			var writers sync.WaitGroup
			for r := range int64(someRegions) {
				writers.Go(func() { w.begin(r * RegionBytes / BlockBytes) })
			}
			writers.Wait()
			if w.state != regions.On {
				failed++
			}
			w.log.Keep()
			synctest.Wait()
			w.disk.OnOp(nil)
			w.log.Abandon()
			more = seen.Load() >= int64(at)
		})
	}
	if failed == 0 {
		t.Error("the log never failed")
	}
	t.Logf("%d crashes, %d logs that failed", crashes, failed)
}

// tells crashes the host now, and says of which write that had begun the log says nothing that is found then. With mu held.
func (w *world) tells() error {
	next := thisID
	next.Boot = [16]byte{9}
	found := Read(w.disk.Crash(w.luck, faultdisk.KeepNone), "/disk.log", next)
	if found.Tells(next.Boot, 0) != nil {
		return nil
	}
	says := told(found)
	for b := range w.flying {
		if !says[b] {
			return fmt.Errorf("block %d is being written, and the log that a crash finds does not tell", b)
		}
	}
	return nil
}

// TestGoneTooLate: a file that cannot be removed in time holds nobody up for longer than a log that is slow.
func TestGoneTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.open(thisID)
		hang := make(chan struct{})
		w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRemove, Stall: hang})
		w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO, Only: func(name string) bool { return name != "/disk" }})
		began := time.Now()
		w.begin(0)
		if d := time.Since(began); d != LateAfter || w.state != regions.Off {
			t.Errorf("a write waited %s, state %d", d, w.state)
		}
		began = time.Now()
		w.begin(9000)
		if d := time.Since(began); d != 0 {
			t.Errorf("the next one waited %s", d)
		}
		close(hang)
		synctest.Wait()
		w.log.Abandon()
	})
}

// TestNothingCanBeWritten: where not even the old file can be removed that is said, and the guest goes on.
func TestNothingCanBeWritten(t *testing.T) {
	for _, also := range []faultdisk.Op{faultdisk.OpRemove, faultdisk.OpSyncDir} {
		w := newWorld(t, 1)
		w.open(thisID)
		w.disk.Inject(faultdisk.Fault{Err: syscall.EIO, Ops: faultdisk.OpSync | also, Ever: true, Only: func(name string) bool { return name != "/disk" }})
		w.run(20)
		w.log.Keep()
		if w.state != regions.Off {
			t.Error("a log that cannot be written says that it is whole")
		}
		w.log.Abandon()
	}
}

// settle waits for the writer.
func (w *world) settle() {
	for {
		w.mu.Lock()
		still := w.log.under == nil && w.state != regions.Late
		w.mu.Unlock()
		if still {
			return
		}
	}
}

// TestDiskThatCannotBeSynced: its regions stay in the log.
func TestDiskThatCannotBeSynced(t *testing.T) {
	w := newWorld(t, 1)
	w.open(thisID)
	w.begin(0)
	w.end(0)
	w.arrive()
	w.tick()
	w.disk.Inject(faultdisk.Fault{Err: syscall.EIO, Ops: faultdisk.OpSync, Ever: true, Only: func(name string) bool { return name == "/disk" }})
	w.log.Keep()
	w.mu.Lock()
	if !w.log.regions.Logged().Has(0) {
		t.Error("a region left that the disk may not hold")
	}
	w.mu.Unlock()
	w.log.Close(func() uint64 { return 0 })
	w.log = Open(w.config(thisID), Read(w.disk, "/none", thisID), false)
	if w.state != regions.Off {
		t.Error("a log was made beside a disk that cannot be synced")
	}
	w.log.Abandon()
}

// TestLate: who waits for a log that hangs goes on after LateAfter, later ones at once; when it goes on, all is in it.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.open(thisID)
		hang := make(chan struct{})
		w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Stall: hang})
		began := time.Now()
		w.begin(0)
		if d := time.Since(began); d != LateAfter || w.state != regions.Late {
			t.Errorf("a write waited %s, state %d", d, w.state)
		}
		began = time.Now()
		w.begin(9000)
		if d := time.Since(began); d != 0 {
			t.Errorf("the next one waited %s", d)
		}
		close(hang)
		synctest.Wait()
		w.mu.Lock()
		if w.state != regions.On || !w.log.regions.Logged().Has(0) || !w.log.regions.Logged().Has(2) {
			t.Errorf("state %d, logged %v", w.state, w.log.regions.Logged())
		}
		w.mu.Unlock()
		w.check(faultdisk.KeepNone)
		w.log.Abandon()
	})
}

// TestOneSync: writes that come while a round is under way share the next one, with their neighbours.
func TestOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.open(thisID)
		hang := make(chan struct{})
		w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Stall: hang})
		syncs := 0
		w.disk.OnOp(func(op faultdisk.Op, _ string) {
			if op == faultdisk.OpSync {
				syncs++
			}
		})
		var wg sync.WaitGroup
		for _, b := range []int64{0, 20_000, 20_001, 30_000, 38_000} {
			wg.Go(func() { w.begin(b) })
			synctest.Wait()
		}
		close(hang)
		wg.Wait()
		w.begin(8000) // a neighbour of block 0
		if syncs != 2 || w.state != regions.On {
			t.Errorf("%d syncs, state %d", syncs, w.state)
		}
		w.log.Abandon()
	})
}

func TestTrust(t *testing.T) {
	other := thisID
	other.Boot[0]++
	f := func(what string, clean bool, mtime uint64, now Identity, tells, follows bool) {
		t.Helper()
		found := &Found{header: header{Identity: thisID, clean: clean, mtime: 5, made: 1}}
		if err := found.Tells(now.Boot, mtime); (err == nil) != tells {
			t.Errorf("%s tells: %v", what, err)
		}
		if got := found.Follows(now.Boot, mtime); got != follows {
			t.Errorf("%s follows: %v", what, got)
		}
	}
	f("a crash of the host", false, 9, other, true, false)
	f("marks that are gone", false, 9, thisID, false, true)
	f("a clean close", true, 5, other, true, false)
	f("a clean close in this boot", true, 5, thisID, true, true)
	f("a disk written past us", true, 6, other, false, false)
	f("a disk written past us in this boot", true, 6, thisID, false, false)
	if found := Read(faultdisk.New(512), "/none", thisID); !errors.Is(found.Tells(other.Boot, 0), fs.ErrNotExist) || found.Follows(thisID.Boot, 0) {
		t.Error("no file tells something")
	}
}

// TestDamage: what does not verify counts as marked, and says so; a header that does not says nothing.
func TestDamage(t *testing.T) {
	id := thisID
	id.Boot[0] = 99
	f := func(off int64, tells bool, damaged int) {
		t.Helper()
		w := newWorld(t, 1)
		w.open(thisID)
		w.log.Abandon()
		w.disk.Rot("/disk.log", off, 1)
		found := Read(w.disk, "/disk.log", id)
		if err := found.Tells(id.Boot, 0); (err == nil) != tells || found.Damaged != damaged {
			t.Fatalf("rot at %d: %v, %d damaged", off, err, found.Damaged)
		}
		if n := len(told(found)); tells && n == 0 {
			t.Errorf("rot at %d: nothing may differ", off)
		}
	}
	f(100, false, 0)
	f(pageBytes, true, 1)
	f(pageBytes+511, true, 1)
	f(2*pageBytes+512, true, 1)
	w := newWorld(t, 1)
	w.open(thisID)
	w.log.Abandon()
	file, err := w.disk.Open("/disk.log", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(2 * pageBytes); err != nil {
		t.Fatal(err)
	}
	if err := Read(w.disk, "/disk.log", id).Tells(id.Boot, 0); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

var update = flag.Bool("update", false, "write the golden files")

var goldenHeader = header{Identity: Identity{Boot: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, Group: 0xa1a2, Volume: 3, Bytes: 1 << 30}, clean: true, mtime: 0x1122334455, made: 0xbb}

func TestGolden(t *testing.T) {
	golden := func(name string, got []byte) {
		t.Helper()
		path := filepath.Join("testdata", name+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || hex.Dump(got) != string(want) {
			t.Errorf("%s is now\n%s", name, hex.Dump(got))
		}
	}
	golden("header-v1", goldenHeader.encode())
	p := make([]byte, sectorBytes)
	goldenHeader.sector(p, 7, []uint64{1, 1 << 63})
	golden("sector-v1", p)
	if h, err := parseHeader(goldenHeader.encode(), goldenHeader.Identity); err != nil || h != goldenHeader {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestHeaderRefused(t *testing.T) {
	f := func(what string, at int, b byte, seal bool, want error) {
		t.Helper()
		p := goldenHeader.encode()
		p[at] = b
		if seal {
			reseal(p)
		}
		if _, err := parseHeader(p, goldenHeader.Identity); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	f("magic", 0, 0, true, ErrCorrupt)
	f("version", atVersion, 2, true, ErrVersion)
	f("sum", atMtime, 9, false, ErrCorrupt)
	f("group", atGroup, 9, true, errOther)
	f("volume", atVolume, 9, true, errOther)
	f("size", atBytes, 9, true, errOther)
	f("state", atState, 3, true, ErrCorrupt)
	f("block", atBlock, 1, true, ErrCorrupt)
	f("region", atRegion, 1, true, ErrCorrupt)
	f("not made", atMade, 0, true, ErrCorrupt)
	f("reserved", atZero, 1, true, ErrCorrupt)
}

// reseal makes the sum of a header right.
func reseal(p []byte) {
	binary.LittleEndian.PutUint32(p[atCRC:], crc32.Checksum(p[:atCRC], castagnoli))
}

func FuzzHeader(f *testing.F) {
	f.Add(goldenHeader.encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		if h, err := parseHeader(p, goldenHeader.Identity); err == nil && !bytes.Equal(h.encode(), p) {
			t.Fatalf("%x parses to %+v", p, h)
		}
	})
}

// FuzzPart: whatever a sector holds, it sets bits of its own alone, and none beyond the disk.
func FuzzPart(f *testing.F) {
	p := make([]byte, sectorBytes)
	goldenHeader.sector(p, 0, []uint64{5})
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		log, _ := thisID.parts()
		page := make([]byte, log.bytes())
		copy(page, p)
		words := make([]uint64, 1)
		if goldenHeader.decodePart(log, page, words); words[0]>>someRegions != 0 {
			t.Fatalf("regions %b of a disk of %d", words[0], someRegions)
		}
	})
}

func TestPlacesDoNotMeet(t *testing.T) {
	for _, size := range []int64{512, RegionBytes, 1 << 40, 1<<40 + 512} {
		log, marks := Identity{Bytes: size}.parts()
		if marks.at != log.at+log.bytes() || marks.first != log.sectors || int64(log.sectors)*sectorBits*RegionBytes < size || int64(marks.sectors)*sectorBits*BlockBytes < size {
			t.Errorf("%d bytes: %+v, %+v", size, log, marks)
		}
	}
}
