package datapath

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/cut"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/wire/cutword"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Member is one of several source VRAs that share a group.
type Member struct {
	VRA     string // its name within the site
	Stream  record.StreamID
	Address string // host:port where it is told of cuts; of this VRA itself it is not looked at
}

// cutter is a flow's part in the cuts that several source VRAs take together: as a member, and
// as a leader of those that are wanted here; the first member leads one each interval.
type cutter struct {
	flow    *flow
	members []Member
	news    chan struct{} // capacity 1: told has something

	// mu comes before flow.mu.
	mu struct {
		sync.Mutex
		member *cut.Member
		leader *cut.Leader
		ways   map[record.StreamID]sender // of the leader to members, this one too
		backs  map[cut.Link]sender        // of the member to leaders
		timer  *time.Timer
		closed bool

		hold  capture.Hold
		life  uint64 // in which the open cut was placed
		holds holds
	}

	// flowTold is what the flow tells, with its lock held, and waits for nobody.
	flowTold struct {
		sync.Mutex
		senses
		listed []uint64
	}
	trouble atomic.Pointer[string] // why the leader's last cut came to nothing
}

// senses are how the group stands, as far as its cuts need to know.
type senses struct {
	life   uint64
	whole  bool
	floor  uint64
	wanted cut.Wanted
}

// sender takes a word to another VRA, and waits for nobody.
type sender interface{ Send(cutword.Word) error }

// own is the link between a VRA's leader and its own member.
const own cut.Link = 0

func newCutter(f *flow, members []Member) *cutter {
	c := &cutter{flow: f, members: members, news: make(chan struct{}, 1)}
	var streams []record.StreamID
	for _, m := range members {
		streams = append(streams, m.Stream)
	}
	c.mu.member = cut.NewMember(f.cfg.ID, streams)
	c.mu.leader = cut.NewLeader(cut.LeaderConfig{
		Group: f.cfg.ID, Me: f.cfg.Stream, Members: streams, Term: uint64(time.Now().UnixNano()), Interval: f.cfg.Interval,
		Auto: members[0].Stream == f.cfg.Stream,
	})
	c.trouble.Store(new(string))
	c.mu.ways = map[record.StreamID]sender{f.cfg.Stream: nil}
	c.mu.backs = map[cut.Link]sender{}
	c.mu.timer = time.AfterFunc(time.Hour, c.tick)
	c.mu.timer.Stop()
	return c
}

// run carries the cutter until ctx ends. No hold of its stands then.
func (c *cutter) run(ctx context.Context) {
	c.with(func() { c.lead(cut.Up{Member: c.flow.cfg.Stream}) })
	for {
		select {
		case <-c.news:
			c.with(c.hear)
		case <-ctx.Done():
			c.with(func() {
				c.memberStep(cut.Broke{Why: "the VRA stops"})
				c.mu.closed = true
				c.mu.timer.Stop()
			})
			return
		}
	}
}

// with does something to the machines, and sees to it that they are told when time has passed.
func (c *cutter) with(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return
	}
	do()
	next := c.mu.member.Until()
	if t := c.mu.leader.Until(); next.IsZero() || !t.IsZero() && t.Before(next) {
		next = t
	}
	if c.mu.timer.Stop(); !next.IsZero() {
		c.mu.timer.Reset(max(time.Until(next), 0))
	}
}

func (c *cutter) tick() {
	c.with(func() {
		c.memberStep(cut.Passed{})
		c.lead(cut.Tick{})
	})
}

// hear takes in what the flow told.
func (c *cutter) hear() {
	c.flowTold.Lock()
	t, listed := c.flowTold.senses, c.flowTold.listed
	c.flowTold.listed = nil
	c.flowTold.Unlock()
	if c.mu.member.Phase() != cut.Idle && (!t.whole || t.life != c.mu.life) {
		c.memberStep(cut.Broke{Why: "a resync opens"})
	}
	c.memberStep(cut.Floor{Number: t.floor})
	for _, n := range listed {
		c.memberStep(cut.Floor{Number: n})
		c.lead(cut.Listed{Number: n})
	}
	c.lead(t.wanted)
}

// tellLocked is told, with flow.mu held, after each step of the group's machine.
func (c *cutter) tellLocked(m *group.Machine) {
	tag, any := m.Wanted()
	now := senses{m.Life(), m.Whole(), uint64(max(m.OpensAt(), 1) - 1), cut.Wanted{Any: any && m.CanCut() == "", Tag: tag}}
	c.flowTold.Lock()
	changed := now != c.flowTold.senses
	c.flowTold.senses = now
	c.flowTold.Unlock()
	if changed {
		c.kick()
	}
}

// listed is told that the target listed a checkpoint.
func (c *cutter) listed(number uint64) {
	c.flowTold.Lock()
	c.flowTold.listed = append(c.flowTold.listed, number)
	c.flowTold.Unlock()
	c.kick()
}

func (c *cutter) kick() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// lead has the leader take an event, and says what it says: to the others first, who need the time.
func (c *cutter) lead(e cut.LeaderEvent) {
	now := time.Now()
	said := c.mu.leader.Step(now, now.UnixNano(), e)
	if trouble := c.mu.leader.Trouble(); trouble != *c.trouble.Load() {
		c.trouble.Store(&trouble)
	}
	mine := func(s cut.Say) bool { return s.To == c.flow.cfg.Stream }
	for _, s := range said {
		if way := c.mu.ways[s.To]; !mine(s) && way != nil {
			_ = way.Send(s.Word) // else it is over, and Down comes
		}
	}
	for _, s := range said {
		if mine(s) {
			c.memberStep(cut.Said{From: own, Word: s.Word})
		}
	}
}

