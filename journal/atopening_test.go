package journal

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/stripe"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// rotWorld is a store that was closed, or whose process was killed, before a byte rots.
type rotWorld struct {
	parity  bool
	killed  bool // with records that no index covers
	noIndex bool
	listed  bool // the catalogue outlives it
}

func (rw rotWorld) String() string {
	return fmt.Sprintf("%+v", struct{ rotWorld }{rw}.rotWorld.fields())
}

func (rw rotWorld) fields() map[string]bool {
	return map[string]bool{"parity": rw.parity, "killed": rw.killed, "no index": rw.noIndex, "listed": rw.listed}
}

// rotting is such a store, made once: each byte rots in a copy of it. How its rounds fell
// is the same for all of them, and another in each run of the test.
type rotting struct {
	rotWorld
	disk      *faultdisk.Disk
	catalogue index.Map
	s         *source
}

// copy returns the disk, how it is opened, and what was written.
func (r rotting) copy(t *testing.T) (*faultdisk.Disk, func() (*target, error), *source) {
	disk, catalogue := r.disk.Kill(), copied(t, r.catalogue)
	return disk, func() (*target, error) { return r.open(disk, catalogue) }, r.s.clone()
}

func (rw rotWorld) protector(d *faultdisk.Disk) Protector {
	if !rw.parity {
		return nil
	}
	return &localParity{stripe.Local{FS: d}, make(chan error, 1)}
}

func (rw rotWorld) open(disk *faultdisk.Disk, catalogue index.Map) (*target, error) {
	cfg := scrubConfig(disk, rw.protector(disk))
	if rw.listed {
		cfg.OpenCatalogue = func() (index.Map, error) { return catalogue, nil }
	}
	return openWith(cfg)
}

func (rw rotWorld) make(t *testing.T) (r rotting) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { r = rw.makeHere(t) })
	return r
}

func (rw rotWorld) makeHere(t *testing.T) rotting {
	disk := faultdisk.New(512)
	s := scrubbed(t, disk, rw.protector(disk))
	catalogue := index.Map(new(index.Memory))
	w, err := rw.open(disk, catalogue)
	ok(t, err)
	if rw.killed {
		for range 5 {
			s.write(5)
			s.checkpoint()
		}
		ok(t, w.feed(s, 3))
		time.Sleep(2 * readBackIdle)
		synctest.Wait()
		old := disk
		disk = old.Kill()
		if rw.listed {
			catalogue = copied(t, catalogue)
		}
	}
	ok(t, w.store.Close())
	if rw.noIndex {
		dir := path.Join("/store/groups", testGroup.String(), "index")
		names, err := disk.List(dir)
		ok(t, err)
		for _, n := range names {
			ok(t, disk.Remove(path.Join(dir, n)))
		}
	}
	return rotting{rw, disk, catalogue, s}
}

func copied(t *testing.T, from index.Map) index.Map {
	t.Helper()
	to := new(index.Memory)
	var all []index.Pair
	ok(t, from.Scan([]byte{0}, []byte{255}, func(k, v []byte) bool {
		all = append(all, index.Pair{Key: append([]byte(nil), k...), Value: append([]byte(nil), v...)})
		return true
	}))
	ok(t, to.Update(all, nil))
	return to
}

// TestDamageAtOpening flips bytes of every part of a store that is not open. The group
// opens; a header, a footer, and all of a sealed segment that has parity is healed, in a
// new file; without parity exactly those checkpoints are bad that need what rotted, or, when the
// log could not be followed, those beyond it, and nothing more is taken. Never is a wrong
// byte read. When the bits flip back, all is well.
func TestDamageAtOpening(t *testing.T) {
	healed, bads, cut := 0, 0, 0
	for i, rw := range []rotWorld{{}, {parity: true}, {killed: true}, {killed: true, parity: true},
		{killed: true, listed: true}, {noIndex: true}, {noIndex: true, parity: true}, {noIndex: true, listed: true, parity: true}} {
		world := rw.make(t)
		for seg := 1; seg <= 4; seg++ {
			for at, done := int64(8+101*i), false; !done; at += 997 * int64(stride(3)) {
				synctest.Test(t, func(t *testing.T) {
					disk, open, s := world.copy(t)
					if size, err := sizeIfThere(disk, logFile(seg)); err != nil || at >= size {
						if done = true; size == 0 {
							return
						}
						at = size - 20 // and at last the trailer, or the last commit
					}
					where := fmt.Sprintf("%s, segment %d rots at %d", rw, seg, at)
					sealed, err := sizeIfThere(disk, strings.TrimSuffix(logFile(seg), ".seg")+".par")
					mends := at < 4096 || sealed > 0 && err == nil
					ok(t, disk.Rot(logFile(seg), at, 1))
					w, err := open()
					if err != nil {
						t.Fatalf("%s: %v", where, err)
					}
					bad, frozen := rotted(t, w, s, where)
					switch {
					case mends && (bad != 0 || frozen):
						t.Fatalf("%s: %d bad, %+v", where, bad, w.group.State())
					case mends:
						healed++
					case frozen:
						cut++
					case bad > 0:
						bads++
					}
					if frozen {
						if _, err := w.group.Admit(testStream, s.id.Epoch, s.id.Incarnation); !errors.Is(err, ErrFailed) || !isDamage(err) {
							t.Fatalf("%s: a source is admitted: %v", where, err)
						}
					}
					ok(t, w.store.Close())
					w, err = open()
					ok(t, err)
					if again, still := rotted(t, w, s, where+", opened again"); again != bad || still != frozen {
						t.Fatalf("%s: %d bad, and then %d; cut %v, and then %v", where, bad, again, frozen, still)
					}
					ok(t, w.store.Close())
					if mends {
						return
					}
					ok(t, disk.Rot(logFile(seg), at, 1)) // it flips back
					w, err = open()
					ok(t, err)
					if bad, frozen := rotted(t, w, s, where+" and back"); bad != 0 || frozen {
						t.Fatalf("%s and back: %d bad, %+v", where, bad, w.group.State())
					}
					s.write(3)
					s.checkpoint()
					ok(t, w.feed(s, 3))
					_, err = w.honest(s, true)
					ok(t, err)
					ok(t, w.store.Close())
				})
				if t.Failed() {
					return
				}
			}
		}
	}
	t.Logf("%d healed, %d with bad checkpoints, %d logs cut", healed, bads, cut)
	if healed == 0 || bads == 0 || cut == 0 {
		t.Error("the test has lost its reach")
	}
}

