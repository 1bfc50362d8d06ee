package datapath

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/dirty"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A region that is dirty from end to end most likely is so because nobody knows what changed
// in it: the host crashed, or its disk was written past the filter. Before a resync reads what is
// dirty it compares such regions, by sums, with what the target holds. They are read as all is,
// into slots and in their own place in the order; feed makes sums of what comes and sends none of
// it. What turns out to differ is marked dirty again, and read once more to be sent.
//
// What keeps it safe:
//   - The target is asked after it has acknowledged the resync's opening boundary. What a record
//     carries after that is noted: a block that is read behind it is sent, not compared. So what
//     the sums are of stands where the block was read, or later writes lie over both.
//   - Until a region is decided, and what differs is dirty again, no ticket is called durable
//     that was taken since its reads began: the generations that its marks moved to stay.
//   - A resync reads what is dirty, and looks whether anything is, only after all that it
//     compares is decided.

// comparison is what one resync compares. Feed makes it with the opening boundary, and drops
// it with the closing one. A nil one compares nothing. Its lock comes after flow.mu.
type comparison struct {
	stream record.StreamID
	open   record.Seq // of the opening boundary
	fresh  bool       // the target had nothing then

	mu struct {
		sync.Mutex
		over    bool                        // nothing is compared any more in this resync
		carried map[delta.Key]*delta.Blocks // that records carry since it opened
		pass    *delta.Source               // nil unless one is under way
		session *wire.Session               // that the questions go to; nil for none
		floors  map[delta.Key]record.Ticket // of the regions under way: taken before they were read
		changed chan struct{}               // closed when an answer or a session came
		counts  delta.Counts                // of the passes before
	}
}

func newComparison(stream record.StreamID, open record.Seq, fresh bool) *comparison {
	c := &comparison{stream: stream, open: open, fresh: fresh}
	c.mu.over = fresh // there is nothing to compare with
	c.mu.carried = make(map[delta.Key]*delta.Blocks)
	c.mu.floors = make(map[delta.Key]record.Ticket)
	c.mu.changed = make(chan struct{})
	return c
}

// durable is the highest ticket up to t that all is durable up to, or dirty.
func (c *comparison) durable(t record.Ticket) record.Ticket {
	if c == nil || invariant.Planted("datapath/compared-is-durable") {
		return t
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.mu.floors {
		t = min(t, f)
	}
	return t
}

// carries notes that a record carries a part of a volume.
func (c *comparison) carries(volume record.VolumeID, off, n int64) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carriesLocked(volume, off, n)
}

func (c *comparison) carriesLocked(volume record.VolumeID, off, n int64) {
	if c.mu.over || invariant.Planted("datapath/carried-unnoted") {
		return
	}
	const per = delta.RegionBytes / delta.BlockBytes
	for b, end := off/delta.BlockBytes, (off+n+delta.BlockBytes-1)/delta.BlockBytes; b < end; {
		k, at := delta.Of(volume, b)
		n := int(min(end-b, int64(per-at)))
		blocks := c.mu.carried[k]
		if blocks == nil {
			blocks = new(delta.Blocks)
			c.mu.carried[k] = blocks
		}
		blocks.Add(at, at+n)
		b += int64(n)
	}
}

// take makes sums of what a sync read has read, as far as that is compared, and returns what
// is to be sent of it, in rising order. size is the volume's.
func (c *comparison) take(w *capture.Write, size int64) (send []delta.Range) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := w.Off; at < w.Off+w.Len; {
		end := min(at/delta.BlockBytes*delta.BlockBytes+delta.BlockBytes, w.Off+w.Len)
		switch n := len(send); {
		case c.mu.pass == nil:
			end = w.Off + w.Len
			send = append(send, delta.Range{Off: at, Len: end - at})
		case c.putLocked(w, at, end, size):
		case n > 0 && send[n-1].Off+send[n-1].Len == at:
			send[n-1].Len += end - at
		default:
			send = append(send, delta.Range{Off: at, Len: end - at})
		}
		at = end
	}
	for _, r := range send {
		c.carriesLocked(w.Volume, r.Off, r.Len)
	}
	return send
}

