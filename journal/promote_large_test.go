package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// filledAtRandom is a group, alone in its store, with writes at random places of its volume,
// and what the volume is then.
func filledAtRandom(t *testing.T, volume, size, total int64) (*faultdisk.Disk, *Store, *Group, []byte) {
	t.Helper()
	disk := faultdisk.New(512)
	store, g, image := filledOn(t, config(disk), volume, size, total)
	return disk, store, g, image
}

func filledOn(t *testing.T, cfg Config, volume, size, total int64) (*Store, *Group, []byte) {
	t.Helper()
	cfg.SegmentBytes, cfg.IndexMemory = 0, 0
	store, err := Open(cfg)
	ok(t, err)
	g, image := filledIn(t, store, testGroup, volume, size, total)
	return store, g, image
}

// filledIn is a group of a store that is open.
func filledIn(t *testing.T, store *Store, id record.GroupID, volume, size, total int64) (*Group, []byte) {
	t.Helper()
	g, err := store.OpenGroup(GroupInfo{ID: id, Name: "large", Lineage: 1})
	ok(t, err)
	ok(t, g.SetVolumes([]VolumeInfo{{ID: 1, Name: "disk", Bytes: volume}}))
	image := make([]byte, volume)
	fillRandom(t, g, volume, size, total, image)
	return g, image
}

// The memory that a pass worked in is that of the next, of another group perhaps, which reads its own log; and is given back when
// none came for long.
func TestPassMemory(t *testing.T) {
	const volume, size, total = 4 << 20, 20 << 10, 200 << 10 // one read
	_, store, one, image := filledAtRandom(t, volume, size, total)
	two, other := filledIn(t, store, testGroup+1, volume, size, total)
	s := &store.passMemories
	var last *passMemory
	for i, g := range []*Group{one, two} {
		ok(t, g.promote(2, noPace))
		if len(s.idle) != 1 || i > 0 && s.idle[0] != last {
			t.Errorf("after pass %d there is memory of %d", i+1, len(s.idle))
		}
		last = s.idle[0]
	}
	holdsImage(t, one, image, "the first group")
	holdsImage(t, two, other, "the second group")
	a, b, c := s.take(), s.take(), s.take()
	for _, m := range []*passMemory{a, b, c} {
		s.put(m)
	}
	if a != last || len(s.idle) != passesAtOnce {
		t.Errorf("memory of %d passes is kept", len(s.idle))
	}
	b.since = b.since.Add(-time.Second)
	if s.shrink(b.since.Add(passMemoryIdle)); len(s.idle) != 1 || s.idle[0] != a {
		t.Errorf("memory of %d passes is kept for long", len(s.idle))
	}
	ok(t, store.Close())
}

// readFS counts the bytes that are read of the log.
type readFS struct {
	ioengine.FS
	bytes atomic.Int64
}

func (r *readFS) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := r.FS.Open(name, flags)
	if err == nil && strings.Contains(name, "/log/") {
		f = readFile{f, r}
	}
	return f, err
}

type readFile struct {
	ioengine.File
	fs *readFS
}

func (f readFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.bytes.Add(int64(len(p)))
	return f.File.ReadAt(p, off)
}

// A pass reads what of the log it brings about once: what was read ahead of a block that goes on behind it is not
// read again. Reading takes of the disk what intake could have.
func TestPromoteReadsOnce(t *testing.T) {
	const volume, size, total = 72 << 22, 72 << 10, 20 << 20
	fsys := &readFS{FS: faultdisk.New(512)}
	cfg := config(nil)
	cfg.FS = fsys
	store, g, image := filledOn(t, cfg, volume, size, total)
	before := fsys.bytes.Load()
	ok(t, g.promote(2, noPace))
	read, brought := fsys.bytes.Load()-before, int64(0)
	for off := int64(0); off < volume; off += size {
		if !bytes.Equal(image[off:off+size], make([]byte, size)) {
			brought += size
		}
	}
	if read < brought || read > brought*15/14 {
		t.Errorf("%d bytes were read to bring %d", read, brought)
	}
	holdsImage(t, g, image, "read once")
	ok(t, store.Close())
}

func holdsImage(t *testing.T, g *Group, image []byte, where string) {
	t.Helper()
	got := make([]byte, len(image))
	ok(t, g.volumes[1].replica.ReadAt(got, 0))
	if !bytes.Equal(got, image) {
		t.Errorf("%s: the replica is not what was written", where)
	}
}

// A portion so large that several readers fetch it from the log: the replica is what was
// written, blocks of one record that were overwritten in part included; and a read that
// fails ends the pass, which is made again.
func TestPromoteLargePortion(t *testing.T) {
	const volume, total = 4 << 20, 3 << 20
	for _, size := range []int64{4 << 10, 20 << 10, 64 << 10} {
		disk, store, g, image := filledAtRandom(t, volume, size, total)
		reads := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, At: 12, Ever: true, Only: func(string) bool { reads++; return true }})
		err := g.promote(2, noPace)
		disk.Heal()
		if reads < 12 || !errors.Is(err, syscall.EIO) {
			t.Fatalf("writes of %d bytes: a read of %d failed: %v", size, reads, err)
		}
		ok(t, g.promote(2, noPace))
		holdsImage(t, g, image, fmt.Sprintf("writes of %d bytes", size))
		ok(t, store.Close())
	}
}

