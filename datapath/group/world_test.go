package group

import (
	"maps"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// world is one volume of a few blocks, its filter, the source under test and its
// target, all in one goroutine. A block's value is the number of the write that
// made it, so that a checkpoint can be held against what the disk was at its ticket.
type world struct {
	t     *testing.T
	now   time.Time
	shell *shell

	// the filter and what it shares
	disk      blocks
	dirty     map[int]bool
	gen       map[int]record.Ticket // marked by a write of that ticket, until durable
	lost      uint64
	ticket    record.Ticket
	writes    int
	queue     []item // published, not taken
	poolSlots int
	inc       record.Incarnation
	acked     record.Seq // kept by the source over restarts

	// the target
	log     []item // durable
	linked  bool
	listing bool // no resync is open
	image   blocks
	listed  uint64
	checked int

	paused bool
}

// blocks are the values of the volume's blocks.
type blocks [6]int

// item is a write, a mark, or a record: in this world each write is a record of its own.
type item struct {
	ticket  record.Ticket
	mark    bool
	block   int
	value   int
	seq     record.Seq
	inc     record.Incarnation
	kind    Boundary
	through record.Ticket
	want    blocks // of a cut: the disk at its ticket
}

// shell carries out what the machine says, as datapath does, a step at a time.
type shell struct {
	m       *Machine
	marks   map[record.Ticket]Place // decided boundaries
	wants   map[record.Ticket]blocks
	window  []item // sealed, not acknowledged
	next    record.Seq
	sent    int // of window
	stood   bool
	walk    *Walk
	reading int // block whose bit was moved and which is not read yet; -1 for none
	taking  bool
	begin   *Begin
	closing *closing
	unfin   bool

	// What stands in the window's file beside the records: whose slots were sealed last, so that a
	// process that dies may not have freed them, and how the stream stands behind the newest.
	sealed  []item
	through record.Ticket // of the newest record
	before  record.Ticket // of the one before
	opensAt record.Seq
	since   record.Seq // 0: a resync is open, or nothing stands there
	covered uint64
	listed  uint64
}

// closing is a Take{Close} between its steps: lost read, dirty read, ticket taken.
type closing struct {
	life   uint64
	looked bool // lost was read
	before uint64
	ticket record.Ticket
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: time.Unix(1e6, 0), dirty: map[int]bool{}, gen: map[int]record.Ticket{}, poolSlots: 4}
	w.start()
	return w
}

// start is a source process that begins; a killed one is simply forgotten.
func (w *world) start() {
	w.inc++
	unfin := w.shell != nil && w.shell.unfin
	w.shell = &shell{marks: map[record.Ticket]Place{}, wants: map[record.Ticket]blocks{}, reading: -1, unfin: unfin}
	w.shell.m = New(5*time.Second, w.inc, w.now)
	w.linked = false
	if w.paused {
		w.step(Pause{})
	}
}

// goOn is a source process that begins with what a killed one left: its window up to the last record that stands whole
// there, and what is published. Some of what was sealed is published still, or the kill was between the two; the last record may
// not be whole yet, and then was not sent. It returns false where only a new incarnation will do.
func (w *world) goOn(unfreed int, torn bool) bool {
	old := w.shell
	if old.since == 0 || w.paused || old.begin != nil {
		return false
	}
	window, sealed := old.window, old.sealed
	if n := len(window); torn && n > 0 && old.sent < n && window[n-1].kind == 0 && len(sealed) > 0 && sealed[len(sealed)-1].seq == window[n-1].seq {
		unfreed, window = max(unfreed, 1), window[:n-1]
	}
	var published []item
	published = append(published, sealed[max(0, len(sealed)-unfreed):]...)
	for _, it := range w.queue {
		if !it.mark {
			published = append(published, it)
		}
	}
	w.queue = published
	w.linked = false
	s := &shell{marks: map[record.Ticket]Place{}, wants: map[record.Ticket]blocks{}, reading: -1, unfin: old.unfin, taking: true}
	s.window, s.next, s.opensAt, s.since, s.covered, s.listed = window, old.next, old.opensAt, old.since, old.covered, old.listed
	through := old.through
	if len(window) < len(old.window) {
		s.next--
		through = throughOf(window, old)
	}
	s.through = through
	for len(w.queue) > 0 && w.queue[0].ticket <= through { // it stands in the window
		w.queue = w.queue[1:]
	}
	w.shell = s
	s.m = New(5*time.Second, w.inc, w.now)
	w.step(Kept{OpensAt: s.opensAt, Since: s.since, Covered: s.covered, Lost: w.lost, Listed: s.listed, Initial: s.unfin})
	return true
}

