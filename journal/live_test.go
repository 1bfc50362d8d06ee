package journal

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
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
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Ever: true, Err: syscall.EIO,
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
