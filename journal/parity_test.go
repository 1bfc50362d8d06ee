package journal

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/stripe"
)

// stores are folders on disks of their own, and a host's disk.
type stores struct {
	dirs  []string
	disks map[string]*faultdisk.Disk
	set   *stripe.Set
	g     stripe.Geometry
	told  chan error // of each segment that was to be sealed, the first ones
}

func newStores(t *testing.T, g stripe.Geometry, n int) *stores {
	s := &stores{disks: map[string]*faultdisk.Disk{}, g: g, told: make(chan error, 1)}
	for i := range n {
		dir := fmt.Sprintf("/s%d", i)
		s.dirs = append(s.dirs, dir)
		s.empty(t, dir)
	}
	s.empty(t, "/host")
	return s
}

func (s *stores) empty(t *testing.T, dir string) {
	d := faultdisk.New(512)
	ok(t, errors.Join(d.Mkdir(dir), d.SyncDir("/")))
	s.disks[dir] = d
}

// without returns the stores as a machine finds them after a loss of power, some of them gone.
func (s *stores) without(t *testing.T, seed int, gone ...string) *stores {
	c := &stores{dirs: s.dirs, disks: map[string]*faultdisk.Disk{}, g: s.g, told: make(chan error, 1)}
	for dir, d := range s.disks {
		c.disks[dir] = d.Crash(seeded(seed), faultdisk.KeepSome)
	}
	for _, dir := range gone {
		c.empty(t, dir)
	}
	return c
}

// Protects, Sealed, Verify, Repair and Dropped make a Protector of the set.
func (s *stores) Protects(f segment.FileInfo) (bool, error) { return s.set.Protects(f.Name) }

func (s *stores) Sealed(f segment.FileInfo) error {
	err := s.set.Seal(f.Name, nil)
	select {
	case s.told <- err:
	default:
	}
	return err
}

func (s *stores) Verify(segment.FileInfo, func(int) error) (bool, error) { return false, nil }

func (s *stores) Dropped(segment.FileInfo) {}

func (s *stores) Repair(f segment.FileInfo, bad []Extent, w io.Writer) error {
	var parts []stripe.Part
	for _, b := range bad {
		parts = append(parts, stripe.Part(b))
	}
	return s.set.Repair(f.Name, parts, w)
}

func (s *stores) open() (*target, error) {
	var err error
	s.set, err = stripe.OpenSet(stripe.Options{Stores: s.dirs, Geometry: s.g, Witness: "/host/witness",
		FS: func(dir string) ioengine.FS { return s.disks[dir] }})
	if err != nil {
		return nil, err
	}
	cfg := Config{FS: s.set, Dir: "/store", SegmentBytes: 16 << 10, AckDelay: -1, stageBytes: 256 << 10, lendBytes: 4 << 10, Log: slog.New(slog.DiscardHandler), Protector: s,
		OpenCatalogue: func() (index.Map, error) { return new(index.Memory), nil }}
	return openWith(cfg)
}

// A store dies at each of many moments of a journal's life, and another is gone at the next
// start as far as parity allows for it: every checkpoint that was listed restores, and the
// journal takes data all the time.
func TestStoresAreLostUnderAJournal(t *testing.T) {
	for _, c := range []struct {
		g stripe.Geometry
		n int
	}{{stripe.Geometry{K: 1, M: 1}, 2}, {stripe.Geometry{K: 2, M: 1}, 3}, {stripe.Geometry{K: 2, M: 2}, 4}} {
		t.Run(c.g.String(), func(t *testing.T) {
			src := newSource(3)
			src.script()
			step := 11
			if testing.Short() {
				step = 37
			}
			for at := 1; ; at += step {
				s := newStores(t, c.g, c.n)
				victim := s.dirs[at%c.n]
				var mu sync.Mutex
				count := 0
				s.disks[victim].OnOp(func(faultdisk.Op, string) {
					mu.Lock()
					defer mu.Unlock()
					if count++; count == at {
						s.disks[victim].Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, Ever: true})
					}
				})
				tgt, err := s.open()
				if err != nil {
					if at < 40 { // a set is not made on a store that is dead
						continue
					}
					t.Fatalf("%s dies at %d: %v", victim, at, err)
				}
				if err := tgt.feed(src, 3); err != nil {
					t.Fatalf("%s dies at %d: %v", victim, at, err)
				}
				listed, err := tgt.check(src)
				if err != nil || len(listed) == 0 {
					t.Fatalf("%s died at %d: %v, %v", victim, at, listed, err)
				}
				ok(t, tgt.store.Close())
				ok(t, s.set.Close())
				gone := []string{victim}
				if c.g.M > 1 {
					gone = append(gone, s.dirs[(at+1)%c.n])
				}
				after := s.without(t, at, gone...)
				tgt, err = after.open()
				if err != nil {
					t.Fatalf("%s died at %d, %v gone: %v", victim, at, gone, err)
				}
				again, err := tgt.check(src)
				if err != nil || len(again) != len(listed) {
					t.Fatalf("%s died at %d, %v gone: %v of %v: %v", victim, at, gone, again, listed, err)
				}
				ok(t, tgt.store.Close())
				ok(t, after.set.Close())
				mu.Lock()
				done := count < at
				mu.Unlock()
				if done {
					return // it outlived the story
				}
			}
		})
	}
}

// Segments lie in stripes once they are verified, and what is left of them suffices.
func TestSealedSegmentsAreStriped(t *testing.T) {
	src := newSource(4)
	src.script()
	s := newStores(t, stripe.Geometry{K: 2, M: 1}, 3)
	tgt, err := s.open()
	ok(t, err)
	ok(t, tgt.feed(src, 3))
	ok(t, <-s.told)
	ok(t, tgt.store.Close())
	striped := 0
	dir := "/store/groups/" + testGroup.String() + "/log"
	names, err := s.set.List(dir)
	ok(t, err)
	for _, n := range names {
		if s.set.Copies(dir+"/"+n) == 1 {
			striped++
		}
	}
	if striped == 0 {
		t.Fatalf("none of %d segments is striped", len(names))
	}
	ok(t, s.set.Close())
	for _, gone := range s.dirs {
		after := s.without(t, 1, gone)
		tgt, err := after.open()
		ok(t, err)
		if listed, err := tgt.check(src); err != nil || len(listed) == 0 {
			t.Errorf("without %s: %v, %v", gone, listed, err)
		}
		ok(t, tgt.store.Close())
		ok(t, after.set.Close())
	}
}
