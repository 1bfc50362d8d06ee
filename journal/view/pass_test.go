package view

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// filePlain is a plain disk in a file.
type filePlain struct{ f ioengine.File }

func (p filePlain) ReadAt(b []byte, off int64) error {
	n, err := p.f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	return errors.Join(io.ErrUnexpectedEOF, err)
}

func (p filePlain) WriteAt(b []byte, off int64) error {
	_, err := p.f.WriteAt(b, off)
	return err
}

func (p filePlain) Zero(off, n int64) error { return p.f.Zero(off, n) }
func (p filePlain) Sync() error             { return p.f.Sync() }

func (p filePlain) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	emit(n, false)
	return nil
}

const plainName = "/scratch/plain"

// passer is a view that passes to a plain disk, and what it was told.
type passer struct {
	settler
	plain                  filePlain
	flushed, answered, now []byte   // durable; answered; and what the last write makes of that
	since                  [][]byte // what was answered since it was flushed
}

// newPasser makes one whose scratch has something.
func newPasser(t *testing.T) *passer {
	t.Helper()
	s := newSettler(t)
	must(t, s.v.Leave())
	s.boot = [16]byte{1}
	must(t, s.open(true))
	f, err := s.disk.Open(plainName, ioengine.Create)
	must(t, err)
	_, err = f.WriteAt(s.replica.image, 0)
	must(t, errors.Join(err, f.Sync(), s.disk.SyncDir("/scratch")))
	p := &passer{settler: *s, plain: filePlain{f}, flushed: bytes.Clone(s.image), answered: bytes.Clone(s.image), now: bytes.Clone(s.image)}
	p.pass()
	return p
}

func (p *passer) pass() { p.v.Pass(func(record.VolumeID) Plain { return p.plain }) }

// write writes, or zeroes where b is nil.
func (p *passer) write(off, n int64, b []byte) error {
	copy(p.now[off:off+n], b)
	if b == nil {
		clear(p.now[off : off+n])
		if err := p.d.Zero(off, n); err != nil {
			return err
		}
	} else if err := p.d.WriteAt(b[:n], off); err != nil {
		return err
	}
	copy(p.answered, p.now)
	p.since = append(p.since, bytes.Clone(p.now))
	return nil
}

func (p *passer) flush() error {
	err := p.d.Flush()
	if err == nil {
		copy(p.flushed, p.answered)
		p.since = nil
	}
	return err
}

// read holds what it shows against what was answered.
func (p *passer) read() error {
	got := make([]byte, testBytes)
	if err := p.d.ReadAt(got, 0); err != nil {
		return err
	}
	return among(got, p.answered)
}

