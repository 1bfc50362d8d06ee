package shape

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// weights are the shares of the priorities, by Priority.
var weights = [High + 1]float64{Low: 1, Medium: 4, High: 12}

// order chooses who goes next. Each priority, and within it each group, has a clock
// that runs while it sends, slower with more weight; the one that is furthest behind is
// next. Whoever comes back from idleness starts no further behind than those who waited.
type order struct {
	groups map[string]*member
	conns  map[uint64]*conn
	class  [High + 1]class
	clock  float64 // of the priority that was served last
	came   uint64  // counts offers
}

type class struct {
	clock  float64
	groups float64 // the clock of its group that was served last
	active int     // groups that have something to send
}

// member is a group.
type member struct {
	name     string
	priority Priority
	clock    float64
	conn     uint64
	wants    int64 // of the record that is under way or next; 0: nothing offered
	began    bool  // some of its record was granted: its connection is held
	came     uint64
	held     time.Duration
}

// conn is a connection with offers.
type conn struct {
	holder  *member // whose record is under way
	writing bool    // what was granted is not done
	members []*member
}

func newOrder() order {
	return order{groups: make(map[string]*member), conns: make(map[uint64]*conn)}
}

// busy says whether anybody has something to send, or is sending.
func (o *order) busy() bool { return len(o.conns) > 0 }

func (o *order) offer(name string, p Priority, id uint64, bytes int64) {
	o.withdraw(name)
	g := o.groups[name]
	if g == nil {
		g = &member{name: name, priority: p}
		o.groups[name] = g
	}
	g.conn, g.began = id, false
	o.came++
	g.came = o.came
	o.want(g, max(bytes, 1))
	c := o.conns[id]
	if c == nil {
		c = &conn{}
		o.conns[id] = c
	}
	c.members = append(c.members, g)
}

// want enters g as one that has something to send, at the present clock if it had not.
func (o *order) want(g *member, bytes int64) {
	if g.wants == 0 {
		c := &o.class[g.priority]
		if !invariant.Planted("shape/idle-claims") {
			g.clock = max(g.clock, o.groupsNow(g.priority))
			if c.active == 0 {
				c.clock = max(c.clock, o.classesNow())
			}
		}
		c.active++
	}
	g.wants = bytes
}

// classesNow is the clock of the priority that is furthest behind of those that have
// something to send; where none has, of the one served last.
func (o *order) classesNow() float64 {
	now, found := o.clock, false
	for i := range o.class {
		if c := &o.class[i]; c.active > 0 && (!found || c.clock < now) {
			now, found = c.clock, true
		}
	}
	return now
}

// groupsNow is the same of the groups of a priority.
func (o *order) groupsNow(p Priority) float64 {
	now, found := o.class[p].groups, false
	for _, g := range o.groups {
		if g.priority == p && g.wants > 0 && (!found || g.clock < now) {
			now, found = g.clock, true
		}
	}
	return now
}

func (o *order) withdraw(name string) {
	g := o.groups[name]
	if g == nil || g.wants == 0 {
		return
	}
	g.wants, g.began = 0, false
	o.class[g.priority].active--
	c := o.conns[g.conn]
	if c.holder == g {
		c.holder, c.writing = nil, false
	}
	for i, m := range c.members {
		if m == g {
			c.members = append(c.members[:i], c.members[i+1:]...)
			break
		}
	}
	if len(c.members) == 0 {
		delete(o.conns, g.conn)
	}
}

func (o *order) done(name string, left, next int64) {
	g := o.groups[name]
	if g == nil || g.wants == 0 || o.conns[g.conn].holder != g {
		return // withdrawn meanwhile
	}
	c := o.conns[g.conn]
	c.writing = false
	switch {
	case left > 0:
		g.wants = left
	case next > 0:
		g.wants, g.began, c.holder = next, false, nil
		o.came++
		g.came = o.came
	default:
		o.withdraw(name)
	}
}

// before says whether a goes before b.
func (o *order) before(a, b *member) bool {
	ca, cb := &o.class[a.priority], &o.class[b.priority]
	switch {
	case invariant.Planted("shape/strict") && a.priority != b.priority:
		return a.priority > b.priority
	case invariant.Planted("shape/first-come"):
		return a.came < b.came
	case a.priority == b.priority:
		if a.clock != b.clock {
			return a.clock < b.clock
		}
		return a.came < b.came
	case ca.clock != cb.clock:
		return ca.clock < cb.clock
	}
	return a.priority > b.priority
}

// best is the connection that goes next: the one whose best group has the best claim,
// even where another group's record is under way on it. Nil when all are writing or
// nothing is offered.
func (o *order) best() (best *conn) {
	var claim *member
	for _, c := range o.conns {
		if c.writing {
			continue
		}
		if m := o.first(c); claim == nil || o.before(m, claim) {
			best, claim = c, m
		}
	}
	return best
}

// first is the group with the best claim of those that offered for c.
func (o *order) first(c *conn) *member {
	first := c.members[0]
	for _, m := range c.members[1:] {
		if o.before(m, first) {
			first = m
		}
	}
	return first
}

// next is the group whose record c carries next, or carries on with.
func (o *order) next(c *conn) *member {
	if c.holder != nil {
		return c.holder
	}
	return o.first(c)
}

func (o *order) wants(c *conn) int64 { return o.next(c).wants }

// grant gives the next group of c n bytes, and says which it is.
func (o *order) grant(c *conn, n int64) string {
	g := o.next(c)
	c.holder, c.writing, g.began = g, true, true
	k := &o.class[g.priority]
	o.clock, k.groups = k.clock, g.clock
	k.clock += float64(n) / weights[g.priority]
	g.clock += float64(n)
	return g.name
}

// held adds to the time that groups waited for the cap.
func (o *order) held(d time.Duration) {
	for _, c := range o.conns {
		if c.writing {
			continue
		}
		for _, m := range c.members {
			m.held += d
		}
	}
}

// priorities puts groups into the classes that p gives them.
func (o *order) priorities(p Policy) {
	for _, g := range o.groups {
		to := p.of(g.name)
		if to == g.priority {
			continue
		}
		wants := g.wants
		if wants > 0 {
			o.class[g.priority].active--
		}
		g.priority, g.clock, g.wants = to, 0, 0
		if wants > 0 {
			o.want(g, wants)
		}
	}
}
