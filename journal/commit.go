package journal

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// take takes from the queue what fits into a round of so many bytes that holds some
// already; of an empty round one item at least. more: there is more.
func (g *Group) take(share int) (items []item, more bool) {
	if invariant.Planted("journal/long-round") {
		share = 1 << 40
	}
	for i := range g.staged {
		share -= g.staged[i].logBytes()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for ; n < len(g.queue); n++ {
		share -= g.queue[n].logBytes()
		if share < 0 && n+len(g.staged) > 0 {
			break
		}
	}
	items, g.queue = g.queue[:n:n], g.queue[n:]
	if len(g.queue) == 0 {
		g.queue = nil
	}
	return items, len(g.queue) > 0
}

func (it *item) logBytes() int {
	if it.verdict != toLog {
		return 0
	}
	return it.rec.Size
}

func (g *Group) unfinished() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.staged)+len(g.queue) > 0
}

// stage puts what is queued into the log ahead of its round, if that fills a buffer,
// and says whether it did. Nothing is said of errors: the round meets them again.
func (g *Group) stage(share int) bool {
	if g.abandoned || g.segments == nil || g.segments.Full() || !g.worthStaging() {
		return false
	}
	items, _ := g.take(share)
	g.staged = append(g.staged, items...)
	if err := g.appendStaged(); err != nil {
		g.log.Warn("records could not be put into the log ahead of their round", "error", err)
		g.abandoned = true
	}
	return true
}

// worthStaging says whether a buffer's worth is queued, and nothing goes elsewhere than
// into the log.
func (g *Group) worthStaging() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	bytes := 0
	for i := range g.queue {
		it := &g.queue[i]
		if it.verdict == toReplica {
			return false
		}
		bytes += it.logBytes()
	}
	return bytes >= g.store.cfg.stageBytes
}

// unstage queues again what was put into the log ahead of its round.
func (g *Group) unstage() {
	if len(g.staged) == 0 {
		return
	}
	g.mu.Lock()
	g.queue = append(g.staged, g.queue...)
	g.mu.Unlock()
	g.staged, g.places = nil, nil
	g.store.queued(g, urgent)
}

// appendStaged appends what of the staged records is not in the log yet.
func (g *Group) appendStaged() error {
	for len(g.places) < len(g.staged) {
		it := &g.staged[len(g.places)]
		var pos segment.Pos
		if it.verdict == toLog {
			var err error
			if pos, err = g.segments.Append(it.rec.Bytes()); err != nil {
				return err
			}
		}
		g.places = append(g.places, pos)
	}
	return nil
}

// write writes the group's part of a round of so many bytes. What goes into the replica
// is durable then, so that the log of a stream never begins before its initial sync is
// complete on disk; what goes into the log is durable once the file was synced. more:
// something is left for the next round.
func (g *Group) write(share int) (p part, more bool) {
	if g.abandoned {
		g.unstage()
	}
	items, more := g.take(share)
	g.staged = append(g.staged, items...)
	items = g.staged
	if err := g.commitReplica(items); err != nil {
		g.abandoned = g.abandoned || len(g.places) > 0 // what is refused must not be in the log
		g.staged, g.places = nil, nil
		g.refuse(items, err)
		return part{group: g}, more
	}
	p, err := g.writeLog()
	if err == nil {
		return p, more
	}
	g.log.Warn("log segment is abandoned", "error", err)
	if again := g.alone(items); again != nil {
		g.refuse(items, errors.Join(err, again))
	}
	return part{group: g}, more
}

// writeLog puts what is staged into the log and ends the log's round.
func (g *Group) writeLog() (p part, err error) {
	p = part{group: g, items: g.staged}
	defer func() { g.staged, g.places = nil, nil }()
	if !inLog(p.items) {
		p.places = make([]segment.Pos, len(p.items))
		return p, nil
	}
	if err := g.abandon(); err != nil {
		return p, err
	}
	if err = g.appendStaged(); err == nil {
		p.file, err = g.segments.Write()
	}
	p.places = g.places
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

// alone takes a failed log on: it is abandoned at its last durable record, and the items
// go into another segment, which is synced by itself. They are durable when it
// returns nil, and who waits was told.
func (g *Group) alone(items []item) error {
	g.staged, g.places = items, nil
	p, err := g.writeLog()
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
	for i, it := range p.items {
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
	g.mu.Lock()
	for _, it := range items {
		g.bytes -= it.rec.Size
		if it.verdict != toLog && it.verdict != toReplica {
			continue
		}
		g.standings[it.rec.Stream] = it.after
		if cp, ok := g.cuts.step(it.facts); ok {
			g.unlisted = append(g.unlisted, cp)
			g.flush.complete = g.segments.Durable()
		}
	}
	g.resync, g.initial = g.cuts.resync()
	g.seen = g.cuts.seen
	g.trouble = nil
	g.room.Broadcast()
	g.mu.Unlock()
	for _, it := range items {
		it.done(nil)
	}
}

// refuse puts every stream back to where it stands durably and gives back all that is
// queued: the source sends it again.
func (g *Group) refuse(items []item, err error) {
	err = fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	g.mu.Lock()
	items = append(items, g.queue...)
	g.queue, g.bytes = nil, 0
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
