package index

import (
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Versions knows, for each place of a group's volumes, every version that the log
// holds. One goroutine adds, any number look up.
//
// A version's position is (record, number of its extent); records are added in the
// order of the log, so the version added last is the newest, and each line's versions
// are a list from newest to oldest. A lookup walks that list past what its checkpoint
// does not hold yet.
//
// It costs 20 bytes an extent and line, 16 a block, 44 a record and 4 a line of every
// 16 MiB that was touched at all: about 25 bytes an extent of 4 KiB, so a log of
// 1 TiB of such writes takes 6 GiB. Zero extents longer than 32 lines cost 24 bytes
// and a comparison in every lookup of their volume.
type Versions struct {
	mu      sync.RWMutex
	records arena[recordEntry]
	blocks  arena[blockEntry]
	entries arena[versionEntry]
	volumes map[record.VolumeID]*volumeIndex
	streams map[record.StreamID]*streamIndex
	first   segment.Pos // what lies below was dropped
}

// recordEntry is what finding and verifying a block needs of its record.
type recordEntry struct {
	pos        segment.Pos
	seq        record.Seq
	epoch      record.Epoch
	inc        record.Incarnation
	sum        uint32
	firstBlock uint32
	stream     *streamIndex
}

type blockEntry struct {
	at, crc     uint32
	raw, stored uint16 // less one
	codec       record.Codec
}

// versionEntry is the part of an extent that lies in one line.
type versionEntry struct {
	rec      uint32
	older    uint32 // index of the next older version of the line plus one; 0: none
	block    uint32 // in blocks; zeroBlock: zeros
	from     uint16 // in the line
	length   uint16 // less one
	blockOff uint16
	ext      uint16
}

const zeroBlock = ^uint32(0)

// zeroRange is a zero extent too long to stand in each of its lines.
type zeroRange struct {
	from, to int64
	rec      uint32
	ext      uint16
}

// longZero is the length in bytes above which a zero extent becomes a range.
const longZero = 32 * record.LineBytes

// volumeIndex holds the newest version of each line, in pages of linesPerPage.
type volumeIndex struct {
	pages map[int64]*[linesPerPage]uint32 // index in entries plus one; 0: none
	zeros []zeroRange
}

const linesPerPage = 512

type streamIndex struct {
	id    record.StreamID
	first record.Seq // of recs[0]
	recs  []uint32   // of the stream, without gap
}

// NewVersions returns an index of an empty log.
func NewVersions() *Versions {
	return &Versions{volumes: make(map[record.VolumeID]*volumeIndex), streams: make(map[record.StreamID]*streamIndex)}
}

// Add takes the record at pos, which must lie above every one before; of its stream
// it must be the next. The record's payload is not looked at.
func (v *Versions) Add(pos segment.Pos, r record.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := v.records.n; n > 0 && v.records.at(uint32(n-1)).pos >= pos {
		return fmt.Errorf("index: record %s at %s: not above the last", r.Identity, pos)
	}
	s := v.streams[r.Stream]
	if s == nil {
		s = &streamIndex{id: r.Stream, first: r.Seq}
		v.streams[r.Stream] = s
	}
	if next := s.first + record.Seq(len(s.recs)); r.Seq != next {
		return fmt.Errorf("index: record %s at %s: seq %d is next", r.Identity, pos, next)
	}
	rec := v.records.add(recordEntry{pos: pos, seq: r.Seq, epoch: r.Epoch, inc: r.Incarnation,
		sum: r.Checksum, firstBlock: uint32(v.blocks.n), stream: s})
	s.recs = append(s.recs, rec)
	for i := range r.Blocks {
		b := r.Block(i)
		v.blocks.add(blockEntry{at: uint32(b.At), crc: b.CRC, raw: uint16(b.Raw - 1), stored: uint16(b.Stored - 1), codec: b.Codec})
	}
	for i := range r.Extents {
		v.addExtentLocked(rec, uint16(i), r.Extent(i))
	}
	return nil
}

func (v *Versions) addExtentLocked(rec uint32, ext uint16, e record.Extent) {
	vol := v.volumes[e.Volume]
	if vol == nil {
		vol = &volumeIndex{pages: make(map[int64]*[linesPerPage]uint32)}
		v.volumes[e.Volume] = vol
	}
	if e.Kind == record.ExtentZero && e.Len > longZero {
		vol.zeros = append(vol.zeros, zeroRange{from: e.Off, to: e.Off + e.Len, rec: rec, ext: ext})
		return
	}
	block := zeroBlock
	if e.Kind == record.ExtentData {
		block = v.records.at(rec).firstBlock + uint32(e.Block)
	}
	for off, end := e.Off, e.Off+e.Len; off < end; {
		line, from := off/record.LineBytes, off%record.LineBytes
		n := min(end-off, record.LineBytes-from)
		head := vol.head(line)
		*head = 1 + v.entries.add(versionEntry{rec: rec, older: *head, block: block, from: uint16(from),
			length: uint16(n - 1), blockOff: uint16(e.BlockOff), ext: ext})
		off += n
	}
}

// head returns the place of the line's newest version, making it.
func (x *volumeIndex) head(line int64) *uint32 {
	p := x.pages[line/linesPerPage]
	if p == nil {
		p = new([linesPerPage]uint32)
		x.pages[line/linesPerPage] = p
	}
	return &p[line%linesPerPage]
}

// Sum returns the header checksum of a record in the log.
func (v *Versions) Sum(stream record.StreamID, seq record.Seq) (sum uint32, ok bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := v.streams[stream]
	if s == nil || seq < s.first || seq-s.first >= record.Seq(len(s.recs)) {
		return 0, false
	}
	return v.records.at(s.recs[seq-s.first]).sum, true
}

// Piece says where the bytes of a place are.
type Piece struct {
	Off, Len int64 // in the volume
	In       Where
	// Of InLog: the record's place and identity, the block and where in its raw bytes.
	Pos      segment.Pos
	ID       record.Identity
	Number   int
	Block    record.Block
	BlockOff int
}

// Where says what holds a piece.
type Where uint8

// The places a piece can be.
const (
	InReplica Where = iota + 1 // no record that the checkpoint holds touched it
	InLog
	IsZero
)

// Lookup appends to dst the pieces of [off, off+n) as the checkpoint holds them, in
// order and without gaps. It allocates only when dst must grow, and never fails.
func (v *Versions) Lookup(dst []Piece, vol record.VolumeID, off, n int64, at Vector) ([]Piece, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	x := v.volumes[vol]
	if x == nil {
		return append(dst, Piece{Off: off, Len: n, In: InReplica}), nil
	}
	start := len(dst)
	for end := off + n; off < end; {
		line := off / record.LineBytes
		to := min((line+1)*record.LineBytes, end)
		var head uint32
		if p := x.pages[line/linesPerPage]; p != nil {
			head = p[line%linesPerPage]
		} else if len(x.zeros) == 0 { // nothing here: on to the next page at once
			to = min((line/linesPerPage+1)*linesPerPage*record.LineBytes, end)
		}
		begin := len(dst)
		dst = v.lookupLineLocked(dst, x, head, off, to, at)
		dst = joined(dst, max(begin-1, start))
		off = to
	}
	return dst, nil
}

// lookupLineLocked walks the versions of one line and the zero ranges together, newest
// first, until all of [from, to) is found or nothing is left.
func (v *Versions) lookupLineLocked(dst []Piece, x *volumeIndex, head uint32, from, to int64, at Vector) []Piece {
	base := from / record.LineBytes * record.LineBytes
	begin := len(dst)
	missing := to - from
	zero := len(x.zeros) - 1
	for missing > 0 && (head != 0 || zero >= 0) {
		var e *versionEntry
		if head != 0 {
			e = v.entries.at(head - 1)
		}
		if zero >= 0 {
			z := &x.zeros[zero]
			if e == nil || z.rec > e.rec || z.rec == e.rec && z.ext > e.ext {
				zero--
				if z.from < to && z.to > from && v.heldLocked(z.rec, at) && !invariant.Planted("journal/index/skip-ranges") {
					var got int64
					dst, got = cover(dst, begin, Piece{Off: max(z.from, from), Len: min(z.to, to) - max(z.from, from), In: IsZero})
					missing -= got
				}
				continue
			}
		}
		head = e.older
		r := v.records.at(e.rec)
		if !v.heldLocked(e.rec, at) {
			continue
		}
		if p, ok := v.pieceLocked(e, r, base, from, to); ok {
			var got int64
			dst, got = cover(dst, begin, p)
			missing -= got
		}
	}
	if missing > 0 {
		dst, _ = cover(dst, begin, Piece{Off: from, Len: to - from, In: InReplica})
	}
	return dst
}

func (v *Versions) heldLocked(rec uint32, at Vector) bool {
	r := v.records.at(rec)
	return at.Holds(r.stream.id, r.seq) && r.pos >= v.first
}

// Drop makes records below first be found no more. Their memory is kept.
func (v *Versions) Drop(first segment.Pos) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.first = max(v.first, first)
}

