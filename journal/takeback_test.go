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
	"github.com/holdfast-dr/holdfast/journal/scrub"
	"github.com/holdfast-dr/holdfast/journal/stripe"
)

// Who asks gets all read, whatever an earlier run noted down: its clock was ahead of this
// one's, which goes on from where it was last written.
func TestVerifyReadsAllInEachRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		s := scrubbed(t, disk, nil)
		cfg := scrubConfig(disk, nil)
		cfg.Scrub = scrub.Policy{Every: -1, Most: 64 << 10}
		w, err := openWith(cfg)
		ok(t, err)
		ok(t, w.verify())
		ok(t, w.store.Close())
		ok(t, disk.Rot(logFile(1), s.vital, 1))
		ok(t, disk.Rot(replicaFile(1), 9000, 1))
		cfg.Scrub.Most = 8 << 10 // so that the clock passes where it was while this goes on
		w, err = openWith(cfg)
		ok(t, err)
		time.Sleep(time.Second)
		ok(t, w.verify())
		if d := w.group.Damaged(); d != 2 {
			t.Errorf("%d of 2 places are found", d)
		}
		_, err = w.honest(s, true)
		ok(t, err)
		ok(t, w.store.Close())
	})
}

// A segment that reads well again as it is sealed is said to be whole: nobody has to ask.
func TestSealingTakesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		s := scrubbed(t, disk, nil)
		w, err := openWith(scrubConfig(disk, nil))
		ok(t, err)
		ok(t, disk.Rot(logFile(1), s.vital, 1))
		ok(t, w.verify())
		if w.group.Damaged() == 0 {
			t.Fatal("nothing is damaged: the test has lost its reach")
		}
		ok(t, w.store.Close())
		ok(t, disk.Rot(logFile(1), s.vital, 1)) // the bit flips back
		ok(t, disk.Rot(logFile(1), sizeOf(t, disk, logFile(1))-2, 1))
		w, err = openWith(scrubConfig(disk, nil))
		ok(t, err)
		time.Sleep(2 * readBackIdle)
		synctest.Wait()
		bad, err := w.honest(s, true)
		if st := w.group.State(); err != nil || bad != 0 || st.Err != nil || st.Damage != nil {
			t.Errorf("%d bad, state %+v: %v", bad, st, err)
		}
		ok(t, w.store.Close())
	})
}

func sizeOf(t *testing.T, disk *faultdisk.Disk, name string) int64 {
	t.Helper()
	f, err := disk.Open(name, 0)
	ok(t, err)
	defer f.Close()
	n, err := f.Size()
	ok(t, err)
	return n
}

// Parity is made of what was verified just now: of a segment that has none, and rotted
// since it was verified, it must not keep the rot.
func TestParityIsNotOfRot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		s := scrubbed(t, disk, nil)
		ok(t, disk.Rot(logFile(1), s.vital, 1))
		p := &localParity{stripe.Local{FS: disk}, make(chan error, 1)}
		w, err := openWith(scrubConfig(disk, p))
		ok(t, err)
		time.Sleep(2 * readBackIdle)
		synctest.Wait()
		names, err := disk.List(strings.TrimSuffix(logFile(1), "/0000000000000001.seg"))
		ok(t, err)
		if slices.Contains(names, "0000000000000001.par") || !slices.Contains(names, "0000000000000002.par") {
			t.Errorf("there are %v", names)
		}
		if bad, err := w.honest(s, true); err != nil || bad == 0 {
			t.Errorf("%d bad: %v", bad, err)
		}
		ok(t, disk.Rot(logFile(1), s.vital, 1)) // the bit flips back
		ok(t, w.verify())
		ok(t, disk.Rot(logFile(1), s.vital+1, 1))
		ok(t, w.verify())
		bad, err := w.honest(s, true)
		if _, repairs := w.store.ScrubStats(); err != nil || bad != 0 || repairs != 1 {
			t.Errorf("what was verified is not protected: %d bad, %d repairs: %v", bad, repairs, err)
		}
		ok(t, w.store.Close())
	})
}

// moody is a map that fails while it is told to.
type moody struct {
	index.Map
	fails atomic.Bool
}

var errMoody = errors.New("not now")

func (m *moody) Update(set []index.Pair, del [][]byte) error {
	if m.fails.Load() {
		return errMoody
	}
	return m.Map.Update(set, del)
}

// What was repaired while the catalogue took nothing is said to be good when it does again.
func TestRepairedIsMarkedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		s := scrubbed(t, disk, nil)
		catalogue := &moody{Map: new(index.Memory)}
		cfg := scrubConfig(disk, nil)
		cfg.OpenCatalogue = func() (index.Map, error) { return catalogue, nil }
		w, err := openWith(cfg)
		ok(t, err)
		ok(t, disk.Rot(logFile(1), s.vital, 1))
		ok(t, w.verify())
		if w.group.Damaged() == 0 {
			t.Fatal("nothing is damaged: the test has lost its reach")
		}
		ok(t, disk.Rot(logFile(1), s.vital, 1)) // the bit flips back
		catalogue.fails.Store(true)
		ok(t, w.verify())
		catalogue.fails.Store(false)
		time.Sleep(2 * retryAfter)
		s.write(3)
		s.checkpoint()
		ok(t, w.feed(s, 3))
		bad, err := w.honest(s, true)
		if st := w.group.State(); err != nil || bad != 0 || st.Err != nil || st.Damage != nil {
			t.Errorf("%d bad, state %+v: %v", bad, st, err)
		}
		ok(t, w.store.Close())
	})
}

// Parity that cannot be read for once is not made anew, of a file that may have rotted.
func TestParityStaysWhenItIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		p := &localParity{stripe.Local{FS: disk}, make(chan error, 1)}
		s := scrubbed(t, disk, p)
		ok(t, disk.Rot(logFile(1), s.vital, 1))
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Only: func(name string) bool { return strings.HasSuffix(name, ".par") }, Err: syscall.EIO, Ever: true})
		w, err := openWith(scrubConfig(disk, p))
		ok(t, err)
		time.Sleep(2 * readBackIdle)
		synctest.Wait()
		disk.Heal()
		ok(t, w.verify())
		bad, err := w.honest(s, true)
		if _, repairs := w.store.ScrubStats(); err != nil || bad != 0 || repairs != 1 {
			t.Errorf("%d bad, %d repairs: %v", bad, repairs, err)
		}
		ok(t, w.store.Close())
	})
}
