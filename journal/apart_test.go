package journal

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
)

const otherGroup = testGroup + 1

// twoGroups returns a disk with the whole story, and beside it a group that has none.
func twoGroups(t *testing.T, s *source) *faultdisk.Disk {
	t.Helper()
	disk := told(t, s)
	store, err := Open(config(disk))
	ok(t, err)
	g, err := store.OpenGroup(GroupInfo{ID: otherGroup, Name: "other", Lineage: 1})
	ok(t, err)
	ok(t, g.SetVolumes(testVolumes))
	ok(t, store.Close())
	return disk
}

// A file of one group that is damaged or gone concerns that group alone: it says so and
// refuses, and the others are served.
func TestOneDamagedGroup(t *testing.T) {
	s := newSource(31)
	s.script()
	disk := twoGroups(t, s)
	root := "/store/groups/" + otherGroup.String()
	f := func(what, name string, do func(d *faultdisk.Disk) error) {
		t.Helper()
		d := disk.Kill()
		ok(t, do(d))
		w, err := openTarget(d)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		numbers, err := w.check(s)
		if err != nil || len(numbers) != len(s.images) {
			t.Errorf("%s: of the other group %v are listed: %v", what, numbers, err)
		}
		g, found := w.store.Group(otherGroup)
		if !found || len(w.store.Groups()) != 2 || g.Info().Name != name {
			t.Fatalf("%s: the group is %v, named %q", what, found, g.Info().Name)
		}
		if err := g.State().Err; !isDamage(err) {
			t.Errorf("%s: state %v", what, err)
		}
		_, err = w.store.OpenGroup(GroupInfo{ID: otherGroup, Name: "other", Lineage: 1})
		refused := []error{err, g.SetVolumes(testVolumes), g.Append(s.records[0], nil)}
		_, err = g.Admit(testStream, 1, 1)
		refused = append(refused, err)
		_, err = g.Checkpoints(0, 10)
		refused = append(refused, err)
		_, err = g.Latest()
		refused = append(refused, err)
		_, err = g.OpenView(1, ViewOptions{})
		refused = append(refused, err)
		for i, err := range refused {
			if !errors.Is(err, ErrFailed) || !isDamage(err) {
				t.Errorf("%s: call %d: %v", what, i, err)
			}
		}
		ok(t, w.store.Close())
	}
	names, err := disk.List(root + "/log")
	ok(t, err)
	segment := root + "/log/" + names[0]
	id := otherGroup.String()
	f("manifest damaged", id, func(d *faultdisk.Disk) error { return d.Rot(root+"/manifest", 100, 1) })
	f("manifest gone", id, func(d *faultdisk.Disk) error { return d.Remove(root + "/manifest") })
	f("segment damaged", "other", func(d *faultdisk.Disk) error { // with something behind its header that nobody knows
		file, err := d.Open(segment, 0)
		if err != nil {
			return err
		}
		_, err = file.WriteAt([]byte{1}, 9000)
		return errors.Join(err, file.Close(), d.Rot(segment, 100, 1))
	})
	replicas, err := disk.List(root + "/replica")
	ok(t, err)
	for _, n := range replicas {
		if strings.Contains(n, "sums") {
			f("sums damaged", "other", func(d *faultdisk.Disk) error { return d.Rot(root+"/replica/"+n, 10, 1) })
		}
	}
}

// A group that did not open for an error of the disk opens once that has gone, and
// tells of its checkpoints who listened before.
func TestOpensAgain(t *testing.T) {
	s := newSource(32)
	s.script()
	disk := told(t, s)
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpOpen, Err: syscall.EIO, Only: func(name string) bool { return strings.Contains(name, "/log/") }})
	store, err := Open(config(disk))
	ok(t, err)
	g, _ := store.Group(testGroup)
	if err := g.State().Err; !errors.Is(err, syscall.EIO) {
		t.Fatalf("state %v", err)
	}
	var listed []uint64
	g.OnListed(func(cp Checkpoint) { listed = append(listed, cp.Number) })
	g, err = store.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage})
	ok(t, err)
	w := &target{store: store, group: g}
	numbers, err := w.check(s)
	if err != nil || len(numbers) != len(s.images) {
		t.Errorf("listed %v: %v", numbers, err)
	}
	s.write(2)
	number := s.checkpoint()
	ok(t, w.feed(s, 1))
	ok(t, store.Close())
	if !slices.Contains(listed, number) {
		t.Errorf("told of %v, want %d", listed, number)
	}
}

// brittle is a catalogue that takes nothing for a while.
type brittle struct {
	index.Memory
	broken atomic.Bool
}

func (m *brittle) Update(set []index.Pair, del [][]byte) error {
	if m.broken.Load() {
		return errBroken
	}
	return m.Memory.Update(set, del)
}

var errBroken = errors.New("broken")

// Checkpoints that cannot be listed are said to be so, and are listed once they can
// be, without another record.
func TestNotListed(t *testing.T) {
	for _, what := range []string{"watermark", "catalogue"} {
		synctest.Test(t, func(t *testing.T) {
			disk := faultdisk.New(512)
			s := newSource(33)
			s.script()
			catalogue := new(brittle)
			cfg := config(disk)
			cfg.OpenCatalogue = func() (index.Map, error) { return catalogue, nil }
			w, err := openWith(cfg)
			ok(t, err)
			ok(t, w.feed(s, 3))
			if what == "catalogue" {
				catalogue.broken.Store(true)
			} else {
				disk.Inject(faultdisk.Fault{Ever: true, Err: syscall.ENOSPC, Only: func(name string) bool { return strings.Contains(name, watermarkName) }})
			}
			var missing []uint64
			for range 2 {
				s.write(2)
				missing = append(missing, s.checkpoint())
				ok(t, w.feed(s, 1))
			}
			if err := w.group.State().Err; !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "2 checkpoints") {
				t.Errorf("%s: two checkpoints are not listed, state %v", what, err)
			}
			catalogue.broken.Store(false)
			disk.Heal()
			time.Sleep(2 * retryAfter)
			if err := w.group.State().Err; err != nil {
				t.Errorf("%s: well again, state %v", what, err)
			}
			numbers, err := w.check(s)
			if err != nil || len(numbers) != len(s.images) {
				t.Errorf("%s: well again, listed %v: %v", what, numbers, err)
			}
			if _, told := w.promised(); !slices.Equal(told[len(told)-2:], missing) {
				t.Errorf("%s: told of %v, want %v last", what, told, missing)
			}
			ok(t, w.store.Close())
		})
	}
}
