package pack

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Compression is what a group's configuration says of its codec.
type Compression uint8

// The choices. Auto, the zero value, has Effort decide between the others.
const (
	Auto Compression = iota
	LZ4
	None
)

// ParseCompression reads auto, lz4 or none; nothing at all is auto.
func ParseCompression(text string) (Compression, error) {
	for c := Auto; c <= None; c++ {
		if text == c.String() || text == "" {
			return c, nil
		}
	}
	return Auto, fmt.Errorf("%q: want auto, lz4 or none", text)
}

// String is the word that ParseCompression reads.
func (c Compression) String() string { return [...]string{"auto", "lz4", "none"}[c] }

// Totals are what one group's packing and sending have come to since they began. All but Unsent only rise.
type Totals struct {
	Batches int           // sealed
	Raw     int64         // bytes of their payload
	Stored  int64         // bytes of their records
	Packing time.Duration // what sealing them took, all workers together
	Sent    int64         // bytes of records that the link took
	Unsent  int           // records that stand sealed and that no sender has taken, now
	First   bool          // what is packed now is of a first sync: there is always more of it, and nobody keeps it as it is packed
}

// Effort decides whether a group's batches are compressed.
//
// LZ4 is the norm: it spares the link, and the journal. It is given up only when it, and nothing else, is what
// holds the group up: for several windows of several batches its workers were busy and
// the link took all they made. Then batches go raw, on trial: what is carried in all must
// become more, or the next trial is put off, each time twice as long. Later LZ4
// comes back when the link is what holds raw batches up and LZ4 would carry more; when the guests
// write no more than LZ4 could carry; and once a minute for a moment, because data changes.
//
// Of a first sync there is always more, and it goes into replicas and not into the journal: there LZ4 spares the link alone. So
// raw batches are tried as soon as the workers are busy for two fifths of their time: where a source's processors are those of
// its filters too, or even of its target, the workers never get much more of them. What was decided then ends with it.
//
// It decides and does nothing: no clock, no goroutine. For one goroutine.
type Effort struct {
	Mode    Compression
	Workers int // that seal at once

	raw     bool // what is decided
	began   bool
	from    Totals    // where the present window begins
	at      time.Time // and when
	waited  int       // looks within it at which records waited for the link
	looks   int
	settle  bool // the window holds batches of before a change: it counts for nothing
	first   bool // a first sync is under way
	streak  int  // windows in a row that speak for a change
	changed time.Time

	packs float64   // bytes/s of payload that LZ4 carried when it was what held up
	ratio float64   // of payload to records, then
	drain float64   // bytes/s that the link took when it was what held up
	heard time.Time // when drain was measured

	barred time.Time // no trial before
	putOff time.Duration
}

const (
	// windowBatches and windowTime are what a window has at least: one batch, or one moment, says nothing.
	windowBatches = 8
	windowTime    = 100 * time.Millisecond
	// Windows in a row that it takes to give up LZ4, and to come back to it from where the link
	// or the guests are slower.
	giveUpAfter = 3
	slowAfter   = 5
	idleAfter   = 5
	// busyShare of their time is what workers are busy when they are what holds up.
	busyShare = 0.7
	// firstShare is that in a first sync, which is held up by all that takes their time, also by a target on the same
	// machine, which looks like a slow link.
	firstShare = 0.4
	// waitedShare of the looks at which records waited say that it is the link.
	waitedShare = 0.5
	// waitedRecords is how many records wait behind the one being sent when the link is slower.
	waitedRecords = 2
	// gain is by how much raw batches must carry more than LZ4 did, or a known link: less is noise.
	gain = 1.1
	// idleShare of what LZ4 carries is what it can carry for certain.
	idleShare = 0.7
	// lookAgain is how long raw batches go before LZ4 is measured again.
	lookAgain = time.Minute
	// believed is how long what a link took is held against raw batches: where one machine packs and sends,
	// sending is slow while packing is fast.
	believed  = 2 * time.Second
	putOffMin = 5 * time.Second
	putOffMax = 5 * time.Minute
)

