package pack

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// site is what a group's packing and sending are like, in bytes/s.
type site struct {
	lz4, raw float64 // payload that all workers seal
	link     float64 // records that it takes
	ratio    float64 // of payload to records with LZ4
	guests   float64 // payload that they write
	rest     float64 // payload for which all else is done that takes the same processors; 0: it has others
	first    bool    // it is a first sync
}

// carries is what comes through in all, and which stage holds the others up.
func (s site) carries(raw bool) (rate, packs float64, draining bool) {
	packs, link := s.lz4, s.link*s.ratio
	if raw {
		packs, link = s.raw, s.link
	}
	all := packs
	if s.rest > 0 {
		all = 1 / (1/packs + 1/s.rest)
	}
	return min(all, link, s.guests), packs, link < min(all, s.guests)
}

const mb = 1e6

// story is a group's life.
type story struct {
	e       Effort
	now     time.Time
	totals  Totals
	changes int
	inRaw   time.Duration
	carried float64
}

func newRun() *story {
	return &story{e: Effort{Workers: 2}, now: time.Unix(1, 0)}
}

// lives has the group be at s for so long, a batch of 1 MiB after the other.
func (r *story) lives(s site, length time.Duration) {
	const batch = 1 << 20
	for end := r.now.Add(length); r.now.Before(end); {
		before := r.e.Raw()
		r.totals.First = s.first
		raw := r.e.Step(r.now, r.totals)
		if raw != before {
			r.changes++
		}
		rate, packs, draining := s.carries(raw)
		took := time.Duration(batch / rate * float64(time.Second))
		r.now = r.now.Add(took)
		if raw {
			r.inRaw += took
		}
		r.carried += batch
		stored := int64(batch)
		if !raw {
			stored = int64(batch / s.ratio)
		}
		r.totals.Batches++
		r.totals.Raw += batch
		r.totals.Stored += stored
		r.totals.Sent += stored
		r.totals.Packing += time.Duration(batch / packs * float64(time.Second) * float64(r.e.Workers))
		r.totals.Unsent = 0
		if draining {
			r.totals.Unsent = 20
		}
	}
}

var (
	lan   = site{lz4: 600 * mb, raw: 3000 * mb, link: 1500 * mb, ratio: 2.2, guests: 5000 * mb}
	wan   = site{lz4: 600 * mb, raw: 3000 * mb, link: 12 * mb, ratio: 2.2, guests: 5000 * mb}
	half  = site{lz4: 600 * mb, raw: 3000 * mb, link: 350 * mb, ratio: 2.2, guests: 5000 * mb} // faster than LZ4's records, slower than LZ4
	near  = site{lz4: 600 * mb, raw: 3000 * mb, link: 200 * mb, ratio: 2.2, guests: 5000 * mb} // slower than LZ4's records, by a fourth
	calm  = site{lz4: 600 * mb, raw: 3000 * mb, link: 1500 * mb, ratio: 2.2, guests: 50 * mb}
	one   = site{lz4: 1000 * mb, raw: 4000 * mb, link: 3000 * mb, ratio: 2.2, guests: 5000 * mb, rest: 1500 * mb} // both sites on one machine
	solid = site{lz4: 2800 * mb, raw: 3000 * mb, link: 5000 * mb, ratio: 1, guests: 5000 * mb}                    // the probe lets it pass raw
)

// TestEffortFollowsTheLink: where each codec is the better one it is what is used, nearly always.
func TestEffortFollowsTheLink(t *testing.T) {
	f := func(name string, s site, leastRaw, mostRaw float64, mostChanges int) {
		t.Helper()
		r := newRun()
		const length = 5 * time.Minute
		r.lives(s, length)
		if part := r.inRaw.Seconds() / length.Seconds(); part < leastRaw || part > mostRaw || r.changes > mostChanges {
			t.Errorf("%s: raw for %.3f of the time, %d changes", name, part, r.changes)
		}
	}
	f("lan", lan, 0.97, 1, 11) // once a minute it looks again
	f("wan", wan, 0, 0, 0)
	f("half", half, 0, 0.02, 20)
	f("calm", calm, 0, 0, 0)
	f("dense", solid, 0, 0.1, 20)
	f("one machine", one, 0, 0, 0) // half of what is carried, and kept, may be worth more than this
	firstOf := func(s site) site { s.first = true; return s }
	f("first sync on one machine", firstOf(one), 0.97, 1, 11)
	f("first sync over a LAN", firstOf(lan), 0.97, 1, 11)
	f("first sync over a WAN", firstOf(wan), 0, 0, 0)
	f("first sync over half a LAN", firstOf(half), 0, 0.02, 20)
	f("first sync over less than half", firstOf(near), 0, 0.03, 20)
	f("first sync of a slow disk", firstOf(calm), 0, 0, 0)
}

