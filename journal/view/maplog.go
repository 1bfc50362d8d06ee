package view

import (
	"errors"
	"fmt"
	"math"
	"path"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// mapLog is the file that says which blocks are a view's own, where they stand and what
// their checksums are. One goroutine at a time calls it.
type mapLog struct {
	fs     ioengine.FS
	name   string
	file   ioengine.File
	header mapHeader

	last    uint64 // number of the last cell
	entered uint64 // number of the last cell of an entry
	end     int64  // where the next goes
	marked  uint64 // number of the last durable mark; 0: none that this process knows of
	upTo    uint64 // and up to which it vouches
	torn    bool   // behind end stands what was to be written and failed
	filled  int64  // up to here there are zeros behind end
	buf     []byte
}

const (
	mapNewSuffix = ".new"
	// rewriteBytes is how long a map may be before it is rewritten.
	rewriteBytes = 1 << 20
	// fillBytes is by how much the file grows, with zeros, so that most syncs of it need no
	// more than the bytes: a size that changed costs the file system a commit.
	fillBytes = 64 << 10
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

// image writes entries for all that is in m.
func (l *mapLog) image(m *blocks) (err error) {
	if m == nil {
		return nil
	}
	const most = 64 << 10
	l.filled = math.MaxInt64
	defer func() { l.filled = l.end }()
	eachEntry(m, func(e *mapEntry) bool {
		l.add(e)
		if len(l.buf) >= most {
			err = l.write()
		}
		return err == nil
	})
	if err == nil {
		err = l.write()
	}
	return err
}

// eachEntry calls tell with as few entries as say what is in m, until it returns false.
// They are borrowed.
func eachEntry(m *blocks, tell func(e *mapEntry) bool) {
	run := mapEntry{sums: make([]uint32, 0, maxRun)}
	going := true
	flush := func() bool {
		if run.count = uint32(len(run.sums)); run.count > 0 {
			run.kind = entryRun
			if run.count == 1 {
				run.kind = entryBlock
			}
			going = tell(&run)
			run.sums = run.sums[:0]
		}
		return going
	}
	m.each(func(first, count int64, w word) bool {
		if w == zerosWord {
			for flush(); going && count > 0; {
				n := min(count, math.MaxUint32)
				going = tell(&mapEntry{kind: entryZeros, first: uint64(first), count: uint32(n)})
				first, count = first+n, count-n
			}
			return going
		}
		n := len(run.sums)
		if n == maxRun || n > 0 && (run.first+uint64(n) != uint64(first) || run.slot+uint32(n) != w.slot()) {
			flush()
			n = 0
		}
		if n == 0 {
			run.first, run.slot = uint64(first), w.slot()
		}
		run.sums = append(run.sums, w.sum())
		return going
	})
	if going {
		flush()
	}
}

// openMap opens the map of a volume and replays it into m. boot is that of the machine
// now: if the map was made in another, only what a mark vouches for counts. high is above
// all slots that may be in use.
func openMap(fs ioengine.FS, name string, want mapHeader, m *blocks) (l *mapLog, r replayed, err error) {
	file, err := fs.Open(name, 0)
	if err != nil {
		return nil, r, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", path.Base(name), err), file.Close())
		}
	}()
	size, err := file.Size()
	if err != nil {
		return nil, r, err
	}
	if size < headerBytes {
		return nil, r, fmt.Errorf("%d bytes, less than its header: %w", size, ErrCorrupt)
	}
	p := make([]byte, headerBytes)
	if _, err := file.ReadAt(p, 0); err != nil {
		return nil, r, err
	}
	h, err := parseMapHeader(p)
	if err != nil {
		return nil, r, err
	}
	if !h.same(want) {
		return nil, r, fmt.Errorf("another view's map: %w", ErrCorrupt)
	}
	same := h.boot == want.boot && want.boot != [16]byte{} || invariant.Planted("journal/view/trust-tail")
	c := &cells{file: file, size: size}
	if r, err = c.replay(&h, same, func(e *mapEntry) { applyEntry(m, e) }); err != nil {
		return nil, r, err
	}
	return &mapLog{fs: fs, name: name, file: file, header: h, last: r.last, entered: r.last, end: r.end, torn: r.part, filled: max(size, r.end)}, r, nil
}

func (h mapHeader) same(o mapHeader) bool {
	return h.group == o.group && h.view == o.view && h.volume == o.volume && h.size == o.size
}

func applyEntry(m *blocks, e *mapEntry) {
	switch first, last := int64(e.first), int64(e.first)+int64(e.count)-1; e.kind {
	case entryZeros:
		m.clear(first, last, func(word) {})
		return
	case entryBase:
		m.forget(first, last)
		return
	}
	for i, sum := range e.sums {
		m.set(int64(e.first)+int64(i), fileWord(e.slot+uint32(i), sum))
	}
}

// rewrite puts a map that holds m alone in the place of the file. All data that m tells
// of is synced. After an error, but ErrFailed, the old file is still there and right.
func (l *mapLog) rewrite(boot [16]byte, m *blocks) error {
	h := l.header
	h.version, h.life, h.boot = version, h.life+1, boot
	fresh, err := createMap(l.fs, l.name, h, m)
	if err != nil {
		return err
	}
	old := l.file
	*l = *fresh
	_ = old.Close() // it has no name any more
	return nil
}

// add gives an entry its number; write must follow.
func (l *mapLog) add(e *mapEntry) {
	e.number = l.last + uint64(len(l.buf)/entryBytes) + 1
	l.buf = e.appendTo(l.buf, l.header.life)
}

// write appends what was added. It counts once it returns. After an error it may count if
// this process ends before the next write that succeeds.
func (l *mapLog) write() error {
	p := l.buf
	l.buf = l.buf[:0]
	if l.torn {
		if err := l.file.Truncate(l.end); err != nil {
			return err
		}
		l.torn, l.filled = false, l.end
	}
	n := int64(len(p))
	if end := l.end + n; end > l.filled {
		p = append(p, make([]byte, (end+fillBytes-1)/fillBytes*fillBytes-end)...)
	}
	if _, err := l.file.WriteAt(p, l.end); err != nil {
		l.torn = true
		return err
	}
	l.filled = max(l.filled, l.end+int64(len(p)))
	l.last += uint64(n / entryBytes)
	l.entered, l.end = l.last, l.end+n
	return nil
}

// mark writes that the entries up to a number, whose data was synced before, count
// whatever happens. It does once the file is synced and marked was told.
func (l *mapLog) mark(upTo uint64) (number uint64, err error) {
	e := mapEntry{kind: entryMark, first: upTo, number: l.last + 1}
	if l.marked != 0 {
		e.count = uint32(e.number - l.marked)
	}
	entered := l.entered
	l.add(&e)
	if err := l.write(); err != nil {
		return 0, err
	}
	l.entered = entered
	l.end = (l.end + markPage - 1) / markPage * markPage
	return e.number, nil
}

// vouched says whether a durable mark vouches for every entry.
func (l *mapLog) vouched() bool { return l.marked != 0 && l.entered <= l.upTo }

// long says whether the file is worth rewriting: much longer than its image would be.
func (l *mapLog) long(image uint64) bool {
	return l.end > headerBytes+4*int64(image)*entryBytes
}
