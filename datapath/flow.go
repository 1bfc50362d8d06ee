package datapath

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/dirty"
	"github.com/holdfast-dr/holdfast/datapath/gate"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/pulse"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// flow is one group at its source, from the tap to the wire.
type flow struct {
	ctx          context.Context // of the run; every life's is below it. Set under mu; nil before: users may call then
	cfg          GroupConfig
	log          *slog.Logger
	tap          *capture.Tap
	window       *spill.Window
	gate         *gate.Gate
	turn         *gate.Turn
	ledger       ledgerFile
	incarnations incarnations
	epochs       epochs
	turning      pulse.Pulse // of watch
	began        time.Time
	rosterName   string
	freezer      freezer
	cuts         *cutter // of a group that several source VRAs share; else nil
	intake       atomic.Pointer[intake]
	marksNew     bool // the host restarted since what was kept was, and what changed was not marked since
	keptName     string
	bootID       string
	before       kept           // as this process found it
	kept         *spill.Carried // what the process before left to go on with; nil: nothing, or it was begun with. Guarded by mu
	compression  pack.Compression
	observeAck   func(time.Duration)

	slabs    spill.Slabs
	pipe     pipe
	free     chan *pack.Job // all jobs that are not under way
	sealing  chan *pack.Job // feed to pack
	sealed   chan *pack.Job // pack to stow
	lives    chan life      // capacity 1: the life that feed shall begin
	orders   chan sendOrder // capacity 1: what send shall do; the latest wins
	work     chan task      // capacity 1: what resync shall do; the machine asks for one at a time
	changed  chan struct{}  // capacity 1: something else is asked of the group
	lostCame chan struct{}  // capacity 1: mu.lost has something
	acked    chan struct{}  // capacity 1: an acknowledgement came
	keep     chan struct{}  // capacity 1: what was before this boot is marked
	missed   missed         // the resync's

	count struct {
		raw, stored     atomic.Uint64 // sealed, in bytes
		acked, syncRead atomic.Uint64 // payload acknowledged, and disk read again, in bytes
		refusals        atomic.Uint64 // by the target
		again           atomic.Uint64 // records sent again after a data connection was cut
		silences        atomic.Uint64 // of filters that were asked
		stops           atomic.Uint64 // of the group
		batches         atomic.Int64  // sealed
		packing         atomic.Int64  // ns that sealing took, all workers together
		wrong           atomic.Uint64 // blocks that sealing made other ones of
		sent            atomic.Int64  // bytes of records that the link took
		rawTurns        atomic.Uint64 // how often LZ4 was given up
		storing         atomic.Bool   // batches go raw at present
		gaveWay         atomic.Uint64 // times the window was given up for groups that go first
		asked           atomic.Uint64 // by the target to be sent again, in bytes
		synced          atomic.Int64  // read again and given to pack in this life, in bytes
		compared        atomic.Uint64 // with the target's, by sums, in bytes
		differ          atomic.Uint64 // of them, in blocks that do
	}

	mu struct {
		sync.Mutex
		machine *group.Machine
		state   group.State // as logged
		ledger  ledger
		life    uint64             // records of any other do not enter the window
		ctx     context.Context    // of the life
		end     context.CancelFunc // ends it
		inc     record.Incarnation // drawn
		drawn   drawn              // all that were
		drew    bool               // by this process
		foreign record.Incarnation // that the target stands at, which was not drawn here; 0: it was
		epoch   record.Epoch       // of what is sent in lives that begin now
		marks   map[record.Ticket]*mark
		last    *mark // whose ticket was taken last

		session   *wire.Session // nil while there is none
		freezes   bool          // the target, when there was one last, takes cuts that tell of a freeze
		announced bool          // the machine knows of the session
		endSend   context.CancelFunc
		opening   uint32             // of the stream in the session, by its last Stand
		under     *reorder.Source    // what is under way in it; nil where there is one connection only
		endLeg    context.CancelFunc // has the sender begin with what is to be sent again
		heard     time.Time          // the target, last

		volumes []capture.VolumeInfo // of the group, those that filters serve; once all that are needed have answered

		roster   roster.Roster
		admitted map[record.VolumeID]bool          // of those that are adding: their writes are taken
		endJoin  context.CancelFunc                // ends the reading of a volume that joins; nil: none is read
		until    map[record.VolumeID]record.Ticket // of those that are gone: from where on their writes are not taken
		telling  map[record.VolumeID]int64         // the volumes that the target was told of last, and their sizes
		told     map[record.VolumeID]int64         // those that it knows, at least as large
		lacks    lacks
		lost     []wire.Lack // that the target told of, to be marked
		listed   wire.Listed
		listedAt time.Time // when the newest was heard of
		asks     map[uint64]*wish
		nextAsk  uint64
		fatal    error
		noSpill  string // why the spill takes no more, as logged

		compared          *comparison    // of the present resync
		plain             bool           // a user has asked for all to be sent: nothing is compared until a resync closes
		sync              dirty.Progress // of the present resync, or the last
		ackRate, syncRate dirty.Meter    // what is acknowledged; what the resync has done
		ackSeen           uint64
		carried           carried // what has arrived
		syncSeen          int64
		syncBase          int64 // of spill.Record.Synced, when it began
		syncAcked         int64 // of spill.Record.Synced: durable at the target, in this life
		lag               time.Duration
		lagKnown          bool
	}
}

