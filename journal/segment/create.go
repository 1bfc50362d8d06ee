package segment

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	suffix = ".seg"

	// Not yet segments.
	newSuffix    = ".seg.new"
	repairSuffix = ".seg.repair"
	foldSuffix   = ".seg.fold"
)

func fileName(number uint64) string { return fmt.Sprintf("%016d%s", number, suffix) }

// fileNumber is fileName's inverse.
func fileNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && err == nil && fileName(n) == name
}

// create makes a segment that begins with what fill writes, which may be nil, as one
// round. It has its name only once all that is durable; it takes the name from an
// older file of that number. So a file with the name of a segment is one, always.
func (l *Log) create(h header, fill func(*writer) error) (*writer, *segment, error) {
	name := l.path(h.Number)
	temp := strings.TrimSuffix(name, suffix) + newSuffix
	if err := l.removeTemp(temp); err != nil {
		return nil, nil, err
	}
	file, recycled, err := l.blank(temp)
	if err != nil {
		return nil, nil, err
	}
	h.Recycled, h.Padded = recycled, true
	if recycled && invariant.Planted("journal/segment/old-life") {
		if sc, err := openScanner(file); err == nil {
			h.Life = sc.Life
		}
	}
	w := newWriter(file, h, l.opt.Stages)
	if err := l.begin(w, h, fill); err != nil {
		w.drop()
		return nil, nil, errors.Join(err, file.Close())
	}
	err = l.fs.Rename(temp, name)
	if err == nil && !invariant.Planted("journal/segment/no-syncdir") {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return w, openSegmentOf(h), nil
}

// openSegmentOf is a segment that begins.
func openSegmentOf(h header) *segment {
	return &segment{header: h, end: h.First, chain: h.Chain, state: StateOpen}
}

// blank opens a file of that name for a segment to be: a spare one, else a new one.
func (l *Log) blank(temp string) (file ioengine.File, recycled bool, err error) {
	flags := ioengine.Direct
	if l.opt.Spare != nil {
		if recycled, err = l.opt.Spare.take(temp, l.segmentBytes()); err != nil {
			return nil, false, err
		}
	}
	if recycled && !invariant.Planted("journal/segment/spare-twice") {
		// Else a crash could leave the file in the pool and under the segment's name.
		if err := l.fs.SyncDir(l.dir); err != nil {
			return nil, false, err
		}
	}
	if !recycled {
		flags |= ioengine.Create | ioengine.Exclusive
	}
	file, err = l.fs.Open(temp, flags)
	return file, recycled, err
}

func (l *Log) begin(w *writer, h header, fill func(*writer) error) error {
	if err := l.writeHeader(w.file, h); err != nil {
		return err
	}
	if fill != nil {
		if err := fill(w); err != nil {
			return err
		}
		if err := w.finish(); err != nil {
			return err
		}
	}
	return w.file.Sync()
}