// throughOf is the ticket of the newest record of a window that lacks the last of old's.
func throughOf(window []item, old *shell) record.Ticket {
	if n := len(window); n > 0 {
		return window[n-1].through
	}
	return old.before
}

func (w *world) step(e Event) {
	for _, a := range w.shell.m.Step(w.now, e) {
		w.act(a)
	}
}

func (w *world) act(a Action) {
	s := w.shell
	switch a := a.(type) {
	case OpenStream:
		if !w.linked {
			return
		}
		st := Stood{Durable: record.Seq(len(w.log)), Acked: w.acked, Unfinished: s.unfin}
		if n := len(w.log); n > 0 {
			st.Incarnation = w.log[n-1].inc
		}
		if s.next > 0 {
			st.Sealed = s.next - 1
		}
		w.step(st)
	case CloseStream:
		s.stood = false
	case Draw:
		w.inc++
		s.walk, s.begin, s.closing, s.reading, s.taking = nil, nil, nil, -1, false
		s.window, s.sent, s.stood, s.since = nil, 0, false, 0
		w.step(Drawn{a.Life, w.inc})
	case Resume:
		s.stood = true
		s.sent = 0
		for s.sent < len(s.window) && s.window[s.sent].seq < a.From {
			s.sent++
		}
	case Begin:
		s.begin = &a
		s.taking = false
	case Walk:
		s.walk = &a
	case Take:
		w.take(a)
	case Place:
		if a.Life != s.m.Life() {
			w.t.Fatalf("a boundary of life %d is placed in life %d", a.Life, s.m.Life())
		}
		s.marks[w.ticket] = a
	case Void:
	case Answer:
		if a.Number > w.listed {
			w.t.Fatalf("checkpoint %d is answered, %d is listed", a.Number, w.listed)
		}
	}
}

func (w *world) take(a Take) {
	if a.Kind == Close {
		w.shell.closing = &closing{life: a.Life}
		return
	}
	w.mark()
	w.step(Taken{Life: a.Life, Kind: a.Kind, Lost: w.lost})
}

// mark takes a ticket, and notes what the disk is there.
func (w *world) mark() record.Ticket {
	w.ticket++
	w.queue = append(w.queue, item{ticket: w.ticket, mark: true})
	w.shell.wants[w.ticket] = w.disk
	return w.ticket
}

// guest writes a block: captured, or dropped when there is no slot, or left to the
// resync when it is dirty.
func (w *world) guest(b int) {
	w.writes++
	w.disk[b] = w.writes
	switch {
	case w.dirty[b]:
	case len(w.queue) < w.poolSlots:
		w.ticket++
		w.gen[b] = w.ticket
		w.queue = append(w.queue, item{ticket: w.ticket, block: b, value: w.writes})
	default:
		w.dirty[b] = true
		w.lost++
	}
}

// background does the next small thing of the shell's own goroutines.
func (w *world) background() {
	s := w.shell
	switch {
	case s.begin != nil:
		w.doBegin(*s.begin)
		s.begin = nil
	case s.closing != nil:
		w.doClose()
	case s.reading >= 0: // the bit was moved before; now the read
		w.ticket++
		w.gen[s.reading] = w.ticket
		w.queue = append(w.queue, item{ticket: w.ticket, block: s.reading, value: w.disk[s.reading]})
		s.reading = -1
	case s.walk != nil:
		for b := range 6 {
			if !w.dirty[b] {
				continue
			}
			w.gen[b] = w.ticket + 1000000 // in flight: no durable ticket passes it
			delete(w.dirty, b)
			s.reading = b
			return
		}
		life := s.walk.Life
		s.walk = nil
		w.step(Walked{Life: life, Left: int64(len(w.dirty))})
	}
}

func (w *world) doClose() {
	c := w.shell.closing
	if !c.looked {
		c.looked, c.before = true, w.lost
		return
	}
	if c.ticket == 0 {
		// What is published after this mark may be taken only once the mark is decided:
		// the tap waits at it.
		c.ticket = w.mark()
		return
	}
	w.shell.closing = nil
	at := w.ticket
	w.ticket = c.ticket // so that Place finds it
	w.step(Taken{Life: c.life, Kind: Close, Lost: w.lost, Before: c.before, Left: int64(len(w.dirty))})
	w.ticket = max(w.ticket, at)
}