// mark is a ticket of ours that feed will meet.
type mark struct {
	ticket  record.Ticket
	volumes []record.VolumeSize // members, when it was taken
	taken   time.Time           // when; what stands there is labelled so, however late feed meets it
	place   *group.Place        // what stands there; nil for nothing
	decided chan struct{}       // closed when place is final
	open    bool                // not decided yet
	met     chan struct{}       // closed when feed has met it; nil where nobody waits for that
}

// wish is a checkpoint that a user waits for.
type wish struct {
	id        uint64 // 0: not asked yet
	tag       string
	freeze    record.Freeze
	cut       record.Cut    // once it is placed
	taken     chan struct{} // closed when its cut has its ticket for the first time
	hasTicket bool
	listed    chan struct{}
}

// task is something for the resync goroutine; ctx ends with its life.
type task struct {
	ctx context.Context
	do  func(context.Context)
}

// step hands an event to the machine and carries out what it says.
func (f *flow) step(e group.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stepLocked(e)
}

func (f *flow) stepLocked(e group.Event) {
	if f.overLocked() {
		return // a call of a user may outlive the run, and the tap
	}
	for _, a := range f.mu.machine.Step(time.Now(), e) {
		f.actLocked(a)
	}
	if f.cuts != nil {
		f.cuts.tellLocked(f.mu.machine)
	}
	s := f.mu.machine.Status()
	if s.State != f.mu.state {
		f.mu.state = s.State
		f.log.Info("state", "state", string(s.State), "reason", s.Reason)
	}
	if f.mu.ledger.Unfinished && f.mu.machine.Safe() {
		f.mu.ledger.Unfinished = false
		f.keepLocked()
	}
}

// begins says that the run begins, whose context that is.
func (f *flow) begins(run context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctx = run
}

// overLocked says whether the run has ended, or is about to. One that has not begun is not over.
func (f *flow) overLocked() bool { return f.ctx != nil && f.ctx.Err() != nil }

func (f *flow) over() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.overLocked()
}

func (f *flow) actLocked(a group.Action) {
	if f.mu.fatal != nil {
		return
	}
	switch a := a.(type) {
	case group.OpenStream:
		f.openStreamLocked(a.Incarnation)
	case group.CloseStream:
		f.closeStreamLocked()
	case group.Resume:
		f.resumeLocked(a.From)
	case group.Draw:
		f.drawLocked(a)
	case group.Begin:
		f.beginLocked(a)
	case group.Walk:
		f.taskLocked(func(ctx context.Context) { f.walk(ctx, a) })
	case group.Take:
		f.takeLocked(a)
	case group.Place:
		if a.Kind == group.Open {
			f.syncBeginsLocked(f.count.synced.Load())
		}
		f.mu.last.place = &a
		if w := f.mu.asks[a.Ask]; w != nil && !w.hasTicket {
			w.hasTicket = true
			close(w.taken)
		}
		f.decideLocked()
	case group.Void:
		f.decideLocked()
	case group.Answer:
		if w := f.mu.asks[a.Ask]; w != nil {
			close(w.listed)
			delete(f.mu.asks, a.Ask)
		}
	default:
		panic(fmt.Sprintf("BUG: unknown action %T", a))
	}
}

