package segment

import (
	"errors"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The next segment is made ready beside the commits, so that to begin it costs them one write
// of a page and no sync. Its file has its space, its name, which is durable, and a header
// that says only that the segment was not begun. The log begins it when the open one is
// full: it writes the header over that one, and the records behind it; the sync of the first
// round makes all of it durable. Until then the segment is none to anybody else: the one
// before it is the last, is not read back, and cannot be dropped or folded.
//
//	made ready ──► begun (header written) ──first round synced──► of the log
//	     └── a crash: nothing in it counts, and it is removed at the next opening

// prepared is a file for the segment after the open one.
type prepared struct {
	file   ioengine.File
	header header // not begun
	backed int64  // bytes of the file that have their space
}

// preparedAt is the part of a segment that is filled when the next one is made ready: a
// disk that stands still for a while has not stopped the log then.
const preparedAt = 2

// worthPreparingLocked returns the number of the next segment, once for each, when the open one
// is filled so far that it is to be made ready, by prepareAhead; else 0.
func (l *Log) worthPreparingLocked() (number uint64) {
	number = l.cur.Number + 1
	if l.mu.closed || l.mu.asked == number || int64(l.cur.end-l.cur.First) < l.opt.SegmentBytes/preparedAt {
		return 0
	}
	l.mu.asked = number
	l.busy.Add(1)
	return number
}

// prepareAhead has the segment of that number made ready.
func (l *Log) prepareAhead(number uint64) {
	work := func() {
		defer l.busy.Done()
		l.making.Lock()
		defer l.making.Unlock()
		if l.cur.Number+1 != number || l.next != nil { // it came to its turn too late
			return
		}
		var err error
		if l.next, err = l.prepare(number); err != nil {
			l.opt.Log.Info("the next segment is not made ready: it is made when it begins", "segment", number, "err", err)
			return
		}
		l.ready.Store(l.next.backed)
	}
	if l.opt.Ahead == nil {
		go work()
		return
	}
	l.opt.Ahead(work)
}

// prepare makes the file of the segment of that number ready. What failed leaves no file that
// takes space.
func (l *Log) prepare(number uint64) (*prepared, error) {
	temp := strings.TrimSuffix(l.path(number), suffix) + newSuffix
	if err := l.removeTemp(temp); err != nil {
		return nil, err
	}
	file, recycled, err := l.blank(temp)
	if err != nil {
		return nil, err
	}
	p := &prepared{file: file, backed: l.segmentBytes(), header: header{Group: l.group, Number: number, Recycled: recycled, Padded: true, Prepared: true}}
	if !recycled {
		p.backed = min(pageBytes+stepBytes, p.backed)
		err = file.Allocate(0, p.backed)
	}
	if err == nil {
		err = l.writeHeader(file, p.header)
	}
	if err == nil && !invariant.Planted("journal/segment/prepared-unsynced") {
		err = file.Sync()
	}
	if err == nil {
		err = l.fs.Rename(temp, l.path(number))
	}
	if err == nil {
		if temp = l.path(number); !invariant.Planted("journal/segment/prepared-unnamed") {
			err = l.fs.SyncDir(l.dir)
		}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), l.removeTemp(temp))
	}
	return p, nil
}

func (l *Log) writeHeader(file ioengine.File, h header) error {
	page := buf.Aligned(pageBytes)
	h.put(page)
	_, err := file.WriteAt(page, 0)
	return err
}

// beginNext begins the segment of h in the file that was made ready for it; nil: there is none,
// or it cannot be used.
func (l *Log) beginNext(h header) (*prepared, error) {
	p := l.giveUpNext()
	if p == nil || p.header.Number != h.Number {
		return nil, p.close()
	}
	h.Recycled, h.Padded, h.Prepared = p.header.Recycled, true, true
	p.header = h
	if invariant.Planted("journal/segment/begun-unsaid") {
		return p, nil
	}
	if err := l.writeHeader(p.file, h); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// giveUpNext returns what was made ready, nil if nothing was, and forgets it.
func (l *Log) giveUpNext() *prepared {
	p := l.next
	l.next = nil
	l.ready.Store(0)
	return p
}

// Ready returns how many bytes the file takes that was made ready for the next segment.
func (l *Log) Ready() int64 { return l.ready.Load() }

// close gives the file up, which may be nil. It stays behind, and is removed or replaced.
func (p *prepared) close() error {
	if p == nil {
		return nil
	}
	return p.file.Close()
}
