package segment

import (
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// header is the first page of a segment.
type header struct {
	Group  record.GroupID
	Number uint64 // of the segment within its log, from 1
	Life   uint64 // drawn for this file's use as this segment, never zero; its commits carry it
	First  Pos    // of its first record; where the predecessor ends
	// Pred is the predecessor's life, 0 for the first segment. What the predecessor
	// holds at or after First does not exist.
	Pred  uint64
	Chain uint32 // of all records before First

	// Recycled says that the file holds the bytes of an earlier use.
	Recycled bool
	// Padded says that zeros may stand before a record, less than a page.
	Padded bool
	// Prepared says that the file was made ready before the segment began: First, Life, Pred
	// and Chain are zero until then.
	Prepared bool
	Fold     fold // zero, but in a folded segment
}

// fold says what a folded segment stands for: segments Number to Last of before, and
// their places from First to To. Its own records end at End.
type fold struct {
	To, End   Pos
	Last      uint64
	FirstLife uint64 // of segment Number of before
	LastLife  uint64 // of segment Last of before: the successor names it as its predecessor's
	Chain     uint32 // at To: the successor's
	EndChain  uint32 // at End: of Chain before First and the records of this file
}

func (h header) folded() bool { return h.Fold.To != 0 }

// unbegun says whether the file was made ready for a segment that did not begin.
func (h header) unbegun() bool { return h.Prepared && h.First == 0 }

// last returns the number that the successor's follows, and the life that it names.
func (h header) last() (number, life uint64) {
	if h.folded() {
		return h.Fold.Last, h.Fold.LastLife
	}
	return h.Number, h.Life
}

const (
	headerMagic   = 0x31534648 // "HFS1"
	headerVersion = 4          // what an older version can say is written as that

	atMagic       = 0
	atVersion     = 4
	atZero        = 6
	atHeaderGroup = 8
	atNumber      = 16
	atHeaderLife  = 24
	atFirst       = 32
	atPred        = 40
	atHeaderChain = 48

	// In version 1 these are zero.
	atFlags        = 52
	atFoldTo       = 56
	atFoldEnd      = 64
	atFoldLast     = 72
	atFoldFirst    = 80
	atFoldLastLife = 88
	atFoldChain    = 96
	atFoldEndChain = 100

	atHeaderZero = 104
	atSectorCRC  = 508 // in version 4
	atHeaderCRC  = 4092
)

var (
	_ [pageBytes]byte   = [atHeaderCRC + 4]byte{}
	_ [sectorBytes]byte = [atSectorCRC + 4]byte{}
)

// The flags of a header: version 1 has none, version 2 one of the first, version 3 the next, version 4 the last.
const (
	flagRecycled = 1 << iota
	flagFolded
	flagPadded
	flagPrepared
)

// versionOf is the oldest version that has the flags; 0: there are others.
func versionOf(flags uint32) uint16 {
	switch {
	case flags >= 2*flagPrepared:
		return 0
	case flags&flagPrepared != 0:
		return 4
	case flags&flagPadded != 0:
		return 3
	case flags != 0:
		return 2
	}
	return 1
}

func (h header) flags() (f uint32) {
	if h.Recycled {
		f |= flagRecycled
	}
	if h.folded() {
		f |= flagFolded
	}
	if h.Padded {
		f |= flagPadded
	}
	if h.Prepared {
		f |= flagPrepared
	}
	return f
}

// put writes the header into the page p.
func (h header) put(p []byte) {
	p = p[:pageBytes]
	clear(p)
	le.PutUint32(p[atMagic:], headerMagic)
	le.PutUint16(p[atVersion:], versionOf(h.flags()))
	le.PutUint64(p[atHeaderGroup:], uint64(h.Group))
	le.PutUint64(p[atNumber:], h.Number)
	le.PutUint64(p[atHeaderLife:], h.Life)
	le.PutUint64(p[atFirst:], uint64(h.First))
	le.PutUint64(p[atPred:], h.Pred)
	le.PutUint32(p[atHeaderChain:], h.Chain)
	le.PutUint32(p[atFlags:], h.flags())
	if h.folded() {
		le.PutUint64(p[atFoldTo:], uint64(h.Fold.To))
		le.PutUint64(p[atFoldEnd:], uint64(h.Fold.End))
		le.PutUint64(p[atFoldLast:], h.Fold.Last)
		le.PutUint64(p[atFoldFirst:], h.Fold.FirstLife)
		le.PutUint64(p[atFoldLastLife:], h.Fold.LastLife)
		le.PutUint32(p[atFoldChain:], h.Fold.Chain)
		le.PutUint32(p[atFoldEndChain:], h.Fold.EndChain)
	}
	if h.Prepared {
		le.PutUint32(p[atSectorCRC:], sectorSum(p))
	}
	le.PutUint32(p[atHeaderCRC:], crc32.Checksum(p[:atHeaderCRC], castagnoli))
}

func parseHeader(p []byte) (header, error) {
	if len(p) < pageBytes {
		return header{}, corrupt("header is cut short")
	}
	p = p[:pageBytes]
	if err := checkHeader(p); err != nil {
		return header{}, fmt.Errorf("header: %w", err)
	}
	h := header{
		Group:  record.GroupID(le.Uint64(p[atHeaderGroup:])),
		Number: le.Uint64(p[atNumber:]),
		Life:   le.Uint64(p[atHeaderLife:]),
		First:  Pos(le.Uint64(p[atFirst:])),
		Pred:   le.Uint64(p[atPred:]),
		Chain:  le.Uint32(p[atHeaderChain:]),
	}
	if h.Prepared = le.Uint32(p[atFlags:])&flagPrepared != 0; h.unbegun() {
		if h.Group == 0 || h.Number < 2 || h.Life != 0 || h.Pred != 0 || h.Chain != 0 || le.Uint32(p[atFlags:])&flagFolded != 0 {
			return header{}, corrupt("header: not begun, and not ready either")
		}
		return h, h.parseFlags(p)
	}
	switch {
	case h.Group == 0 || h.Number == 0 || h.Life == 0 || h.First < Start || h.First > maxPos || h.First%pageBytes != 0:
		return header{}, corrupt("header: a field without sense")
	case (h.Number == 1) != (h.Pred == 0) || h.Number == 1 && (h.First != Start || h.Chain != chainStart(h.Group)):
		return header{}, corrupt("header: not the first segment, and not a later one")
	}
	return h, h.parseFlags(p)
}

// checkHeader checks what stands around the fields of a header.
func checkHeader(p []byte) error {
	if err := checkFrame(p, headerMagic, atHeaderCRC, headerVersion); err != nil {
		return err
	}
	sum := uint32(0)
	if le.Uint16(p[atVersion:]) == versionOf(flagPrepared) {
		sum = sectorSum(p)
	}
	if le.Uint32(p[atSectorCRC:]) != sum || !allZero(p[atHeaderZero:atSectorCRC]) || !allZero(p[sectorBytes:atHeaderCRC]) {
		return corrupt("reserved bytes in use")
	}
	return nil
}

// sectorSum is what the first sector of a header of version 4 ends in. It makes the checksum of the
// whole page the same in all of them: a CRC over bytes that end in their own CRC does
// not depend on them. So a header that is written over another one differs from it in that
// sector alone, which a disk writes whole or not at all.
func sectorSum(p []byte) uint32 {
	if invariant.Planted("journal/segment/torn-header") {
		return 0
	}
	return crc32.Checksum(p[:atSectorCRC], castagnoli)
}

// parseFlags reads what versions 2 to 4 added.
func (h *header) parseFlags(p []byte) error {
	flags := le.Uint32(p[atFlags:])
	if le.Uint16(p[atVersion:]) != versionOf(flags) {
		return corrupt("header: flags")
	}
	h.Recycled, h.Padded = flags&flagRecycled != 0, flags&flagPadded != 0
	if flags&flagFolded == 0 {
		if !allZero(p[atFoldTo:atHeaderZero]) {
			return corrupt("header: reserved bytes in use")
		}
		return nil
	}
	f := fold{
		To:        Pos(le.Uint64(p[atFoldTo:])),
		End:       Pos(le.Uint64(p[atFoldEnd:])),
		Last:      le.Uint64(p[atFoldLast:]),
		FirstLife: le.Uint64(p[atFoldFirst:]),
		LastLife:  le.Uint64(p[atFoldLastLife:]),
		Chain:     le.Uint32(p[atFoldChain:]),
		EndChain:  le.Uint32(p[atFoldEndChain:]),
	}
	if f.To <= h.First || f.To > maxPos || f.To%pageBytes != 0 || f.End < h.First || f.End > f.To || f.End%pageBytes != 0 ||
		f.Last < h.Number || f.FirstLife == 0 || f.LastLife == 0 {
		return corrupt("header: a range without sense")
	}
	h.Fold = f
	return nil
}