func sizeIfThere(disk *faultdisk.Disk, name string) (int64, error) {
	f, err := disk.Open(name, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Size()
}

// rotted has all read back and holds what is said against what is. frozen: the log was
// not followed to its end; then what lies beyond may not be listed, and does not open.
func rotted(t *testing.T, w *target, s *source, where string) (bad int, frozen bool) {
	t.Helper()
	ok(t, w.verify())
	frozen = w.group.frozen
	if !frozen {
		bad, err := w.honest(s, false)
		if st := w.group.State(); errors.Is(err, ErrNotFound) && isDamage(st.Damage) { // its cut is lost
			return partly(t, w, s, where), false
		} else if err != nil || bad == 0 && (st.Damage != nil && w.group.Damaged() == 0 || st.Err != nil) {
			t.Fatalf("%s: %d bad, %+v: %v", where, bad, st, err)
		}
		return bad, false
	}
	bad = partly(t, w, s, where)
	if st := w.group.State(); !isDamage(st.Err) || st.Damage == nil || !strings.Contains(st.Err.Error(), "opens only up to") {
		t.Fatalf("%s: state %+v", where, st)
	}
	return bad, true
}

// partly holds what is said of the checkpoints that are listed against what is; the others do
// not open.
func partly(t *testing.T, w *target, s *source, where string) (bad int) {
	t.Helper()
	said, err := w.states()
	ok(t, err)
	good := 0
	for n, image := range s.images {
		err := w.compare(n, image)
		switch listed, is := said[n]; {
		case err == nil && listed:
			good++
		case err == nil, listed, !isDamage(err) && (is || !errors.Is(err, ErrNotFound)):
			t.Fatalf("%s: checkpoint %d is said to be good: %v, and %v", where, n, listed, err)
		default:
			bad++
		}
	}
	if st := w.group.State(); st.Count != good {
		t.Fatalf("%s: %d good, state %+v", where, good, st)
	}
	return bad
}

// A control record rots in a sealed segment, and nothing but the log knows the checkpoints
// any more. A lost boundary is known by its kind; of a lost cut the checkpoint is gone from the
// list, and that damage is stated. All else is listed, and goes on.
func TestLostControlRecords(t *testing.T) {
	kinds := map[record.Kind]int{}
	world := rotWorld{}.make(t)
	for n, done := 0, false; !done; n++ {
		synctest.Test(t, func(t *testing.T) {
			disk, open, s := world.copy(t)
			w, err := open()
			ok(t, err)
			var at segment.Pos
			var kind record.Kind
			segments := w.group.segments.Segments()
			unread := func(s segment.Info) bool { return s.State == segment.StateOpen || s.State == segment.StateClosed }
			sealed := segments[:slices.IndexFunc(segments, unread)] // what is behind is followed at opening
			i := 0
			ok(t, w.group.segments.Replay(segment.Start, sealed[len(sealed)-1].To, segment.ReplayOptions{ControlOnly: true}, func(pos segment.Pos, r record.Record) error {
				if i == n {
					at, kind = pos, r.Kind
				}
				i++
				return nil
			}))
			if done = at == 0; done {
				ok(t, w.store.Close())
				return
			}
			in := 0
			for sealed[in].To <= at {
				in++
			}
			ok(t, w.store.Close())
			ok(t, disk.Rot(logFile(in+1), int64(at-sealed[in].First)+4096+2, 1)) // its magic
			w, err = open()
			ok(t, err)
			ok(t, w.verify())
			if w.group.frozen || !isDamage(w.group.State().Damage) {
				t.Fatalf("control record %d, kind %d: %+v", n, kind, w.group.State())
			}
			kinds[kind]++
			said, err := w.states()
			ok(t, err)
			missing := 0
			for number, image := range s.images {
				if !said[number] {
					missing++
				} else if err := w.compare(number, image); err != nil {
					t.Fatalf("control record %d, kind %d: checkpoint %d: %v", n, kind, number, err)
				}
			}
			if len(said)+missing != len(s.images) || missing > 1 || missing == 1 && kind != record.KindCut {
				t.Fatalf("control record %d, kind %d: %d of %d are listed, %d missing", n, kind, len(said), len(s.images), missing)
			}
			s.write(3)
			last := s.checkpoint()
			ok(t, w.feed(s, 3))
			if cp, err := w.group.Latest(); err != nil || cp.Number != last {
				t.Fatalf("control record %d, kind %d: it does not go on: %+v, %v", n, kind, cp, err)
			}
			ok(t, w.store.Close())
		})
		if t.Failed() {
			return
		}
	}
	if kinds[record.KindCut] == 0 || kinds[record.KindResyncOpen] == 0 || kinds[record.KindResyncClose] == 0 {
		t.Errorf("lost were %v: the test has lost its reach", kinds)
	}
}
