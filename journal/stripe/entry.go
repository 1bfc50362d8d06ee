package stripe

import (
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// entry is one change of the names of a set.
type entry struct {
	kind   entryKind
	name   string // of a file or folder; of a member: its folder
	to     string
	member uint32
	state  memberState
	object objectInfo // without its name
}

type entryKind uint8

const (
	entryMember entryKind = iota + 1
	entryMemberGone
	entryFolder
	entryFile
	entryPlaced
	entryRename
	entryRemove
	entryGeometry
	entryInstalled
	entryNext
)

// The file of names (FORMAT.md): a header page, then batches of entries that begin at a page.
const (
	namesMagic   = 0x314e5348 // "HSN1"
	namesVersion = 1

	namesHeaderBytes = 64
	atNamesSet       = 8
	atGeneration     = 16
	atNamesMember    = 24
	atSnapshot       = 32 // where the snapshot ends, which the file always has
	atNamesZero      = 40
	atNamesCRC       = 60

	entryHeaderBytes = 8
	maxEntry         = 64 << 10
	batchBit         = 1 << 31 // of the length: a batch begins with this entry
	maxNamePath      = 4096
)

var _ [namesHeaderBytes]byte = [atNamesCRC + 4]byte{}

// append adds the body of the entry to p.
func (e *entry) append(p []byte) []byte {
	p = append(p, byte(e.kind), byte(e.state))
	p = le.AppendUint16(p, uint16(len(e.name)))
	p = le.AppendUint16(p, uint16(len(e.to)))
	o := &e.object
	dirty := byte(0)
	if o.dirty {
		dirty = 1
	}
	p = append(p, byte(o.K), byte(o.M), dirty, byte(len(o.places)))
	p = le.AppendUint32(p, e.member)
	p = le.AppendUint64(p, o.id)
	p = le.AppendUint64(p, uint64(o.length))
	for _, m := range o.places {
		p = le.AppendUint32(p, m)
	}
	p = append(p, e.name...)
	return append(p, e.to...)
}

const entryFixed = 30

func parseEntry(p []byte) (e entry, err error) {
	if len(p) < entryFixed {
		return e, corrupt("entry is cut short")
	}
	e.kind, e.state = entryKind(p[0]), memberState(p[1])
	nameLen, toLen, places := int(le.Uint16(p[2:])), int(le.Uint16(p[4:])), int(p[9])
	if e.kind == 0 {
		return e, corrupt("entry of no kind")
	}
	if e.kind > entryNext {
		return e, fmt.Errorf("entry of kind %d: %w", e.kind, ErrVersion)
	}
	if len(p) != entryFixed+4*places+nameLen+toLen || p[8] > 1 {
		return e, corrupt("entry of %d bytes", len(p))
	}
	o := &e.object
	o.Geometry, o.dirty = Geometry{int(p[6]), int(p[7])}, p[8] == 1
	e.member = le.Uint32(p[10:])
	o.id, o.length = le.Uint64(p[14:]), int64(le.Uint64(p[22:]))
	for i := range places {
		o.places = append(o.places, le.Uint32(p[entryFixed+4*i:]))
	}
	rest := p[entryFixed+4*places:]
	e.name, e.to = string(rest[:nameLen]), string(rest[nameLen:])
	return e, e.check()
}

// check says what makes no sense in the entry by itself.
func (e *entry) check() error {
	named := len(e.name) <= maxNamePath && len(e.name) > 1 && clean(e.name) == e.name
	ok := true
	switch o := &e.object; e.kind {
	case entryMember:
		ok = e.member != 0 && e.state >= memberIn && e.state <= memberRetiring && e.name != ""
	case entryMemberGone:
		ok = e.member != 0
	case entryFolder, entryRemove:
		ok = named
	case entryFile, entryPlaced:
		ok = o.id != 0 && o.Validate() == nil && len(o.places) > 0 && o.length >= 0 && o.length <= maxLength &&
			(!o.striped() || len(o.places) == o.width() && o.length > 0) && (named || e.kind == entryPlaced)
	case entryRename:
		ok = named && len(e.to) <= maxNamePath && len(e.to) > 1 && clean(e.to) == e.to
	case entryGeometry:
		ok = o.Validate() == nil
	case entryNext:
		ok = e.member != 0 && o.id != 0
	}
	if !ok {
		return corrupt("entry of kind %d: a field without sense", e.kind)
	}
	return nil
}

// appendBatch adds entries to p, which stands at off in the file of that generation, and
// zeros up to the next page.
func appendBatch(p []byte, generation uint64, off int64, es []entry) []byte {
	base := len(p)
	for i := range es {
		at := len(p)
		p = append(p, make([]byte, entryHeaderBytes)...)
		p = es[i].append(p)
		body := p[at+entryHeaderBytes:]
		size := uint32(len(body))
		if i == 0 {
			size |= batchBit
		}
		le.PutUint32(p[at:], size)
		le.PutUint32(p[at+4:], entrySum(generation, off+int64(at-base), size, body))
	}
	return append(p, make([]byte, buf.RoundUp(len(p)-base)-(len(p)-base))...)
}

// entrySum ties an entry to its place: what an older file left does not verify.
func entrySum(generation uint64, off int64, size uint32, body []byte) uint32 {
	var place [20]byte
	le.PutUint64(place[:], generation)
	le.PutUint64(place[8:], uint64(off))
	le.PutUint32(place[16:], size)
	return crc32.Update(crc32.Checksum(place[:], castagnoli), castagnoli, body)
}

// encodeNames returns a whole file of names for a member.
func encodeNames(n *names, member uint32) []byte {
	p := make([]byte, buf.Align)
	p = appendBatch(p, n.generation, buf.Align, n.snapshot())
	le.PutUint32(p, namesMagic)
	le.PutUint16(p[atVersion:], namesVersion)
	le.PutUint64(p[atNamesSet:], n.set)
	le.PutUint64(p[atGeneration:], n.generation)
	le.PutUint32(p[atNamesMember:], member)
	le.PutUint64(p[atSnapshot:], uint64(len(p)))
	le.PutUint32(p[atNamesCRC:], crc32.Checksum(p[:atNamesCRC], castagnoli))
	aligned := buf.Aligned(len(p))
	copy(aligned, p)
	return aligned
}

// parseNames reads a file of names: the snapshot, and after it whole entries from the front.
// It returns whose file it is, and how many bytes of it count.
func parseNames(p []byte) (n *names, member uint32, end int64, err error) {
	if len(p) < buf.Align || le.Uint32(p) != namesMagic || le.Uint32(p[atNamesCRC:]) != crc32.Checksum(p[:atNamesCRC], castagnoli) {
		return nil, 0, 0, corrupt("no file of names")
	}
	if v := le.Uint16(p[atVersion:]); v != namesVersion {
		return nil, 0, 0, fmt.Errorf("names of version %d: %w", v, ErrVersion)
	}
	n = newNames(le.Uint64(p[atNamesSet:]), Geometry{1, 1})
	n.generation, member = le.Uint64(p[atGeneration:]), le.Uint32(p[atNamesMember:])
	snapshot := int64(le.Uint64(p[atSnapshot:]))
	if n.set == 0 || n.generation == 0 || member == 0 || snapshot < buf.Align || snapshot > int64(len(p)) {
		return nil, 0, 0, corrupt("names: a field without sense")
	}
	end, err = n.replay(p)
	if err != nil {
		return nil, 0, 0, err
	}
	if end < snapshot {
		return nil, 0, 0, corrupt("names end at %d, within their snapshot", end)
	}
	if later := vouched(p, n.generation, end); later && !invariant.Planted("journal/stripe/names-unvouched") {
		return nil, 0, 0, corrupt("names are damaged at %d", end)
	}
	return n, member, end, nil
}

// replay applies all entries up to the first that is not whole and returns where a batch
// may go on.
func (n *names) replay(p []byte) (end int64, err error) {
	at := buf.Align
	for at < len(p) {
		body := entryAt(p, n.generation, at)
		if body == nil {
			next := buf.RoundUp(at)
			if at%buf.Align == 0 || next >= len(p) || !allZero(p[at:next]) {
				break
			}
			at = next // the rest of a batch's last page
			continue
		}
		e, err := parseEntry(body)
		if err != nil {
			return 0, err
		}
		if err := n.apply(e); err != nil {
			return 0, err
		}
		at += entryHeaderBytes + len(body)
	}
	return int64(buf.RoundUp(at)), nil
}

// entryAt returns the body of the entry at a place, nil when none is whole there.
func entryAt(p []byte, generation uint64, at int) []byte {
	if len(p)-at < entryHeaderBytes {
		return nil
	}
	head := le.Uint32(p[at:])
	size := int(head &^ batchBit)
	if size < entryFixed || size > maxEntry || size > len(p)-at-entryHeaderBytes {
		return nil
	}
	body := p[at+entryHeaderBytes:][:size]
	if entrySum(generation, int64(at), head, body) != le.Uint32(p[at+4:]) {
		return nil
	}
	return body
}

// vouched says whether a batch stands behind the end: it was written after what is missing
// there was durable.
func vouched(p []byte, generation uint64, end int64) bool {
	for at := int(end); at < len(p); at += buf.Align {
		if entryAt(p, generation, at) != nil && le.Uint32(p[at:])&batchBit != 0 {
			return true
		}
	}
	return false
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func sumOf(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }
