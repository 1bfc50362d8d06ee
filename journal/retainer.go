package journal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	iofs "io/fs"
	"math"
	"path"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// retainer keeps the history of all groups of a store within bounds: it counts time,
// asks for each group what is to be done, and has passes made, a few at once. It acts
// every so often, and at once when a group comes near its limit.
type retainer struct {
	s *Store

	ctx    context.Context // ends with the store
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1
	passes sync.WaitGroup
	slots  chan struct{}
	ended  chan struct{} // nil: it never began
	pacer  pacer

	looking sync.Mutex // one look at a time: a group is planned for once

	mu    sync.Mutex // after all others
	book  retain.Book
	saved time.Duration            // of the clock, when the book was last written
	began bool                     // it counted at all
	busy  map[*Group]chan struct{} // closed when they are busy no longer
}

const (
	agesName = "ages"
	agesNew  = "ages.new"

	// planEvery is how often everything is looked at; the history may be longer by it.
	planEvery = 10 * time.Second
	// soon is when everything is looked at for the first time, and ages are written for the
	// first time: a target that restarts all the time gets that far.
	soon = time.Second
	// saveEvery is how much of the time that is counted a crash may forget.
	saveEvery = 5 * time.Minute
	// measureEvery is how often the replicas are measured.
	measureEvery = 10 * time.Minute
	// passesAtOnce is how many groups are promoted at once: they share a disk with intake.
	passesAtOnce = 2
)

// open reads what an earlier run knew of ages. What does not read is begun anew: then
// everything is younger than it is.
func (r *retainer) open(s *Store) {
	r.s = s
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wake, r.slots, r.busy = make(chan struct{}, 1), make(chan struct{}, passesAtOnce), make(map[*Group]chan struct{})
	r.pacer.init()
	p, err := readAll(s.cfg.FS, path.Join(s.cfg.Dir, agesName))
	if err == nil {
		var book *retain.Book
		if book, err = retain.ParseBook(p); err == nil {
			r.book = *book
			r.saved = book.Clock.Passed
		}
	}
	if err != nil && !isAbsent(err) {
		s.log.Warn("ages of checkpoints are not known: they count from now on", "error", err)
	}
}

func isAbsent(err error) bool { return errors.Is(err, iofs.ErrNotExist) }

// processClock counts while the process runs: each is a boot of its own.
func processClock() func() retain.Instant {
	began := time.Now()
	var id [16]byte
	for id == [16]byte{} {
		_, _ = rand.Read(id[:]) // never fails: it ends the process instead
	}
	return func() retain.Instant {
		return retain.Instant{Boot: id, Mono: time.Since(began), Wall: time.Now().UnixNano()}
	}
}

// maxAges bounds the file that is read.
const maxAges = 256 << 20

func readAll(fs ioengine.FS, name string) ([]byte, error) {
	f, err := fs.Open(name, ioengine.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil || size > maxAges {
		return nil, errors.Join(err, fmt.Errorf("%d bytes", size))
	}
	p := make([]byte, size)
	if n, err := f.ReadAt(p, 0); n < len(p) {
		return nil, err
	}
	return p, nil
}

// agesOf is what is known of a group.
func (r *retainer) agesOf(id record.GroupID, lineage uint64) retain.Ages {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.book.Of(uint64(id), lineage)
}

// passed is the time that has certainly passed, by the store's clock.
func (r *retainer) passed() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.s == nil {
		return 0
	}
	r.began = true
	return r.book.Clock.Step(r.s.cfg.Clock())
}

// kick has everything looked at now.
func (r *retainer) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// took counts what a group has taken in.
func (r *retainer) took(g *Group, bytes int64) {
	if bytes == 0 {
		return
	}
	r.pacer.took(bytes)
	if g.retention.room.take(bytes) {
		r.kick()
	}
}

// begin says how a group stands, before it takes anything: what is counted then counts
// from there. What is to be done is done by look, at once when space is short.
func (r *retainer) begin(g *Group) {
	if r.s.cfg.Still || g.still() || invariant.Planted("journal/begin-unlooked") {
		return
	}
	now := r.passed()
	g.noteAges(now)
	d := retain.Plan(g.stateOf(now, diskSpace{}))
	g.decided(d, time.Now())
	if d.Level >= retain.Shortened {
		r.kick()
	}
}

