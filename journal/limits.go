package journal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/retain"
)

// Usage is what a group takes on disk, in bytes.
type Usage struct {
	Log, Index, Scratch int64 // what the policy's limit is held against
	Replica             int64
}

// Journal is what counts against the limit.
func (u Usage) Journal() int64 { return u.Log + u.Index + u.Scratch }

// StoreUsage is what all groups of a store take together, what is kept for use again or made ready for the next segments, and
// what is left.
type StoreUsage struct {
	Usage
	Spare, Reserve int64
	Free           int64 // of the file system; -1: not known
}

// room is how much more a group may take before its limit: between two plans nobody asks
// what files there are, so what is appended is counted.
type room struct {
	left  atomic.Int64 // bytes to the limit; below zero intake stops
	soft  atomic.Int64 // bytes to where something has to give way
	taken atomic.Int64 // bytes appended since the group was opened
	steps atomic.Int64 // of the work that makes room: rises while it gets on
	full  atomic.Pointer[shortage]
}

// flow is the rate of a group's intake.
type flow struct {
	at    time.Duration // of the last reckoning, by the store's clock
	taken int64         // until then
	rate  float64       // bytes a second, smoothed
}

// step reckons with what was taken in until now.
func (f *flow) step(now time.Duration, taken int64) {
	d := now - f.at
	if d < time.Second {
		return
	}
	rate := float64(taken-f.taken) / d.Seconds()
	if f.at == 0 { // nobody knows when it began
		rate = 0
	}
	f.at, f.taken, f.rate = now, taken, (f.rate+rate)/2
}

// in is how much comes in within the time, at this rate.
func (f *flow) in(d time.Duration) int64 { return int64(f.rate * d.Seconds()) }

// shortage is why there is no room.
type shortage struct {
	why   error
	hope  bool          // history is being shortened, or is about to be: it passes
	ended chan struct{} // closed when it is over, or another takes its place
}

const (
	// hopeFor is how long who brings a record waits for room that is being made, while that
	// does not get on. A source is held up by it as by a slow disk; refused, it would begin its
	// session anew.
	hopeFor = 10 * time.Second
	// hopeMost is how long it waits where that does: a session's other groups wait with it.
	hopeMost = time.Minute
)

// ErrLimit says that a group takes no data because it has no room for it.
var ErrLimit = errors.New("the journal's limit is reached")

// set says how much room there is as of now; limit 0: no end of it.
func (r *room) set(limit, used, slack int64) {
	if limit <= 0 {
		limit, used = math.MaxInt64/2, 0
	}
	r.left.Store(limit - used)
	r.soft.Store(limit - used - slack)
}

// take counts bytes that were appended; it says whether a plan is needed now.
func (r *room) take(bytes int64) (plan bool) {
	r.taken.Add(bytes)
	left, soft := r.left.Add(-bytes), r.soft.Add(-bytes)
	if left <= 0 && r.full.Load() == nil && !invariant.Planted("journal/past-limit") {
		why := fmt.Errorf("%w: history is to be shortened first", ErrLimit)
		r.full.CompareAndSwap(nil, &shortage{why, true, make(chan struct{})})
	}
	return soft <= 0 && soft+bytes > 0 || left <= 0 && left+bytes > 0
}

// stop makes intake stop, or go on when why is nil. With hope it stops for a while.
func (r *room) stop(why error, hope bool) {
	var next *shortage
	if why != nil {
		next = &shortage{why, hope, make(chan struct{})}
	}
	if last := r.full.Swap(next); last != nil {
		close(last.ended)
	}
}

// step says that the work that makes room gets on.
func (r *room) step() { r.steps.Add(1) }

// wait returns nil once there is room, and else why there is none: at once where nothing
// is being done about it.
func (r *room) wait(ctx context.Context) error {
	if r.full.Load() == nil {
		return nil
	}
	patience := time.NewTimer(hopeFor)
	defer patience.Stop()
	seen, began := r.steps.Load(), time.Now()
	for {
		s := r.full.Load()
		if s == nil {
			return nil
		}
		if !s.hope || invariant.Planted("journal/no-hope") {
			return s.why
		}
		select {
		case <-s.ended:
		case <-patience.C:
			now := r.steps.Load()
			if now == seen || time.Since(began) >= hopeMost || invariant.Planted("journal/hope-ends") {
				return s.why
			}
			seen = now
			patience.Reset(hopeFor)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", s.why, ctx.Err())
		}
	}
}

