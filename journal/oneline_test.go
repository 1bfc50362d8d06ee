package journal

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// States are lines, and say nothing twice.
func TestOneLine(t *testing.T) {
	failed := fmt.Errorf("log has failed: %w", syscall.ENOSPC)
	f := func(err error, want string) {
		t.Helper()
		got := oneLine(err)
		if got.Error() != want || !errors.Is(got, syscall.ENOSPC) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	f(failed, failed.Error())
	f(errors.Join(failed, failed), failed.Error())
	f(fmt.Errorf("group 7: %w", errors.Join(failed, failed, syscall.EIO)), "group 7: "+failed.Error()+"; "+syscall.EIO.Error())
	if oneLine(nil) != nil {
		t.Error("nothing is an error")
	}
}

// A group on a full disk says so, in one line, and how much there is.
func TestFullDiskIsSaid(t *testing.T) {
	s := newSource(5)
	s.open(true)
	s.write(6)
	disk := faultdisk.New(512)
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 1))
	disk.SetFree(3 << 20)
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true})
	s.write(6)
	if err := w.feed(s, 1); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("data is taken: %v", err)
	}
	text := fmt.Sprint(w.group.State().Err)
	if !strings.Contains(text, "the disk is full: 3 MiB are free, 64.1 MiB are wanted: ") || strings.Contains(text, "\n") ||
		strings.Count(text, syscall.ENOSPC.Error()) != 1 {
		t.Errorf("%q", text)
	}
	disk.Heal()
	ok(t, w.store.Close())
}