// memberStep has the member take an event, and does what it says.
func (c *cutter) memberStep(e cut.MemberEvent) {
	for _, a := range c.mu.member.Step(time.Now(), e) {
		switch a := a.(type) {
		case cut.Take:
			c.memberStep(c.take(a))
		case cut.End:
			ended, intact := c.flow.tap.EndHold(c.mu.hold)
			c.memberStep(cut.Ended{Intact: intact, Held: c.held(ended)})
		case cut.Write:
			c.confirm(a.Number)
		case cut.Drop:
			c.flow.step(group.SharedVoid{Number: a.Number})
		case cut.Answer:
			if a.To == own {
				c.lead(cut.Heard{Member: c.flow.cfg.Stream, Word: a.Word})
			} else if back := c.mu.backs[a.To]; back != nil {
				_ = back.Send(a.Word) // else it is over, and Gone comes
			}
		default:
			panic(fmt.Sprintf("BUG: unknown action %T", a))
		}
	}
}

// held notes how long the guests were held, until ended.
func (c *cutter) held(ended time.Duration) time.Duration {
	d := min(ended-c.mu.hold.Began, capture.HoldMost)
	c.mu.holds.add(d)
	return d
}

// take holds the guests, takes the cut's ticket, and puts the cut into the stream.
func (c *cutter) take(a cut.Take) cut.Took {
	f := c.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	if why := f.cannotCutLocked(); why != "" {
		return cut.Took{Why: why}
	}
	c.mu.hold, c.mu.life = f.tap.BeginHold(), f.mu.machine.Life()
	m := f.markLocked(c.mu.hold.Ticket)
	f.mu.last = m
	f.stepLocked(group.Shared{Number: a.ID.Number, Wall: a.Wall, Tag: a.Tag, Mine: a.ID.Leader == f.cfg.Stream, Lost: c.mu.hold.Lost})
	if m.place == nil {
		ended, _ := f.tap.EndHold(c.mu.hold)
		return cut.Took{Why: "changes were marked and not captured", Held: c.held(ended)}
	}
	return cut.Took{}
}

// cannotCutLocked says why the group takes no shared cut now; empty if it does.
func (f *flow) cannotCutLocked() string {
	switch {
	case f.overLocked():
		return "the VRA stops"
	case f.mu.fatal != nil:
		return "the group has stopped here: " + f.mu.fatal.Error()
	case f.mu.session != nil && !f.mu.session.TakesSources():
		return "the target is of a release that knows no groups with several sources"
	}
	return f.mu.machine.CanCut()
}

// confirm puts the confirm into the stream, at a ticket of its own. One of a life that is over is none.
func (c *cutter) confirm(number uint64) {
	f := c.flow
	if len(f.tap.Mirrors()) > 0 { // those that ended before the cut's ticket; nobody else may have told of them yet
		if f.tap.LookAtMirrors(f.ctx); f.tap.Lost() != c.mu.hold.Lost {
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.mu.machine; m.Life() != c.mu.life || !m.Whole() || f.mu.fatal != nil || f.overLocked() {
		return
	}
	m := f.markLocked(f.tap.TakeTicket())
	m.place = &group.Place{Life: c.mu.life, Kind: group.Confirm, Number: number}
	f.closeMark(m)
}

// uncut says why there was no checkpoint for so long; empty if that is not long.
func (c *cutter) uncut(since time.Duration) string {
	switch {
	case since <= 2*c.flow.cfg.Interval:
		return ""
	case *c.trouble.Load() != "":
		return *c.trouble.Load()
	case c.members[0].Stream == c.flow.cfg.Stream:
		return "the target has listed none"
	}
	return "the VRA " + c.members[0].VRA + " leads, and knows why"
}

// sharedCuts is what is known of the group's cuts, where several sources take them.
type sharedCuts struct {
	Leads   bool // this VRA leads one each interval
	Trouble string
	Stats   cut.LeaderStats
	Holds   holds
}

func (c *cutter) state() (s sharedCuts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sharedCuts{c.members[0].Stream == c.flow.cfg.Stream, c.mu.leader.Trouble(), c.mu.leader.Stats(), c.mu.holds}
}

// holds are how long guests were held, in buckets whose upper bounds are holdBounds.
type holds struct {
	buckets [len(holdBounds)]uint64
	count   uint64
	sum     time.Duration
}

var holdBounds = [...]time.Duration{50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 300 * time.Microsecond, 500 * time.Microsecond,
	750 * time.Microsecond, time.Millisecond, 1250 * time.Microsecond, 1500 * time.Microsecond, 1750 * time.Microsecond, capture.HoldMost}

func (h *holds) add(d time.Duration) {
	i, _ := slices.BinarySearch(holdBounds[:], d)
	h.buckets[min(i, len(holdBounds)-1)]++
	h.count++
	h.sum += d
}

// named finds a member by the name of its VRA.
func (c *cutter) named(vra string) (Member, bool) {
	i := slices.IndexFunc(c.members, func(m Member) bool { return m.VRA == vra })
	if i < 0 {
		return Member{}, false
	}
	return c.members[i], true
}

// names are the VRAs of the members, sorted.
func (c *cutter) names() []string {
	all := slices.Clone(c.members)
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.VRA, b.VRA) })
	var names []string
	for _, m := range all {
		names = append(names, m.VRA)
	}
	return names
}
