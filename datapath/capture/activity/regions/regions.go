package regions

import (
	"math/bits"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// State is what the log is good for.
type State uint8

// The states of a log.
const (
	On   State = iota // a write's regions stand in the log before it begins
	Late              // a round takes too long: writes go on before it has ended
	Off               // it cannot be written
)

// Kin is how many regions enter the log together: an aligned row, so that who writes on along a disk waits seldom.
const Kin = 4

// Set is a bit a region.
type Set []uint64

// NewSet has room for n regions.
func NewSet(n int) Set { return make(Set, (n+63)/64) }

// Has says whether region r is in the set.
func (s Set) Has(r int) bool { return s[r/64]>>(r%64)&1 == 1 }

// Add puts region r in.
func (s Set) Add(r int) { s[r/64] |= 1 << (r % 64) }

// Fill puts regions [0, n) in.
func (s Set) Fill(n int) {
	for r := range n {
		s.Add(r)
	}
}

// Del takes region r out.
func (s Set) Del(r int) { s[r/64] &^= 1 << (r % 64) }

// Count is how many are in.
func (s Set) Count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Each calls f with every region in the set, in rising order.
func (s Set) Each(f func(r int)) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			f(i*64 + bits.TrailingZeros64(w))
		}
	}
}

// Log is the regions of one disk. Its methods are not for concurrent use.
type Log struct {
	n      int
	idle   uint32 // ticks
	now    uint32
	state  State
	there  bool // while Off: a crash may find the file, which lacks regions
	logged Set  // durably in the log; all that was written to while it is Off
	wanted Set  // to be in it, by the next round; while the file is there, by the next file
	wants  bool // there is something in wanted
	taken  Set  // of the round under way; nil while there is none
	last   []uint32
	asked  uint32 // when Idle was asked last
}

// New returns the log of a disk of n regions, of which those of logged stand in the file already. A region is
// idle once no write began in it for that many ticks.
func New(n int, idle uint32, logged Set, state State) *Log {
	return &Log{n: n, idle: idle, now: idle + 1, state: state, logged: slices.Clone(logged), wanted: NewSet(n), last: slices.Repeat([]uint32{idle + 1}, n)}
}

// Grow makes it the log of a disk of n regions, which are more; it is Off.
func (l *Log) Grow(n int) {
	for set := range slices.Values([]*Set{&l.logged, &l.wanted}) {
		*set = append(*set, make(Set, len(NewSet(n))-len(*set))...)
	}
	l.last = append(l.last, slices.Repeat([]uint32{l.now}, n-l.n)...)
	l.n = n
}

// Regions is how many the disk has.
func (l *Log) Regions() int { return l.n }

// State is what the log is good for now.
func (l *Log) State() State { return l.state }

// Logged returns what stands in the log, and all that must.
func (l *Log) Logged() Set {
	s := slices.Clone(l.logged)
	for i := range s {
		s[i] |= l.wanted[i]
		if l.taken != nil {
			s[i] |= l.taken[i]
		}
	}
	return s
}

// Entry is whether a write may begin.
type Entry uint8

// What Enter answers.
const (
	Goes   Entry = iota // its regions stand in the log, or there is none
	GoesOn              // it does not wait, but a round is due
	Waits               // for the end of the round in which its regions are, or for Gone; at most until GoOn
)

// Enter is a write to regions [from, to) that is about to begin.
func (l *Log) Enter(from, to int) (e Entry) {
	for r := from; r < to; r++ {
		l.last[r] = l.now
		if l.logged[r/64]>>(r%64)&1 == 0 {
			e = max(e, l.miss(r))
		}
	}
	if e == Waits && invariant.Planted("regions/write-before-log") {
		return GoesOn
	}
	return e
}

// miss sees to it that region r comes into the log.
func (l *Log) miss(r int) Entry {
	if l.state == Off && l.there && !invariant.Planted("regions/write-beside-the-file") {
		l.wanted.Add(r)
		return Waits
	}
	if l.state == Off {
		l.logged.Add(r)
		return Goes
	}
	if l.taken == nil || !l.taken.Has(r) {
		for k := r / Kin * Kin; k < min(r/Kin*Kin+Kin, l.n); k++ {
			if !l.logged.Has(k) && (l.taken == nil || !l.taken.Has(k)) {
				l.wanted.Add(k)
				l.wants, l.last[k] = true, l.now
			}
		}
	}
	if l.state == Late {
		return GoesOn
	}
	return Waits
}

// Wanted says that one of [from, to) is for the round after the one under way.
func (l *Log) Wanted(from, to int) bool {
	for r := from; r < to; r++ {
		if l.wanted.Has(r) {
			return true
		}
	}
	return false
}

// Take begins a round, if none is under way and one is due, or left says that regions have left: exactly what it
// returns is to be in the log durably.
func (l *Log) Take(left bool) (all Set, ok bool) {
	if l.state == Off || l.taken != nil || !l.wants && !left {
		return nil, false
	}
	l.taken, l.wanted, l.wants = l.wanted, NewSet(l.n), false
	return l.Logged(), true
}

// Done ends the round under way: what it took is durable, or the log is gone.
func (l *Log) Done(durable bool) {
	if !durable {
		l.Fail()
		return
	}
	for i := range l.logged {
		l.logged[i] |= l.taken[i]
	}
	l.taken = nil
	if l.state == Late && !l.wants {
		l.state = On
	}
}

// GoOn lets writes go on before the round has ended, or the file has gone, that they wait for.
func (l *Log) GoOn() {
	l.Gone()
	if l.state == On && (l.taken != nil || l.wants) {
		l.state = Late
	}
}

// Fail notes that the log cannot be written any more. A round under way is over. Until Gone a write waits whose
// regions do not stand in the file: a crash would find it without them, and believe it.
func (l *Log) Fail() {
	if l.taken != nil {
		for i, w := range l.taken {
			l.wanted[i] |= w
		}
	}
	l.state, l.there = Off, true
	l.taken, l.wants = nil, false
}

// Gone notes that a crash does not find the file of a log that is Off any more, or that nobody is to wait for that.
func (l *Log) Gone() {
	if !l.there {
		return
	}
	l.logged, l.there = l.Logged(), false
	clear(l.wanted)
}

// Back notes that a new log was made, in which the regions of there stand durably. What was written to
// meanwhile comes into it by the next round; until then it is Late.
func (l *Log) Back(there Set) {
	l.Gone()
	l.state = On
	for i, w := range l.logged {
		if more := w &^ there[i]; more != 0 {
			l.wanted[i] |= more
			l.logged[i] &= there[i]
			l.state, l.wants = Late, true
		}
		l.logged[i] |= there[i]
	}
}

// Tick lets one tick of time pass.
func (l *Log) Tick() { l.now++ }

// Idle appends the regions in which no write began for the idle time and none is under way, as far as busy knows.
// They may leave once the marks are written and the disk is synced after this.
func (l *Log) Idle(into []int, busy func(r int) bool) []int {
	if l.state != On {
		return into
	}
	l.asked = l.now
	l.logged.Each(func(r int) {
		if l.now-l.last[r] > l.idle && !busy(r) {
			into = append(into, r)
		}
	})
	return into
}

// Leave takes those of the regions out in which no write began since Idle named them.
func (l *Log) Leave(idle []int) {
	for _, r := range idle {
		if l.last[r] < l.asked && l.asked-l.last[r] > l.idle || invariant.Planted("regions/leave-in-use") {
			l.logged.Del(r)
		}
	}
}