// run looks at everything now and then, until the store closes.
func (r *retainer) run() {
	for _, g := range r.s.Groups() {
		r.begin(g)
	}
	r.ended = make(chan struct{})
	go func() {
		defer close(r.ended)
		tick := time.NewTicker(planEvery)
		defer tick.Stop()
		began := time.NewTimer(soon)
		defer began.Stop()
		wake := r.wake
		if r.s.cfg.lookedAfter {
			tick.Stop()
			began.Stop()
			wake = nil
		}
		var measured time.Duration
		for first := true; ; {
			save := false
			select {
			case <-r.ctx.Done():
				return
			case <-wake:
			case <-tick.C:
			case <-began.C:
				save = !invariant.Planted("journal/save-late")
			}
			now := r.passed()
			if first || now-measured >= measureEvery {
				for _, g := range r.s.Groups() {
					if g.opened() == nil {
						g.measureReplicas()
					}
				}
				first, measured = false, now
			}
			r.look(now)
			if save || now-r.saved >= saveEvery {
				r.save()
			}
		}
	}()
}

// close ends passes and the worker. What was counted is kept.
func (r *retainer) close() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	if r.ended != nil {
		<-r.ended
	}
	r.passes.Wait()
	r.mu.Lock() // segments that are read back as they are sealed count on
	began := r.began
	r.mu.Unlock()
	if began && r.ended != nil && r.passed()-r.saved >= soon {
		r.save()
	}
}

// look makes a plan for each group and has it carried out. While the disk as a whole is
// short of space, the group with most to give gives first.
func (r *retainer) look(now time.Duration) {
	r.looking.Lock()
	defer r.looking.Unlock()
	r.s.passMemories.shrink(time.Now())
	groups := r.s.Groups()
	disk := r.s.space()
	if disk.short { // what is only kept for use again goes first
		if freed, err := r.s.spare.Shrink(0); err != nil {
			r.s.log.Warn("spare segments are not removed", "error", err)
		} else if freed > 0 {
			r.s.log.Warn("the disk is almost full: spare segments are removed", "free", disk.free, "wanted", disk.wanted, "removed", freed)
			disk = r.s.space()
		}
	}
	var giver *Group
	if disk.short {
		giver = r.giver(groups, now, disk)
	}
	for _, g := range groups {
		if g.still() {
			continue
		}
		g.noteAges(now)
		if r.isBusy(g) {
			g.stateOf(now, disk) // its room is counted anew
			continue
		}
		mine := disk
		mine.short = disk.short && (g == giver || giver == nil)
		d := retain.Plan(g.stateOf(now, mine))
		g.decided(d, time.Now())
		switch {
		case d.Yield:
			if _, err := g.YieldViews(d.Reason); err != nil {
				g.log.Warn("a view that gave way was not closed in order", "error", err)
			}
			r.kick()
		case d.Promote != 0:
			r.pass(g, d.Promote)
		default:
			r.thin(g, now)
		}
	}
}

// giver is the group with the largest log of those that have anything to give.
func (r *retainer) giver(groups []*Group, now time.Duration, disk diskSpace) (giver *Group) {
	most := int64(0)
	for _, g := range groups {
		if g.still() || r.isBusy(g) {
			continue
		}
		s := g.stateOf(now, disk)
		if d := retain.Plan(s); (d.Promote != 0 || d.Yield) && s.Used > most {
			giver, most = g, s.Used
		}
	}
	return giver
}

// noteAges notes which checkpoint is the newest now.
func (g *Group) noteAges(now time.Duration) {
	newest, _ := listed{g}.Newest(^uint64(0) - 1)
	g.retention.note(func(r *retention) { r.ages.Note(now, newest, r.policy.Tiers) })
}

func (r *retainer) isBusy(g *Group) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.busy[g] != nil
}

// await waits until a group that is looked at no more is not worked on any more.
func (r *retainer) await(g *Group) {
	r.mu.Lock()
	done := r.busy[g]
	r.mu.Unlock()
	if done != nil {
		<-done
	}
}

