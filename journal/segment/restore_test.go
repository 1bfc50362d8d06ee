package segment

import (
	"errors"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The header of each segment of a log rots, at any byte: the log opens and holds all that
// it held, and Restore makes the file what it was. One whose first round rotted too has
// its header from the footer, or does not open: never with other bytes.
func TestDamagedHeadersAreRestored(t *testing.T) {
	logs := map[string]func(t *testing.T, disk *faultdisk.Disk) ([]placed, Watermark){
		"as written": func(t *testing.T, disk *faultdisk.Disk) ([]placed, Watermark) {
			l, recs := sealedLog(t, disk, 4)
			end := l.Durable()
			ok(t, l.Close())
			return recs, Watermark{Durable: end}
		},
		"its beginning dropped": func(t *testing.T, disk *faultdisk.Disk) ([]placed, Watermark) {
			l, recs := sealedLog(t, disk, 6)
			w := Watermark{First: l.Segments()[2].First, Durable: l.Durable()}
			ok(t, l.Drop(w.First))
			ok(t, l.Close())
			return slices.DeleteFunc(recs, func(p placed) bool { return p.pos < w.First }), w
		},
		"recycled": func(t *testing.T, disk *faultdisk.Disk) ([]placed, Watermark) {
			l, _, recs := recycler(t, disk, 6)
			w := Watermark{First: l.Segments()[4].First}
			ok(t, l.Drop(w.First))
			for len(l.Segments()) < 5 {
				more, _ := mixed(t, l, 5)
				recs = append(recs, more...)
			}
			w.Durable = l.Durable()
			ok(t, l.Close())
			return slices.DeleteFunc(recs, func(p placed) bool { return p.pos < w.First }), w
		},
		"folded": func(t *testing.T, disk *faultdisk.Disk) ([]placed, Watermark) {
			l, recs := sealedLog(t, disk, 7)
			var kept []placed
			segs := l.Segments()
			ok(t, l.ReplaceRange(3, 5, l.keepHalf(segs[2].First, segs[4].To, &kept), nil))
			w := Watermark{Durable: l.Durable()}
			ok(t, l.Close())
			return spliced(recs, segs[2].First, segs[4].To, kept), w
		},
	}
	for what, make := range logs {
		disk := faultdisk.New(512)
		recs, w := make(t, disk)
		for i, name := range segmentFiles(t, disk) {
			for _, at := range []int64{0, 5, 9, 17, 30, 33, 41, 49, 53, 509, 2000, 4093} {
				d := disk.Kill()
				ok(t, d.Rot(name, at, 1))
				l, err := Open(d, testDir, testGroup, w, testOptions(), nil)
				if err != nil {
					t.Fatalf("%s, %s rots at %d: %v", what, name, at, err)
				}
				if err := holds(l, recs); err != nil {
					t.Fatalf("%s, %s rots at %d: %v", what, name, at, err)
				}
				if !l.Segments()[i].Restored {
					t.Fatalf("%s, %s rots at %d: %+v", what, name, at, l.Segments()[i])
				}
				if damage, err := l.Verify(l.Segments()[i].Number, nil); len(damage) != 0 || !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s, %s rots at %d: read back: %v, %v", what, name, at, damage, err)
				}
				ok(t, l.Restore(l.Segments()[i].Number))
				ok(t, holds(l, recs))
				more, _ := mixed(t, l, 2)
				if s := l.Segments()[i]; s.State != StateVerified || s.Restored {
					t.Fatalf("%s, %s rots at %d: restored, it is %+v", what, name, at, s)
				}
				ok(t, l.Close())
				again, err := Open(d, testDir, testGroup, w, testOptions(), nil)
				ok(t, err)
				if err := holds(again, append(slices.Clone(recs), more...)); err != nil || again.Segments()[i].State != StateVerified {
					t.Fatalf("%s, %s rots at %d: after that: %+v, %v", what, name, at, again.Segments()[i], err)
				}
				ok(t, again.Close())
			}
			d := disk.Kill()
			ok(t, d.Rot(name, 100, 1))
			ok(t, d.Rot(name, pageBytes+3, 1))
			l, err := Open(d, testDir, testGroup, w, testOptions(), nil)
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s, %s rots with its first round: %v", what, name, err)
			}
			if err == nil {
				if err := l.Restore(l.Segments()[i].Number); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s, %s rots with its first round, and is restored: %v", what, name, err)
				}
				ok(t, l.Close())
			}
		}
	}
}

