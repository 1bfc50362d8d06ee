package journal

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
)

// said is what users said of a checkpoint.
type said struct {
	tag, label string
	pinned     bool
}

func saidOf(cp Checkpoint) said { return said{cp.Tag, cp.Label, cp.Pinned} }

// tagged is a disk with a group of a few checkpoints, and their numbers.
func tagged(t *testing.T, disk *faultdisk.Disk) (w *target, numbers []uint64) {
	t.Helper()
	s := newSource(31)
	s.open(true)
	s.write(3)
	s.close()
	for range 4 {
		s.write(2)
		numbers = append(numbers, s.checkpoint())
	}
	cfg := config(disk)
	cfg.Still = true // what is said is said by one goroutine, and nobody else is at the disk
	w, err := openWith(cfg)
	ok(t, err)
	ok(t, w.feed(s, 3))
	return w, numbers
}

// Whatever was said and answered, or was ever shown, is there after a crash at any
// operation; what was being said is there or is not. A disk that fails at any operation
// loses nothing that was said before.
func TestTagsSurvive(t *testing.T) {
	faults := []error{nil, syscall.EIO, syscall.ENOSPC}
	for _, fault := range faults {
		for at := 1; at < 12; at++ {
			disk := faultdisk.New(512)
			w, numbers := tagged(t, disk)
			have := make(map[uint64]said)
			for _, n := range numbers {
				cp, err := w.group.Checkpoint(n)
				ok(t, err)
				have[n] = saidOf(cp)
			}
			var doing uint64 // the checkpoint that something is being said of
			var next said
			check := func(when string, disk *faultdisk.Disk, shown map[uint64]said) {
				t.Helper()
				again, err := openTarget(disk)
				if err != nil {
					t.Errorf("%s: %v", when, err)
					return
				}
				for _, n := range numbers {
					cp, err := again.group.Checkpoint(n)
					if err != nil {
						t.Errorf("%s: %v", when, err)
						continue
					}
					now := saidOf(cp)
					if now != shown[n] && (n != doing || now != next) {
						t.Errorf("%s: checkpoint %d is %+v; was shown as %+v", when, n, now, shown[n])
					}
				}
				ok(t, again.store.Close())
			}
			shown := func() map[uint64]said {
				m := make(map[uint64]said)
				for _, n := range numbers {
					if cp, err := w.group.Checkpoint(n); err == nil {
						m[n] = saidOf(cp)
					}
				}
				return m
			}
			if fault == nil {
				ops := 0
				disk.OnOp(func(op faultdisk.Op, name string) {
					if ops++; ops%3 == at%3 {
						check(fmt.Sprintf("crash at %d", ops), disk.Crash(seeded(at*100+ops), keeps[ops%len(keeps)]), shown())
					}
				})
			} else {
				disk.Inject(faultdisk.Fault{At: at, Err: fault, Short: true, Only: func(name string) bool { return strings.Contains(name, "manifest") }})
			}
			say := func(n uint64, want said, do func() (Checkpoint, error)) {
				t.Helper()
				doing, next = n, want
				cp, err := do()
				if err == nil && saidOf(cp) != want {
					t.Errorf("answered %+v, want %+v", saidOf(cp), want)
				}
				if err == nil {
					have[n] = want
				} else if fault == nil || !errors.Is(err, fault) {
					t.Errorf("fault %v at %d: %v", fault, at, err)
				} else if cp, err := w.group.Checkpoint(n); err != nil || saidOf(cp) != have[n] {
					t.Errorf("fault %v at %d: it was refused and is shown as %+v, %v", fault, at, saidOf(cp), err)
				}
			}
			g, a, b, c := w.group, numbers[0], numbers[1], numbers[2]
			say(a, said{tag: "before"}, func() (Checkpoint, error) { return g.Tag(a, "before") })
			say(b, said{tag: have[b].tag, pinned: true, label: "audit"}, func() (Checkpoint, error) { return g.Pin(b, "audit") })
			say(c, said{tag: have[c].tag, pinned: true}, func() (Checkpoint, error) { return g.Pin(c, "") })
			say(b, said{tag: have[b].tag, pinned: true, label: "other"}, func() (Checkpoint, error) { return g.Pin(b, "other") })
			say(c, said{tag: have[c].tag}, func() (Checkpoint, error) { return g.Unpin(c) })
			say(a, said{}, func() (Checkpoint, error) { return g.Tag(a, "") })
			doing = 0
			disk.OnOp(nil)
			disk.Heal()
			if fault == nil {
				check("in the end", disk.Crash(seeded(at), keeps[at%len(keeps)]), have)
			} else {
				doing, next = a, said{} // a refused change may be there, the last of all
				for _, n := range numbers {
					if cp, err := g.Checkpoint(n); err != nil || saidOf(cp) != have[n] {
						t.Errorf("fault %v at %d: checkpoint %d is shown as %+v, %v; want %+v", fault, at, n, cp, err, have[n])
					}
				}
			}
			ok(t, w.store.Close())
		}
	}
}

