package segment

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Drop takes the segments that end at or before the place out of the log, and their
// files off the disk or into the pool; that of one which is being read back, and what comes
// after it, as soon as that has stopped. The caller has raised Watermark.First to
// before; then the next Open finishes what a crash or an error left, and so does the next
// Drop. The open segment stays. It may be called beside appends and reads.
func (l *Log) Drop(before Pos) error {
	l.upkeep.Lock()
	defer l.upkeep.Unlock()
	l.mu.Lock()
	if l.mu.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.busy.Add(1)
	n := 0
	for n < len(l.mu.segs)-1 && l.mu.segs[n].limit() <= before {
		n++
	}
	l.takeOutLocked(0, n, nil)
	l.mu.Unlock()
	defer l.busy.Done()
	return l.discard()
}

// takeOutLocked takes segments [from, to) of the list out of the log, and puts another,
// if not nil, in their place. Their files are for discard.
func (l *Log) takeOutLocked(from, to int, other *segment) {
	for _, s := range l.mu.segs[from:to] {
		s.gone = true
		l.mu.dropped = append(l.mu.dropped, s)
	}
	rest := slices.Clone(l.mu.segs[:from])
	if other != nil {
		rest = append(rest, other)
	}
	l.mu.segs = append(rest, l.mu.segs[to:]...)
}

// discard gets rid of the files of dropped segments, as far as it can. A file that
// someone still reads is removed and never used again: what is written to it next would
// be taken for what it held.
func (l *Log) discard() error {
	l.mu.RLock()
	dropped := slices.Clone(l.mu.dropped)
	l.mu.RUnlock()
	if len(dropped) == 0 {
		return nil
	}
	// What a fold stands for goes only after the fold is there for certain.
	if err := l.fs.SyncDir(l.dir); err != nil {
		return err
	}
	var failed error
	done := 0
	for _, s := range dropped {
		if s.sealing.Load() && !invariant.Planted("journal/segment/discard-sealing") {
			break // whoever reads it back stops, and comes back to this
		}
		if err := l.discardFile(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = err
			break
		}
		done++
	}
	l.mu.Lock()
	l.mu.dropped = slices.Clone(l.mu.dropped[done:])
	l.mu.Unlock()
	if done == 0 {
		return failed
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return errors.Join(failed, err)
	}
	if l.opt.Spare != nil {
		failed = errors.Join(failed, l.opt.Spare.settle())
	}
	return failed
}

func (l *Log) discardFile(s *segment) error {
	l.files.forget(s.Life)
	defer l.files.forget(s.Life) // a read may have opened it meanwhile
	if l.opt.Discarded != nil {
		l.opt.Discarded(l.fileInfo(s))
	}
	name := l.path(s.Number)
	idle := s.pins.Load() == 0 && !s.abandoned // none comes, now that it is gone
	if idle && l.opt.Spare != nil {
		if kept, err := l.opt.Spare.receive(name, l.segmentBytes()); kept || err != nil {
			return err
		}
	}
	return l.fs.Remove(name)
}

// segmentBytes is the size of the file of a whole segment.
func (l *Log) segmentBytes() int64 { return pageBytes + l.opt.SegmentBytes }