// The newest segment has nothing but a header, which rots: it is made again. With anything
// behind it that nobody can tell, the log does not open.
func TestAnEmptySegmentIsMadeAgain(t *testing.T) {
	disk := faultdisk.New(512)
	l, recs := sealedLog(t, disk, 3)
	w := Watermark{Durable: l.Durable()}
	ok(t, l.Close())
	l, err := Open(disk, testDir, testGroup, w, testOptions(), nil) // ends the last one, copies a round
	ok(t, err)
	ok(t, l.succeed(true))
	ok(t, l.Close())
	names := segmentFiles(t, disk)
	d := disk.Kill()
	ok(t, d.Rot(names[len(names)-1], 30, 1))
	l, err = Open(d, testDir, testGroup, w, testOptions(), nil)
	ok(t, err)
	ok(t, holds(l, recs))
	more, _ := mixed(t, l, 3)
	ok(t, l.Close())
	l, err = Open(d, testDir, testGroup, w, testOptions(), nil)
	ok(t, err)
	ok(t, holds(l, append(slices.Clone(recs), more...)))
	ok(t, l.Close())
	d = disk.Kill()
	file, err := d.Open(names[len(names)-1], 0)
	ok(t, err)
	_, err = file.WriteAt([]byte{1}, 9000)
	ok(t, errors.Join(err, file.Close()))
	ok(t, d.Rot(names[len(names)-1], 30, 1))
	if _, err := Open(d, testDir, testGroup, w, testOptions(), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("something lies behind its header: %v", err)
	}
}

// The chain is reckoned back as it was reckoned on.
func TestChainBefore(t *testing.T) {
	rng := seeded(3)
	of := byTopByte()
	for range 1000 {
		chain, sum := rng.Uint32(), rng.Uint32()
		if got := chainBefore(of, chainNext(chain, record.Header{Checksum: sum}), sum); got != chain {
			t.Fatalf("%x before %x: %x", chain, sum, got)
		}
	}
}

// A crash or an error while a header is restored leaves the file as it was, or whole.
func TestRestoreCrashesAndErrors(t *testing.T) {
	base := faultdisk.New(512)
	l, recs := sealedLog(t, base, 3)
	ok(t, l.Close())
	name := segmentFiles(t, base)[1]
	ok(t, base.Rot(name, 30, 1))
	restore := func(d *faultdisk.Disk, begin func()) error {
		l, err := Open(d, testDir, testGroup, Watermark{}, testOptions(), nil)
		ok(t, err)
		begin()
		return errors.Join(l.Restore(2), l.Close())
	}
	for at := 1; ; at++ {
		d, count := base.Kill(), 0
		var crashed *faultdisk.Disk
		ok(t, restore(d, func() {
			d.OnOp(func(faultdisk.Op, string) {
				if count++; count == at {
					crashed = d.Crash(seeded(at), faultdisk.KeepSome)
				}
			})
		}))
		if crashed == nil {
			if at < 8 {
				t.Errorf("only %d operations", at)
			}
			return
		}
		failing := base.Kill()
		_ = restore(failing, func() { failing.Inject(faultdisk.Fault{At: at, Err: errors.New("injected")}) }) // it may be of what comes after
		failing.Heal()
		unread := base.Kill()
		_ = restore(unread, func() { unread.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, At: at, Err: errors.New("injected")}) })
		unread.Heal()
		for _, d := range []*faultdisk.Disk{crashed, failing, unread} {
			l, err := Open(d, testDir, testGroup, Watermark{}, testOptions(), nil)
			ok(t, err)
			ok(t, holds(l, recs))
			if s := l.Segments()[1]; s.Restored {
				ok(t, l.Restore(2))
			}
			if damage, err := l.Verify(2, nil); err != nil || damage != nil {
				t.Fatalf("operation %d: %v, %v", at, damage, err)
			}
			ok(t, l.Close())
		}
	}
}

