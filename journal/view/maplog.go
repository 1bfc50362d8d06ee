package view

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// mapLog is the file that says which blocks are a view's own. One goroutine at a time
// calls it.
type mapLog struct {
	fs     ioengine.FS
	name   string
	file   ioengine.File
	header mapHeader

	last    uint64 // number of the last entry or mark
	entered uint64 // number of the last entry
	end     int64  // where the next goes
	marked  uint64 // number of the last durable mark; 0: none that this process knows of
	upTo    uint64 // and up to which it vouches
	buf     [entryBytes]byte
}

const (
	mapNewSuffix = ".new"
	// rewriteBytes is how long a map may be before it is rewritten.
	rewriteBytes = 1 << 20
	// readMapLimit bounds what is read of a map: rewriting keeps it far below.
	readMapLimit = 1 << 30
)

// createMap makes the map of nothing, or of what is in m, durably and whole or not at
// all: it takes the place of an older one. All data that m tells of is synced.
func createMap(fs ioengine.FS, name string, h mapHeader, m *blocks) (l *mapLog, err error) {
	file, err := fs.Open(name+mapNewSuffix, ioengine.Create)
	if err != nil {
		return nil, err
	}
	l = &mapLog{fs: fs, name: name, file: file, header: h, end: headerBytes}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err = file.Truncate(0); err != nil {
		return nil, err
	}
	if _, err = file.WriteAt(h.appendTo(nil), 0); err != nil {
		return nil, err
	}
	if err = l.image(m); err == nil {
		l.entered, l.upTo = l.last, l.last
		l.marked, err = l.mark(l.last)
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = fs.Rename(name+mapNewSuffix, name)
	}
	if err == nil {
		if err = fs.SyncDir(path.Dir(name)); err != nil {
			err = fmt.Errorf("%w: %w", ErrFailed, err)
		}
	}
	return l, err
}

// image writes an entry for each run of blocks.
func (l *mapLog) image(m *blocks) (err error) {
	const most = 64 << 10
	buf := make([]byte, 0, most)
	flush := func() error {
		_, err := l.file.WriteAt(buf, l.end)
		l.end += int64(len(buf))
		buf = buf[:0]
		return err
	}
	if m != nil {
		m.each(func(first, count int64, w place) bool {
			for count > 0 && err == nil {
				n := min(count, math.MaxUint32)
				l.last++
				buf = mapEntry{kindOf(w), uint32(n), uint64(first), l.last, l.header.life}.appendTo(buf)
				if first, count = first+n, count-n; len(buf) == most {
					err = flush()
				}
			}
			return err == nil
		})
	}
	if err == nil && len(buf) > 0 {
		err = flush()
	}
	return err
}

func kindOf(w place) entryKind {
	if w == inFile {
		return entryData
	}
	return entryZeros
}

// openMap opens the map of a volume and replays it into m. boot is that of the machine
// now: if the map was made in another, only what a mark vouches for counts.
func openMap(fs ioengine.FS, name string, want mapHeader, m *blocks) (l *mapLog, err error) {
	file, err := fs.Open(name, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", path.Base(name), err), file.Close())
		}
	}()
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	if size < headerBytes || size > readMapLimit {
		return nil, fmt.Errorf("%d bytes: %w", size, ErrCorrupt)
	}
	p := make([]byte, size)
	if _, err := file.ReadAt(p, 0); err != nil && err != io.EOF {
		return nil, err
	}
	h, err := parseMapHeader(p)
	if err != nil {
		return nil, err
	}
	if h.group != want.group || h.view != want.view || h.volume != want.volume || h.size != want.size {
		return nil, fmt.Errorf("another view's map: %w", ErrCorrupt)
	}
	same := h.boot == want.boot && want.boot != [16]byte{} || invariant.Planted("journal/view/trust-tail")
	r, err := replayMap(p[headerBytes:], h, same)
	if err != nil {
		return nil, err
	}
	for _, e := range r.entries {
		w := inFile
		if e.kind == entryZeros {
			w = inZeros
		}
		m.set(int64(e.first), int64(e.first)+int64(e.count)-1, w)
	}
	l = &mapLog{fs: fs, name: name, file: file, header: h, last: r.last, entered: r.last, end: r.end}
	if same {
		return l, nil
	}
	// What a mark did not vouch for is forgotten for good, before anything is written:
	// entries that come to stand behind it must not bring it back.
	if err := l.rewrite(want.boot, m); err != nil {
		return nil, err
	}
	return l, nil
}

// rewrite puts a map that holds m alone in the place of the file. All data that m tells
// of is synced. After an error, but ErrFailed, the old file is still there and right.
func (l *mapLog) rewrite(boot [16]byte, m *blocks) error {
	h := l.header
	h.life++
	h.boot = boot
	fresh, err := createMap(l.fs, l.name, h, m)
	if err != nil {
		return err
	}
	old := l.file
	*l = *fresh
	_ = old.Close() // it has no name any more
	return nil
}

// append adds an entry, which counts once it returns.
func (l *mapLog) append(kind entryKind, first int64, count uint32) error {
	e := mapEntry{kind, count, uint64(first), l.last + 1, l.header.life}
	if _, err := l.file.WriteAt(e.appendTo(l.buf[:0]), l.end); err != nil {
		return err
	}
	l.last, l.entered, l.end = e.number, e.number, l.end+entryBytes
	return nil
}

// mark writes that the entries up to a number, whose data was synced before, count
// whatever happens. It does once the file is synced and marked was told.
func (l *mapLog) mark(upTo uint64) (number uint64, err error) {
	e := mapEntry{kind: entryMark, first: upTo, number: l.last + 1, life: l.header.life}
	if l.marked != 0 {
		e.count = uint32(e.number - l.marked)
	}
	if _, err := l.file.WriteAt(e.appendTo(l.buf[:0]), l.end); err != nil {
		return 0, err
	}
	l.last = e.number
	l.end = (l.end + entryBytes + markPage - 1) / markPage * markPage
	return e.number, nil
}

// vouched says whether a durable mark vouches for every entry.
func (l *mapLog) vouched() bool { return l.marked != 0 && l.entered <= l.upTo }

// long says whether the file is worth rewriting: much longer than its image would be.
func (l *mapLog) long(runs int64) bool {
	return l.end > headerBytes+4*runs*entryBytes
}