// pieceLocked is the part of a version that lies in [from, to).
func (v *Versions) pieceLocked(e *versionEntry, r *recordEntry, base, from, to int64) (Piece, bool) {
	lo, hi := base+int64(e.from), base+int64(e.from)+int64(e.length)+1
	p := Piece{Off: max(lo, from), In: IsZero}
	p.Len = min(hi, to) - p.Off
	if p.Len <= 0 {
		return Piece{}, false
	}
	if e.block != zeroBlock {
		b := v.blocks.at(e.block)
		p.In, p.Pos = InLog, r.pos
		p.ID = record.Identity{Stream: r.stream.id, Epoch: r.epoch, Incarnation: r.inc, Seq: r.seq}
		p.Number = int(e.block - r.firstBlock)
		p.Block = record.Block{Codec: b.codec, Raw: int(b.raw) + 1, Stored: int(b.stored) + 1, CRC: b.crc, At: int(b.at)}
		p.BlockOff = int(e.blockOff) + int(p.Off-lo)
	}
	return p, true
}

// cover puts the parts of p that dst[begin:] does not cover yet into their order,
// and returns how many bytes those are.
func cover(dst []Piece, begin int, p Piece) ([]Piece, int64) {
	var got int64
	for i := begin; p.Len > 0; i++ {
		if i == len(dst) {
			return append(dst, p), got + p.Len
		}
		have := dst[i]
		if p.Off < have.Off { // the part before have
			q := p
			q.Len = min(p.Len, have.Off-p.Off)
			dst = slices.Insert(dst, i, q)
			got += q.Len
			p = p.after(q.Len)
			continue
		}
		if skip := have.Off + have.Len - p.Off; skip > 0 { // the part under have
			p = p.after(min(skip, p.Len))
		}
	}
	return dst, got
}

// after is p without its first n bytes.
func (p Piece) after(n int64) Piece {
	p.Off, p.Len = p.Off+n, p.Len-n
	if p.In == InLog {
		p.BlockOff += int(n)
	}
	return p
}

// joined makes one piece of neighbours in dst[from:] that are the same part of the
// replica or zeros: a long read of the replica stays one read.
func joined(dst []Piece, from int) []Piece {
	out := dst[:from]
	for _, p := range dst[from:] {
		if n := len(out) - 1; n >= from && p.In != InLog && out[n].In == p.In {
			out[n].Len += p.Len
			continue
		}
		out = append(out, p)
	}
	return out
}