// Every operation of an opening that meets a rotten header fails once: the log opens with
// all that it holds, or says that the disk failed, and the next opening has all of it.
func TestErrorWhileAHeaderIsFound(t *testing.T) {
	failure := errors.New("injected")
	for i := range 4 {
		last, alone := i%2 > 0, i/2 > 0 // the newest segment; operations of its file alone, which are in order
		base := faultdisk.New(512)
		l, recs := sealedLog(t, base, 3)
		w := Watermark{Durable: l.Durable()}
		ok(t, l.Close())
		if last {
			l, err := Open(base, testDir, testGroup, w, testOptions(), nil)
			ok(t, err)
			ok(t, l.succeed(true))
			ok(t, l.Close())
		}
		names := segmentFiles(t, base)
		name := names[1]
		if last {
			name = names[len(names)-1]
		}
		ok(t, base.Rot(name, 30, 1))
		failed := 0
		for at, fired := 1, true; fired; at++ {
			d, seen := base.Kill(), 0
			d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: failure, Only: func(of string) bool {
				if alone && of != name {
					return false
				}
				seen++
				return true
			}})
			l, err := Open(d, testDir, testGroup, w, testOptions(), nil)
			fired = seen >= at
			d.Heal()
			if err != nil {
				failed++
				if !errors.Is(err, failure) {
					t.Fatalf("operation %d: %v", at, err)
				}
				l, err = Open(d, testDir, testGroup, w, testOptions(), nil)
				ok(t, err)
			}
			if err := holds(l, recs); err != nil {
				t.Fatalf("operation %d: %v", at, err)
			}
			ok(t, l.Close())
		}
		if failed < 3 {
			t.Errorf("only %d errors", failed)
		}
	}
}

// A disk that does not say where a file holds data does not make it an empty one.
func TestUnreadIsNotEmpty(t *testing.T) {
	disk := faultdisk.New(512)
	l, _ := sealedLog(t, disk, 2)
	ok(t, l.Close())
	file, err := disk.Open(segmentFiles(t, disk)[0], ioengine.ReadOnly|ioengine.Direct)
	ok(t, err)
	defer file.Close()
	sc, err := openScanner(file)
	ok(t, err)
	failure := errors.New("injected")
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: failure})
	if empty, err := sc.empty(); empty || !errors.Is(err, failure) {
		t.Errorf("empty %v: %v", empty, err)
	}
	disk.Heal()
	if empty, err := sc.empty(); empty || err != nil {
		t.Errorf("empty %v: %v", empty, err)
	}
}

// A commit rots, or a zero before one, in a segment that has no footer: no record of its
// round is missing for that. Only the commit of the last round, when nobody else knows
// how far the log was durable, is taken for torn.
func TestRecordsStandWithoutTheirCommit(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, errors.Join(disk.Mkdir("store"), disk.SyncDir("/")))
	o := testOptions()
	o.SegmentBytes = 1 << 20
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	recs, edges := mixed(t, l, 20)
	w := Watermark{Durable: l.Durable()}
	ok(t, l.Close())
	name := segmentFiles(t, disk)[0]
	for _, end := range edges[1:] {
		for back := int64(1); back <= commitBytes+1; back += 3 {
			d := disk.Kill()
			ok(t, d.Rot(name, offset(Start, end)-back, 1))
			l, err := Open(d, testDir, testGroup, w, o, nil)
			if end == w.Durable && back > commitBytes {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("a byte behind the last record rots: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("the commit at %s rots: %v", end, err)
			}
			if err := holds(l, recs); err != nil {
				t.Fatalf("the commit at %s rots %d from its end: %v", end, back, err)
			}
			ok(t, l.Close())
		}
	}
	d := disk.Kill()
	ok(t, d.Rot(name, offset(Start, w.Durable)-commitBytes, 20))
	if _, err := Open(d, testDir, testGroup, w, o, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("three words of the last commit rot: %v", err)
	}
	d = disk.Kill()
	ok(t, d.Rot(name, offset(Start, w.Durable)-commitBytes, 1))
	l, err = Open(d, testDir, testGroup, Watermark{Durable: edges[len(edges)-2]}, o, nil)
	ok(t, err)
	if got := l.Durable(); got != edges[len(edges)-2] {
		t.Errorf("nobody knows of the last round, and the log ends at %s", got)
	}
	ok(t, l.Close())
}
