package segment

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// holds says what the log lacks of exactly these records.
func holds(l *Log, want []placed) error {
	got, err := replayed(l, l.Segments()[0].First, l.Durable(), ReplayOptions{})
	if err != nil {
		return err
	}
	if !slices.EqualFunc(got, between(want, 0, maxPos, every), samePlaced) {
		return fmt.Errorf("%d records, want %d", len(got), len(want))
	}
	for _, p := range want {
		got := make([]byte, len(p.rec))
		if err := l.ReadAt(got, p.pos); err != nil || !bytes.Equal(got, p.rec) {
			return fmt.Errorf("record at %s: %w", p.pos, errors.Join(err, errors.New("other bytes")))
		}
	}
	return nil
}

// spliced returns the records with those of [from, to) replaced.
func spliced(recs []placed, from, to Pos, by []placed) (all []placed) {
	for _, p := range recs {
		if p.pos < from {
			all = append(all, p)
		}
	}
	all = append(all, by...)
	for _, p := range recs {
		if p.pos >= to {
			all = append(all, p)
		}
	}
	return all
}

// A range is folded, and folded again with its neighbours; everything else stays, also
// for the next life.
func TestFold(t *testing.T) {
	disk := faultdisk.New(512)
	l, recs := sealedLog(t, disk, 9)
	var kept []placed
	fold := func(first, last uint64) {
		t.Helper()
		segs := l.Segments()
		a := slices.IndexFunc(segs, func(s Info) bool { return s.Number == first })
		b := slices.IndexFunc(segs, func(s Info) bool { return s.Last == last })
		from, to := segs[a].First, segs[b].To
		_, before, known := l.Life(to)
		if !known {
			t.Fatal("the log does not know a segment's edge")
		}
		ok(t, l.ReplaceRange(first, last, l.keepHalf(from, to, &kept), nil))
		recs = spliced(recs, from, to, kept)
		ok(t, holds(l, recs))
		s := l.Segments()[a]
		if s.Number != first || s.Last != last || s.First != from || s.To != to || s.End >= to || s.Records != len(kept) || s.State != StateVerified {
			t.Errorf("the folded segment: %+v", s)
		}
		if n := len(segmentFiles(t, disk)); n != len(l.Segments()) {
			t.Errorf("%d files, %d segments", n, len(l.Segments()))
		}
		if _, after, known := l.Life(to); !known || after != before {
			t.Error("the life after the range is another")
		}
		for _, at := range []Pos{s.End, to - 1} {
			if err := l.ReadAt(make([]byte, 1), at); !errors.Is(err, ErrRange) {
				t.Errorf("%s, behind the folded records: %v, want ErrRange", at, err)
			}
		}
		if err := l.ReadAt(make([]byte, to-s.End+2), s.End-1); !errors.Is(err, ErrRange) {
			t.Errorf("across the end of the folded records: %v, want ErrRange", err)
		}
		if damage, err := l.Verify(first, nil); err != nil || damage != nil {
			t.Errorf("the folded segment: %v, %v", damage, err)
		}
		ok(t, l.Close())
		l, err := Open(disk, testDir, testGroup, Watermark{}, testOptions(), nil)
		ok(t, err)
		ok(t, holds(l, recs))
		more, _ := mixed(t, l, 2)
		recs = append(recs, more...)
		ok(t, l.Close())
	}
	again := func() {
		var err error
		l, err = Open(disk, testDir, testGroup, Watermark{}, testOptions(), nil)
		ok(t, err)
	}
	fold(3, 4)
	again()
	fold(6, 6)
	again()
	fold(2, 6) // both of them, and what lies between
	again()
	fold(1, 7)
	again()
	segs := l.Segments()
	for _, bad := range [][2]uint64{{2, 7}, {1, 3}, {8, 7}, {segs[len(segs)-2].Number, segs[len(segs)-1].Number}, {0, 1}} {
		if err := l.ReplaceRange(bad[0], bad[1], nil, nil); !errors.Is(err, ErrRange) {
			t.Errorf("segments %d to %d: %v, want ErrRange", bad[0], bad[1], err)
		}
	}
	// Nothing of it is wanted, then it is dropped.
	ok(t, l.ReplaceRange(1, 7, func(func([]byte) (Pos, error)) error { return nil }, nil))
	recs = spliced(recs, Start, segs[0].To, nil)
	ok(t, holds(l, recs))
	ok(t, l.Close())
	again()
	ok(t, holds(l, recs))
	ok(t, l.Drop(segs[0].To))
	ok(t, holds(l, recs))
	ok(t, l.Close())
	l, err := Open(disk, testDir, testGroup, Watermark{First: segs[0].To}, testOptions(), nil)
	ok(t, err)
	ok(t, holds(l, recs))
}

