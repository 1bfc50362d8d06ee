package stripe

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// TestWrittenAndSealedAgainWhileSealed has a file written again while it is sealed, and sealed
// again before that has ended: both come to nothing, and what was written last is there.
func TestWrittenAndSealedAgainWhileSealed(t *testing.T) {
	g := Geometry{2, 1}
	for at := range g.width() {
		w := newWorld(t, g.width())
		s := mustOpen(t, w, g)
		put(t, s, "/f", noise(1, buf4(sealedBytes)))
		want := noise(2, buf4(sealedBytes))
		var once sync.Once
		w.disks[w.dirs[at]].OnOp(func(op faultdisk.Op, name string) {
			if op != faultdisk.OpSync || !strings.Contains(name, "+") {
				return
			}
			once.Do(func() { // the shard is written
				f, err := s.Open("/f", 0)
				if err == nil {
					_, err = f.WriteAt(want, 0)
					err = errors.Join(err, f.Sync(), f.Close())
				}
				if err != nil {
					t.Error(err)
				}
				if err := s.Seal("/f", nil); !errors.Is(err, ErrBusy) {
					t.Errorf("%s: sealed again before the first has ended: %v", w.dirs[at], err)
				}
			})
		})
		if err := s.Seal("/f", nil); !errors.Is(err, ErrBusy) {
			t.Errorf("%s: it was written while it was sealed: %v", w.dirs[at], err)
		}
		w.disks[w.dirs[at]].OnOp(nil)
		for _, then := range []func() error{func() error { return nil }, func() error { return mend(s) }} {
			ok(t, then())
			if got, err := get(s, "/f"); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %v, at %d", w.dirs[at], err, firstDifference(got, want))
			}
		}
		if !s.objects[s.names.files["/f"]].info.striped() {
			t.Errorf("%s: Mend has not sealed it", w.dirs[at])
		}
		if st := s.State(); st.Err != nil || st.Spare != 1 {
			t.Errorf("%+v", st)
		}
		ok(t, s.Close())
	}
}

// TestOneMoverAtATime looks, at every operation of a Mend that makes copies and shards and of a
// Scrub that repairs them, that no other can be at the same file: they use the same names.
func TestOneMoverAtATime(t *testing.T) {
	for _, g := range []Geometry{{1, 1}, {2, 1}} {
		w := newWorld(t, g.width()+1)
		s := mustOpen(t, w, g)
		put(t, s, "/f", noise(1, buf4(sealedBytes)))
		ok(t, s.Seal("/f", nil))
		o := s.objects[s.names.files["/f"]]
		made := 0
		hook := func(op faultdisk.Op, name string) {
			if op != faultdisk.OpCreate || !strings.HasSuffix(name, tempSuffix) || !strings.Contains(name, objectsName+"/") {
				return
			}
			if made++; o.moving.TryLock() {
				t.Errorf("%s: another could make %s too", g, name)
				o.moving.Unlock()
			}
		}
		for _, d := range w.disks {
			d.OnOp(hook)
		}
		id := o.info.places[0]
		dir := s.stores[id].dir
		ok(t, errors.Join(s.Retire(dir), mend(s)))
		if made == 0 {
			t.Errorf("%s: nothing was moved", g)
		}
		made = 0
		ok(t, s.remake(o, o.info, 0, nil))
		if made == 0 {
			t.Errorf("%s: nothing was repaired", g)
		}
		ok(t, s.Close())
	}
}

// TestRepairOfWhatHasMoved has damage found on a store that is retired, and let go of, before it
// is repaired: there is nothing to do, and no store is the worse for it.
func TestRepairOfWhatHasMoved(t *testing.T) {
	for _, g := range []Geometry{{1, 1}, {2, 1}} {
		w := newWorld(t, g.width()+1)
		s := mustOpen(t, w, g)
		content := noise(1, buf4(sealedBytes))
		put(t, s, "/f", content)
		ok(t, s.Seal("/f", nil))
		o := s.objects[s.names.files["/f"]]
		before := o.info
		dir := s.stores[before.places[0]].dir
		ok(t, errors.Join(s.Retire(dir), mend(s)))
		if slices.ContainsFunc(s.State().Stores, func(st StoreState) bool { return st.Dir == dir }) {
			t.Fatalf("%s is still of the set", dir)
		}
		ok(t, s.remake(o, before, 0, nil))
		if !before.striped() { // a copy that was dropped while it was read
			f, err := s.Open("/f", ioengine.ReadOnly)
			ok(t, err)
			hurt, err := o.scrubCopies(before, f.(*handle), nil)
			if len(hurt) > 0 || err != nil {
				t.Errorf("%v are hurt: %v", hurt, err)
			}
			ok(t, f.Close())
		}
		ok(t, errors.Join(s.Scrub(context.Background(), nil), mend(s)))
		if st := s.State(); st.Err != nil || len(s.chosen) > 0 || slices.ContainsFunc(st.Stores, func(st StoreState) bool { return st.Errors > 0 }) {
			t.Errorf("%s: %+v", g, st)
		}
		if got, err := get(s, "/f"); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %v", g, err)
		}
		ok(t, s.Close())
	}
}
