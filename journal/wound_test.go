package journal

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// states are the listed checkpoints, and whether they are good; a bad one says why.
func (t *target) states() (map[uint64]bool, error) {
	cps, err := t.group.Checkpoints(0, 1000)
	good := make(map[uint64]bool)
	for _, cp := range cps {
		good[cp.Number] = cp.State == index.Good
		if cp.State == index.Bad && cp.Reason == "" {
			err = fmt.Errorf("checkpoint %d is bad and does not say why", cp.Number)
		}
	}
	return good, err
}

// truth opens every checkpoint and reads it whole: so it is known which are good.
func (t *target) truth(s *source) (map[uint64]bool, error) {
	good := make(map[uint64]bool)
	for n, image := range s.images {
		err := t.compare(n, image)
		if err != nil && !isDamage(err) && !errors.Is(err, syscall.EIO) {
			return nil, fmt.Errorf("checkpoint %d: %w", n, err)
		}
		good[n] = err == nil
	}
	return good, nil
}

// honest compares what is said with what is true, before anybody reads. Where the log
// will not open again more may be said to be bad than is.
func (t *target) honest(s *source, opens bool) (bad int, err error) {
	said, err := t.states()
	if err != nil {
		return 0, err
	}
	st := t.group.State()
	latest, _ := t.group.Latest()
	is, err := t.truth(s)
	if err != nil {
		return 0, err
	}
	count, newest := 0, uint64(0)
	for n, good := range is {
		if good = good && (opens || said[n]); said[n] != good {
			return 0, fmt.Errorf("checkpoint %d is good: said %v, is %v", n, said[n], good)
		}
		if good {
			count, newest = count+1, max(newest, n)
		} else {
			bad++
		}
	}
	if st.Count != count || st.Newest != newest || latest.Number != newest || len(said) != len(is) {
		return 0, fmt.Errorf("state %+v, latest %d; want %d good ones up to %d of %d", st, latest.Number, count, newest, len(is))
	}
	if bad > 0 && !isDamage(st.Damage) {
		return 0, fmt.Errorf("%d checkpoints are bad, state %v", bad, st.Damage)
	}
	return bad, nil
}

// A block rots before its segment is read back. At once exactly those checkpoints are
// bad that need it, listed before or later, nobody having read them; also after a
// restart, and the source is told of none of them.
func TestReadBackSpoils(t *testing.T) {
	spoiled, later := 0, 0
	unseen := 0
	for at := int64(4096); at < 60<<10; at += 1531 * int64(stride(4)) {
		synctest.Test(t, func(t *testing.T) {
			disk := faultdisk.New(512)
			s := newSource(41)
			s.script()
			for range 10 {
				s.write(5)
				s.checkpoint()
			}
			w, err := openTarget(disk)
			ok(t, err)
			rotten := false
			disk.OnOp(func(op faultdisk.Op, name string) { // the first segment is closed, and about to be read back
				if op == faultdisk.OpRename && path.Base(name) == "0000000000000002.seg" && !rotten {
					rotten = true
					ok(t, disk.Rot(path.Dir(name)+"/0000000000000001.seg", at, 1))
				}
			})
			for _, r := range s.records {
				ok(t, w.group.admitFor(r))
				ok(t, w.send([]record.Record{r}, 1))
			}
			time.Sleep(2 * readBackIdle) // nothing holds the read-back up
			synctest.Wait()
			if !rotten { // what begins while the hook is called for another is not seen by it
				unseen++
				ok(t, w.store.Close())
				return
			}
			listed := slices.Clone(w.listed)
			for range 3 {
				s.write(3)
				s.checkpoint()
			}
			ok(t, w.feed(s, 1))
			good, err := w.states()
			ok(t, err)
			for _, n := range w.listed[len(listed):] {
				if !good[n] {
					t.Errorf("rot at %d: a source was told of checkpoint %d, which is bad", at, n)
				}
			}
			after := disk.Crash(seeded(1), faultdisk.KeepNone)
			again, unopened := openTarget(after)
			if unopened != nil {
				t.Fatalf("rot at %d, opened again: %v", at, unopened)
			}
			cut := again.group.frozen // the tables are damaged: said openly
			bad, err := w.honest(s, !cut)
			if err != nil {
				t.Errorf("rot at %d: %v", at, err)
			}
			if bad > 0 {
				spoiled++
			}
			if len(w.listed) < len(listed)+3 {
				later++
			}
			ok(t, w.store.Close())
			still, err := again.states()
			ok(t, err)
			for n := range still {
				if cut && still[n] && !good[n] {
					t.Errorf("rot at %d: checkpoint %d is good after a restart, and was not", at, n)
				}
			}
			if !cut && !maps.Equal(still, good) {
				t.Errorf("rot at %d: good were %v, after a restart %v", at, good, still)
			}
			if bad > 0 && again.group.State().Damage == nil {
				t.Errorf("rot at %d: after a restart nothing is said", at)
			}
			ok(t, again.store.Close())
		})
	}
	t.Logf("%d places spoil checkpoints, %d of them later ones; %d were not reached", spoiled, later, unseen)
	if spoiled == 0 || later == 0 {
		t.Error("the test has lost its reach")
	}
}