// putLocked puts [at, end), if it is a whole block that no record carries.
func (c *comparison) putLocked(w *capture.Write, at, end, size int64) bool {
	if at%delta.BlockBytes != 0 || end%delta.BlockBytes != 0 && end != size {
		return false
	}
	block := at / delta.BlockBytes
	if k, b := delta.Of(w.Volume, block); c.mu.carried[k].Has(b) {
		return false
	}
	return c.mu.pass.Put(w.Volume, block, joined(w, at-w.Off, end-at))
}

// joined is a part of a write's data in one piece, a copy only where it lies in several; nil
// for zeros.
func joined(w *capture.Write, off, n int64) (p []byte) {
	for _, run := range w.Data {
		if off >= int64(len(run)) {
			off -= int64(len(run))
			continue
		}
		part := run[off:min(off+n, int64(len(run)))]
		if int64(len(part)) == n && p == nil {
			return part
		}
		p = append(p, part...)
		off, n = 0, n-int64(len(part))
		if n == 0 {
			break
		}
	}
	return p
}

// answered takes the target's sums; an error ends the session.
func (c *comparison) answered(m *wire.Sums) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.pass == nil || m.After != c.open { // of a life before
		return nil
	}
	if err := c.mu.pass.Answer(m.Ask, m.Sums); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrProtocol, err)
	}
	c.askLocked()
	return nil
}

// askLocked sends the questions that may be sent now, and wakes who waits for answers.
func (c *comparison) askLocked() {
	close(c.mu.changed)
	c.mu.changed = make(chan struct{})
	for c.mu.session != nil {
		a, ok := c.mu.pass.Next()
		if !ok {
			return
		}
		_ = c.mu.session.Send(&wire.Compare{Stream: c.stream, After: c.open, Ask: a}) // else the session is over
	}
}

// resume says which session questions go to, nil for none. What was asked in another is asked again;
// a target that cannot answer is sent all that was read.
func (c *comparison) resume(s *wire.Session) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.pass == nil || c.mu.session == s {
		return
	}
	c.mu.session = s
	switch {
	case s == nil:
		return
	case s.Speaks(&wire.Compare{}):
		c.mu.pass.Restart()
	default:
		c.mu.over, c.mu.session = true, nil
		c.mu.pass.GiveUp()
	}
	c.askLocked()
}

// begin says that a region will be read; false: it is to be sent whole. No ticket above last
// has any of it.
func (c *comparison) begin(k delta.Key, size int64, last record.Ticket) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.over || !c.mu.pass.Begin(k, size) {
		return false
	}
	c.mu.floors[k] = last
	return true
}

// read says that feed has met all of a region.
func (c *comparison) read(k delta.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.pass.Read(k)
	if c.mu.over {
		c.mu.pass.GiveUp()
	}
	c.askLocked()
}