// openStreamLocked asks the target where it stands. A session that is over by now
// says so itself.
func (f *flow) openStreamLocked(inc record.Incarnation) {
	if f.mu.session == nil {
		return
	}
	m := &wire.OpenStream{
		Group: f.cfg.ID, GroupName: f.cfg.Name, Lineage: f.cfg.Lineage, Stream: f.cfg.Stream,
		Epoch: f.mu.epoch, Incarnation: inc, Acked: f.mu.ledger.Acked,
	}
	f.mu.telling = make(map[record.VolumeID]int64)
	for _, v := range f.mu.volumes {
		f.mu.telling[v.ID] = v.Bytes
		m.Volumes = append(m.Volumes, wire.Volume{ID: v.ID, Name: v.Name, Bytes: v.Bytes})
	}
	if err := f.mu.session.Send(m); err != nil {
		f.log.Debug("open stream", "error", err)
	}
}

// closeStreamLocked tells the target that nothing more comes for now.
func (f *flow) closeStreamLocked() {
	if s := f.mu.session; s != nil {
		_ = s.Send(&wire.CloseStream{Stream: f.cfg.Stream}) // else the session is over
	}
}

// drawLocked gives up the life and draws the next incarnation.
func (f *flow) drawLocked(a group.Draw) {
	f.endLifeLocked(a.Life)
	f.window.Reset(1) // what it held is in the marks
	above := f.mu.inc
	if a.Beyond {
		above += drawMost
	}
	inc, err := f.raise(above)
	if err != nil {
		f.failLocked(err)
		return
	}
	f.mu.inc = inc
	f.stepLocked(group.Drawn{Life: a.Life, Incarnation: inc})
}

// raise draws an incarnation above the one given and above all that were ever drawn,
// and keeps it.
func (f *flow) raise(above record.Incarnation) (record.Incarnation, error) {
	kept, err := f.incarnations.get()
	if err != nil {
		return 0, err
	}
	if kept.last == 0 { // what stands in the order page was drawn here
		kept.floor = f.tap.Incarnation()
	}
	above = max(above, kept.last, f.tap.Incarnation())
	if !f.mu.drew {
		above += jump()
		f.mu.drew = true
	}
	kept = kept.with(f.tap.RaiseIncarnation(above))
	if err := f.incarnations.put(kept); err != nil {
		return 0, fmt.Errorf("keep the incarnation: %w", err)
	}
	f.mu.drawn = kept
	return kept.last, nil
}

// endLifeLocked ends the present life: feed stops, what is sealed is dropped, and
// nothing is sent.
func (f *flow) endLifeLocked(next uint64) {
	f.kept = nil
	if !invariant.Planted("datapath/void-left-out") {
		f.window.Void() // what is sealed of it is put nowhere, and its slots are freed
	}
	f.mu.end()
	f.mu.life = next
	f.mu.lacks = lacks{}
	f.mu.compared = nil
	f.stopSendLocked()
	for t, m := range f.mu.marks {
		if m.open {
			f.closeMark(m)
		}
		delete(f.mu.marks, t)
	}
}

// beginLocked starts the life that the machine wants; its work goes on outside.
func (f *flow) beginLocked(b group.Begin) {
	f.endLifeLocked(b.Life)
	f.window.Reset(b.Next)
	f.mu.syncAcked = 0
	f.syncBeginsLocked(0)
	ctx, end := context.WithCancel(f.ctx)
	f.mu.ctx, f.mu.end = ctx, end
	f.log.Info("incarnation begins", "incarnation", b.Incarnation, "seq", b.Next, "mark_all", b.MarkAll, "reason", b.Reason)
	f.taskLocked(func(ctx context.Context) { f.begin(ctx, b) })
}

// taskLocked gives the resync goroutine something to do in this life.
func (f *flow) taskLocked(do func(context.Context)) {
	t := task{f.mu.ctx, do}
	select {
	case <-f.work: // of an earlier life, and not begun
	default:
	}
	f.work <- t
}

// takeLocked takes the ticket of a boundary. A closing one is decided after the
// filters were asked, which takes its time: feed waits at it.
func (f *flow) takeLocked(a group.Take) {
	if a.Kind == group.Close {
		f.taskLocked(func(ctx context.Context) { f.close(ctx, a) })
		return
	}
	if a.Kind == group.Cut && len(f.tap.Mirrors()) > 0 {
		f.taskLocked(func(ctx context.Context) { f.cutMirrored(ctx, a) })
		return
	}
	f.ticketLocked()
	f.stepLocked(group.Taken{Life: a.Life, Kind: a.Kind, Lost: f.tap.Lost()})
}

