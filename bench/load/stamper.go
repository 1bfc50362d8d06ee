package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// Disk is what a workload writes to: one connection to one volume.
type Disk interface {
	WriteAt(p []byte, off int64) (int, error)
	WriteZeroes(off, n int64, mayUnmap bool) error
	Trim(off, n int64) error
	Flush() error
	Close() error
}

// Profile says what operations a workload is made of. Sizes are in bytes and
// multiples of 512.
type Profile struct {
	Name           string
	Kind           Kind
	Min, Max       int64   // length of an operation; each doubling is as likely
	Align          int64   // of its offset; 512 when zero
	Zero, Trim     int     // percent of operations that are one
	Flush          int     // percent of operations followed by a flush
	Span           float64 // fraction of each volume that is written to; all when zero
	BytesPerSecond int64   // of all workers together; no limit when zero
}

// The profiles of capacity runs, and the one that tries everything.
var (
	ProfileDB     = Profile{Name: "db", Kind: DB, Min: 4 << 10, Max: 16 << 10, Align: 4 << 10, Flush: 1}
	ProfileMixed  = Profile{Name: "mixed-64k", Kind: Mixed, Min: 64 << 10, Max: 64 << 10, Align: 64 << 10}
	ProfileRandom = Profile{Name: "random-64k", Kind: Random, Min: 64 << 10, Max: 64 << 10, Align: 64 << 10}
	ProfileWild   = Profile{Name: "wild", Kind: DB, Min: 512, Max: 1 << 20, Zero: 4, Trim: 2, Flush: 5}
)

// Volume is one volume that a workload writes to.
type Volume struct {
	Size int64 // bytes
	// Dial opens one more connection to it.
	Dial func(context.Context) (Disk, error)
}

// Stamper drives volumes with stamped writes and keeps their history.
type Stamper struct {
	Volumes []Volume
	Profile Profile
	Workers int // each with its own connection to each volume
	Seed    uint64
	Corpus  []byte
	History *History

	written  atomic.Int64
	answered atomic.Int64
	redials  atomic.Int64
	slowest  atomic.Int64
	pace     struct {
		sync.Mutex
		next time.Time
	}
}

// Stats is what a stamper has done so far.
type Stats struct {
	Bytes   int64         // written or zeroed, and answered
	Ops     int64         // answered
	Redials int64         // connections opened again after one was lost
	Slowest time.Duration // the longest time an operation took, redials included
}

// Stats may be called while Run runs.
func (s *Stamper) Stats() Stats {
	return Stats{s.written.Load(), s.answered.Load(), s.redials.Load(), time.Duration(s.slowest.Load())}
}

// Run writes until ctx ends; operations in flight are answered first. An error is
// the disk's own answer to an operation: a lost connection is opened again and the
// operation repeated, as a guest's driver does.
func (s *Stamper) Run(ctx context.Context) error {
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, max(1, s.Workers))
	var wg sync.WaitGroup
	for w := range cap(failed) {
		wg.Go(func() {
			if err := s.worker(run, uint64(w)); err != nil {
				failed <- fmt.Errorf("worker %d: %w", w, err)
				cancel()
			}
		})
	}
	wg.Wait()
	close(failed)
	return <-failed // nil when there is none
}

func (s *Stamper) worker(ctx context.Context, number uint64) error {
	rng := rand.New(rand.NewPCG(s.Seed, number+1))
	disks := make([]Disk, len(s.Volumes))
	defer func() {
		for _, d := range disks {
			if d != nil {
				d.Close()
			}
		}
	}()
	buf := make([]byte, max(s.Profile.Max, SectorBytes))
	for {
		op := s.draw(rng)
		if !s.wait(ctx, op.Sectors*SectorBytes) {
			return nil
		}
		op.Number = s.History.Issue(op.Kind, op.Volume, op.Sector, op.Sectors)
		start := time.Now()
		if err := s.carryOut(ctx, disks, op, buf); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s of %d bytes at %d of volume %d: %w", op.Kind, op.Sectors*SectorBytes, op.Sector*SectorBytes, op.Volume, err)
		}
		s.History.Done(op.Number)
		s.note(time.Since(start), op)
		if rng.IntN(100) < s.Profile.Flush {
			if d := disks[op.Volume]; d != nil && d.Flush() != nil {
				d.Close()
				disks[op.Volume] = nil
			}
		}
	}
}