// inOrder does one after the other until one fails.
func inOrder(all ...func() error) error {
	for _, do := range all {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// story writes over what scratch holds and beside it, before and while that is moved, and after.
func (p *passer) story() error {
	write := func(off, n int64, b byte) func() error {
		return func() error { return p.write(off, n, bytes.Repeat([]byte{b}, int(n))) }
	}
	round := func(b byte) func() error {
		return func() error {
			return inOrder(
				write(0, 300, b),                                     // of a block of scratch and none other
				write(6<<10, 8<<10, b+1),                             // from beneath into it
				write(26<<10, 9<<10, b+2),                            // out of it
				write(42<<10, 3000, b+3),                             // in zeros of it
				func() error { return p.write(48<<10, 20<<10, nil) }, // zeros over both
				write(testBytes-300, 300, b+4),                       // the last block
			)
		}
	}
	part := func() error {
		_, err := p.v.Settle(1, blockBytes, 3*blockBytes, nil)
		return err
	}
	err := inOrder(round(10), p.flush, round(20), part, p.read, round(30), p.flush, p.settle, round(40), p.flush, round(50), p.read)
	if err == nil && (!p.v.Passed() || p.v.ScratchBytes() != 0) {
		err = fmt.Errorf("it does not pass all, with %d bytes in scratch", p.v.ScratchBytes())
	}
	return err
}

// among holds each byte against what it may be.
func among(p []byte, may ...[]byte) error {
next:
	for i, b := range p {
		for _, m := range may {
			if m[i] == b {
				continue next
			}
		}
		return fmt.Errorf("at %d it has %#x", i, b)
	}
	return nil
}

// again opens the view on what is left of its disk, which must show what it may in each place, before and after all of
// scratch was moved; then the plain disk holds the same.
func (p *passer) again(disk *faultdisk.Disk, boot byte, may ...[]byte) error {
	f, err := disk.Open(plainName, 0)
	if err != nil {
		return err
	}
	c := passer{settler: settler{disk: disk, boot: [16]byte{boot}}, plain: filePlain{f}}
	if err := c.open(true); err != nil {
		return err
	}
	defer c.v.Leave()
	c.pass()
	first, last := make([]byte, testBytes), make([]byte, testBytes)
	if err := errors.Join(c.d.ReadAt(first, 0), among(first, may...), c.settle(), c.plain.ReadAt(last, 0)); err != nil {
		return err
	}
	if !c.v.Passed() || !bytes.Equal(first, last) {
		return fmt.Errorf("once all was moved the disk differs at %d", firstDifference(first, last))
	}
	return nil
}

// Power fails, or the process is killed, at every operation: what was flushed, or answered, is there, in the view and then in the disk.
func TestPassCrashAtEveryOperation(t *testing.T) {
	p := newPasser(t)
	rng := rand.New(rand.NewPCG(4, 4))
	points := 0
	var failed error
	p.disk.OnOp(func(op faultdisk.Op, name string) {
		for _, keep := range keeps {
			points++
			if err := p.again(p.disk.Crash(rng, keep), 2, append(p.since, p.flushed, p.now)...); err != nil && failed == nil {
				failed = fmt.Errorf("operation %d (%#x of %s), keep %d: %w", p.disk.Ops(), op, name, keep, err)
			}
		}
		if err := p.again(p.disk.Kill(), 1, p.answered, p.now); err != nil && failed == nil {
			failed = fmt.Errorf("operation %d (%#x of %s), killed: %w", p.disk.Ops(), op, name, err)
		}
	})
	must(t, p.story())
	p.disk.OnOp(nil)
	must(t, failed)
	must(t, same(p.d, rng, p.now))
	must(t, p.flush())
	must(t, p.again(p.disk.Crash(rng, keeps[0]), 2, p.now, p.now))
	must(t, p.v.Close())
	t.Logf("%d crashes", points)
}

// Each operation fails once. What the view shows is what was answered, and so it is after a crash and when it was tried again.
func TestPassErrorAtEveryOperation(t *testing.T) {
	for at := 1; ; at++ {
		p, seen := newPasser(t), 0
		p.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		err := p.story()
		p.disk.Heal()
		if seen < at {
			must(t, errors.Join(err, p.v.Close()))
			t.Logf("%d errors", at-1)
			return
		}
		if err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, ErrFailed) {
			t.Fatalf("operation %d: %v", at, err)
		}
		got := make([]byte, testBytes)
		if rerr := p.d.ReadAt(got, 0); rerr == nil {
			if err := among(got, p.answered, p.now); err != nil {
				t.Fatalf("after error %d (%v): %v", at, err, err)
			}
		} else if !errors.Is(rerr, ErrFailed) {
			t.Fatalf("after error %d (%v): %v", at, err, rerr)
		}
		if err := p.again(p.disk.Kill(), 1, p.answered, p.now); err != nil {
			t.Fatalf("after error %d and a kill: %v", at, err)
		}
		p.v.Close() // may fail, as its files may have
	}
}

// A view to which nothing was written passes at once, and one that takes no writes reads the disk.
func TestPassAtOnce(t *testing.T) {
	p := newPasser(t)
	must(t, p.settle())
	must(t, p.v.Close())
	must(t, p.open(false))
	if p.pass(); p.v.Passed() {
		t.Error("it passes before anybody looked at its scratch")
	}
	must(t, p.settle())
	holes := 0
	must(t, p.d.Extents(0, testBytes, func(int64, bool) bool { holes++; return true }))
	if !p.v.Passed() || holes != 1 || p.v.Written(1) != 0 {
		t.Errorf("it passes %v, with %d extents", p.v.Passed(), holes)
	}
	must(t, same(p.d, rand.New(rand.NewPCG(1, 1)), p.image))
	must(t, p.d.Zero(5, 0))
	must(t, p.v.Close())
}