// What users say outlives the catalogue, and is refused where it cannot be kept.
func TestTagsOutliveTheCatalogue(t *testing.T) {
	disk := faultdisk.New(512)
	w, numbers := tagged(t, disk)
	g := w.group
	for i, n := range numbers {
		_, err := g.Tag(n, fmt.Sprint("tag ", i))
		ok(t, err)
	}
	_, err := g.Pin(numbers[1], "kept")
	ok(t, err)
	for _, bad := range []func() (Checkpoint, error){
		func() (Checkpoint, error) { return g.Tag(numbers[3]+1, "x") },
		func() (Checkpoint, error) { return g.Pin(0, "x") },
		func() (Checkpoint, error) { return g.Unpin(^uint64(0)) },
	} {
		if _, err := bad(); !errors.Is(err, ErrNotFound) {
			t.Errorf("of a checkpoint that is not there: %v", err)
		}
	}
	for _, text := range []string{strings.Repeat("x", 257), "\xff"} {
		if _, err := g.Tag(numbers[0], text); err == nil {
			t.Errorf("tag %.10q is taken", text)
		}
	}
	ok(t, w.store.Close())
	w, err = openWith(Config{FS: disk, Dir: "/store", SegmentBytes: 64 << 10, OpenCatalogue: func() (index.Map, error) { return new(index.Memory), nil }})
	ok(t, err)
	g = w.group
	for i, n := range numbers {
		cp, err := g.Checkpoint(n)
		if err != nil || saidOf(cp) != (said{tag: fmt.Sprint("tag ", i), pinned: i == 1, label: map[bool]string{true: "kept"}[i == 1]}) {
			t.Errorf("with a new catalogue checkpoint %d is %+v, %v", n, cp, err)
		}
	}
	if counts, err := g.Counts(); err != nil || counts != (Counts{Good: 4, Tagged: 4, Pinned: 1}) {
		t.Errorf("counts %+v, %v", counts, err)
	}
	page, err := g.List(Query{Limit: 10, Pinned: true})
	if err != nil || len(page.Checkpoints) != 1 || page.Checkpoints[0].Number != numbers[1] {
		t.Errorf("pinned: %+v, %v", page, err)
	}

	// Thinned away around it, it stays until it is let go.
	ok(t, g.manifest.put(true, entry{kind: entryThinned, spans: []span{{numbers[0], numbers[3]}}}))
	ok(t, g.store.catalogue.Forget(g.info.ID, numbers[2]))
	if _, err := g.Tag(numbers[1], "still here"); err != nil {
		t.Error(err)
	}
	if _, err := g.Unpin(numbers[1]); err != nil {
		t.Error(err)
	}
	if _, err := g.Checkpoint(numbers[1]); !errors.Is(err, ErrNotFound) {
		t.Errorf("let go, it is still listed: %v", err)
	}
	if s := g.State(); s.Count != 2 || s.Oldest != numbers[0] || s.Newest != numbers[3] {
		t.Errorf("state %+v", s)
	}
	ok(t, w.store.Close())
}

// The manifest stays small.
func TestTagsAreBounded(t *testing.T) {
	disk := faultdisk.New(512)
	w, numbers := tagged(t, disk)
	es := []entry{}
	for n := range uint64(maxTags) {
		es = append(es, entry{kind: entryTag, number: 1<<40 + n, reason: strings.Repeat("t", maxReason)})
	}
	for n := range uint64(maxPins) {
		es = append(es, entry{kind: entryPin, number: 1<<40 + n, pinned: true, reason: strings.Repeat("l", maxReason)})
	}
	ok(t, w.group.manifest.put(false, es...))
	if _, err := w.group.Tag(numbers[0], "one more"); !errors.Is(err, ErrTooMany) {
		t.Errorf("one tag more: %v", err)
	}
	if _, err := w.group.Pin(numbers[0], "one more"); !errors.Is(err, ErrTooMany) {
		t.Errorf("one pin more: %v", err)
	}
	ok(t, w.group.manifest.put(false, entry{kind: entryGone, number: 1<<40 + 1}))
	if facts := w.group.manifest.now(); len(facts.tags) != maxTags-1 || len(facts.pins) != maxPins-1 {
		t.Errorf("%d tags, %d pins", len(facts.tags), len(facts.pins))
	}
	var size int
	for _, e := range es {
		size += len(appendEntry(nil, frame{testGroup, 1, 0}, e))
	}
	if size > reserveGroup-2*maxRound-maxManifest {
		t.Errorf("%d bytes of tags and pins, more than is kept for a manifest", size)
	}
	ok(t, w.store.Close())
}
