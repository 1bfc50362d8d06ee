package cut

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/cutword"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The simulation: hosts with an order page, filters and a VRA each, links between the VRAs and a
// target, all of it in steps of one store or load, in an order and with deaths that a seed draws.
// Its guests are causal: each write knows what had been answered anywhere when it began. No
// checkpoint that the target lists may hold a write and lack one that it knew.

// page is an order page.
type page struct {
	next, word, broken, lost, covered uint64
	deadline                          time.Duration
}

// guest is one write at a time on its way through a filter, which may be killed.
type guest struct {
	host, at int // what it does next
	knew     int // of world.answered
	ticket   uint64
	dropped  bool
	seen     uint64 // the word that it is about to break
}

// mark is something in a stream.
type mark struct {
	kind           byte // 'c' cut, 'y' confirm, 'o' resync opens, 'e' ends
	number, ticket uint64
}

// written is a write that a guest was told of.
type written struct {
	host    int
	ticket  uint64 // 0: dropped; then synced
	dropped int    // its place among the host's dropped ones
	knew    int
}

type vra struct {
	member  *Member
	leader  *Leader
	todo    []func() // micro steps of an action under way
	number  uint64   // of the hold
	broken  uint64   // before it
	lost    uint64
	ticket  uint64
	began   time.Duration
	live    bool
	restart int // micro steps until it is live again
}

type message struct {
	to   int
	word cutword.Word
}

type host struct {
	page    page
	vra     *vra
	sent    []mark // on its way
	dropped []int  // for each dropped write: how many closing boundaries the stream had when it was dropped
	closes  []uint64
	life    int
}

type simulation struct {
	t        *testing.T
	rng      *rand.Rand
	now      time.Duration
	hosts    []*host
	guests   []*guest
	links    map[[2]int][]message // by ends; absent: cut
	answered []written
	target   *simTarget
	holds    uint64
	held     []time.Duration // from the word's setting to its clearing or deadline, all of host 0
	heldAt   []time.Duration
}

// simTarget lists as the journal does.
type simTarget struct {
	open    []bool
	closes  []int
	pending map[uint64]*simCut
	listed  uint64
	count   int
}

type simCut struct {
	at        map[int]uint64
	closes    map[int]int
	confirmed map[int]bool
}

var epoch = time.Unix(1_700_000_000, 0)

func newSimulation(t *testing.T, hosts int, seed uint64) *simulation {
	s := &simulation{t: t, rng: rand.New(rand.NewPCG(seed, 7)), links: map[[2]int][]message{},
		target: &simTarget{open: make([]bool, hosts), closes: make([]int, hosts), pending: map[uint64]*simCut{}}}
	for h := range hosts {
		s.hosts = append(s.hosts, &host{page: page{next: 1, lost: 1}})
		s.target.open[h] = true
		for range 2 {
			s.guests = append(s.guests, &guest{host: h})
		}
	}
	for h := range hosts {
		s.startVRA(h)
	}
	for a := range hosts {
		for b := range hosts {
			s.join(a, b)
		}
	}
	return s
}

func (s *simulation) streams() (ids []record.StreamID) {
	for h := range s.hosts {
		ids = append(ids, record.StreamID(h+1))
	}
	return ids
}

func (s *simulation) startVRA(h int) {
	hs := s.hosts[h]
	hs.life++
	hs.page.word = 0
	v := &vra{member: NewMember(1, s.streams()), restart: 20}
	v.leader = NewLeader(LeaderConfig{Group: 1, Me: record.StreamID(h + 1), Members: s.streams(), Term: uint64(hs.life), Interval: 20 * time.Millisecond, Auto: h == 0 || h == 1})
	hs.vra = v
	hs.sent = append(hs.sent[:s.rng.IntN(len(hs.sent)+1)], mark{kind: 'o'}) // the rest of the window is lost
	for other := range s.hosts {
		s.join(h, other)
		s.join(other, h)
	}
	// What was given away under an earlier life counts no more: numbers go on above.
	s.member(h, Floor{s.target.listed})
}

// join connects the leader of a to the member of b.
func (s *simulation) join(a, b int) {
	if s.hosts[a].vra == nil || s.hosts[b].vra == nil {
		return
	}
	key := [2]int{a, b}
	if _, up := s.links[key]; up {
		return
	}
	s.links[key] = nil
	s.lead(a, Up{record.StreamID(b + 1)})
}