// cutMirrored takes the ticket of a cut where guests' writes come by mirrors. The filters are asked after it whether those
// stand, and only then lost is read: a mirror that ended before the ticket took no write with it that nobody tells of.
func (f *flow) cutMirrored(ctx context.Context, a group.Take) {
	f.mu.Lock()
	if ctx.Err() != nil {
		f.mu.Unlock()
		return
	}
	m := f.ticketLocked()
	f.mu.Unlock()
	f.tap.LookAtMirrors(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil { // perhaps before all had told
		return
	}
	f.mu.last = m
	f.stepLocked(group.Taken{Life: a.Life, Kind: a.Kind, Lost: f.tap.Lost()})
}

// ticketLocked takes a ticket that feed will meet.
func (f *flow) ticketLocked() *mark {
	f.mu.last = f.markLocked(f.tap.TakeTicket())
	return f.mu.last
}

// markLocked notes a ticket of ours.
func (f *flow) markLocked(t record.Ticket) *mark {
	m := &mark{ticket: t, volumes: f.membersLocked(), taken: time.Now(), decided: make(chan struct{}), open: true}
	f.mu.marks[m.ticket] = m
	return m
}

// decideLocked says that what stands at the ticket taken last is final.
func (f *flow) decideLocked() {
	if m := f.mu.last; m != nil && m.open {
		f.closeMark(m)
	}
}

func (f *flow) closeMark(m *mark) {
	m.open = false
	close(m.decided)
}

// takeMark is feed at a mark: it waits until it is decided. Nil when it is of an
// earlier life, or the life ends before that.
func (f *flow) takeMark(ctx context.Context, t record.Ticket) *mark {
	f.mu.Lock()
	m := f.mu.marks[t]
	delete(f.mu.marks, t)
	f.mu.Unlock()
	if m == nil {
		return nil
	}
	select {
	case <-m.decided:
	case <-ctx.Done():
		select {
		case <-m.decided: // both came: what stands there is in the machine's books
		default:
			return nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.place != nil && m.place.Life != f.mu.life {
		return nil
	}
	return m
}

// noteCut remembers what was placed for a wish.
func (f *flow) noteCut(ask uint64, c record.Cut) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.mu.asks[ask]; w != nil {
		w.cut = c
	}
}

func (f *flow) listedNewest() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.listed.Checkpoint
}

// members are the volumes that checkpoints hold.
func (f *flow) members() []record.VolumeSize {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.membersLocked()
}

func (f *flow) membersLocked() []record.VolumeSize {
	return f.sizesLocked(func(p roster.Phase) bool { return p == roster.Member })
}

// sent are the volumes whose writes are sent: those that are joining too.
func (f *flow) sent() []record.VolumeSize {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sizesLocked(func(p roster.Phase) bool { return p == roster.Member || p == roster.Joining })
}

func (f *flow) sizesLocked(in func(roster.Phase) bool) (vs []record.VolumeSize) {
	for _, v := range f.mu.volumes {
		if in(f.mu.roster.Phase(v.ID)) {
			vs = append(vs, record.VolumeSize{ID: v.ID, Bytes: v.Bytes})
		}
	}
	return vs
}

// batchLimit is how much a batch may hold: no more than the pool can spare, and no more
// than the cap, or a link that does not keep up, carries in a tenth of a second.
func (f *flow) batchLimit(poolBytes int) int {
	limit := batchRaw
	if poolBytes > 0 {
		limit = min(limit, poolBytes/poolShare)
	}
	link := batchLink.Seconds() / float64(f.connections()) // a record travels on one of them
	if c := f.gate.Cap(); c > 0 {
		limit = min(limit, int(c.BytesPerSecond()*link))
	}
	if f.window.Stats().Unsent > 1 {
		f.mu.Lock()
		rate := f.mu.ackRate.Rate()
		f.mu.Unlock()
		if rate > 0 {
			limit = min(limit, int(rate*link))
		}
	}
	return max(limit, batchRawMin)
}

// totals are what packing and sending have come to.
func (f *flow) totals() pack.Totals {
	return pack.Totals{
		Batches: int(f.count.batches.Load()), Raw: int64(f.count.raw.Load()), Stored: int64(f.count.stored.Load()),
		Packing: time.Duration(f.count.packing.Load()), Sent: f.count.sent.Load(), Unsent: f.window.Stats().Unsent,
	}
}

func (f *flow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failLocked(err)
}

// failLocked stops the group: only a restart helps, and the state says so.
func (f *flow) failLocked(err error) {
	if f.mu.fatal == nil {
		f.mu.fatal = err
		f.count.stops.Add(1)
		f.endLifeLocked(0)
		f.log.Error("group stops", "error", err)
	}
}
