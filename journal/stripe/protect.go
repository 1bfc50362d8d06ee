package stripe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Local keeps parity beside the segment files of one store, for a journal.
type Local struct {
	FS   ioengine.FS
	Pace Pace
}

// Protects says whether the parity beside a file is of it. An error says that it could not
// be read; one of whose tables neither is whole protects nothing.
func (l Local) Protects(name string, id Identity) (bool, error) {
	f, err := l.FS.Open(ParityName(name), ioengine.ReadOnly|ioengine.Direct)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // opened for reading
	p := protected{par: f}
	switch err := p.tables(); {
	case errors.Is(err, ErrCorrupt):
		return false, nil
	case err != nil:
		return false, err
	}
	return p.id == id, nil
}

// Seal protects a file that was just verified, unless it is protected already. Parity that
// cannot be read stays: it may be all that brings the file back.
func (l Local) Seal(name string, id Identity) error {
	if is, err := l.Protects(name, id); is || err != nil && !invariant.Planted("journal/stripe/parity-anew") {
		return err
	}
	return Protect(l.FS, name, id, l.Pace)
}

// Repair writes the file to w as it was.
func (l Local) Repair(name string, id Identity, w io.Writer) error {
	_, err := Repair(l.FS, name, id, w, l.Pace)
	return err
}

// Dropped removes the parity of a file that goes.
func (l Local) Dropped(name string) error { return RemoveParity(l.FS, name) }

// Protects says whether Seal has nothing to do for a file.
func (s *Set) Protects(name string) (bool, error) {
	if err := s.canWrite(); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.names.objects[s.names.files[clean(name)]]
	if o == nil {
		return false, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	g := s.names.geometry
	return g.K == 1 || o.striped() && o.Geometry == g, nil
}

// Part is a part of a file, in bytes.
type Part struct{ From, To int64 }

// Repair writes a mirrored file to w, the bad parts taken from copies that say something else
// there than the one which is served. It does not know which is right: w's owner does. ErrLost: no
// copy differs, or the file is striped, and was sealed as it is.
func (s *Set) Repair(name string, bad []Part, w io.Writer) error {
	f, err := s.Open(name, ioengine.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	size, err := f.Size()
	if err != nil {
		return err
	}
	p, q := make([]byte, fillChunk), make([]byte, fillChunk)
	for off := int64(0); off < size; off += fillChunk {
		n := int(min(fillChunk, size-off))
		if k, err := f.ReadAt(p[:n], off); k < n && err != nil {
			return err
		}
		for _, b := range bad {
			from, to := max(b.From, off), min(b.To, off+int64(n))
			if from >= to {
				continue
			}
			if err := s.another(name, p[from-off:to-off], q[:to-from], from); err != nil {
				return err
			}
		}
		if _, err := w.Write(p[:n]); err != nil {
			return err
		}
	}
	return nil
}

// another replaces bytes of the file by those of a copy that has others.
func (s *Set) another(name string, have, other []byte, off int64) error {
	for i := range s.Copies(name) {
		n, err := s.ReadCopy(name, i, other, off)
		if n == len(other) && (err == nil || errors.Is(err, io.EOF)) && string(other) != string(have) {
			copy(have, other)
			return nil
		}
	}
	return fmt.Errorf("%s at %d: no copy says anything else: %w", name, off, ErrLost)
}

// Reusable says whether a file can be written again: a striped one cannot.
func (s *Set) Reusable(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[s.names.files[clean(name)]]
	return o != nil && !o.info.striped()
}
