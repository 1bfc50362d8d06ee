package stripe

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// TestStoreStaysWhileSomethingIsPlacedOnIt retires each store while a file, a shard or a copy
// is being made on it, of which no names tell yet: it is of the set until they do, and the
// next Mend moves off what it got.
func TestStoreStaysWhileSomethingIsPlacedOnIt(t *testing.T) {
	content := noise(1, buf4(sealedBytes))
	write := func(s *Set) error {
		f, err := s.Open("/f", ioengine.Create|ioengine.Exclusive|ioengine.Direct)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(content, 0)
		return errors.Join(err, f.Sync(), f.Close(), s.SyncDir("/"))
	}
	failed := func(s *Set) error { // the store of a copy is out
		s.naming.Lock()
		defer s.naming.Unlock()
		return s.markOutLocked(failures{s.names.objects[s.names.files["/f"]].places[0]: errors.New("it failed")})
	}
	for _, c := range []struct {
		name         string
		g            Geometry
		before, work func(*Set) error
	}{
		{"file", Geometry{1, 1}, func(*Set) error { return nil }, write},
		{"shard", Geometry{2, 1}, write, func(s *Set) error { return s.Seal("/f", nil) }},
		{"copy", Geometry{1, 1}, func(s *Set) error { return errors.Join(write(s), failed(s)) }, mend},
	} {
		t.Run(c.name, func(t *testing.T) {
			stayed := 0
			for at := range c.g.width() + 2 {
				w := newWorld(t, c.g.width()+2)
				s := mustOpen(t, w, c.g)
				ok(t, c.before(s))
				dir := w.dirs[at]
				member := func() bool {
					return slices.ContainsFunc(s.State().Stores, func(st StoreState) bool { return st.Dir == dir })
				}
				var once sync.Once
				w.disks[dir].OnOp(func(op faultdisk.Op, name string) {
					if op != faultdisk.OpCreate || !strings.Contains(name, objectsName+"/") {
						return
					}
					once.Do(func() {
						ok(t, errors.Join(s.Retire(dir), s.letGo()))
						if member() {
							stayed++
						}
					})
				})
				err := c.work(s)
				w.disks[dir].OnOp(nil)
				ok(t, errors.Join(err, mend(s), mend(s)))
				if len(s.chosen) > 0 {
					t.Errorf("%s: %v stay chosen", dir, s.chosen)
				}
				got, err := get(s, "/f")
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s: %v, at %d", dir, err, firstDifference(got, content))
				}
				if st := s.State(); st.Err != nil || st.Spare != 1 {
					t.Errorf("%s: %+v", dir, st)
				}
				ok(t, s.Close())
			}
			if stayed == 0 {
				t.Error("nothing was being made on any store when it retired, or it was let go of")
			}
		})
	}
}

// TestFileWithoutStoresIsNotInTheMaking has all stores that a new file was to be on go out:
// it is refused, and so is the next of its name, at once.
func TestFileWithoutStoresIsNotInTheMaking(t *testing.T) {
	w := newWorld(t, 3)
	s := mustOpen(t, w, Geometry{1, 1})
	o, made, err := s.lookup("/f", ioengine.Create|ioengine.Exclusive)
	ok(t, err)
	for _, id := range o.info.places {
		s.store(id).out.Store(true)
	}
	if _, err := o.open(ioengine.Create|ioengine.Exclusive, made); !errors.Is(err, ErrLost) {
		t.Fatalf("no store has it: %v", err)
	}
	for _, id := range o.info.places {
		s.store(id).out.Store(false)
	}
	put(t, s, "/f", noise(1, 4096))
	if len(s.making) > 0 || len(s.chosen) > 0 {
		t.Errorf("%v are being made, on %v", s.making, s.chosen)
	}
	ok(t, s.Close())
}