// Step is told of the totals before each batch is sealed, and says whether it shall be raw.
func (e *Effort) Step(now time.Time, t Totals) (raw bool) {
	if e.Mode != Auto {
		return e.Mode == None
	}
	if !e.began {
		e.began, e.changed = true, now
		e.open(now, t)
	}
	if e.first && !t.First && e.raw && !invariant.Planted("pack/effort-of-first-sync-stays") {
		e.change(now, false)
		e.open(now, t)
	}
	e.first = t.First
	e.looks++
	if t.Unsent > waitedRecords {
		e.waited++
	}
	if t.Batches-e.from.Batches >= windowBatches && now.Sub(e.at) >= windowTime {
		if !e.settle {
			e.window(now, e.measure(now, t))
		}
		e.settle = false
		e.open(now, t)
	}
	if invariant.Planted("pack/effort-of-one-batch") && t.Unsent > 0 {
		return false
	}
	return e.raw
}

// Raw says whether batches go raw at present.
func (e *Effort) Raw() bool { return e.Mode == None || e.Mode == Auto && e.raw }

func (e *Effort) open(now time.Time, t Totals) {
	e.from, e.at, e.looks, e.waited = t, now, 0, 0
}

// seen is what a window shows.
type seen struct {
	carried  float64 // bytes/s of payload
	drain    float64 // bytes/s of records that the link took
	ratio    float64 // of payload to records
	packing  bool    // the workers are what holds up
	draining bool    // the link is
}

func (e *Effort) measure(now time.Time, t Totals) (s seen) {
	took := now.Sub(e.at).Seconds()
	s.carried = float64(t.Raw-e.from.Raw) / took
	s.drain = float64(t.Sent-e.from.Sent) / took
	s.ratio = float64(t.Raw-e.from.Raw) / float64(max(t.Stored-e.from.Stored, 1))
	s.draining = float64(e.waited) >= waitedShare*float64(e.looks)
	share := busyShare
	if e.first {
		share = firstShare
	}
	s.packing = (!s.draining || e.first) && (t.Packing-e.from.Packing).Seconds() >= share*took*float64(max(e.Workers, 1))
	return s
}

// window decides after a window.
func (e *Effort) window(now time.Time, s seen) {
	if s.draining {
		e.drain, e.heard = s.drain, now
	}
	if e.raw {
		e.whileRaw(now, s)
	} else {
		e.whileLZ4(now, s)
	}
}

// whileLZ4 counts windows in which LZ4 is what holds up, and gives it up after some.
func (e *Effort) whileLZ4(now time.Time, s seen) {
	if s.packing {
		e.packs, e.ratio = s.carried, s.ratio
	}
	// A link that was slower than this lately would be slower still with raw records. In a first sync it was slow
	// with who takes what it carries, as likely.
	slow := !e.first && !e.heard.IsZero() && now.Sub(e.heard) < believed && e.drain < gain*s.carried
	if !s.packing || slow || now.Before(e.barred) && !invariant.Planted("pack/effort-never-barred") {
		e.streak = 0
		return
	}
	if e.streak++; e.streak >= giveUpAfter {
		e.change(now, true)
	}
}

// whileRaw counts windows that speak for LZ4.
func (e *Effort) whileRaw(now time.Time, s seen) {
	held, lz4 := s.draining || s.packing, e.packs
	if s.draining {
		lz4 = min(lz4, s.drain*e.ratio)
	}
	slow := held && s.carried < gain*lz4
	idle := !held && s.carried < idleShare*e.packs
	switch {
	case slow:
		e.streak++
		if e.streak >= slowAfter {
			e.putOff = min(max(2*e.putOff, putOffMin), putOffMax)
			e.barred = now.Add(e.putOff)
			e.change(now, false)
		}
	case idle && !invariant.Planted("pack/effort-stays-raw"):
		e.streak++
		if e.streak >= idleAfter {
			e.change(now, false)
		}
	default:
		e.streak, e.putOff = 0, 0
		if now.Sub(e.changed) >= lookAgain {
			e.change(now, false)
		}
	}
}

func (e *Effort) change(now time.Time, raw bool) {
	e.raw, e.changed, e.streak, e.settle = raw, now, 0, true
}