// part cuts the link, and what is on it is lost.
func (s *simulation) part(a, b int) {
	key := [2]int{a, b}
	if _, up := s.links[key]; !up || a == b && s.hosts[a].vra != nil {
		return
	}
	delete(s.links, key)
	if s.hosts[a].vra != nil {
		s.lead(a, Down{record.StreamID(b + 1)})
	}
	if s.hosts[b].vra != nil {
		s.member(b, Gone{Link(a)})
	}
}

func (s *simulation) lead(h int, e LeaderEvent) {
	for _, say := range s.hosts[h].vra.leader.Step(epoch.Add(s.now), int64(s.now)+1, e) {
		s.send(h, int(say.To)-1, say.Word)
	}
}

// send puts a word on the link of leader a and member b, which carries both ways.
func (s *simulation) send(a, b int, w cutword.Word) {
	key := [2]int{a, b}
	if _, up := s.links[key]; up {
		to := b
		if w.Kind == cutword.Placed || w.Kind == cutword.Held || w.Kind == cutword.Refused {
			to = a
		}
		s.links[key] = append(s.links[key], message{to, w})
	}
}

func (s *simulation) member(h int, e MemberEvent) {
	v := s.hosts[h].vra
	for _, a := range v.member.Step(epoch.Add(s.now), e) {
		s.act(h, v, a)
	}
}

func (s *simulation) act(h int, v *vra, a MemberAction) {
	hs := s.hosts[h]
	p := &hs.page
	switch a := a.(type) {
	case Answer:
		s.send(int(a.To), h, a.Word)
	case Write:
		hs.sent = append(hs.sent, mark{kind: 'y', number: a.Number})
	case Drop:
	case Take:
		v.todo = []func(){
			func() {
				s.holds++
				v.number, v.broken, v.began = s.holds, p.broken, s.now
				p.deadline, p.word = s.now+HoldMost, v.number
			},
			func() { v.ticket = p.next; p.next++ },
			func() {
				if v.lost = p.lost; !v.live || v.lost != p.covered {
					d := s.unhold(h)
					s.member(h, Took{Why: "resync", Held: d})
					return
				}
				hs.sent = append(hs.sent, mark{'c', a.ID.Number, v.ticket})
				s.member(h, Took{})
			},
		}
	case End:
		var d time.Duration
		v.todo = []func(){
			func() { d = s.unhold(h) },
			func() { s.member(h, Ended{Intact: p.broken == v.broken && p.lost == v.lost, Held: d}) },
		}
	}
}

func (s *simulation) unhold(h int) time.Duration {
	v := s.hosts[h].vra
	s.hosts[h].page.word = 0
	d := min(s.now-v.began, HoldMost)
	if h == 0 {
		s.held, s.heldAt = append(s.held, d), append(s.heldAt, s.now)
	}
	return d
}

// guestStep carries a guest's write one store or load on.
func (s *simulation) guestStep(g *guest) {
	p := &s.hosts[g.host].page
	switch g.at {
	case 0: // begins
		*g = guest{host: g.host, at: 1, knew: len(s.answered), dropped: s.rng.IntN(400) == 0}
	case 1: // takes its ticket and is published, or is dropped and says so
		if g.dropped {
			s.hosts[g.host].dropped = append(s.hosts[g.host].dropped, len(s.hosts[g.host].closes))
			g.ticket = uint64(len(s.hosts[g.host].dropped) - 1)
			p.lost++
		} else {
			g.ticket = p.next
			p.next++
		}
		g.at = 2
	case 2: // looks
		switch {
		case p.word == 0:
			g.at = 4
		case s.now >= p.deadline:
			g.seen, g.at = p.word, 3
		}
	case 3: // breaks the hold
		p.broken = max(p.broken, g.seen)
		g.at = 4
	case 4: // answers
		w := written{host: g.host, ticket: g.ticket, dropped: -1, knew: g.knew}
		if g.dropped {
			w.ticket, w.dropped = 0, int(g.ticket)
		}
		s.answered = append(s.answered, w)
		g.at = 0
	}
}

