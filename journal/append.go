package journal

import (
	"context"
	"fmt"

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
	return g.AppendContext(context.Background(), rec, done)
}

// AppendContext is Append, but waits no longer than the context lasts: its cause is the
// error then, and the record was refused like any other.
func (g *Group) AppendContext(ctx context.Context, rec record.Record, done func(error)) error {
	it, err := g.examine(rec)
	if err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	if err := g.store.indexFull(); err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	it.done = done
	if err := g.enqueue(ctx, it); err != nil {
		return err
	}
	g.store.queued(g, rec.Size)
	g.ahead()
	return nil
}

// waitLocked waits until there is room in the queue, the group ends, or ctx does.
func (g *Group) waitLocked(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.room.Broadcast()
	})
	defer stop()
	for g.bytes > maxQueued && !g.closed {
		if ctx.Err() != nil {
			return fmt.Errorf("journal: group %s: the queue is full: %w", g.info.ID, context.Cause(ctx))
		}
		g.room.Wait()
	}
	return nil
}

func (g *Group) enqueue(ctx context.Context, it item) error {
	if err := g.retention.room.wait(ctx); err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	if err := g.retention.brake(ctx, it.rec.Size); err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bytes > maxQueued {
		if err := g.waitLocked(ctx); err != nil {
			return err
		}
	}
	if err := g.stoppedLocked(); err != nil {
		return err
	}
	a := arrival{Identity: it.rec.Identity, kind: it.rec.Kind, sum: it.rec.Checksum, initial: it.facts.initial}
	v, err := g.admission.step(a)
	if err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, g.fencedLocked(err))
	}
	it.verdict = v
	it.after = g.admission.stream(it.rec.Stream).mark()
	g.queue = append(g.queue, it)
	g.tallyLocked(&it, +1)
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

// stopTaking makes an error final until the store is opened again.
func (g *Group) stopTaking(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fatal = err
	return err
}
