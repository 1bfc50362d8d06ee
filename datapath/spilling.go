package datapath

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/budget"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// spillDisk is the disk that the windows of a source go on in when memory is full. Each group has its part
// of the budget as it has of memory; nobody is made to give way, since what stands there is sent in its turn.
type spillDisk struct {
	disk  *spill.Disk
	share *shares
}

// allot is one window's part. It implements spill.Allot.
type allot share

// openSpill gives each window its part of the disk. Nothing is done there before Run: a disk that
// does not answer keeps no source from starting.
func (s *Source) openSpill() {
	c := s.cfg.Spill
	if c.Budget <= 0 {
		return
	}
	most := make([]int64, len(s.flows))
	for i := range most {
		most[i] = c.Budget
	}
	s.spill = &spillDisk{
		disk:  spill.NewDisk(c.FS, c.Dir, rand.Uint64()|1),
		share: &shares{book: budget.New(c.Budget, spill.SegmentBytes, most), changed: make(chan struct{})},
	}
	for i, f := range s.flows {
		f.window.Spill(s.spill.disk, allot{s.spill.share, i}, f.cfg.Stream, func(sealed []byte) spill.Buffer {
			b := f.slabs.Get(len(sealed))
			b.P = append(b.P, sealed...)
			return b
		})
	}
}

// open opens the folder, again and again until that works.
func (d *spillDisk) open(ctx context.Context, log *slog.Logger) {
	for {
		err := d.disk.Open()
		if err == nil {
			return
		}
		log.Warn("the spill disk cannot be used; what memory has no room for is only marked", "error", err)
		if !pause(ctx, spill.Patience) {
			return
		}
	}
}

// Room implements spill.Allot.
func (a allot) Room() int64 { return share(a).Room() }

// spillLimit is what the files of a group may take now, in bytes.
func (s *Source) spillLimit(f *flow) int64 {
	if s.spill == nil {
		return 0
	}
	i := slices.Index(s.flows, f)
	s.spill.share.mu.Lock()
	defer s.spill.share.mu.Unlock()
	return s.spill.share.book.Held(i) + max(0, s.spill.share.book.Room(time.Now(), i))
}

// Take implements spill.Allot.
func (a allot) Take(bytes int64) bool {
	b := a.all.book
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if b.Room(time.Now(), a.i) < bytes && !invariant.Planted("datapath/spill-unbounded") {
		return false
	}
	b.Hold(a.i, b.Held(a.i)+bytes)
	return true
}

// Give implements spill.Allot.
func (a allot) Give(bytes int64) {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.all.book.Hold(a.i, a.all.book.Held(a.i)-bytes)
}

// spillLocked says how the group's part of the disk stands, and gives up what cannot be read back from it.
func (f *flow) spillLocked(sense *group.Sense) {
	s := f.window.SpillStats()
	sense.OnDisk = s.Bytes
	switch {
	case s.Trouble != nil:
		sense.NoSpill = s.Trouble.Error()
	case s.Full:
		sense.NoSpill = "what its files may take is used up"
	}
	if sense.NoSpill != f.mu.noSpill {
		if f.mu.noSpill = sense.NoSpill; sense.NoSpill != "" {
			f.log.Warn("the spill takes no more; soon changes are only marked", "reason", sense.NoSpill)
		}
	}
	if s.Lost == nil || invariant.Planted("datapath/spill-lost-unsaid") {
		return
	}
	life := f.mu.life
	if f.stepLocked(group.SpillLost{Reason: s.Lost.Error()}); f.mu.life != life {
		f.log.Error("what waited on the spill disk cannot be read back: it is read again from the guests' disks, and no checkpoint is made until that is done", "error", s.Lost)
	}
}
