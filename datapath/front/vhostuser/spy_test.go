package vhostuser

import (
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
)

// spy is a disk in memory that notes what it is asked beside reads, and checks what every
// device may rely on.
type spy struct {
	*memdisk.Disk
	mu       sync.Mutex
	calls    []string
	open     int // writes begun and not ended
	mistakes []string
}

func newSpy(size int64) *spy { return &spy{Disk: memdisk.New(size)} }

func (s *spy) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

// taken returns the calls so far, and forgets them.
func (s *spy) taken() (calls []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls, s.calls = s.calls, nil
	return calls
}

func (s *spy) state() (open int, mistakes []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.mistakes
}

func (s *spy) check(op string, off, n, most int64) error {
	if off >= 0 && n >= 1 && n <= most && off <= s.Size()-n {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	mistake := fmt.Sprintf("%s of %d bytes at %d", op, n, off)
	s.mistakes = append(s.mistakes, mistake)
	return errors.New(mistake)
}

func (s *spy) ReadAt(p []byte, off int64) error {
	if err := s.check("read", off, int64(len(p)), front.MaxWrite); err != nil {
		return err
	}
	return s.Disk.ReadAt(p, off)
}

func (s *spy) BeginWrite(off int64, n int) (front.Write, error) {
	if err := s.check("write", off, int64(n), front.MaxWrite); err != nil {
		return nil, err
	}
	w, err := s.Disk.BeginWrite(off, n)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	return &spiedWrite{w, s, off, n}, nil
}

func (s *spy) Zero(off, n int64, mayUnmap, fua bool) error {
	s.note("zero %d %d unmap=%t fua=%t", off, n, mayUnmap, fua)
	if err := s.check("zero", off, n, s.Size()); err != nil {
		return err
	}
	return s.Disk.Zero(off, n, mayUnmap, fua)
}

func (s *spy) Trim(off, n int64, fua bool) error {
	s.note("trim %d %d fua=%t", off, n, fua)
	if err := s.check("trim", off, n, s.Size()); err != nil {
		return err
	}
	return s.Disk.Trim(off, n, fua)
}

func (s *spy) Flush() error {
	s.note("flush")
	return s.Disk.Flush()
}

type spiedWrite struct {
	front.Write
	spy *spy
	off int64
	n   int
}

func (w *spiedWrite) ended() {
	w.spy.mu.Lock()
	defer w.spy.mu.Unlock()
	w.spy.open--
}

func (w *spiedWrite) Commit(fua bool) error {
	w.spy.note("write %d %d fua=%t", w.off, w.n, fua)
	defer w.ended()
	return w.Write.Commit(fua)
}

func (w *spiedWrite) Abort() {
	w.spy.note("abort %d %d", w.off, w.n)
	defer w.ended()
	w.Write.Abort()
}
