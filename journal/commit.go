package journal

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// take appends to items what fits from the queue into a round of so many bytes that holds some
// already; of an empty round one item at least. more: there is more.
func (g *Group) take(items []item, share int) (all []item, more bool) {
	if invariant.Planted("journal/long-round") {
		share = 1 << 40
	}
	share -= g.stagedBytes
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for ; n < len(g.queue); n++ {
		share -= g.queue[n].logBytes()
		if share < 0 && n+len(g.staged) > 0 {
			break
		}
		g.tallyLocked(&g.queue[n], -1)
	}
	if items == nil {
		items, g.spare = g.spare, nil
	}
	items = append(items, g.queue[:n]...)
	clear(g.queue[:n])
	if n < len(g.queue) {
		g.queue = g.queue[n:]
		return items, true
	}
	g.queue = g.queue[:0]
	return items, false
}

// maxSpare is how many items the memory of a round has at most that is kept for the next.
const maxSpare = 1024

// doneWithLocked takes back the memory of a round's items.
func (g *Group) doneWithLocked(items []item) {
	clear(items)
	if g.spare == nil && cap(items) <= maxSpare {
		g.spare = items[:0]
	}
	if len(g.queue) == 0 && cap(g.queue) > maxSpare {
		g.queue = nil
	}
}

func (it *item) logBytes() int {
	if it.verdict != toLog {
		return 0
	}
	return it.rec.Size
}

// tallyLocked counts an item into the queue's sums, or out of them.
func (g *Group) tallyLocked(it *item, sign int) {
	g.queuedBytes += sign * it.logBytes()
	if it.verdict == toReplica {
		g.direct += sign
	}
}

func (g *Group) unfinished() bool {
	g.staging.Lock()
	defer g.staging.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.staged)+len(g.queue) > 0
}

// ahead puts what was just queued into the log while the processor's cache still holds
// it from the check of its payload, if nobody else is at the log. The others copy it
// when the round is written.
func (g *Group) ahead() {
	if g.segments == nil || !g.staging.TryLock() {
		return
	}
	defer g.staging.Unlock()
	if g.worthStaging(0) {
		g.stageLocked()
	}
}

// stage is ahead for what was queued while the log was busy, where it fills a buffer.
func (g *Group) stage() {
	if g.segments == nil || !g.staging.TryLock() {
		return // whoever is at the log
	}
	defer g.staging.Unlock()
	if g.worthStaging(g.store.cfg.stageBytes) {
		g.stageLocked()
	}
}

// stageLocked takes no part of the store's buffers beyond what leaves enough to those
// that write. Nothing is said of errors: the round meets them again.
func (g *Group) stageLocked() {
	if g.abandoned || g.segments.Full() {
		return
	}
	if len(g.staged) == 0 {
		if g.store.staged.Add(1) > maxStaged {
			g.store.staged.Add(-1)
			return
		}
		defer func() {
			if len(g.staged) == 0 {
				g.store.staged.Add(-1)
			}
		}()
	}
	had := len(g.staged)
	g.staged, _ = g.take(g.staged, g.store.share(int(g.store.staged.Load())))
	for i := had; i < len(g.staged); i++ {
		g.stagedBytes += g.staged[i].logBytes()
	}
	var err error
	if g.places, err = g.appendItems(g.staged, g.places); err != nil {
		g.log.Warn("records could not be put into the log ahead of their round", "error", err)
		g.abandoned = true
	}
}

// unstagedLocked forgets what is staged and returns it, with the places in the log.
func (g *Group) unstagedLocked() ([]item, []segment.Pos) {
	items, places := g.staged, g.places
	if len(items) > 0 {
		g.store.staged.Add(-1)
	}
	g.staged, g.places, g.stagedBytes = nil, nil, 0
	return items, places
}

// worthStaging says whether so many bytes are queued for the log, and nothing for the
// replica, which comes first.
func (g *Group) worthStaging(bytes int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.direct == 0 && g.queuedBytes >= bytes
}

// unstageLocked queues again what was put into the log ahead of its round.
func (g *Group) unstageLocked() {
	items, _ := g.unstagedLocked()
	if len(items) == 0 {
		return
	}
	g.mu.Lock()
	for i := range items {
		g.tallyLocked(&items[i], +1)
	}
	g.queue = append(items, g.queue...)
	g.mu.Unlock()
	g.store.queued(g, urgent)
}

// appendItems appends to the log those of the items that have no place there yet, and
// returns the places of all.
func (g *Group) appendItems(items []item, places []segment.Pos) ([]segment.Pos, error) {
	for i := len(places); i < len(items); i++ {
		var pos segment.Pos
		if items[i].verdict == toLog {
			var err error
			if pos, err = g.segments.Append(items[i].rec.Bytes()); err != nil {
				return places, err
			}
		}
		places = append(places, pos)
	}
	return places, nil
}

// write writes the group's part of a round of so many bytes. What goes into the replica
// is durable then, so that the log of a stream never begins before its initial sync is
// complete on disk; what goes into the log is durable once the file was synced. more:
// something is left for the next round.
func (g *Group) write(share int) (p part, more bool) {
	g.staging.Lock()
	defer g.staging.Unlock()
	if g.abandoned {
		g.unstageLocked()
	}
	items, more := g.take(g.staged, share)
	_, places := g.unstagedLocked()
	err := g.fatalError()
	if err == nil {
		err = g.commitReplica(items)
	}
	if err != nil {
		g.abandoned = g.abandoned || len(places) > 0 // what is refused must not be in the log
		if !invariant.Planted("journal/refuse-lent") {
			g.segments.Recall()
		}
		g.refuse(items, err)
		return part{group: g}, more
	}
	p, err = g.writeLog(items, places)
	if err == nil {
		return p, more
	}
	g.log.Warn("log segment is abandoned", "error", err)
	if again := g.aloneLocked(items); again != nil {
		g.refuse(items, errors.Join(err, again))
	}
	return part{group: g}, more
}

// fatalError says why the group takes nothing until the store is opened again.
func (g *Group) fatalError() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fatal
}

// writeLog puts the items into the log, where some have their places already, and ends
// the log's round.
func (g *Group) writeLog(items []item, places []segment.Pos) (p part, err error) {
	p = part{group: g, items: items, places: places}
	if !inLog(items) {
		p.places = make([]segment.Pos, len(items))
		return p, nil
	}
	if err := g.abandon(); err != nil {
		return p, err
	}
	if p.places, err = g.appendItems(items, places); err == nil {
		p.file, err = g.segments.Write()
	}
	g.abandoned = err != nil
	return p, err
}

func inLog(items []item) bool {
	for i := range items {
		if items[i].verdict == toLog {
			return true
		}
	}
	return false
}

// again writes the items of a round whose sync failed.
func (g *Group) again(items []item) {
	g.staging.Lock()
	defer g.staging.Unlock()
	g.abandoned = true
	if err := g.aloneLocked(items); err != nil {
		g.refuse(items, err)
	}
}

// aloneLocked takes a failed log on: it is abandoned at its last durable record, and the
// items go into another segment, which is synced by itself. They are durable when it
// returns nil, and who waits was told.
func (g *Group) aloneLocked(items []item) error {
	g.unstageLocked() // it comes after them
	p, err := g.writeLog(items, nil)
	if err == nil && p.file != nil {
		if err = p.file.Sync(); err != nil {
			g.abandoned = true
			err = g.segments.Synced(err)
		}
	}
	if err != nil {
		return err
	}
	p.end()
	return nil
}

// abandon takes a failed log on, and states where its segment ends.
func (g *Group) abandon() error {
	if !g.abandoned {
		return nil
	}
	end := entry{kind: entryAbandoned, number: 1, end: uint64(g.segments.Durable())}
	if infos := g.segments.Segments(); len(infos) > 0 {
		end.number = infos[len(infos)-1].Number
	}
	if err := g.segments.Abandon(); err != nil {
		return err
	}
	g.abandoned = false
	return g.manifest.put(false, end)
}

// end is called when the part is durable.
func (p part) end() {
	g := p.group
	if p.file != nil {
		_ = g.segments.Synced(nil) // says the error it is given
	}
	for i := range p.items {
		it := &p.items[i]
		if it.verdict != toLog {
			continue
		}
		if err := g.index.Add(p.places[i], it.rec); err != nil {
			g.refuse(p.items, g.stopTaking(err)) // only a bug of ours comes here
			return
		}
	}
	g.took(p.items)
}

// took moves the group's durable state past the items and tells those who wait.
func (g *Group) took(items []item) {
	if len(items) == 0 {
		return
	}
	logged := int64(0)
	g.mu.Lock()
	for i := range items {
		it := &items[i]
		g.bytes -= it.rec.Size
		if it.verdict != toLog && it.verdict != toReplica {
			continue
		}
		if it.verdict == toLog {
			logged += int64(it.rec.Size)
		}
		g.standings[it.rec.Stream] = it.after
		if cp, ok := g.cuts.step(it.facts); ok {
			g.unlisted = append(g.unlisted, cp)
			g.flush.complete = g.segments.Durable()
			g.complete(cp.Number)
		}
	}
	g.resync, g.initial = g.cuts.resync()
	g.seen = g.cuts.seen
	g.trouble = nil
	g.room.Broadcast()
	g.mu.Unlock()
	g.store.retainer.took(g, logged)
	for i := range items {
		items[i].done(nil)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.doneWithLocked(items)
}

// refuse puts every stream back to where it stands durably and gives back all that is
// queued: the source sends it again.
func (g *Group) refuse(items []item, err error) {
	err = fmt.Errorf("journal: group %s: %w", g.info.ID, g.store.onFullDisk(oneLine(err)))
	g.mu.Lock()
	items = append(items, g.queue...)
	g.queue, g.bytes, g.queuedBytes, g.direct = nil, 0, 0, 0
	g.trouble = err
	for id, s := range g.admission.streams {
		m := g.standings[id]
		s.last, s.next, s.phase = m.last, max(m.next, 1), m.phase
	}
	g.room.Broadcast()
	g.mu.Unlock()
	for _, it := range items {
		if invariant.Planted("journal/ack-failed") {
			it.done(nil)
			continue
		}
		it.done(err)
	}
}