// vraStep has a VRA carry out what it was told to, or go on with its resync.
func (s *simulation) vraStep(h int) {
	hs := s.hosts[h]
	v := hs.vra
	switch {
	case v == nil:
	case len(v.todo) > 0:
		do := v.todo[0]
		v.todo = v.todo[1:]
		do()
	case v.live && hs.page.lost != hs.page.covered:
		v.live, v.restart = false, 10
		hs.sent = append(hs.sent, mark{kind: 'o'})
		s.member(h, Broke{"lost"})
	case !v.live && v.restart > 0:
		v.restart--
	case !v.live: // all that is dirty was read, with tickets below this one
		lost := hs.page.lost
		hs.closes = append(hs.closes, hs.page.next)
		hs.page.next++
		hs.sent = append(hs.sent, mark{kind: 'e'})
		hs.page.covered, v.live = lost, true
	}
}

// deliver takes one word off a link.
func (s *simulation) deliver(key [2]int) {
	queue, up := s.links[key]
	if !up || len(queue) == 0 {
		return
	}
	m := queue[0]
	if m.to == key[1] && m.word.Kind <= cutword.Void && s.hosts[m.to].vra != nil && m.isWord() {
		if len(s.hosts[m.to].vra.todo) > 0 {
			return // the VRA is at something: it reads on after that
		}
		s.links[key] = queue[1:]
		s.member(m.to, Said{Link(key[0]), m.word})
		return
	}
	s.links[key] = queue[1:]
	s.lead(key[0], Heard{record.StreamID(key[1] + 1), m.word})
}

func (m message) isWord() bool {
	switch m.word.Kind {
	case cutword.Place, cutword.Release, cutword.Confirm, cutword.Void:
		return true
	}
	return false
}

// arrive has the target take the next record of a stream.
func (s *simulation) arrive(h int) {
	hs, tg := s.hosts[h], s.target
	if len(hs.sent) == 0 {
		return
	}
	r := hs.sent[0]
	hs.sent = hs.sent[1:]
	switch r.kind {
	case 'o':
		tg.open[h] = true
		clear(tg.pending)
	case 'e':
		tg.open[h] = false
		tg.closes[h]++
	case 'c':
		if tg.open[h] || r.number <= tg.listed {
			return
		}
		c := tg.pending[r.number]
		if c == nil {
			c = &simCut{map[int]uint64{}, map[int]int{}, map[int]bool{}}
			tg.pending[r.number] = c
		}
		c.at[h], c.closes[h] = r.ticket, tg.closes[h]
	case 'y':
		c := tg.pending[r.number]
		if c == nil || tg.open[h] {
			return
		}
		c.confirmed[h] = true
		if len(c.at) == len(s.hosts) && len(c.confirmed) == len(s.hosts) {
			tg.listed = r.number
			tg.count++
			clear(tg.pending)
			s.check(r.number, c)
			for o, other := range s.hosts {
				if other.vra != nil {
					s.member(o, Floor{r.number})
					s.lead(o, Listed{r.number})
				}
			}
		}
	}
}

// check holds a listed checkpoint against what its writes knew.
func (s *simulation) check(number uint64, c *simCut) {
	in := func(w written) bool {
		if w.dropped < 0 {
			return w.ticket <= c.at[w.host]
		}
		// Read again before the first boundary that closed after it was dropped.
		closes := s.hosts[w.host].closes
		i := s.hosts[w.host].dropped[w.dropped]
		return i < len(closes) && closes[i] <= c.at[w.host]
	}
	most := 0
	for _, w := range s.answered {
		if in(w) {
			most = max(most, w.knew)
		}
	}
	for _, g := range s.guests { // what is not answered yet may be in it, too
		if g.at >= 2 && !g.dropped && g.ticket <= c.at[g.host] {
			most = max(most, g.knew)
		}
	}
	for i, w := range s.answered[:most] {
		if !in(w) {
			s.t.Fatalf("checkpoint %d at %v lacks write %d of host %d, ticket %d (dropped %d), which a write that it holds knew", number, c.at, i, w.host, w.ticket, w.dropped)
		}
	}
}

