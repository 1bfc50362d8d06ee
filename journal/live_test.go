package journal

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The index is found damaged while the disk takes nothing, so that it cannot be built anew. A
// reader hears of the try that is made while it waits, and of none that failed before: as soon
// as the disk is well again no read fails.
func TestReadersAwaitTheNextTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(45)
		s.script()
		disk := faultdisk.New(512)
		w, err := openTarget(disk)
		ok(t, err)
		ok(t, w.feed(s, 3))
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Ever: true, Err: syscall.EIO,
			Only: func(name string) bool { return strings.Contains(name, "/"+indexName) }})
		w.group.index.damaged(errors.New("damaged by the test"))
		synctest.Wait() // the first try has failed
		first := w.group.State().Oldest
		if err := w.compare(first, s.images[first]); !errors.Is(err, syscall.EIO) {
			t.Errorf("while the disk fails a read says %v", err)
		}
		disk.Heal()
		_, err = w.check(s)
		ok(t, err)
		ok(t, w.store.Close())
	})
}

// The beginning of the log is about to be dropped while the index is built anew: it is whole
// again before the log is shorter, and yet nothing is found there any more.
func TestDropBesideRebuilding(t *testing.T) {
	s := newSource(46)
	s.script()
	w, err := openTarget(faultdisk.New(512))
	ok(t, err)
	ok(t, w.feed(s, 3))
	x, cp := w.group.index, w.group.State().Newest
	newest, err := w.group.Checkpoint(cp)
	ok(t, err)
	places := func() (least segment.Pos) {
		t.Helper()
		found, err := x.Lookup(nil, record.VolumeID(1), 0, volumeBytes, x.Vector(newest))
		ok(t, err)
		for _, p := range found {
			if p.In == index.InLog && (least == 0 || p.Pos < least) {
				least = p.Pos
			}
		}
		return least
	}
	first := places() + 1
	x.begin()
	ok(t, x.Drop(first))
	ok(t, x.end(func() (segment.Pos, error) { return w.group.segments.Durable(), nil }))
	if least := places(); least < first && least != 0 {
		t.Errorf("what is at %s is found, and what is below %s was dropped", least, first)
	}
	ok(t, w.store.Close())
}
