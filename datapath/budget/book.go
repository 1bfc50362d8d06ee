package budget

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// Rest is how long a group that gave way is held to its floor.
const Rest = 30 * time.Second

// The pool, in sixteenths: what of it may be in use for a group to be let in above its
// floor, and beyond what use a group gives way, by the number of priorities present that
// go before its own. The space between is for what is under way.
const parts = 16

var (
	admits = [...]int64{16, 12, 8}
	yields = [...]int64{16, 14, 10}
)

// pushing is how much of the pool those before must hold for others to give way, in parts:
// it is not for a trickle that memory is given up.
const pushing = 1

// Book says who may hold how much. New makes one.
type Book struct {
	total    int64
	underWay int64
	groups   []group
}

type group struct {
	priority shape.Priority
	most     int64 // bytes it may hold, whatever the others do
	held     int64
	waits    bool
	stands   bool
	rests    time.Time // until then it is held to its floor
}

// New returns a book of so many bytes for groups of these limits, all of medium priority.
// A group may have as much as underWay on its way when it is last let in: to hold so much
// above its floor is no reason to give way.
func New(total, underWay int64, most []int64) *Book {
	b := &Book{total: total, underWay: underWay, groups: make([]group, len(most))}
	for i, n := range most {
		b.groups[i] = group{priority: shape.Medium, most: n}
	}
	return b
}

// Total is what all may hold together, in bytes.
func (b *Book) Total() int64 { return b.total }

// Floor is what each group may always hold, in bytes, if its own limit lets it.
func (b *Book) Floor() int64 { return b.total / 2 / int64(max(1, len(b.groups))) }

// Prioritise sets a group's priority.
func (b *Book) Prioritise(i int, p shape.Priority) { b.groups[i].priority = p }

// Hold notes what a group holds now, in bytes.
func (b *Book) Hold(i int, held int64) { b.groups[i].held = held }

// Held is what a group was said to hold, in bytes.
func (b *Book) Held(i int) int64 { return b.groups[i].held }

// Wait notes that a group has more and was not let in, or that it no longer waits.
func (b *Book) Wait(i int, waits bool) { b.groups[i].waits = waits }

// Stand notes that nothing that a group holds can be sent, nor more come to it, however its link is; or that it can.
func (b *Book) Stand(i int, stands bool) { b.groups[i].stands = stands }

// excess is what a group holds of the pool.
func (b *Book) excess(i int) int64 { return max(0, b.groups[i].held-b.Floor()) }

func (b *Book) pool() int64 { return b.total - b.Floor()*int64(len(b.groups)) }

// before is how many of the priorities present go before p.
func (b *Book) before(p shape.Priority) (n int) {
	for q := p + 1; q <= shape.High; q++ {
		for i := range b.groups {
			if b.groups[i].priority == q {
				n++
				break
			}
		}
	}
	return n
}

// Room is how many bytes a group may take beside what it holds; nothing or less: it waits.
func (b *Book) Room(now time.Time, i int) int64 {
	g := &b.groups[i]
	below := b.Floor() - g.held
	room := max(0, below) + b.ofPool(now, i)
	if invariant.Planted("budget/no-floors") {
		room = b.ofPool(now, i)
	}
	return min(room, g.most-g.held)
}

// ofPool is what a group may take of the pool now, in bytes.
func (b *Book) ofPool(now time.Time, i int) int64 {
	g := &b.groups[i]
	if now.Before(g.rests) {
		return 0
	}
	var used int64
	for j := range b.groups {
		used += b.excess(j)
	}
	most := b.pool() * admits[b.before(g.priority)] / parts
	if invariant.Planted("budget/all-alike") {
		most = b.pool()
	}
	left := max(0, most-used)
	if share, short := b.fair(i, most); short {
		left = min(left, max(0, share-b.excess(i)))
	}
	return left
}

// short says whether a group waits for the pool, and not for its own limit.
func (b *Book) short(i int) bool {
	g := &b.groups[i]
	return g.waits && g.held < g.most && g.held >= b.Floor()
}

// fair is an equal share of what groups of one priority may use, and says whether it
// counts: while one of them that holds less waits.
func (b *Book) fair(i int, most int64) (share int64, short bool) {
	equals := int64(0)
	for j := range b.groups {
		g := &b.groups[j]
		if g.priority != b.groups[i].priority || b.excess(j) == 0 && !g.waits && j != i {
			continue
		}
		equals++
		short = short || j != i && b.short(j) && b.excess(j) < b.excess(i)
	}
	return most / equals, short
}

// standing is the group that holds most of the pool of those of which nothing can be sent; -1 for none. Whatever its priority, it
// gives way to any other that is short.
func (b *Book) standing(now time.Time) int {
	at, most, short := -1, b.underWay, false
	for i := range b.groups {
		g := &b.groups[i]
		short = short || b.short(i) && !now.Before(g.rests) // one that rests waits for that, and not for memory
		if e := b.excess(i); g.stands && e > most && !now.Before(g.rests) {
			at, most = i, e
		}
	}
	if !short || invariant.Planted("budget/standing-keeps") {
		return -1
	}
	return at
}

// GiveWay says which group has to give up what it holds now, if one has. It is told to
// rest from now on; asked again, once that group holds nothing, it may name another.
func (b *Book) GiveWay(now time.Time) (i int, ok bool) {
	if i := b.standing(now); i >= 0 {
		b.groups[i].rests = now.Add(Rest)
		return i, true
	}
	var used, before int64 // of the pool; of it by groups that go before those looked at
	for j := range b.groups {
		used += b.excess(j)
	}
	before = used
	for p := shape.Low; p <= shape.High; p++ {
		i, most := -1, b.underWay
		waits := false // one of those that go before
		for j := range b.groups {
			switch g := &b.groups[j]; {
			case g.priority == p:
				if e := b.excess(j); e > most && !now.Before(g.rests) {
					i, most = j, e
				}
				before -= b.excess(j)
			case g.priority > p && b.short(j):
				waits = true
			}
		}
		if invariant.Planted("budget/pushed-by-equals") {
			before = used
		}
		if i >= 0 && used > b.pool()*yields[b.before(p)]/parts && (waits || before > b.pool()*pushing/parts) {
			b.groups[i].rests = now.Add(Rest)
			return i, true
		}
	}
	return 0, false
}