// step does one thing that a die chooses.
func (s *simulation) step() {
	s.now += time.Duration(s.rng.IntN(40)) * time.Microsecond
	if !s.busy() {
		s.now += time.Duration(s.rng.IntN(2000)) * time.Microsecond // nothing is open: sooner to the next
	}
	if s.rng.IntN(500) == 0 {
		s.now += time.Duration(s.rng.IntN(3000)) * time.Microsecond // everybody is stopped, and so are those who look at clocks
	}
	for h, hs := range s.hosts {
		if v := hs.vra; v != nil && len(v.todo) == 0 {
			if u := v.member.Until(); !u.IsZero() && !epoch.Add(s.now).Before(u) && s.rng.IntN(40) == 0 {
				s.member(h, Passed{})
			}
			if u := v.leader.Until(); !u.IsZero() && !epoch.Add(s.now).Before(u) && s.rng.IntN(20) == 0 {
				s.lead(h, Tick{})
			}
		}
	}
	h := s.rng.IntN(len(s.hosts))
	switch s.rng.IntN(8) {
	case 0, 1, 2, 3:
		s.guestStep(s.guests[s.rng.IntN(len(s.guests))])
	case 4, 5:
		s.vraStep(h)
	case 6:
		s.arrive(h)
	}
	for key := range s.sortedLinks() {
		if s.rng.IntN(4) == 0 {
			s.deliver(key)
		}
	}
	if s.hosts[h].vra == nil && s.rng.IntN(50) == 0 {
		s.startVRA(h)
	}
	if a, b := s.rng.IntN(len(s.hosts)), s.rng.IntN(len(s.hosts)); s.rng.IntN(50) == 0 {
		s.join(a, b)
	}
}

// busy says that a cut is open somewhere.
func (s *simulation) busy() bool {
	return slices.ContainsFunc(s.hosts, func(h *host) bool { return h.vra != nil && h.vra.member.Phase() != Idle })
}

func (s *simulation) sortedLinks() func(func([2]int) bool) {
	var keys [][2]int
	for k := range s.links {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]int) int { return (a[0]-b[0])*100 + a[1] - b[1] })
	return slices.Values(keys)
}

// kill does one of the harms there are to host h.
func (s *simulation) kill(what, h int) {
	hs := s.hosts[h]
	switch what {
	case 0: // the VRA dies: its word stays, its window is gone
		if hs.vra == nil {
			return
		}
		hs.vra = nil
		for other := range s.hosts {
			s.part(h, other)
			s.part(other, h)
		}
	case 1: // a filter dies: what its guests have in flight is written again
		for _, g := range s.guests {
			if g.host == h {
				if g.at > 1 && !g.dropped {
					hs.page.lost++ // its successor says so
				}
				g.at = 0
			}
		}
	case 2: // its links are cut, both ways
		for other := range s.hosts {
			if other != h {
				s.part(h, other)
				s.part(other, h)
			}
		}
	}
}

// TestCutsAreCausal runs many seeds in which everything dies now and then.
func TestCutsAreCausal(t *testing.T) {
	listed, void, holds := 0, uint64(0), uint64(0)
	for seed := range uint64(60) {
		s := newSimulation(t, 2+int(seed%2), seed)
		for range 12000 {
			s.step()
			if s.rng.IntN(1000) == 0 {
				s.kill(s.rng.IntN(3), s.rng.IntN(len(s.hosts)))
			}
		}
		listed += s.target.count
		holds += s.holds
		for _, h := range s.hosts {
			if h.vra != nil {
				void += h.vra.leader.Stats().Void
			}
		}
		s.checkRest()
	}
	if listed < 200 || void == 0 {
		t.Errorf("%d checkpoints listed, %d cuts void of %d holds: little was tried", listed, void, holds)
	}
}

// TestCutsSurviveADeathAtEachStep has one thing die at one step of a few cuts, each at each.
func TestCutsSurviveADeathAtEachStep(t *testing.T) {
	listed, runs := 0, 0
	for what := range 3 {
		for h := range 2 {
			for at := 100; at < 260; at++ {
				s := newSimulation(t, 2, 11)
				for i := 0; i < 4000 && s.target.count < 6; i++ {
					if s.step(); i == at {
						s.kill(what, h)
					}
				}
				listed += s.target.count
				runs++
			}
		}
	}
	if listed < 3*runs {
		t.Errorf("%d checkpoints listed in %d runs", listed, runs)
	}
}

// checkRest says that no hold began before those that came before had their rest.
func (s *simulation) checkRest() {
	var sum time.Duration
	for i, d := range s.held {
		if sum += d; i > 0 && s.heldAt[i]-d-s.heldAt[i-1] < restFor*s.held[i-1]-time.Millisecond && s.hosts[0].life == 1 {
			s.t.Fatalf("a hold of %v follows one of %v by %v", d, s.held[i-1], s.heldAt[i]-d-s.heldAt[i-1])
		}
	}
	if len(s.held) > 2 && s.hosts[0].life == 1 && sum > s.now/100+2*HoldMost {
		s.t.Fatalf("%v of %v held", sum, s.now)
	}
}