// TestRemovedWhileOpened removes a file while a copy or a shard of it is being opened, so that
// it is no longer there: the file does not exist, and its stores are as good as before.
func TestRemovedWhileOpened(t *testing.T) {
	for _, g := range []Geometry{{1, 1}, {2, 1}} {
		for at := range g.width() {
			w := newWorld(t, g.width())
			s := mustOpen(t, w, g)
			put(t, s, "/f", noise(1, buf4(sealedBytes)))
			ok(t, s.Seal("/f", nil))
			opening, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			file := ""
			for i, dir := range w.dirs {
				name := objectFile(s, "/f", dir)
				if name == "" || i < at {
					continue
				}
				file = name
				w.disks[dir].Inject(faultdisk.Fault{Ops: faultdisk.OpOpen, Stall: goOn, Only: func(n string) bool {
					if n != name {
						return false
					}
					once.Do(func() { close(opening) })
					return true
				}})
				break
			}
			if file == "" {
				t.Fatalf("%s: nothing of the file lies on %v", g, w.dirs[at:])
			}
			err := make(chan error, 1)
			go func() {
				_, oerr := s.Open("/f", ioengine.ReadOnly)
				err <- oerr
			}()
			<-opening
			ok(t, errors.Join(s.Remove("/f"), s.SyncDir("/")))
			close(goOn)
			if err := <-err; !errors.Is(err, fs.ErrNotExist) && err != nil { // others may be open
				t.Errorf("%s: a removed file: %v", g, err)
			}
			if st := s.State(); st.Err != nil || st.Spare != 1 || slices.ContainsFunc(st.Stores, func(st StoreState) bool { return st.Err != nil || st.Errors > 0 }) {
				t.Errorf("%s: %+v", g, st)
			}
			ok(t, s.Close())
		}
	}
}

// TestNothingIsPlacedOnAStoreThatIsBeingAdded makes a file at every operation by which a store
// is added, well or with an error: it is not on that store before this one has its names, so
// no store fails at it, and afterwards it is as good as any.
func TestNothingIsPlacedOnAStoreThatIsBeingAdded(t *testing.T) {
	g := Geometry{1, 1}
	for failing := range 2 {
		for at, over := 1, false; !over; at++ {
			w := newWorld(t, g.width())
			s := mustOpen(t, w, g)
			fresh := w.disk(t, "/n0")
			d := w.disks[fresh]
			ops, during := 0, 0
			d.OnOp(func(op faultdisk.Op, name string) {
				if ops++; ops != at {
					return
				}
				s.mu.Lock()
				ids := s.choose(1, len(s.names.members), nil)
				adding := slices.ContainsFunc(ids, func(id uint32) bool { return s.names.members[id].dir == fresh })
				s.mu.Unlock()
				defer s.endChoice(ids)
				if _, err := readAll(d, path.Join(fresh, namesName)); adding && err != nil {
					t.Errorf("at operation %d, %v of %s: a file is to be on the store: %v", at, op, name, err)
					return
				}
				f, err := s.Open("/f", ioengine.Create)
				if err == nil {
					_, err = f.WriteAt(noise(at, 4096), 0)
					err = errors.Join(err, f.Sync(), f.Close())
				}
				ok(t, err)
				during++
				if failing > 0 {
					d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO})
				}
			})
			err := s.Add(fresh)
			d.OnOp(nil)
			d.Heal()
			over = during == 0
			ok(t, s.SyncDir("/"))
			if failing == 0 {
				ok(t, err)
				put(t, s, "/after", noise(1, 4096))
				if st := s.State(); st.Err != nil || len(st.Stores) != g.width()+1 {
					t.Errorf("at operation %d: %+v", at, st)
				}
			}
			ok(t, mend(s))
			if len(s.chosen) > 0 || s.adding != 0 {
				t.Errorf("at operation %d: %v stay chosen, %d is being added", at, s.chosen, s.adding)
			}
			if got, gerr := get(s, "/f"); !over && (gerr != nil || !bytes.Equal(got, noise(at, 4096))) {
				t.Errorf("at operation %d: %v, at %d", at, gerr, firstDifference(got, noise(at, 4096)))
			}
			ok(t, s.Close())
		}
	}
}