// TestEffortOfAFirstSyncEndsWithIt: what follows is kept in the journal.
func TestEffortOfAFirstSyncEndsWithIt(t *testing.T) {
	r := newRun()
	s := one
	s.first = true
	r.lives(s, 2*time.Second)
	if !r.e.Raw() {
		t.Error("LZ4 in a first sync that it holds up")
	}
	s.first = false
	r.lives(s, 10*time.Millisecond)
	if r.e.Raw() {
		t.Error("raw behind the first sync")
	}
}

// TestEffortTurns: it goes along when the link, or what the guests write, changes.
func TestEffortTurns(t *testing.T) {
	r := newRun()
	want := func(what string, raw bool) {
		t.Helper()
		if r.e.Raw() != raw {
			t.Errorf("%s: raw is %v", what, r.e.Raw())
		}
	}
	r.lives(lan, 200*time.Millisecond)
	want("two windows of a LAN", false)
	r.lives(lan, time.Second)
	want("a second of a LAN", true)
	r.lives(wan, 6*time.Second)
	want("the link became slow", false)
	r.lives(lan, 2*time.Second)
	want("it was slow a moment ago", false)
	r.lives(lan, 3*time.Minute)
	want("it has been fast for long", true)
	r = newRun()
	r.lives(lan, 2*time.Second)
	r.lives(calm, 5*time.Second)
	want("the guests write little", false)
	r.lives(lan, time.Second)
	want("they write much again", true)
}

// TestEffortIsNotMovedByOne: neither one window nor one batch says anything.
func TestEffortIsNotMovedByOne(t *testing.T) {
	r := newRun()
	for range 40 {
		r.lives(lan, 2*windowTime)
		r.lives(calm, 3*windowTime)
	}
	if r.changes != 0 {
		t.Errorf("%d changes by short bursts", r.changes)
	}
	r = newRun()
	r.lives(lan, time.Second)
	for range 100 {
		r.lives(wan, time.Millisecond) // one batch
		r.lives(lan, 3*windowTime)
	}
	if r.changes > 3 {
		t.Errorf("%d changes by single slow batches", r.changes)
	}
}

// TestEffortModes: what the configuration says is what is done.
func TestEffortModes(t *testing.T) {
	for _, c := range []struct {
		mode Compression
		raw  bool
	}{{LZ4, false}, {None, true}} {
		r := newRun()
		r.e.Mode = c.mode
		r.lives(lan, 3*time.Second)
		r.lives(wan, 3*time.Second)
		if r.e.Raw() != c.raw || r.changes != 0 {
			t.Errorf("%v: raw is %v, after %d changes", c.mode, r.e.Raw(), r.changes)
		}
	}
	for _, word := range []string{"auto", "lz4", "none"} {
		if c, err := ParseCompression(word); err != nil || c.String() != word {
			t.Errorf("%q reads as %v, %v", word, c, err)
		}
	}
	if c, err := ParseCompression(""); c != Auto || err != nil {
		t.Errorf("nothing reads as %v, %v", c, err)
	}
	if _, err := ParseCompression("zip"); err == nil {
		t.Error("zip was taken")
	}
}

// TestEffortCarriesNearlyTheBest: wherever it is, in the long run a group that is held up
// carries nearly what the better codec would.
func TestEffortCarriesNearlyTheBest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := func(name string) float64 { return mb * float64(rapid.IntRange(10, 300).Draw(t, name)) }
		s := site{lz4: rate("lz4"), link: rate("link"), guests: 1e12, ratio: rapid.Float64Range(1, 4).Draw(t, "ratio"), first: rapid.Bool().Draw(t, "first")}
		s.raw = s.lz4 * rapid.Float64Range(1, 8).Draw(t, "raw over lz4")
		r := newRun()
		const length = 90 * time.Second
		r.lives(s, length)
		lz4, _, _ := s.carries(false)
		raw, _, _ := s.carries(true)
		if got, best := r.carried/length.Seconds(), max(lz4, raw); got < 0.85*best {
			t.Errorf("%+v: %.0f of %.0f MB/s, raw for %v, %d changes", s, got/mb, best/mb, r.inRaw, r.changes)
		}
	})
}