func (w *world) doBegin(b Begin) {
	s := w.shell
	w.queue = nil
	if b.MarkAll || b.MarkUnknown {
		for b := range 6 {
			w.dirty[b] = true
		}
		w.lost++
	}
	for b := range w.gen {
		w.dirty[b] = true
	}
	clear(w.gen)
	clear(s.marks)
	w.acked, s.unfin = b.Next-1, b.Initial
	s.window, s.sent, s.next, s.taking, s.opensAt, s.sealed = nil, 0, b.Next, true, b.Next, nil
	w.ticket++
	w.seal(item{ticket: w.ticket, kind: Open})
	w.step(Begun{b.Life})
}

// tap takes the next published item into the window.
func (w *world) tap() {
	s := w.shell
	if !s.taking || len(w.queue) == 0 || len(s.window) >= 6 {
		return
	}
	it := w.queue[0]
	if c := s.closing; it.mark && c != nil && c.ticket == it.ticket {
		return // not decided yet
	}
	w.queue = w.queue[1:]
	if !it.mark {
		w.seal(it)
		return
	}
	p, ok := s.marks[it.ticket]
	if !ok {
		return
	}
	it.kind, it.want = p.Kind, s.wants[it.ticket]
	w.seal(it)
	if p.Kind == Close {
		s.unfin = false
	}
	w.step(Placed{Life: p.Life, Kind: p.Kind, Number: uint64(s.next - 1)})
}

func (w *world) seal(it item) {
	s := w.shell
	it.seq, it.inc, it.through = s.next, w.inc, it.ticket
	s.before, s.through = s.through, it.ticket
	switch s.next++; it.kind {
	case 0:
		if s.sealed = append(s.sealed, it); len(s.sealed) > 2 {
			s.sealed = s.sealed[1:]
		}
	case Open:
		s.since, s.covered, s.listed = 0, 0, 0
	case Close:
		s.since, s.covered = it.seq, s.marks[it.ticket].Cover
	}
	s.window = append(s.window, it)
}

// link carries the next record, makes it durable, and brings the ack back.
func (w *world) carry(ack bool) {
	s := w.shell
	if !w.linked || !s.stood || s.sent >= len(s.window) {
		return
	}
	it := s.window[s.sent]
	s.sent++
	if it.seq != record.Seq(len(w.log)+1) {
		w.t.Fatalf("seq %d arrives, %d is next", it.seq, len(w.log)+1)
	}
	if n := len(w.log); (n == 0 || w.log[n-1].inc != it.inc) && it.kind != Open {
		w.t.Fatalf("incarnation %d begins with %+v", it.inc, it)
	}
	w.log = append(w.log, it)
	w.store(it)
	if ack {
		w.ack()
	}
}

func (w *world) ack() {
	s := w.shell
	through := record.Ticket(0)
	for len(s.window) > 0 && s.window[0].seq <= record.Seq(len(w.log)) {
		through = s.window[0].through
		w.acked = s.window[0].seq
		s.window, s.sent = s.window[1:], s.sent-1
	}
	maps.DeleteFunc(w.gen, func(_ int, t record.Ticket) bool { return t <= through })
	if w.linked {
		s.listed = w.listed
		w.step(Listed{w.listed})
	}
}

// store is the target: a cut outside a resync is a checkpoint, and must be the disk at its ticket.
func (w *world) store(it item) {
	switch it.kind {
	case Open:
		w.listing = false
	case Close:
		w.listing = true
	case Cut:
		if !w.listing {
			return
		}
		w.listed = uint64(it.seq)
		w.checked++
		if w.image != it.want {
			w.t.Fatalf("checkpoint %d is %v, the disk was %v", it.seq, w.image, it.want)
		}
	default:
		w.image[it.block] = it.value
	}
}

func (w *world) connect() {
	if !w.linked {
		w.linked = true
		w.step(SessionUp{})
	}
}

func (w *world) cut() {
	if w.linked {
		w.linked, w.shell.stood = false, false
		w.step(SessionDown{Reason: "cut"})
	}
}

// pause has the group rest, or go on; the process that is started next is told so too.
func (w *world) pause(on bool) {
	w.paused = on
	if on {
		w.step(Pause{})
	} else {
		w.step(Unpause{})
	}
}

// forget is a target that lost the end of its log: it is rebuilt from what is left.
func (w *world) forget(n int) {
	w.cut()
	w.log = w.log[:max(0, len(w.log)-n)]
	if w.listed > uint64(len(w.log)) {
		w.listed = uint64(len(w.log))
	}
	w.image, w.listing = blocks{}, false
	for _, it := range w.log {
		switch it.kind {
		case Open:
			w.listing = false
		case Close:
			w.listing = true
		case Cut:
		default:
			w.image[it.block] = it.value
		}
	}
}

func (w *world) tick(d time.Duration) {
	w.now = w.now.Add(d)
	w.step(Tick{Sense{Lost: w.lost, Full: len(w.shell.window) >= 6}})
}