// What does not fit, or is no record, changes nothing.
func TestFoldRefuses(t *testing.T) {
	disk := faultdisk.New(512)
	l, recs := sealedLog(t, disk, 4)
	rec := recs[0].rec
	big := sealed(1, 20000, seeded(1))
	for what, build := range map[string]func(func([]byte) (Pos, error)) error{
		"no record": func(add func([]byte) (Pos, error)) error { _, err := add(rec[:len(rec)-1]); return err },
		"an error": func(add func([]byte) (Pos, error)) error {
			_, err := add(rec)
			return errors.Join(err, errors.ErrUnsupported)
		},
		"too much": func(add func([]byte) (Pos, error)) error {
			for {
				if _, err := add(big); err != nil {
					return err
				}
			}
		},
	} {
		err := l.ReplaceRange(1, 2, build, nil)
		if err == nil || what == "too much" && !errors.Is(err, ErrRoom) {
			t.Errorf("%s: %v", what, err)
		}
		ok(t, holds(l, recs))
	}
	if names, _ := disk.List(testDir); len(names) != 4 {
		t.Errorf("left behind: %q", names)
	}
}

// Power fails, or a call does, at every operation of a ReplaceRange, and power again at
// every operation of the recovery: the log holds the old records or the new ones.
func TestFoldCrashesAndErrors(t *testing.T) {
	disk := faultdisk.New(512)
	l, recs := sealedLog(t, disk, 5)
	from, to := l.Segments()[1].First, l.Segments()[2].To
	var kept []placed
	ok(t, l.keepHalf(from, to, &kept)(func() func(p []byte) (Pos, error) {
		at := from
		return func(p []byte) (Pos, error) { at += Pos(len(p)); return at - Pos(len(p)), nil }
	}()))
	folded := spliced(recs, from, to, kept)
	mark := Watermark{Durable: l.Durable()}
	ok(t, l.Close())
	everywhere(t, disk, func(d *faultdisk.Disk) (run func() error, check func(*faultdisk.Disk) error) {
		l, err := Open(d, testDir, testGroup, mark, testOptions(), nil)
		ok(t, err)
		done := false
		run = func() error {
			if l.Segments()[1].Last == 3 {
				return l.Drop(0)
			}
			err := l.ReplaceRange(2, 3, l.keepHalf(from, to, &kept), nil)
			done = done || err == nil
			return err
		}
		check = func(d *faultdisk.Disk) error {
			l, err := Open(d, testDir, testGroup, mark, testOptions(), nil)
			if err != nil {
				return err
			}
			err = holds(l, folded)
			if err != nil && !done {
				err = holds(l, recs)
			}
			if err != nil {
				return err
			}
			if n := len(segmentFiles(t, d)); n != len(l.Segments()) {
				return fmt.Errorf("%d files for %d segments", n, len(l.Segments()))
			}
			ok(t, l.Close())
			l, err = Open(d.Kill(), testDir, testGroup, mark, testOptions(), nil) // it goes on
			if err == nil {
				_, err = l.Append(sealed(9999, 700, seeded(1)))
			}
			return errors.Join(err, l.Commit(), l.Close())
		}
		return run, check
	})
}

// A round does not end before its MiB: a large fold has few, and all of it reads back.
func TestFoldOfManyRounds(t *testing.T) {
	disk := faultdisk.New(512)
	o := testOptions()
	o.SegmentBytes = 3 << 20
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	var recs []placed
	for len(l.Segments()) < 3 {
		more, _ := mixed(t, l, 50)
		recs = append(recs, more...)
	}
	var kept []placed
	segs := l.Segments()
	ok(t, l.ReplaceRange(1, 2, func(add func([]byte) (Pos, error)) error {
		for _, p := range recs {
			if p.pos < segs[1].To && len(kept) < len(recs)*3/4 {
				at, err := add(p.rec)
				if err != nil {
					return err
				}
				kept = append(kept, placed{at, p.rec})
			}
		}
		return nil
	}, nil))
	ok(t, holds(l, spliced(recs, Start, segs[1].To, kept)))
	ok(t, l.Close())
	l, err = Open(disk, testDir, testGroup, Watermark{}, o, func(Pos, record.Record) error { return nil })
	ok(t, err)
	ok(t, holds(l, spliced(recs, Start, segs[1].To, kept)))
}
