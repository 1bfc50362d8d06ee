package journal

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// item is something in a group's queue: a record, or a barrier.
type item struct {
	rec     record.Record
	verdict verdict
	after   mark // where its stream stands once it is durable
	facts   durableRecord
	done    func(error)
}

// barrier is the verdict of an item that only waits for those before it.
const barrier verdict = 0xff

// Append takes a record for the next commit round; it waits while 64 MiB are queued.
// An error means that the record was refused and left no trace: done is not called.
// Otherwise rec is borrowed until done is called: with nil when the record is durable,
// else with why it is not, and then the stream goes on after its last durable record.
func (g *Group) Append(rec record.Record, done func(error)) error {
	it, err := g.examine(rec)
	if err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	it.done = done
	if err := g.enqueue(it); err != nil {
		return err
	}
	g.store.queued(g)
	return nil
}

func (g *Group) enqueue(it item) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.bytes > maxQueued && !g.closed {
		g.room.Wait()
	}
	if err := g.stoppedLocked(); err != nil {
		return err
	}
	a := arrival{Identity: it.rec.Identity, kind: it.rec.Kind, sum: it.rec.Checksum, initial: it.facts.initial}
	v, err := g.admission.step(a)
	if err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	it.verdict = v
	it.after = g.admission.stream(it.rec.Stream).mark()
	g.queue = append(g.queue, it)
	g.bytes += it.rec.Size
	return nil
}

// examine checks all of a record that does not depend on those before it: its payload,
// its body, and that it stays inside the group's volumes.
func (g *Group) examine(rec record.Record) (item, error) {
	it := item{rec: rec, facts: durableRecord{stream: rec.Stream, seq: rec.Seq, kind: rec.Kind, time: rec.Time}}
	if err := rec.VerifyPayload(); err != nil {
		return item{}, fmt.Errorf("record %s: %w", rec.Identity, err)
	}
	if err := it.facts.readBody(rec); err != nil {
		return item{}, fmt.Errorf("record %s: %w", rec.Identity, err)
	}
	if rec.Kind == record.KindResize {
		if err := g.resize(rec); err != nil {
			return item{}, fmt.Errorf("record %s: %w", rec.Identity, err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.stoppedLocked(); err != nil {
		return item{}, err
	}
	for i := range rec.Extents {
		e := rec.Extent(i)
		v := g.volumes[e.Volume]
		if v == nil || e.Off < 0 || e.Len > v.info.Bytes || e.Off > v.info.Bytes-e.Len {
			return item{}, fmt.Errorf("record %s: volume %d, %d bytes at %d: %w", rec.Identity, e.Volume, e.Len, e.Off, ErrVolume)
		}
	}
	for _, c := range it.facts.cut.Volumes {
		if v := g.volumes[c.ID]; v == nil || c.Bytes > v.info.Bytes {
			return item{}, fmt.Errorf("record %s: cut with volume %d of %d bytes: %w", rec.Identity, c.ID, c.Bytes, ErrVolume)
		}
	}
	return it, nil
}

// readBody takes from a control record's body what the journal acts on.
func (d *durableRecord) readBody(rec record.Record) (err error) {
	switch rec.Kind {
	case record.KindCut:
		d.cut, err = record.ParseCut(rec)
	case record.KindConfirm:
		d.confirm, err = record.ParseConfirm(rec)
	case record.KindResyncOpen, record.KindResyncClose:
		var r record.Resync
		r, err = record.ParseResync(rec)
		d.initial = r.Initial
	case record.KindResize, record.KindData:
	default:
		return fmt.Errorf("%s: %w", rec.Kind, record.ErrKind)
	}
	return err
}

// resize grows a volume before the record that says so is taken: writes behind it may
// lie in what is new. A volume that the source made smaller keeps its size here, for
// the checkpoints before; those after name the smaller one.
func (g *Group) resize(rec record.Record) error {
	size, err := record.ParseResize(rec)
	if err != nil {
		return err
	}
	g.mu.Lock()
	v := g.volumes[size.ID]
	s := g.admission.streams[rec.Stream]
	may := s != nil && s.present && s.admitted == life{rec.Epoch, rec.Incarnation} && rec.Epoch >= g.admission.epoch
	g.mu.Unlock()
	if v == nil {
		return fmt.Errorf("volume %d: %w", size.ID, ErrVolume)
	}
	if !may {
		return nil // it will be refused
	}
	return g.SetVolumes([]VolumeInfo{{ID: size.ID, Name: v.info.Name, Bytes: max(size.Bytes, v.info.Bytes)}})
}

// round commits what is queued, a portion at a time, and tells those who wait.
func (g *Group) round() {
	g.mu.Lock()
	items := g.queue
	g.queue = nil
	g.mu.Unlock()
	for len(items) > 0 {
		n := portion(items)
		if err := g.commit(items[:n]); err != nil {
			g.log.Error("commit round failed", "error", err)
			g.refuse(items, err)
			return
		}
		g.took(items[:n])
		items = items[n:]
	}
}

// portion is how many of the items fit into one round of the log; it is one at least.
func portion(items []item) (n int) {
	for bytes := 0; n < len(items); n++ {
		if items[n].verdict == toLog {
			bytes += items[n].rec.Size
		}
		if bytes > maxRound && n > 0 && !invariant.Planted("journal/long-round") {
			break
		}
	}
	return n
}

// commit makes the items durable: first what goes into the replica, so that the log of
// a stream never begins before its initial sync is complete on disk; then the log.
func (g *Group) commit(items []item) error {
	if err := g.commitReplica(items); err != nil {
		return err
	}
	places, err := g.commitLog(items)
	if err != nil {
		return err
	}
	for i, it := range items {
		if it.verdict != toLog {
			continue
		}
		if err := g.versions.Add(places[i], it.rec); err != nil {
			return g.stopTaking(err) // only a bug of ours comes here
		}
	}
	return nil
}

// commitLog appends the items' records and commits. A log that fails is abandoned at
// its last durable record, and the same records go into another segment, once.
func (g *Group) commitLog(items []item) ([]segment.Pos, error) {
	places := make([]segment.Pos, len(items))
	any := false
	for _, it := range items {
		any = any || it.verdict == toLog
	}
	if !any {
		return places, nil
	}
	var failed error
	for range 2 {
		if err := g.abandon(); err != nil {
			return nil, errors.Join(failed, err)
		}
		err := g.appendAll(items, places)
		if err == nil {
			err = g.segments.Commit()
		}
		if err == nil {
			return places, nil
		}
		failed = errors.Join(failed, err)
		g.abandoned = true
		g.log.Warn("log segment is abandoned", "error", err)
	}
	return nil, failed
}

func (g *Group) appendAll(items []item, places []segment.Pos) (err error) {
	for i, it := range items {
		if it.verdict != toLog {
			continue
		}
		if places[i], err = g.segments.Append(it.rec.Bytes()); err != nil {
			return err
		}
	}
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

// took moves the group's durable state past the items and tells those who wait.
func (g *Group) took(items []item) {
	g.mu.Lock()
	for _, it := range items {
		g.bytes -= it.rec.Size
		if it.verdict != toLog && it.verdict != toReplica {
			continue
		}
		g.standings[it.rec.Stream] = it.after
		if cp, ok := g.cuts.step(it.facts); ok {
			g.unlisted = append(g.unlisted, cp)
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

// stopTaking makes an error final until the store is opened again.
func (g *Group) stopTaking(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fatal = err
	return err
}
