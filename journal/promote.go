package journal

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// promotion is one pass: it brings the replicas of a group to checkpoint P and then
// drops what of the log only older checkpoints needed.
//
//  1. "checkpoints below P are gone", synced: nobody is shown any more what is about to
//     be overwritten;
//  2. for each volume, the newest versions that P holds go into the replica, each place
//     once however often it was written, in the order in which they lie in the log, in
//     portions of a bounded size, of which one is read while another is written;
//  3. what was found damaged is stated;
//  4. "promoted to P", synced, after the replicas were;
//  5. the watermark says where the log begins now, then the index finds what lies below no
//     more, then the segments go. A reader that had found a piece there finds it gone,
//     looks again, and is led to the replica.
//
// Until the fourth step the log holds all that the replicas were given, so a crash or
// an error anywhere leaves a pass that is made again, from its beginning or, by the same
// process, from the place it had come to. After it only the dropping is left, which the
// next pass or the next opening does.
//
// The segment in which P's first cut stands is kept: a catalogue is made anew from the
// cuts of the log, and P is the oldest checkpoint that must be in it.
type promotion struct {
	g     *Group
	to    Checkpoint
	from  segment.Pos // what lies below is in the replicas already
	pace  func(bytes int64) error
	done  passDone
	found damages

	planned int64 // bytes of the log in the stretches so far

	*passMemory
}

// passDone is how far a pass has come: all of the volumes before, and of this one all
// below off. It holds for the same checkpoint and the same from alone.
type passDone struct {
	number uint64
	from   segment.Pos
	volume record.VolumeID
	off    int64
}

var errBelow = errors.New("checkpoints below are still in use")

// promote makes the pass to the checkpoint, which the group's plan has chosen, and
// returns when it is durable and the log is shorter. One pass of a group runs at a time.
func (g *Group) promote(number uint64, pace func(bytes int64) error) error {
	g.retention.passing.Lock()
	defer g.retention.passing.Unlock()
	if err := g.Stays(); err != nil {
		return fmt.Errorf("promotion to checkpoint %d: %w", number, err)
	}
	return g.promotes(number, pace)
}

// promotes is promote for who holds passing.
func (g *Group) promotes(number uint64, pace func(bytes int64) error) error {
	// The replicas of a settled failover have gone on: nothing of the log goes over them again.
	if f := g.failoverNow(); f.State.Merged() && !invariant.Planted("journal/promotes-over-settled") {
		return fmt.Errorf("promotion to checkpoint %d: a live failover is settled: %w", number, ErrInUse)
	}
	cp, err := g.Checkpoint(number)
	if err != nil {
		return err
	}
	p := &promotion{g: g, to: cp, pace: pace, done: g.retention.done, passMemory: g.store.passMemories.take()}
	defer g.store.passMemories.put(p.passMemory)
	p.from = max(g.logFirst(), g.retention.from)
	defer g.retention.passage.end()
	if err := p.run(); err != nil {
		g.retention.done = p.done
		return fmt.Errorf("promotion to checkpoint %d: %w", number, err)
	}
	g.retention.done = passDone{}
	return nil
}

func (p *promotion) run() error {
	g := p.g
	if err := g.onReserve(func() error { return g.goneBelow(p.to.Number) }); err != nil {
		return err
	}
	if p.done.number != p.to.Number || p.done.from != p.from {
		p.done = passDone{number: p.to.Number, from: p.from}
	}
	var (
		search      sync.WaitGroup // for the cut, beside the pass: nobody waits for room while it is found
		before, cut segment.Pos
		unfound     error
	)
	defer search.Wait()
	search.Go(func() { before, cut, unfound = p.dropBefore() })
	g.retention.promoter.Rest = p.pace
	defer func() { g.retention.promoter.Rest = nil }()
	for _, v := range g.Volumes() {
		if v.ID < p.done.volume {
			continue
		}
		if v.ID > p.done.volume {
			p.done.volume, p.done.off = v.ID, 0
		}
		if err := p.volume(v); err != nil {
			return fmt.Errorf("volume %d: %w", v.ID, err)
		}
	}
	if err := g.retention.promoter.Finish(); err != nil {
		return err
	}
	if search.Wait(); unfound != nil {
		return unfound
	}
	return g.onReserve(func() error { return p.conclude(before, cut) })
}

// onReserve notes something, on a disk without any space with a little of what is set aside. What
// a pass writes beside its notes may be more than that: for it nothing is lent.
func (g *Group) onReserve(note func() error) error {
	err := note()
	if errors.Is(err, syscall.ENOSPC) && g.store.reserve.lend() {
		err = note()
		_ = g.store.mayTake() // made whole again, now or when a source asks
	}
	return err
}