// room waits until another region may begin, or all are decided.
func (c *comparison) room(ctx context.Context, enough func(*delta.Source) bool) error {
	for {
		c.mu.Lock()
		ok, changed := enough(c.mu.pass), c.mu.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// found returns a region that is decided, when there is one.
func (c *comparison) found(ctx context.Context) (f delta.Found, err error) {
	err = c.room(ctx, func(s *delta.Source) (ok bool) {
		f, ok = s.Found()
		return ok
	})
	return f, err
}

// settled says that what differs of a region is dirty again.
func (c *comparison) settled(k delta.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.pass.Forget(k)
	delete(c.mu.floors, k)
	close(c.mu.changed)
	c.mu.changed = make(chan struct{})
}

// starts begins a pass, unless nothing is compared any more.
func (c *comparison) starts() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.over {
		return false
	}
	c.mu.pass = delta.NewSource()
	return true
}

// ends ends a pass of which all is decided; for good: nothing is compared any more in this resync.
func (c *comparison) ends(forGood bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.counts = c.mu.counts.And(c.mu.pass.Counts())
	c.mu.pass, c.mu.session = nil, nil
	if c.mu.over = c.mu.over || forGood; c.mu.over {
		c.mu.carried = nil
	}
}

// counted tells what was compared in this resync, and whether a pass is under way.
func (c *comparison) counted() (n delta.Counts, now bool) {
	if c == nil {
		return n, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n = c.mu.counts; c.mu.pass != nil {
		n = n.And(c.mu.pass.Counts())
	}
	return n, c.mu.pass != nil
}

// comparing is what the present resync compares, nil for nothing; plain: it is not to, as a user has
// asked for all to be sent.
func (f *flow) comparing() (c *comparison, plain bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.compared, f.mu.plain
}

// compare compares what is dirty of the volumes region by region, once in a resync; again if they are not all that will be
// read in it (some). When it returns all that was read is decided, unless ctx has ended.
func (f *flow) compare(ctx context.Context, volumes []record.VolumeID, some bool) error {
	c, plain := f.comparing()
	if c == nil || plain || !c.starts() {
		return nil
	}
	before, _ := c.counted()
	began, sizes := time.Now(), make(map[record.VolumeID]int64)
	for _, v := range f.members() {
		sizes[v.ID] = min(v.Bytes, f.toldSize(v.ID)) // what it has grown by since is sent
	}
	settling, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { f.settle(settling, c) })
	err := f.compareAll(ctx, c, dirty.NewPass(volumes, delta.RegionBytes), sizes)
	if ctx.Err() == nil {
		err = errors.Join(err, c.room(ctx, (*delta.Source).Idle), f.fed(ctx)) // what was compared is durable now, if nothing else waits
	}
	stop()
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.ends(err == nil && (!some || invariant.Planted("datapath/compares-once")))
	if n, _ := c.counted(); n.Regions+n.Skipped > before.Regions+before.Skipped { // of the whole resync; a pass that is repeated has none
		f.log.Info("compared with what the target holds", "bytes", n.Bytes, "differ", n.Differ, "regions_not_compared", n.Skipped,
			"sums_bytes", n.Heard, "took", time.Since(began).Round(time.Millisecond))
	}
	return err
}

// compareAll begins regions until the pass is over, and waits until their reads have ended.
func (f *flow) compareAll(life context.Context, c *comparison, p *dirty.Pass, sizes map[record.VolumeID]int64) error {
	ctx, fail := context.WithCancelCause(life)
	defer fail(nil)
	var wg sync.WaitGroup
	flight := make(chan struct{}, syncFlight)
	for ready := false; ctx.Err() == nil; {
		s := p.Next()
		switch size := sizes[s.Volume]; {
		case s.Kind == dirty.Over:
			wg.Wait()
			return context.Cause(ctx)
		case s.Kind == dirty.Ask:
			page, err := f.askExtents(ctx, s.Extent)
			if err == nil {
				err = p.Told(page)
			}
			if err != nil {
				fail(err)
			}
		case s.Off%delta.RegionBytes != 0 || s.Off >= size || s.Len < min(delta.RegionBytes, size-s.Off):
			// Not all of it is dirty: what is, is known well.
		default:
			var err error
			if !ready {
				ready, err = f.comparable(ctx, c)
				if !ready && err == nil {
					wg.Wait()
					return nil
				}
			}
			if err = errors.Join(err, c.room(ctx, (*delta.Source).Room), f.roomToSync(ctx)); err != nil {
				fail(err)
				break
			}
			k := delta.Key{Volume: s.Volume, Number: s.Off / delta.RegionBytes}
			if !c.begin(k, size, f.tap.LastTicket()) {
				break
			}
			flight <- struct{}{}
			wg.Go(func() {
				defer func() { <-flight }()
				if err := f.compareRegion(life, c, k, min(delta.RegionBytes, size-s.Off)); err != nil {
					fail(fmt.Errorf("compare volume %d at %d: %w", s.Volume, s.Off, err))
				}
			})
		}
	}
	wg.Wait()
	return context.Cause(ctx)
}

// compareRegion reads a region of n bytes, what of it can be read, and says when feed has met it.
func (f *flow) compareRegion(ctx context.Context, c *comparison, k delta.Key, n int64) error {
	err := f.tap.SyncRead(ctx, k.Volume, k.Number*delta.RegionBytes, n)
	if err == nil {
		f.count.syncRead.Add(uint64(n))
	}
	if fed := f.fed(ctx); fed != nil {
		return fed // the life is over
	}
	c.read(k)
	return err
}

// comparable waits until the target has acknowledged the opening boundary, and says whether it
// can be asked for sums.
func (f *flow) comparable(ctx context.Context, c *comparison) (bool, error) {
	for {
		f.mu.Lock()
		session, stands := f.mu.session, f.mu.endSend != nil && f.mu.ledger.Acked >= c.open
		if stands && session.Speaks(&wire.Compare{}) {
			c.resume(session)
			f.mu.Unlock()
			return true, nil
		}
		f.mu.Unlock()
		if stands {
			return false, nil
		}
		if !pause(ctx, busyPoll) {
			return false, context.Cause(ctx)
		}
	}
}

// settle marks what differs of the regions that are decided, until ctx ends.
func (f *flow) settle(ctx context.Context, c *comparison) {
	for {
		found, err := c.found(ctx)
		if err != nil {
			return
		}
		var differ []capture.Extent
		for _, r := range found.Differ {
			differ = append(differ, capture.Extent{Off: r.Off, Len: r.Len})
		}
		for len(differ) > 0 && !invariant.Planted("datapath/differing-unmarked") {
			ask, cancel := context.WithTimeout(ctx, askFilters)
			err := f.tap.MarkExtents(ask, found.Volume, differ)
			cancel()
			if err == nil || f.sizeOf(found.Volume) == 0 { // it was removed from the group
				break
			}
			f.log.Warn("what differs at the target cannot be marked yet", "volume", found.Volume, "error", err)
			if !pause(ctx, time.Second) {
				return
			}
		}
		f.count.compared.Add(uint64(found.Bytes))
		for _, r := range found.Differ {
			f.count.differ.Add(uint64(r.Len))
		}
		c.settled(found.Key)
	}
}

// fed waits until feed has met all that has a ticket by now.
func (f *flow) fed(ctx context.Context) error {
	f.mu.Lock()
	if ctx.Err() != nil {
		f.mu.Unlock()
		return context.Cause(ctx)
	}
	m := &mark{ticket: f.tap.TakeTicket(), taken: time.Now(), decided: make(chan struct{}), met: make(chan struct{})}
	close(m.decided)
	f.mu.marks[m.ticket] = m
	f.mu.Unlock()
	select {
	case <-m.met:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// passed is feed at such a mark. What was compared is in no record that could be acknowledged: when
// nothing else is under way, all up to here is durable, but for what is not decided.
func (f *feed) passed(m *mark) {
	if !f.filling() && f.pipe.empty() {
		f.mu.Lock()
		if f.mu.life == f.life.number && f.mu.fatal == nil && f.window.Stats().Records == 0 {
			f.durableLocked(m.ticket)
		}
		f.mu.Unlock()
	}
	close(m.met)
}

// durableLocked lets the filters forget their marks of what is durable, up to t at most.
func (f *flow) durableLocked(t record.Ticket) {
	t = f.mu.compared.durable(t)
	f.tap.PublishDurable(t)
	f.mu.sync.Durable(t)
}
