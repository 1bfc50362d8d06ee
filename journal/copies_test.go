package journal

import (
	"path"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/journal/stripe"
)

// rotObjects flips a bit of each file of so many bytes on a store, at a place from its end.
func (s *stores) rotObjects(t *testing.T, dir string, bytes, at int64) (n int) {
	t.Helper()
	objects := path.Join(dir, "objects")
	names, err := s.disks[dir].List(objects)
	ok(t, err)
	for _, name := range names {
		if size, err := sizeIfThere(s.disks[dir], path.Join(objects, name)); err == nil && size == bytes {
			ok(t, s.disks[dir].Rot(path.Join(objects, name), at, 1))
			n++
		}
	}
	return n
}

// A block of a replica rots on one store, or its sum, and the store that is read changes
// nothing about it: the reading back finds it and has it from another store. The source is
// not asked, no checkpoint is bad. What rots on all of them is stated.
func TestReplicaIsRepairedFromItsCopies(t *testing.T) {
	const blocks = (volumeBytes + 4095) / 4096
	for what, c := range map[string]struct{ bytes, at int64 }{"block": {blocks * 4096, 9000}, "last block": {blocks * 4096, volumeBytes - 1}, "sum": {4096 + blocks*4, 4096 + 9}} {
		repairs := int64(0)
		for victims := 1; victims <= 4; victims++ {
			synctest.Test(t, func(t *testing.T) {
				src := newSource(5)
				src.script()
				s := newStores(t, stripe.Geometry{K: 1, M: 1}, 2)
				w, err := s.open()
				ok(t, err)
				ok(t, w.feed(src, 3))
				ok(t, w.verify())
				for i, dir := range s.dirs {
					if victims&(1<<i) == 0 && victims < 3 || victims == 4 && i > 0 {
						continue
					}
					if n := s.rotObjects(t, dir, c.bytes, c.at); n != len(testVolumes) {
						t.Fatalf("%s: %d files of %d bytes on %s", what, n, c.bytes, dir)
					}
				}
				if victims == 4 { // a view meets it first, and its reader does not notice
					if lost, err := w.unread(src.cut); err != nil || len(lost) > 0 {
						t.Fatalf("%s: a view does not read %v: %v", what, lost, err)
					}
				}
				ok(t, w.verify())
				_, n := w.store.ScrubStats()
				repairs += n
				lacks, _ := w.group.Lacks()
				bad, err := w.honest(src, true)
				if st := w.group.State(); err != nil || victims != 3 && (bad != 0 || lacks || st.Damage != nil || st.Err != nil) || victims == 3 && st.Damage == nil {
					t.Fatalf("%s, stores %b: %d bad, lacks %v, %+v: %v", what, victims, bad, lacks, st, err)
				}
				ok(t, w.store.Close())
				ok(t, s.set.Close())
				time.Sleep(time.Second)
			})
			if t.Failed() {
				return
			}
		}
		if repairs < 2 {
			t.Errorf("%s: %d repairs: the test has lost its reach", what, repairs)
		}
	}
}