// Several stretches of several portions each, of which one is read while another is written:
// whatever read or write of them fails, the pass ends with that error, and the next one leaves
// what was written.
func TestPromoteStretches(t *testing.T) {
	const volume, total = 40 << 20, 30 << 20
	for i, c := range []struct {
		size   int64
		pieces int
		ops    faultdisk.Op
		at     int
		files  string
	}{
		{64 << 10, 0, faultdisk.OpRead, 90, "/log/"},
		{64 << 10, 0, faultdisk.OpWrite, 200, "/replica/"},
		{64 << 10, 300, faultdisk.OpRead, 70, "/log/"},
		{20 << 10, 700, faultdisk.OpWrite, 300, "/replica/"},
		{3 << 9, 2000, faultdisk.OpRead, 20, "/log/"}, // most blocks change in part, many of them twice
	} {
		if i > 0 && testing.Short() {
			break
		}
		total := int64(total)
		if c.size < 4<<10 {
			total = 3 << 20
		}
		disk, store, g, image := filledAtRandom(t, volume, c.size, total)
		g.retention.stretchPieces = c.pieces
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: c.ops, Err: syscall.EIO, Ever: true, Only: func(name string) bool { // for a while
			if !strings.Contains(name, c.files) {
				return false
			}
			seen++
			return seen >= c.at && seen < c.at+20
		}})
		if err := g.promote(2, noPace); !errors.Is(err, syscall.EIO) {
			t.Errorf("%+v: %v", c, err)
		}
		disk.Heal()
		ok(t, g.promote(2, noPace))
		holdsImage(t, g, image, fmt.Sprintf("%+v", c))
		ok(t, store.Close())
	}
}

// TestPromoteReadsAhead: a portion that does not read while the one before is written ends the pass; a pass that does not say so has brought everything.
func TestPromoteReadsAhead(t *testing.T) {
	const volume, total, size = 96 << 20, 80 << 20, 64 << 10 // two portions and more are stored
	const fail = 6
	reads := []int{130, 160, 190}
	if testing.Short() {
		reads = reads[1:2]
	}
	for _, at := range reads {
		disk, store, g, image := filledAtRandom(t, volume, size, total)
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, Ever: true, Only: func(name string) bool {
			if !strings.Contains(name, "/log/") {
				return false
			}
			seen++
			return seen >= at && seen < at+fail
		}})
		err := g.promote(2, noPace)
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("reads %d to %d fail: %v", at, at+fail, err)
			}
			disk.Heal()
			ok(t, g.promote(2, noPace))
		}
		holdsImage(t, g, image, fmt.Sprintf("reads %d to %d fail", at, at+fail))
		ok(t, store.Close())
	}
}

// portions takes a stretch whole.
func portions(s *stretch) (all [][]index.Piece) {
	s.order()
	for b := (portion{}); ; {
		if s.take(&b); len(b.pieces) == 0 {
			return all
		}
		all = append(all, slices.Clone(b.pieces))
	}
}

// Ragged pieces, which share blocks: each comes once, rising in its portion, and all of a
// block in the same one.
func TestStretchKeepsBlocksTogether(t *testing.T) {
	rng := seeded(1)
	for range 20 {
		s := stretch{most: 1 << 20}
		n, end := 2*portionPieces+rng.IntN(1000), int64(0)
		for range n {
			end += int64(rng.IntN(3)) * 512 * int64(rng.IntN(20))
			p := index.Piece{Off: end, Len: 512 * int64(1+rng.IntN(40)), In: index.InLog, Pos: segment.Pos(rng.IntN(1 << 30))}
			if rng.IntN(10) == 0 {
				p.In = index.IsZero
			}
			s.add(p)
			end += p.Len
		}
		owner, seen := map[int64]int{}, 0
		all := portions(&s)
		for k, pieces := range all {
			end := int64(0)
			for _, p := range pieces {
				if p.Off < end {
					t.Fatalf("%d after %d", p.Off, end)
				}
				end = p.Off + p.Len
				for block := p.Off / replica.BlockBytes; block <= (end-1)/replica.BlockBytes; block++ {
					if o, there := owner[block]; there && o != k {
						t.Fatalf("block %d is in the portions %d and %d", block, o, k)
					}
					owner[block] = k
				}
			}
			seen += len(pieces)
		}
		if seen != n || len(all) < 3 {
			t.Fatalf("%d pieces of %d, in %d portions", seen, n, len(all))
		}
	}
}

// Whole blocks come in the log's order, from portion to portion; and a row that shares
// blocks without end is cut, so that no portion is large.
func TestStretchFollowsTheLog(t *testing.T) {
	rng := seeded(2)
	s := stretch{most: 1 << 20}
	for i := range 3 * portionPieces {
		s.add(index.Piece{Off: int64(i) * replica.BlockBytes, Len: replica.BlockBytes, In: index.InLog, Pos: segment.Pos(rng.IntN(1 << 30))})
	}
	last := segment.Pos(0)
	for _, pieces := range portions(&s) {
		byPos := func(x, y index.Piece) int { return cmp.Compare(x.Pos, y.Pos) }
		if first := slices.MinFunc(pieces, byPos).Pos; first < last {
			t.Fatalf("a portion begins at %d, and one before it ends at %d", first, last)
		}
		last = slices.MaxFunc(pieces, byPos).Pos
	}
	s.reset()
	const long = pieceBytes - 512
	for i := range 50 {
		s.add(index.Piece{Off: int64(i) * long, Len: long, In: index.InLog, Pos: segment.Pos(i)})
	}
	for _, pieces := range portions(&s) {
		if n := len(pieces); n > 2*portionBytes/pieceBytes {
			t.Errorf("a portion of %d pieces of %d bytes", n, long)
		}
	}
}