// none says why there is no room; nil: there is.
func (r *room) none() error {
	if s := r.full.Load(); s != nil {
		return s.why
	}
	return nil
}

// Usage tells what the group takes on disk.
func (g *Group) Usage() (u Usage) {
	if g.index == nil {
		return u
	}
	segs := g.segments.Segments()
	for i, s := range segs {
		n := int64(s.End - s.First)
		if i == len(segs)-1 {
			n = max(n, g.store.segmentBytes()) // its space is set aside
		}
		u.Log += n
	}
	u.Index = g.index.Stats().Bytes
	g.mu.Lock()
	for v := range g.views.open {
		u.Scratch += v.ScratchBytes()
	}
	g.mu.Unlock()
	u.Replica = g.retention.replicaBytes.Load()
	return u
}

// measureReplicas counts what the replicas take. It asks the file system for every
// extent, so it is done now and then.
func (g *Group) measureReplicas() {
	g.mu.Lock()
	volumes := make([]*volume, 0, len(g.volumes))
	for _, v := range g.volumes {
		volumes = append(volumes, v)
	}
	g.mu.Unlock()
	sum := int64(0)
	for _, v := range volumes {
		n, err := v.replica.Allocated()
		if err != nil {
			g.log.Warn("a replica's size on disk is not known", "volume", v.info.ID, "error", err)
			return
		}
		sum += n
	}
	g.retention.replicaBytes.Store(sum)
}

// Usage tells what the store takes on disk.
func (s *Store) Usage() (u StoreUsage) {
	for _, g := range s.Groups() {
		one := g.Usage()
		if g.segments != nil {
			u.Spare += g.segments.Ready()
		}
		u.Log, u.Index, u.Scratch, u.Replica = u.Log+one.Log, u.Index+one.Index, u.Scratch+one.Scratch, u.Replica+one.Replica
	}
	u.Reserve = s.reserve.held()
	_, spare := s.spare.Spare()
	u.Spare += spare
	var err error
	if u.Free, err = s.cfg.FS.Free(s.cfg.Dir); err != nil {
		u.Free = -1
	}
	return u
}

func (s *Store) segmentBytes() int64 {
	if s.cfg.SegmentBytes > 0 {
		return s.cfg.SegmentBytes
	}
	return defaultSegment
}

const (
	defaultSegment = 256 << 20

	// spareSpace is left on a disk beyond two segments: a promotion may have to write
	// what it then frees.
	spareSpace = 64 << 20

	// slackTime is how long before its limit, at the rate at which it fills, a group's
	// history begins to be shortened: a pass has to be through before.
	slackTime = 15 * time.Second
)

// slack is how much may at least come in between two plans.
func (s *Store) slack(limit int64) int64 { return max(2*s.segmentBytes(), limit/16) }

// diskSpace is what a disk has and should have, in bytes; free is -1 where nobody knows.
type diskSpace struct {
	free, wanted int64
	short        bool
}

// space says how a store's disk stands: it is short when it has no space to spare.
func (s *Store) space() diskSpace {
	d := diskSpace{free: -1, wanted: 2*s.segmentBytes() + spareSpace}
	if free, err := s.cfg.FS.Free(s.cfg.Dir); err == nil {
		d.free, d.short = free, free < d.wanted
	}
	return d
}

// onFullDisk adds to an error for want of space how much there is.
func (s *Store) onFullDisk(err error) error {
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	if d := s.space(); d.free >= 0 {
		return fmt.Errorf("the disk is full: %s are free, %s are wanted: %w", retain.FormatSize(d.free), retain.FormatSize(d.wanted), err)
	}
	return fmt.Errorf("the disk is full: %w", err)
}

// full says whether the group's last round failed because the disk is full.
func (g *Group) full() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Is(g.trouble, syscall.ENOSPC)
}
