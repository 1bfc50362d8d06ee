package retain

import (
	"bytes"
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func at(boot byte, mono, wall time.Duration) Instant {
	return Instant{Boot: [16]byte{boot}, Mono: mono, Wall: int64(wall)}
}

func TestClock(t *testing.T) {
	f := func(what string, from, to Instant, want time.Duration) {
		t.Helper()
		c := Clock{Passed: time.Hour, Last: from}
		if got := c.Step(to) - time.Hour; got != want || c.Last != to {
			t.Errorf("%s: counts %s, want %s", what, got, want)
		}
	}
	const h = time.Hour
	f("both agree", at(1, 1*h, 50*h), at(1, 2*h, 51*h), h)
	f("the wall clock jumps ahead", at(1, 1*h, 50*h), at(1, 2*h, 950*h), h)
	f("the wall clock jumps back", at(1, 1*h, 50*h), at(1, 2*h, 10*h), 0)
	f("the wall clock was set back a little", at(1, 1*h, 50*h), at(1, 4*h, 51*h), h)
	f("the machine was brought back from a snapshot", at(1, 5*h, 50*h), at(1, 2*h, 950*h), 0)
	f("another boot", at(1, 1*h, 50*h), at(2, 30*h, 100*h), 0)
	f("a boot nobody knows", at(0, 1*h, 50*h), at(0, 2*h, 51*h), 0)
	f("the first step of all", Instant{}, at(1, 2*h, 51*h), 0)
	f("clocks at the end of what they can say", at(1, -1<<63, -1<<63), at(1, 1<<63-1, 1<<63-1), 0)
}

// However clocks jump, boots change and files are lost, no checkpoint is ever taken for
// older than it is.
func TestNeverEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tiers := [][]Tier{nil, {{0, time.Hour}, {time.Minute, day}, {time.Hour, 30 * day}}}[rapid.IntRange(0, 1).Draw(t, "tiers")]
		var truth time.Duration // what really passed
		listed := map[uint64]time.Duration{}
		mono, wall, boot := time.Duration(0), time.Duration(rapid.Int64Range(0, 1<<60).Draw(t, "wall")), byte(1)
		b := &Book{Groups: []Entry{{Group: 7, Lineage: 9}}}
		saved := b.AppendTo(nil)
		number := uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			passes := time.Duration(rapid.Int64Range(0, int64(3*time.Hour)).Draw(t, "passes"))
			truth, mono, wall = truth+passes, mono+passes, wall+passes
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0:
				wall = time.Duration(rapid.Int64Range(0, 1<<60).Draw(t, "jump"))
			case 1: // the machine starts again; the store was last saved some time before
				boot, mono = boot+1, time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "up"))
				fallthrough
			case 2: // or only the process does
				var err error
				if b, err = ParseBook(saved); err != nil {
					t.Fatal(err)
				}
			case 3: // and the file is gone
				b = &Book{Groups: []Entry{{Group: 7, Lineage: 9}}}
			case 4:
				saved = b.AppendTo(nil)
			case 5:
				b.Groups[0].Ages.Forget(number / 2)
			}
			now := b.Clock.Step(at(boot, mono, wall))
			a := &b.Groups[0].Ages
			if rapid.Bool().Draw(t, "list") {
				number++
				listed[number] = truth
			}
			a.Note(now, number, tiers)
			if rapid.Bool().Draw(t, "thin") {
				a.thin(now, tiers)
			}
			for n, when := range listed {
				if date, ok := a.Date(n); ok && now-date > truth-when {
					t.Fatalf("checkpoint %d of %s ago is taken for %s old", n, truth-when, now-date)
				}
			}
			age := time.Duration(rapid.Int64Range(0, int64(40*day)).Draw(t, "age"))
			if n := a.Listed(now - age); n != 0 && truth-listed[n] < age {
				t.Fatalf("checkpoint %d counts as %s old and is %s", n, age, truth-listed[n])
			}
		}
	})
}

// A month of checkpoints each five seconds takes few marks, and they date well.
func TestAgesAreSmall(t *testing.T) {
	for _, tiers := range [][]Tier{nil, {{0, time.Hour}, {time.Minute, day}, {time.Hour, 30 * day}}} {
		var a Ages
		var now time.Duration
		most := 0
		for n := uint64(1); now < 30*day; n++ {
			now += 5 * time.Second
			a.Note(now, n, tiers)
			most = max(most, len(a.Marks()))
		}
		if tiers != nil && most > 8000 || tiers == nil && most > 2500 {
			t.Errorf("%d marks with %d tiers", most, len(tiers))
		}
		for _, age := range []time.Duration{time.Minute, time.Hour, day, 29 * day} {
			n := a.Listed(now - age)
			real := now - time.Duration(n)*5*time.Second
			if real < age || tiers == nil && real > age+age/64+time.Minute || tiers != nil && real > age+time.Hour {
				t.Errorf("at an age of %s stands a checkpoint of %s", age, real)
			}
		}
	}
}

func TestBookGolden(t *testing.T) {
	b := &Book{Clock: Clock{Passed: 3 * time.Hour, Last: at(5, 100*time.Hour, 400000*time.Hour)}, Groups: []Entry{{Group: 1, Lineage: 2}, {Group: 7, Lineage: 9}}}
	for i := range 5 {
		b.Groups[1].Ages.Note(time.Duration(i+1)*time.Minute, uint64(i*12+3), nil)
	}
	golden(t, "testdata/v1.ages", b.AppendTo(nil))
	got, err := ParseBook(b.AppendTo(nil))
	if err != nil || !bytes.Equal(got.AppendTo(nil), b.AppendTo(nil)) {
		t.Errorf("read as %+v: %v", got, err)
	}
	if a := got.Of(7, 9); len(a.Marks()) != 5 {
		t.Error("a group's marks are not found")
	}
	if a := got.Of(7, 8); len(a.Marks()) != 0 {
		t.Error("another history is dated")
	}
	p := b.AppendTo(nil)
	for i := range p {
		p[i] ^= 1
		if _, err := ParseBook(p); !errors.Is(err, ErrBook) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
		p[i] ^= 1
	}
}

func FuzzBook(f *testing.F) {
	b := &Book{Groups: []Entry{{Group: 1, Lineage: 2}}}
	b.Clock.Passed = time.Hour
	b.Groups[0].Ages.Note(time.Minute, 4, nil)
	f.Add(b.AppendTo(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 4 { // let it past the checksum
			p = append([]byte(nil), p...)
			p = le.AppendUint32(p[:len(p)-4], crc32.Checksum(p[:len(p)-4], castagnoli))
		}
		if b, err := ParseBook(p); err == nil && !bytes.Equal(b.AppendTo(nil), p) {
			t.Fatalf("%x is read as %+v", p, b)
		}
	})
}
