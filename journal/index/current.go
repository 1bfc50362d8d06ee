package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"path"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The file `current` names the runs that together are the index, and the place in the
// log up to which they hold everything. It is written whole beside itself and renamed. See
// FORMAT.md.
const (
	currentName    = "current"
	newCurrentName = "current.new"
	currentMagic   = "HFIXCUR1"
	currentVersion = 2         // what version 1 can say is written as version 1
	maxCurrent     = 256 << 20 // bytes
)

// layout is what current says.
type layout struct {
	covered Snapshot
	first   segment.Pos // what lies below was dropped
	next    uint64      // the number of the next run
	runs    []layoutRun
	marks   []FoldMark // rising, none over another
}

// layoutRun is a run and what of it is forgotten.
type layoutRun struct {
	id    runID
	pages uint64
	masks []Span
	run   *run // nil as current was read
}

func (l *layout) encode(group record.GroupID) []byte {
	p := append([]byte(nil), currentMagic...)
	version := byte(1)
	if len(l.marks) > 0 {
		version = currentVersion
	}
	p = append(p, version)
	p = le.AppendUint64(p, uint64(group))
	for _, v := range [...]uint64{uint64(l.covered.Pos), l.covered.Segment, l.covered.Life, uint64(l.first), l.next, uint64(len(l.runs))} {
		p = le.AppendUint64(p, v)
	}
	for _, r := range l.runs {
		p = le.AppendUint64(p, r.id.number)
		p = le.AppendUint64(p, r.id.life)
		p = le.AppendUint64(p, r.pages)
		p = binary.AppendUvarint(p, uint64(len(r.masks)))
		for _, m := range r.masks {
			p = binary.AppendUvarint(p, uint64(m.From))
			p = binary.AppendUvarint(p, uint64(m.To))
		}
	}
	p = binary.AppendUvarint(p, uint64(len(l.covered.State)))
	p = append(p, l.covered.State...)
	if version > 1 {
		p = binary.AppendUvarint(p, uint64(len(l.marks)))
		for _, m := range l.marks {
			p = le.AppendUint64(p, uint64(m.From))
			p = le.AppendUint64(p, uint64(m.To))
			p = le.AppendUint64(p, m.Life)
		}
	}
	return le.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// parseCurrent is encode backwards.
func parseCurrent(p []byte, group record.GroupID) (l layout, err error) {
	if len(p) < len(currentMagic)+1+4 || string(p[:len(currentMagic)]) != currentMagic {
		return l, fmt.Errorf("%s: magic: %w", currentName, ErrCorrupt)
	}
	body, sum := p[:len(p)-4], le.Uint32(p[len(p)-4:])
	if crc32.Checksum(body, castagnoli) != sum && !invariant.Planted("journal/index/current-unchecked") {
		return l, fmt.Errorf("%s: checksum: %w", currentName, ErrCorrupt)
	}
	d := decoder{p: body[len(currentMagic):]}
	version := d.u8()
	if version < 1 || version > currentVersion {
		return l, fmt.Errorf("%s: version %d: %w", currentName, version, ErrCorrupt)
	}
	if g := record.GroupID(d.u64()); g != group {
		return l, fmt.Errorf("%s: of group %s: %w", currentName, g, ErrCorrupt)
	}
	l.covered.Pos, l.covered.Segment, l.covered.Life = segmentPos(d.u64()), d.u64(), d.u64()
	l.first, l.next = segmentPos(d.u64()), d.u64()
	n := d.u64()
	for i := uint64(0); i < n && !d.bad; i++ {
		r := layoutRun{id: runID{group, d.u64(), d.u64()}, pages: d.u64()}
		end := segment.Pos(-1)
		for masks := d.uvarint(); masks > 0 && !d.bad; masks-- {
			m := Span{segmentPos(d.uvarint()), segmentPos(d.uvarint())}
			d.bad = d.bad || m.From <= end || m.To <= m.From
			end = m.To
			r.masks = append(r.masks, m)
		}
		d.bad = d.bad || r.id.number >= l.next || r.pages > math.MaxInt64/pageBytes
		l.runs = append(l.runs, r)
	}
	l.covered.State = slices.Clone(d.take(int(min(d.uvarint(), math.MaxInt32))))
	if version > 1 {
		l.marks = d.marks()
	}
	if d.bad || len(d.p) != 0 || l.covered.Pos < 0 || l.first < 0 {
		return l, fmt.Errorf("%s: %w", currentName, ErrCorrupt)
	}
	return l, nil
}

// marks takes what a version 2 has more.
func (d *decoder) marks() (marks []FoldMark) {
	end := segment.Pos(-1)
	n := d.uvarint()
	d.bad = d.bad || n == 0
	for ; n > 0 && !d.bad; n-- {
		m := FoldMark{segmentPos(d.u64()), segmentPos(d.u64()), d.u64()}
		d.bad = d.bad || m.From < end || m.To <= m.From || m.From < 0
		end = m.To
		marks = append(marks, m)
	}
	return marks
}

// readCurrent reads and verifies current. fs.ErrNotExist when there is none.
func readCurrent(fs ioengine.FS, dir string, group record.GroupID) (l layout, err error) {
	f, err := fs.Open(path.Join(dir, currentName), ioengine.ReadOnly)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return l, err
	}
	if size > maxCurrent {
		return l, fmt.Errorf("%s: %d bytes: %w", currentName, size, ErrCorrupt)
	}
	p := make([]byte, size)
	if n, err := f.ReadAt(p, 0); n < len(p) {
		return l, errors.Join(err, io.ErrUnexpectedEOF)
	}
	return parseCurrent(p, group)
}

// write makes l what the next OpenTable finds, durably. After an error it may be that or what was.
func (l *layout) write(fs ioengine.FS, dir string, group record.GroupID) (n int, err error) {
	name := path.Join(dir, newCurrentName)
	f, err := fs.Open(name, ioengine.Create)
	if err != nil {
		return 0, err
	}
	p := l.encode(group)
	if err = f.Truncate(0); err == nil { // one may be left that was not renamed
		_, err = f.WriteAt(p, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, errors.Join(err, fs.Remove(name)) // never synced again
	}
	if err := fs.SyncDir(dir); err != nil { // the names of runs, before what names them
		return 0, err
	}
	if err := fs.Rename(name, path.Join(dir, currentName)); err != nil {
		return 0, err
	}
	return len(p), fs.SyncDir(dir)
}

// masks with one more. Those passed are not changed.
func withMask(masks []Span, m Span) []Span {
	out := make([]Span, 0, len(masks)+1)
	for _, have := range masks {
		if have.From <= m.To && have.To >= m.From {
			m = Span{min(have.From, m.From), max(have.To, m.To)}
			continue
		}
		out = append(out, have)
	}
	i := 0
	for i < len(out) && out[i].From < m.From {
		i++
	}
	return slices.Insert(out, i, m)
}
