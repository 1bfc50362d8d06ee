package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Verify reads a closed segment from the device, past the page cache where that can
// be, and checks every byte of it. It returns the damage by place, as sealing does,
// and why the segment is not whole; ErrCorrupt without damage is damage between the
// records, which no checkpoint needs and Replace mends. It calls pace, when not nil,
// with the bytes of each read before it, and ends with pace's error. It may be
// called beside anything else; a segment that goes meanwhile is ErrRange, at once, and one that goes
// while pace waits is not held: its file can be used again.
func (l *Log) Verify(number uint64, pace func(bytes int) error) ([]Damage, error) {
	s, err := l.closed(number)
	if err != nil {
		return nil, err
	}
	held := true
	defer func() {
		if held {
			s.pins.Add(-1)
		}
		l.busy.Done()
	}()
	k := l.known([]*segment{s})[0]
	file, err := l.openSegment(s, ioengine.ReadOnly)
	if errors.Is(err, ErrCorrupt) {
		l.verdict(s, k, err)
		return []Damage{{k.First, k.end, err}}, err
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() // only read
	damage, err, final := l.verifyFile(file, k, func(bytes int) error {
		var err error
		if pace != nil {
			err, held = l.without(s, func() error { return pace(bytes) })
		}
		if err == nil && l.left(s) && !invariant.Planted("journal/segment/verify-what-is-gone") {
			err = fmt.Errorf("%w: it was dropped meanwhile", ErrRange)
		}
		return err
	})
	if final {
		l.verdict(s, k, err)
	}
	if err != nil {
		err = fmt.Errorf("segment %d: %w", number, err)
	}
	return damage, err
}

// verifyFile is Verify of what k says of a segment; final: the error, or nil, is what
// there is to say of it.
func (l *Log) verifyFile(file ioengine.File, k *segment, pace func(bytes int) error) (_ []Damage, err error, final bool) {
	var stop error
	sc, err := openScanner(file)
	if sc == nil {
		return nil, err, false
	}
	if pace != nil {
		sc.pace = func(bytes int) error {
			if stop == nil {
				stop = pace(bytes)
			}
			return stop
		}
	}
	var entries []entry
	if err == nil {
		entries, err = l.verify(sc, k)
	}
	if err == nil && k.state == StateVerified {
		var listed []entry
		if listed, err = sc.footer(k); err == nil && !slices.Equal(listed, entries) {
			err = corrupt("footer: of other records")
		}
	}
	var damage []Damage
	if err != nil && stop == nil && !errors.Is(err, ErrClosed) {
		damage = l.locate(sc, k)
	}
	switch {
	case stop != nil:
		return nil, stop, false
	case l.isClosed():
		return nil, ErrClosed, false
	}
	return damage, err, true
}

// without calls wait while the pinned segment is not pinned: who drops it then can use its file again, and the system has not to
// free it, for which a disk may stand still. Held: it is pinned again, since it was not dropped.
func (l *Log) without(s *segment, wait func() error) (err error, held bool) {
	if invariant.Planted("journal/segment/verify-holds") {
		return wait(), true
	}
	s.pins.Add(-1)
	err = wait()
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s.gone && !invariant.Planted("journal/segment/verify-what-is-gone") {
		return err, false
	}
	s.pins.Add(1)
	return err, true
}

// verdict notes what a reading of the segment found, when it was as k says.
func (l *Log) verdict(s, k *segment, err error) {
	l.mu.Lock()
	again := false
	switch {
	case s.gone || s.edition != k.edition:
	case err != nil:
		s.state, s.err = StateBad, err
	case s.state == StateBad: // it was read well after all, and wants its footer
		s.state, s.err = StateClosed, nil
		again = true
	}
	l.mu.Unlock()
	if again {
		l.seal(s)
	}
}

// closed returns the segment of that number, which must not be open, pinned.
func (l *Log) closed(number uint64) (*segment, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.mu.closed {
		return nil, ErrClosed
	}
	for _, s := range l.mu.segs {
		if s.Number == number && s.state != StateOpen {
			s.pins.Add(1)
			l.busy.Add(1)
			return s, nil
		}
	}
	return nil, fmt.Errorf("%w: no closed segment %d", ErrRange, number)
}

// openSegment opens the file of s for what reads beside the appends. ErrRange: it is no
// longer part of the log; ErrCorrupt: it should be there.
func (l *Log) openSegment(s *segment, flags ioengine.Flags) (ioengine.File, error) {
	l.names.RLock()
	defer l.names.RUnlock()
	if l.left(s) {
		return nil, fmt.Errorf("%w: segment %d was dropped or folded", ErrRange, s.Number)
	}
	file, err := l.fs.Open(l.path(s.Number), flags|ioengine.Direct)
	if errors.Is(err, fs.ErrNotExist) {
		if l.left(s) { // Drop did not wait
			return nil, fmt.Errorf("%w: segment %d was dropped or folded", ErrRange, s.Number)
		}
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return file, err
}