// thinEvery is how often checkpoints of a group are thinned out.
const thinEvery = time.Minute

// thin has checkpoints thinned out, and then a row of the log folded; when it was, it comes
// again at once, after promotion.
func (r *retainer) thin(g *Group, now time.Duration) {
	f := &g.folding
	policed := false
	g.retention.note(func(r *retention) { policed = len(r.policy.Tiers) > 0 })
	if g.heldByFailover() != nil || !f.again.Swap(false) && now < f.next || !policed && len(g.manifest.now().thinned) == 0 {
		return
	}
	f.next = now + thinEvery
	r.beside(g, func() (more bool) {
		thinned, err := g.thinByPolicy()
		did := false
		if err == nil {
			f.thinned.Add(int64(thinned))
			did, err = g.foldLog(r.folds(g))
		}
		if r.ctx.Err() != nil || g.Stays() != nil {
			return false
		}
		if err != nil {
			g.log.Warn("thinning failed, and is tried again", "error", err)
		}
		g.retention.note(func(r *retention) { r.unthinned = err })
		if did {
			f.again.Store(true)
		}
		return did
	})
}

// folds is the pace of folding a group's log.
func (r *retainer) folds(g *Group) func(int64) error {
	return func(n int64) error {
		if err := g.openStill(); err != nil {
			return err
		}
		if g.retention.room.none() != nil {
			return r.live()
		}
		now := time.Now()
		return g.folding.pace.wait(r.ctx, now, n, r.pacer.target(now, 0), paceAhead)
	}
}

// live is ErrClosed once the store closes.
func (r *retainer) live() error {
	if r.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

// pass has a pass made beside everything else. It is paced by what comes in, and by the
// room that is left until it must be through; where there is none, nothing comes in to be
// in the way of.
func (r *retainer) pass(g *Group, number uint64) {
	r.beside(g, func() (more bool) {
		x := &g.retention
		err := g.promote(number, func(n int64) error {
			if err := g.openStill(); err != nil {
				return err
			}
			now := time.Now()
			rate := x.passPace(now, &r.pacer)
			if math.IsInf(rate, 1) {
				return r.live()
			}
			return x.pace.wait(r.ctx, now, n, rate, paceEven)
		})
		if r.ctx.Err() != nil || g.Stays() != nil {
			return false
		}
		g.passed(err)
		return err == nil
	})
}

// beside runs work on a group on a goroutine of its own; the group is busy meanwhile, and
// few groups are at once. When the work says that there is perhaps more to do, everything
// is looked at again, once the group is busy no longer: a look passes over those that are.
func (r *retainer) beside(g *Group, work func() (more bool)) {
	done := make(chan struct{})
	r.mu.Lock()
	r.busy[g] = done
	r.mu.Unlock()
	r.passes.Go(func() {
		more := false
		defer func() {
			r.mu.Lock()
			delete(r.busy, g)
			r.mu.Unlock()
			close(done)
			if more && !invariant.Planted("journal/more-unlooked") {
				r.kick()
			}
		}()
		select {
		case r.slots <- struct{}{}:
			defer func() { <-r.slots }()
			more = work()
		case <-r.ctx.Done():
		}
	})
}

// save writes the book. What is not written makes checkpoints younger, so it is no more
// than a warning.
func (r *retainer) save() {
	groups := r.s.Groups()
	r.mu.Lock()
	book := retain.Book{Clock: r.book.Clock}
	r.saved = book.Clock.Passed
	r.mu.Unlock()
	for _, g := range groups {
		if g.index == nil {
			continue
		}
		info := g.Info()
		g.retention.note(func(x *retention) {
			book.Groups = append(book.Groups, retain.Entry{Group: uint64(info.ID), Lineage: info.Lineage, Ages: *x.ages.Clone()})
		})
	}
	if invariant.Planted("journal/ages-unsaved") {
		return
	}
	if err := writeWhole(r.s.cfg.FS, r.s.cfg.Dir, agesNew, agesName, book.AppendTo(nil)); err != nil {
		r.s.log.Warn("ages of checkpoints are not written", "error", err)
	}
}