// goneBelow states that the checkpoints below are gone, unless one of them is in use,
// and lists them no more.
func (g *Group) goneBelow(number uint64) error {
	g.marking.Lock()
	defer g.marking.Unlock()
	facts := g.manifest.now()
	for n := range facts.pins {
		if n < number && !invariant.Planted("journal/promote-past-pin") {
			return fmt.Errorf("checkpoint %d is pinned: %w", n, errBelow)
		}
	}
	if facts.gone < number && !(facts.failover.State == failover.Committed && facts.failover.Checkpoint == number) { // a pass that has begun is finished
		if err := g.heldByFailover(); err != nil {
			return fmt.Errorf("%w: %w", err, errBelow)
		}
	}
	g.mu.Lock()
	var held error
	g.eachHeldLocked(func(n uint64, _ bool) {
		if n < number && !invariant.Planted("journal/promote-past-view") {
			held = fmt.Errorf("a view stands at checkpoint %d: %w", n, errBelow)
		}
	})
	if held != nil {
		g.mu.Unlock()
		return held
	}
	g.gone = max(facts.gone, number) // from here on no view of an older one is opened
	g.mu.Unlock()
	if facts.gone < number {
		if err := g.manifest.put(true, entry{kind: entryGone, number: number}); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.gone = facts.gone
			return err
		}
	}
	if _, err := g.store.catalogue.ForgetBetween(g.info.ID, 1, number-1, nil); err != nil {
		g.log.Warn("checkpoints that are gone are still in the catalogue", "below", number, "error", err)
	}
	return g.recount()
}

// state puts into the manifest what was found damaged.
func (p *promotion) state() error {
	if len(p.found) == 0 {
		return nil
	}
	es := make([]entry, 0, len(p.found))
	for _, d := range p.found {
		es = append(es, d.entry())
	}
	return p.g.manifest.put(true, es...)
}

// dropBefore is where the log may begin once the pass is done: with the segment in
// which the first cut of the checkpoint stands. All records before a checkpoint's first
// cut are held by it, so what lies below cut is in the replicas then.
func (p *promotion) dropBefore() (first, cut segment.Pos, err error) {
	g := p.g
	var cutAt segment.Pos
	errFound := errors.New("found")
	for _, s := range g.segments.Segments() {
		err := g.segments.Replay(s.First, s.End, segment.ReplayOptions{ControlOnly: true}, func(pos segment.Pos, rec record.Record) error {
			if rec.Kind != record.KindCut {
				return nil
			}
			c, err := record.ParseCut(rec)
			if err == nil && c.Checkpoint == p.to.Number {
				cutAt = pos
				return errFound
			}
			return nil
		})
		if cutAt != 0 {
			if invariant.Planted("journal/drop-the-cut") {
				return s.End, s.End, nil
			}
			if invariant.Planted("journal/beyond-the-cut") {
				cutAt = s.End
			}
			return s.First, cutAt, nil
		}
		if err != nil && !isDamage(err) {
			return 0, 0, err
		}
		if err != nil { // what cannot be read may hold the cut
			return s.First, s.First, nil
		}
	}
	return 0, 0, fmt.Errorf("its cut is not in the log: %w", ErrCorrupt)
}

// conclude states that the replicas hold the checkpoint, and lets go of what they hold:
// of the log below before, and below held nothing is promoted again.
func (p *promotion) conclude(before, held segment.Pos) error {
	g := p.g
	if err := p.state(); err != nil {
		return err
	}
	now := promoted{number: p.to.Number, at: slices.Clone(p.to.At)}
	if !invariant.Planted("journal/promoted-unsaid") {
		if err := g.manifest.put(true, now.entries()...); err != nil {
			return err
		}
	}
	g.retention.note(func(r *retention) { r.base = p.to.Number })
	if err := g.drop(before); err != nil {
		return err
	}
	if g.retention.from = held; invariant.Planted("journal/promote-again") {
		g.retention.from = before
	}
	g.retention.note(func(r *retention) { r.ages.Forget(p.to.Number) })
	if len(p.found) > 0 {
		g.wounded(p.found, nil)
	}
	return p.heal(before)
}

// drop makes the log begin there.
func (g *Group) drop(before segment.Pos) error {
	if before <= g.logFirst() {
		return nil
	}
	mark := segment.Watermark{First: before, Durable: g.segments.Durable()}
	if err := g.store.raiseAll(map[record.GroupID]segment.Watermark{g.info.ID: mark}); err != nil {
		return err
	}
	if invariant.Planted("journal/drop-log-first") {
		if err := g.segments.Drop(before); err != nil {
			return err
		}
	}
	if err := g.onCommit(func() error { return g.index.Drop(before) }); err != nil {
		return err
	}
	return g.segments.Drop(before)
}

// onCommit has f called on the goroutine that commits, between two rounds of the group.
func (g *Group) onCommit(f func() error) error {
	result := make(chan error, 1)
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	g.queue = append(g.queue, item{verdict: barrier, done: func(error) { result <- f() }})
	g.mu.Unlock()
	g.store.queued(g, urgent)
	return <-result
}

// heal takes back known damage that is no more: of the log below its beginning, and of
// blocks of the replicas that were written anew.
func (p *promotion) heal(first segment.Pos) error {
	g := p.g
	for _, d := range g.manifest.now().damaged {
		switch {
		case d.volume == 0 && d.from < int64(first):
			d.to = min(d.to, int64(first))
		case d.volume != 0 && p.reads(d):
		default:
			continue
		}
		if err := g.mended(d); err != nil {
			return err
		}
	}
	return nil
}

// reads says whether a damaged part of a replica is whole again.
func (p *promotion) reads(d damage) bool {
	g := p.g
	g.mu.Lock()
	v := g.volumes[d.volume]
	g.mu.Unlock()
	if v == nil {
		return false
	}
	to := min(d.to, v.replica.Bytes())
	one := make([]byte, pieceBytes)
	for off := d.from; off < to; off += pieceBytes {
		if v.replica.ReadAt(one[:min(pieceBytes, to-off)], off) != nil {
			return false
		}
	}
	return true
}
