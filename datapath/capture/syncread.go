package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	// syncChunk is what a sync read reads at a time: enough for a disk to stream, little
	// enough that the rare copy under the volume's lock is short.
	syncChunk = 128 << 10
	// holeChunk is how much of a hole one record tells of.
	holeChunk = 1 << 30
)

// syncPiece is one step of a sync read: a run of dirty blocks.
type syncPiece struct {
	from, to int64 // blocks
	hole     bool  // was one when it was looked for
}

// syncRead reads what is dirty in [off, off+n), widened to whole blocks, and publishes
// it. It waits for slots, of which it leaves a quarter to the guests; nobody waits for it.
//
// It returns once the writes that it left out have their tickets, too, or are dropped and
// said to be: a boundary that is taken then has all of the range before it.
func (v *volume) syncRead(ctx context.Context, off, n int64) error {
	at, limit := blocksOf(max(off, 0), min(off+n, v.disk.size.Load()))
	var leftOut []<-chan struct{}
	for {
		p, ok, err := v.nextPiece(at, limit)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		slots := 1
		if !p.hole {
			e := v.extent(p.from, p.to)
			slots = slotsFor(e.Len)
		}
		claimed, err := v.waitSlots(ctx, slots)
		if err != nil {
			return err
		}
		out, err := v.readPiece(p, claimed)
		leftOut = append(leftOut, out...)
		switch {
		case errors.Is(err, errNoHole): // a write came between looking and taking: look again
		case err != nil:
			return err
		default:
			at = p.to
		}
	}
	if !invariant.Planted("capture/sync-early") {
		waitAll(leftOut)
	}
	return nil
}

func waitAll(list []<-chan struct{}) {
	for _, c := range list {
		<-c
	}
}

// nextPiece finds the next run of dirty blocks, and whether it is a hole.
func (v *volume) nextPiece(at, limit int64) (p syncPiece, ok bool, err error) {
	v.mu.Lock()
	p.from, p.to, ok = v.mu.marks.file.dirty.run(at, limit)
	if ok {
		err = v.refusedLocked()
	}
	v.mu.Unlock()
	if !ok || err != nil {
		return p, false, err
	}
	data, err := v.dataAt(p.from)
	if err != nil {
		return p, false, err
	}
	if whole := data / BlockBytes; whole > p.from {
		p.hole, p.to = true, min(p.to, whole, p.from+holeChunk/BlockBytes)
	} else {
		p.to = min(p.to, p.from+syncChunk/BlockBytes)
	}
	return p, true, nil
}

// dataAt returns where data begins at or after the block; the disk's size when only a hole follows. Data that was seen is remembered: a file system
// in memory looks through all of it to find its end, and lets nobody else look meanwhile. So the end is asked for only where data begins right here. What became a hole since is
// read and found to be zeros. Holes are not remembered: the guest may write there meanwhile.
func (v *volume) dataAt(block int64) (at int64, err error) {
	off := block * BlockBytes
	if seen := v.seen.Load(); seen != nil && seen.off <= off && off < seen.end && !invariant.Planted("capture/looks-again") {
		return off, nil
	}
	if at, err = v.disk.dataFrom(off); err == nil && at == off {
		var n int64
		if at, n, err = v.disk.nextData(off); n > 0 {
			v.seen.Store(&span{at, at + n})
		} else {
			at = -1
		}
	}
	if err == nil && at < off {
		at = (v.disk.size.Load() + BlockBytes - 1) / BlockBytes * BlockBytes
	}
	return at, err
}