// draw makes up the next operation. Half of them begin near a few favourite places,
// so that overlaps are common.
func (s *Stamper) draw(rng *rand.Rand) Op {
	p := s.Profile
	op := Op{Kind: OpWrite, Volume: rng.IntN(len(s.Volumes))}
	if r := rng.IntN(100); r < p.Zero {
		op.Kind = OpZero
	} else if r < p.Zero+p.Trim {
		op.Kind = OpTrim
	}
	align := max(cmp.Or(p.Align, SectorBytes), SectorBytes)
	unit := min(align, p.Min)
	size := float64(p.Min) * math.Pow(float64(p.Max)/float64(p.Min), rng.Float64()) // small ones are as many as large ones
	op.Sectors = min((int64(size)+unit-1)/unit*unit, p.Max) / SectorBytes
	span := s.Volumes[op.Volume].Size
	if p.Span > 0 {
		span = int64(float64(span) * p.Span)
	}
	span = max(span, p.Max+align) - op.Sectors*SectorBytes
	at := rng.Int64N(span + 1)
	if rng.IntN(2) == 0 {
		at = at % min(span+1, 64*p.Max)
	}
	op.Sector = at / align * align / SectorBytes
	return op
}

// carryOut does the operation, over new connections if need be.
func (s *Stamper) carryOut(ctx context.Context, disks []Disk, op Op, buf []byte) error {
	for try := 0; ; try++ {
		if disks[op.Volume] == nil {
			d, err := s.dial(ctx, op.Volume)
			if err != nil {
				return err
			}
			disks[op.Volume] = d
		}
		err := s.send(disks[op.Volume], op, buf)
		if err == nil || isAnswer(err) {
			return err
		}
		disks[op.Volume].Close()
		disks[op.Volume] = nil
		s.redials.Add(1)
	}
}

// isAnswer tells what the disk said from a lost connection.
func isAnswer(err error) bool {
	var answer *nbd.Error
	return errors.As(err, &answer)
}

func (s *Stamper) send(d Disk, op Op, buf []byte) error {
	off, n := op.Sector*SectorBytes, op.Sectors*SectorBytes
	switch op.Kind {
	case OpZero:
		return d.WriteZeroes(off, n, op.Number%2 == 0)
	case OpTrim:
		return d.Trim(off, n)
	}
	fill(buf[:n], s.Corpus, op.Volume, op.Number, op.Sector)
	_, err := d.WriteAt(buf[:n], off)
	return err
}

// dial opens a connection, as often as it takes until ctx ends.
func (s *Stamper) dial(ctx context.Context, volume int) (Disk, error) {
	for {
		d, err := s.Volumes[volume].Dial(ctx)
		if err == nil {
			return d, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// wait holds the rate: it returns when n more bytes may be written, false once ctx ends.
func (s *Stamper) wait(ctx context.Context, n int64) bool {
	if ctx.Err() != nil {
		return false
	}
	if s.Profile.BytesPerSecond <= 0 {
		return true
	}
	s.pace.Lock()
	now := time.Now()
	if s.pace.next.Before(now.Add(-time.Second)) {
		s.pace.next = now // a stall is not made up for
	}
	at := s.pace.next
	s.pace.next = at.Add(time.Duration(float64(n) / float64(s.Profile.BytesPerSecond) * float64(time.Second)))
	s.pace.Unlock()
	if !at.After(now) {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(at.Sub(now)):
		return true
	}
}

func (s *Stamper) note(took time.Duration, op Op) {
	s.answered.Add(1)
	s.written.Add(op.Sectors * SectorBytes)
	for old := s.slowest.Load(); int64(took) > old && !s.slowest.CompareAndSwap(old, int64(took)); old = s.slowest.Load() {
	}
}
