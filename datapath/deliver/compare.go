package deliver

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// compareRate is how fast a session reads to answer what its source compares, in bytes a
	// second: a few disks' worth of streaming, and little beside what it can take in.
	compareRate = 512 << 20
	// compareRead is how much it reads at a time.
	compareRead = 1 << 20
	// comparedMost is how many regions it knows the sums of, 128 KiB each: a source asks for
	// the leaves of a region soon after its node, of which it compares no more at once.
	comparedMost = 32
)

// comparison is what a session's source compares with.
type comparison struct {
	group   *journal.Group
	after   record.Seq
	view    *view.View // what the group held when the first question of this `after` came; nil before
	regions map[delta.Key]*delta.Region
	order   []delta.Key // of regions, oldest first
	free    time.Time   // when it may read again
	buf     []byte
}

// compare queues a question. A source that has more under way than it may have breaks the protocol.
func (n *session) compare(m *wire.Compare) error {
	n.mu.Lock()
	st := n.mu.streams[m.Stream]
	n.mu.Unlock()
	if st == nil {
		return fmt.Errorf("%w: it compares stream %s, which was not opened", wire.ErrProtocol, m.Stream)
	}
	select {
	case n.asks <- question{st.group, m}:
		return nil
	default:
		return fmt.Errorf("%w: more than %d questions under way", wire.ErrProtocol, cap(n.asks))
	}
}

// question is one that waits for its answer.
type question struct {
	group *journal.Group
	*wire.Compare
}

// answer answers questions, in order, until the session is over. What it cannot read it does
// not know, and says so: the source sends it.
func (n *session) answer() {
	var c comparison
	defer func() { c.close() }()
	ctx := n.wire.Context()
	for {
		var q question
		select {
		case q = <-n.asks:
		case <-ctx.Done():
			return
		}
		if c.group != q.group || c.after != q.After && !invariant.Planted("deliver/sums-of-before") {
			c.close()
			c = comparison{group: q.group, after: q.After, regions: make(map[delta.Key]*delta.Region), free: c.free, buf: c.buf}
		}
		r, err := c.region(ctx, delta.Key{Volume: q.Volume, Number: q.Region()})
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			n.target.log.Warn("a part of a volume cannot be compared: it is sent", "group", q.group.Info().Name, "volume", q.Volume, "error", err)
		}
		if n.wire.Send(&wire.Sums{Stream: q.Stream, After: q.After, Ask: q.Ask, Sums: r.Append(nil, q.Ask)}) != nil {
			return // the session is over
		}
	}
}

func (c *comparison) close() {
	if c.view != nil {
		_ = c.view.Close() // of a view without scratch, which has nothing to lose
	}
}

// region returns the sums of a region, which it reads unless it has. What did not read is not
// known in it; nil where the volume has no such region.
func (c *comparison) region(ctx context.Context, k delta.Key) (*delta.Region, error) {
	if r := c.regions[k]; r != nil {
		return r, nil
	}
	if c.view == nil {
		v, err := c.group.Newest()
		if err != nil {
			return nil, err
		}
		c.view = v
	}
	dev, ok := c.view.Device(k.Volume)
	if !ok {
		return nil, fmt.Errorf("volume %d: %w", k.Volume, journal.ErrVolume)
	}
	r := delta.NewRegion(k.Number, dev.Size())
	if r == nil {
		return nil, fmt.Errorf("region %d is beyond its end", k.Number)
	}
	if len(c.order) == comparedMost {
		delete(c.regions, c.order[0])
		c.order = c.order[1:]
	}
	c.regions[k], c.order = r, append(c.order, k)
	return r, c.read(ctx, dev, r, k.Number*delta.RegionBytes)
}

// read puts the bytes of a region, which begins at off, but not those of holes. Its error is
// that of the last block that did not read.
func (c *comparison) read(ctx context.Context, dev *view.Device, r *delta.Region, off int64) error {
	data := make([]bool, r.Blocks())
	at := off
	err := dev.Extents(off, min(int64(r.Blocks())*delta.BlockBytes, dev.Size()-off), func(n int64, hole bool) bool {
		for b := (at - off) / delta.BlockBytes; !hole && b*delta.BlockBytes < at+n-off; b++ {
			data[b] = true
		}
		at += n
		return true
	})
	if err != nil {
		return err
	}
	for b := 0; b < len(data); {
		from := b
		for b < len(data) && data[b] && (b-from)*delta.BlockBytes < compareRead {
			b++
		}
		if b == from {
			r.Put(b, nil)
			b++
			continue
		}
		if e := c.readBlocks(ctx, dev, r, off, from, b); e != nil {
			err = e
		}
	}
	return err
}

// readBlocks puts blocks [from, to) of a region, which begins at off; one by one where they do
// not read together.
func (c *comparison) readBlocks(ctx context.Context, dev *view.Device, r *delta.Region, off int64, from, to int) error {
	if c.buf == nil {
		c.buf = make([]byte, compareRead)
	}
	off += int64(from) * delta.BlockBytes
	p := c.buf[:min(int64(to-from)*delta.BlockBytes, dev.Size()-off)]
	if err := c.wait(ctx, len(p)); err != nil {
		return err
	}
	err := dev.ReadAt(p, off)
	if err != nil && to-from > 1 {
		for b := from; b < to; b++ {
			if e := c.readBlocks(ctx, dev, r, off-int64(from)*delta.BlockBytes, b, b+1); e != nil {
				err = e
			}
		}
		return err
	}
	if err != nil {
		return err
	}
	for b := from; len(p) > 0; b++ {
		n := min(len(p), delta.BlockBytes)
		r.Put(b, p[:n])
		p = p[n:]
	}
	return nil
}

// wait keeps to compareRate.
func (c *comparison) wait(ctx context.Context, n int) error {
	now := time.Now()
	if c.free.Before(now) {
		c.free = now
	}
	wait := c.free.Sub(now)
	c.free = c.free.Add(time.Duration(n) * time.Second / compareRate)
	if wait <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
