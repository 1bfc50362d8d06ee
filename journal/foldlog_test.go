package journal

import (
	"fmt"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// settled waits until the closed segments were read back.
func (t *target) settled() error {
	for {
		open := false
		for _, s := range t.group.segments.Segments() {
			open = open || s.State == segment.StateClosed
		}
		if !open {
			return nil
		}
		if err := t.group.onCommit(func() error { return nil }); err != nil {
			return err
		}
	}
}

// flushed has the index of all that is durable written.
func (t *target) flushed() error {
	for done := false; !done; {
		missed := false
		err := t.group.onCommit(func() error {
			if t.group.flush.busy.Load() {
				return nil
			}
			missed = t.group.flush.missed.Swap(false)
			if done = t.group.index.Covered().Pos == t.group.segments.Durable(); !done && !missed {
				t.store.flush(t.group)
			}
			return nil
		})
		if err == nil && missed {
			err = t.group.State().Err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// foldAll folds until nothing is left to fold.
func (t *target) foldAll() error {
	if err := t.settled(); err != nil {
		return err
	}
	if err := t.flushed(); err != nil {
		return err
	}
	for {
		did, err := t.group.foldLog(noPace)
		if err != nil || !did {
			return err
		}
	}
}

// keepOnly thins the checkpoints down to those, of which the first and the last are listed.
func (t *target) keepOnly(keep ...uint64) error {
	var pairs []retain.Pair
	for i := range keep[1:] {
		pairs = append(pairs, retain.Pair{From: keep[i], To: keep[i+1]})
	}
	_, err := t.group.thin(pairs)
	return err
}

// shows says whether exactly these are listed, and whole.
func (t *target) shows(s *source, want ...uint64) error {
	numbers, err := t.check(s)
	if err == nil && !slices.Equal(numbers, want) {
		err = fmt.Errorf("listed are %v, want %v", numbers, want)
	}
	return err
}

// Thinned checkpoints go and the log gets shorter; those that stay give back what they
// did, before and after an opening, with the index and the catalogue made anew, and
// after promotion.
func TestThinAndFold(t *testing.T) {
	for seed := range 4 {
		s := story(seed, 16)
		disk := faultdisk.New(512)
		cfg := smallSegments(disk)
		w, err := openWith(cfg)
		ok(t, err)
		ok(t, w.feed(s, 3))
		last := s.cut
		ok(t, w.keepOnly(1, 5, 9, 12, last-1))
		kept := []uint64{1, 5, 9, 12, last - 1, last}
		ok(t, w.shows(s, kept...))
		before := w.group.State().Bytes
		ok(t, w.foldAll())
		ok(t, w.shows(s, kept...))
		after := w.group.State().Bytes
		if freed := w.group.folding.freed.Load(); after > before*3/4 || freed < before-after {
			t.Errorf("seed %d: the log had %d bytes and has %d; %d were freed", seed, before, after, freed)
		}
		reopen := func(what string, disk *faultdisk.Disk) {
			t.Helper()
			ok(t, w.store.Close())
			cfg.FS = disk
			w, err = openWith(cfg)
			if err == nil {
				err = w.shows(s, kept...)
			}
			if err != nil {
				t.Fatalf("seed %d: %s: %v", seed, what, err)
			}
		}
		reopen("opened again", disk)
		cfg = smallSegments(disk)
		reopen("the catalogue is gone", disk)
		ok(t, w.store.Close())
		ok(t, writeDir(disk, "/store/groups/"+testGroup.String()+"/index", nil))
		reopen("the index is gone", disk)
		for range 3 {
			s.write(6)
			s.limit = s.checkpoint()
		}
		ok(t, w.feed(s, 3))
		ok(t, w.keepOnly(1, 12, s.cut-1))
		kept = []uint64{1, 12, s.cut - 1, s.cut}
		ok(t, w.foldAll())
		ok(t, w.shows(s, kept...))
		reopen("folded again", disk)
		ok(t, w.group.promote(12, noPace))
		kept = kept[1:]
		reopen("promoted", disk.Kill())
		ok(t, w.store.Close())
	}
}

// A pass after folding knows that what follows stands elsewhere in the log now.
func TestPromoteAfterFold(t *testing.T) {
	for seed := range 8 {
		s := story(seed, 12)
		cfg := smallSegments(faultdisk.New(512))
		cfg.SegmentBytes = 32 << 10 // several checkpoints in each
		w, err := openWith(cfg)
		ok(t, err)
		ok(t, w.feed(s, 3))
		ok(t, w.group.promote(4, noPace))
		ok(t, w.keepOnly(4, 10, 11))
		ok(t, w.foldAll())
		ok(t, w.group.promote(10, noPace))
		ok(t, w.shows(s, 10, 11, 12))
		for first := w.group.logFirst(); w.group.logFirst() == first; { // until what was folded is gone
			s.write(1)
			s.limit = s.checkpoint()
			ok(t, w.feed(s, 3))
			ok(t, w.group.promote(s.limit-1, noPace))
			ok(t, w.holds(s, s.limit-1))
		}
		ok(t, w.store.Close())
	}
}