// One reader finds damage in the replica: every checkpoint that needs the block is bad.
func TestReaderSpoils(t *testing.T) {
	s := newSource(42)
	s.script()
	disk := told(t, s)
	spoiled := 0
	for at := int64(0); at < volumeBytes; at += 4096 {
		d := disk.Kill()
		ok(t, d.Rot("/store/groups/"+testGroup.String()+"/replica/00000001.raw", at+100, 1))
		w, err := openTarget(d)
		ok(t, err)
		first := w.group.State().Oldest
		if err := w.compare(first, s.images[first]); err != nil && !isDamage(err) {
			t.Fatal(err)
		}
		bad, err := w.honest(s, true)
		if err != nil {
			t.Fatalf("block at %d: %v", at, err)
		}
		spoiled += bad
		ok(t, w.store.Close())
	}
	if spoiled < 2 {
		t.Error("the test has lost its reach")
	}
}

// Damage that cannot be stated durably is known all the same, and stated later.
func TestDamageOnAFullDisk(t *testing.T) {
	s := newSource(43)
	s.script()
	disk := told(t, s)
	synctest.Test(t, func(t *testing.T) {
		ok(t, disk.Rot("/store/groups/"+testGroup.String()+"/replica/00000001.raw", 100, 1))
		ok(t, disk.Rot("/store/groups/"+testGroup.String()+"/replica/00000002.raw", 100, 1))
		w, err := openTarget(disk)
		ok(t, err)
		disk.Inject(faultdisk.Fault{Ever: true, Err: syscall.ENOSPC, Only: func(name string) bool { return strings.Contains(name, manifestName) }})
		bad := 0
		for n, image := range s.images {
			if w.compare(n, image) != nil {
				bad++
			}
		}
		disk.Heal()
		time.Sleep(2 * retryAfter)
		if stated := w.group.manifest.now().damaged; bad == 0 || len(stated) == 0 {
			t.Errorf("%d checkpoints are bad, stated is %v", bad, stated)
		}
		ok(t, w.store.Close())
		w, err = openTarget(disk.Crash(seeded(1), faultdisk.KeepNone))
		ok(t, err)
		if n := w.group.State().Count; n != len(s.images)-bad {
			t.Errorf("after a restart %d of %d are good, %d were bad", n, len(s.images), bad)
		}
		ok(t, w.store.Close())
	})
}

// Damage that touches is one, and there is never more of it than can be kept.
func TestDamages(t *testing.T) {
	f := func(want string, ds ...damage) {
		t.Helper()
		var all damages
		for _, d := range ds {
			all = all.add(d)
			if !all.holds(d) {
				t.Errorf("%v does not hold %v", all, d)
			}
		}
		got := ""
		for _, d := range all {
			got += fmt.Sprintf("%d:%d-%d ", d.volume, d.from, d.to)
		}
		if strings.TrimSpace(got) != want {
			t.Errorf("damages %s, want %s", got, want)
		}
	}
	f("0:10-20", damage{from: 10, to: 20})
	f("0:10-30", damage{from: 10, to: 20}, damage{from: 20, to: 30})
	f("0:10-20 0:30-40", damage{from: 30, to: 40}, damage{from: 10, to: 20})
	f("0:10-40", damage{from: 30, to: 40}, damage{from: 10, to: 20}, damage{from: 15, to: 35})
	f("0:10-20 1:15-30", damage{from: 10, to: 20}, damage{volume: 1, from: 15, to: 30})
	rng := seeded(44)
	var all damages
	for range 2 * maxDamages {
		d := damage{volume: 0, from: rng.Int64N(1 << 30)}
		d.to = d.from + 1 + rng.Int64N(100)
		if all = all.add(d); !all.holds(d) || len(all) > maxDamages {
			t.Fatalf("%d damages, %v is held: %v", len(all), d, all.holds(d))
		}
	}
}