// waitSlots claims slots for a sync read. Nobody tells when one comes free, so it looks
// every millisecond; the VRA that asked is the one that frees them.
func (v *volume) waitSlots(ctx context.Context, n int) ([]uint32, error) {
	reserve := v.pool.shape.slots / 4
	var tick *time.Ticker
	for {
		if slots, ok := v.pool.alloc(nil, n, reserve); ok {
			return slots, nil
		}
		if tick == nil {
			tick = time.NewTicker(time.Millisecond)
			defer tick.Stop()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// readPiece reads p into slots, which it takes, and publishes it.
//
// The bits move first, so that a write that begins from now on is captured and left
// out of the read; writes that went uncaptured because of the bits are waited for. The
// ticket is taken under the lock under which writes begin: what is not left out by then
// begins later, and gets a higher ticket.
//
// It returns what it left out and is under way still.
func (v *volume) readPiece(p syncPiece, slots []uint32) (leftOut []<-chan struct{}, err error) {
	v.mu.Lock()
	if err := v.refusedLocked(); err != nil {
		v.mu.Unlock()
		v.pool.release(slots)
		return nil, err
	}
	if !v.mu.marks.allDirty(p.from, p.to) { // another read took them
		v.mu.Unlock()
		v.pool.release(slots)
		return nil, nil
	}
	// Only now: the disk may have grown, and the bit of its last block goes for all that it has by now.
	e := v.extent(p.from, p.to)
	s := &syncFlight{span: span{e.Off, e.Off + e.Len}}
	gen := v.mu.marks.take(p.from, p.to)
	wait := v.mu.flights.startSync(s)
	v.mu.Unlock()
	if !invariant.Planted("capture/sync-no-wait") {
		waitAll(wait)
	}

	kind, err := v.fill(p, e, slots)

	v.mu.Lock()
	if err == nil {
		slots = v.publishLocked(s, kind, slots)
		v.pool.syncBytes.Add(uint64(e.Len))
	} else {
		v.dropLocked(e.Off, e.Off+e.Len)
	}
	leftOut = v.mu.flights.endSync(s)
	v.mu.marks.end(gen)
	v.mu.Unlock()
	v.pool.release(slots)
	v.wake()
	return leftOut, err
}

// refusedLocked says why a sync read takes nothing now.
func (v *volume) refusedLocked() error {
	past := v.pastLocked()
	if past == PastUnsynced {
		return errors.New(past.String())
	}
	if past != PastNone && !invariant.Planted("capture/sync-past") {
		return fmt.Errorf("%w: %s", errPast, past)
	}
	return nil
}

// fill reads the piece into slots, or sees that it is a hole still, or zeros.
func (v *volume) fill(p syncPiece, e Extent, slots []uint32) (Kind, error) {
	if p.hole {
		at, err := v.dataAt(p.from)
		if err == nil && at < e.Off+e.Len {
			err = errNoHole
		}
		return SyncZero, err
	}
	kind, off := SyncZero, e.Off
	for _, run := range v.pool.runs(nil, slots, int(e.Len)) {
		if err := v.disk.readAt(run, off); err != nil {
			return 0, err
		}
		off += int64(len(run))
		if kind == SyncZero && !isZero(run) {
			kind = SyncData
		}
	}
	return kind, nil
}

var errNoHole = errors.New("no hole any more")

var zeros [64 << 10]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// publishLocked publishes the read but for what it must leave out, and returns the
// slots that are left. What cannot be published becomes dirty again.
func (v *volume) publishLocked(s *syncFlight, kind Kind, slots []uint32) (left []uint32) {
	rest := s.rest()
	if invariant.Planted("capture/sync-whole") {
		rest = []span{s.span}
	}
	if len(rest) == 1 && rest[0] == s.span {
		use := slots
		if kind == SyncZero {
			use = slots[:1]
		}
		if !v.publishSync(s.span, kind, use) {
			return slots
		}
		return slots[len(use):]
	}
	var whole []byte
	if kind == SyncData && len(rest) > 0 {
		for _, run := range v.pool.runs(nil, slots, int(s.end-s.off)) {
			whole = append(whole, run...)
		}
	}
	for _, r := range rest {
		n := 1
		if kind == SyncData {
			n = slotsFor(r.end - r.off)
		}
		use, ok := v.pool.alloc(nil, n, 0)
		if !ok {
			v.dropLocked(r.off, r.end)
			continue
		}
		if kind == SyncData {
			from := whole[r.off-s.off : r.end-s.off]
			for _, run := range v.pool.runs(nil, use, len(from)) {
				from = from[copy(run, from):]
			}
		}
		if !v.publishSync(r, kind, use) {
			v.pool.release(use)
		}
	}
	return slots
}

// publishSync publishes one part of a sync read, or makes it dirty again.
func (v *volume) publishSync(r span, kind Kind, slots []uint32) bool {
	_, ok := v.ring.publish(slots, desc{off: r.off, n: r.end - r.off, volume: v.id, kind: kind})
	if !ok {
		v.dropLocked(r.off, r.end)
	}
	return ok
}
