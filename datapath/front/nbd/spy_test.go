package nbd

import (
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
)

// spy is a disk in memory that notes what it is asked, and checks what every device
// may rely on.
type spy struct {
	*memdisk.Disk

	mu       sync.Mutex
	calls    []string // "op off n flags", without reads
	open     int      // writes begun and not ended
	commits  error    // what Commit answers
	mistakes []string
}

func newSpy(size int64) *spy { return &spy{Disk: memdisk.New(size)} }

func (s *spy) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

// taken returns the calls so far, and forgets them.
func (s *spy) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// state tells how many writes are open, and what was wrong.
func (s *spy) state() (open int, mistakes []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.mistakes
}

func (s *spy) check(op string, off, n, limit int64) error {
	if off >= 0 && n >= 1 && n <= limit && off <= s.Size()-n {
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
	return &spiedWrite{Write: w, spy: s, off: off, n: n}, nil
}

type spiedWrite struct {
	front.Write
	spy   *spy
	off   int64
	n     int
	ended bool
}

func (w *spiedWrite) end(call string) error {
	w.spy.mu.Lock()
	defer w.spy.mu.Unlock()
	if w.ended {
		w.spy.mistakes = append(w.spy.mistakes, "write ended twice")
	}
	w.ended = true
	w.spy.open--
	w.spy.calls = append(w.spy.calls, call)
	return w.spy.commits
}

func (w *spiedWrite) Commit(fua bool) error {
	if err := w.end(fmt.Sprintf("write %d %d fua=%v", w.off, w.n, fua)); err != nil {
		w.Write.Abort()
		return err
	}
	return w.Write.Commit(fua)
}

func (w *spiedWrite) Abort() {
	w.end(fmt.Sprintf("abort %d %d", w.off, w.n))
	w.Write.Abort()
}

func (s *spy) Zero(off, n int64, mayUnmap, fua bool) error {
	if err := s.check("zero", off, n, s.Size()); err != nil {
		return err
	}
	s.note("zero %d %d unmap=%v fua=%v", off, n, mayUnmap, fua)
	return s.Disk.Zero(off, n, mayUnmap, fua)
}

func (s *spy) Trim(off, n int64, fua bool) error {
	if err := s.check("trim", off, n, s.Size()); err != nil {
		return err
	}
	s.note("trim %d %d fua=%v", off, n, fua)
	return s.Disk.Trim(off, n, fua)
}

func (s *spy) Flush() error {
	s.note("flush")
	return s.Disk.Flush()
}

func (s *spy) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	if err := s.check("extents", off, n, s.Size()); err != nil {
		return err
	}
	return s.Disk.Extents(off, n, emit)
}
