package memdisk

import (
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

// Spy is a Disk that notes what it is asked, and checks what every device may rely on of a
// server.
type Spy struct {
	*Disk

	mu       sync.Mutex
	calls    []string // "op off n flags", without reads
	open     int      // writes begun and not ended
	commits  error    // what Commit answers
	mistakes []string
}

// NewSpy returns a Spy of size bytes, all holes.
func NewSpy(size int64) *Spy { return &Spy{Disk: New(size)} }

// Refuse has Commit answer err from now on; nil: as the disk does.
func (s *Spy) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commits = err
}

func (s *Spy) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

// Taken returns the calls so far ("op off n flags", without reads), and forgets them.
func (s *Spy) Taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// State tells how many writes are begun and not ended, and what was wrong.
func (s *Spy) State() (open int, mistakes []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.mistakes
}

func (s *Spy) check(op string, off, n, limit int64) error {
	if off >= 0 && n >= 1 && n <= limit && off <= s.Size()-n {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	mistake := fmt.Sprintf("%s of %d bytes at %d", op, n, off)
	s.mistakes = append(s.mistakes, mistake)
	return errors.New(mistake)
}

// ReadAt implements front.Device.
func (s *Spy) ReadAt(p []byte, off int64) error {
	if err := s.check("read", off, int64(len(p)), front.MaxWrite); err != nil {
		return err
	}
	return s.Disk.ReadAt(p, off)
}

// BeginWrite implements front.Device.
func (s *Spy) BeginWrite(off int64, n int) (front.Write, error) {
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
	spy   *Spy
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

// Zero implements front.Device.
func (s *Spy) Zero(off, n int64, mayUnmap, fua bool) error {
	if err := s.check("zero", off, n, s.Size()); err != nil {
		return err
	}
	s.note("zero %d %d unmap=%v fua=%v", off, n, mayUnmap, fua)
	return s.Disk.Zero(off, n, mayUnmap, fua)
}

// Trim implements front.Device.
func (s *Spy) Trim(off, n int64, fua bool) error {
	if err := s.check("trim", off, n, s.Size()); err != nil {
		return err
	}
	s.note("trim %d %d fua=%v", off, n, fua)
	return s.Disk.Trim(off, n, fua)
}

// Flush implements front.Device.
func (s *Spy) Flush() error {
	s.note("flush")
	return s.Disk.Flush()
}

// Extents implements front.Device.
func (s *Spy) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	if err := s.check("extents", off, n, s.Size()); err != nil {
		return err
	}
	return s.Disk.Extents(off, n, emit)
}
