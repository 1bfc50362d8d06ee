package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Why bytes are no record. Every error of this package about its input is one of
// these by errors.Is.
var (
	ErrShort   = errors.New("record is cut short")
	ErrMagic   = errors.New("not a record")
	ErrVersion = errors.New("unknown record version")
	ErrKind    = errors.New("unknown kind of record")
	ErrCorrupt = errors.New("corrupt record")
)

// Time is a hybrid logical clock: nanoseconds since 1970. It labels, it never orders.
type Time int64

// Kind says what a record carries.
type Kind uint8

// The kinds of record. 7 is reserved and never a record.
const (
	KindData        Kind = 1 // writes
	KindCut         Kind = 2 // a checkpoint's place
	KindConfirm     Kind = 3 // all sources of the group hold to that cut
	KindResize      Kind = 4 // a volume has a new size
	KindResyncOpen  Kind = 5 // no checkpoint from here on, until closed
	KindResyncClose Kind = 6 // ends all resyncs open in the stream
	KindFolded      Kind = 8 // what writes left in their places: made by thinning, never sent
)

var kindNames = [...]string{"none", "data", "cut", "confirm", "resize", "resync-open", "resync-close", "reserved", "folded"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// HeaderBytes is the size of the header, the same for every kind.
const HeaderBytes = 128

const (
	magic   = 0x31524648 // "HFR1"
	version = 1

	atMagic       = 0
	atVersion     = 4
	atKind        = 5
	atZero1       = 6
	atStream      = 8
	atEpoch       = 16
	atIncarnation = 20
	atSeq         = 24
	atTime        = 32
	atFirst       = 40
	atLast        = 48
	atBlocks      = 56
	atExtents     = 60
	atBody        = 64
	atRaw         = 68
	atStored      = 72
	atSize        = 76
	atTablesCRC   = 80
	atZero2       = 84
	atHeaderCRC   = 124
)

var _ [HeaderBytes]byte = [atHeaderCRC + 4]byte{}

var le = binary.LittleEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumOf(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Header is a record's fixed part. No part of its identity, time and tickets is zero.
type Header struct {
	Identity
	Kind        Kind
	Time        Time
	First, Last Ticket // of its extents; of a control record both are its own
	Blocks      int    // entries in the block table
	Extents     int    // entries in the extent table
	Body        int    // bytes of body
	Raw         int64  // bytes of data before compression
	Stored      int64  // bytes of all blocks as stored
	Size        int    // bytes of the whole record
	// Checksum is the header's CRC32C. Through the tables' checksum in the header and
	// the blocks' in the tables it stands for every byte of the record.
	Checksum uint32

	tables uint32 // CRC32C of tables and body
}

// TablesEnd is where the payload begins: header, tables and body, in bytes.
func (h Header) TablesEnd() int {
	return HeaderBytes + h.Blocks*blockBytes + h.Extents*extentBytes + h.Body
}

// ParseHeader reads the header at the start of p, which may go on after it. It
// checks the header's checksum first, then every limit; the tables are not looked
// at. Errors: ErrShort (p has fewer than HeaderBytes), ErrMagic, ErrVersion,
// ErrKind, ErrCorrupt.
func ParseHeader(p []byte) (Header, error) {
	if len(p) < HeaderBytes {
		return Header{}, ErrShort
	}
	p = p[:HeaderBytes]
	if le.Uint32(p[atMagic:]) != magic {
		return Header{}, ErrMagic
	}
	if sum := le.Uint32(p[atHeaderCRC:]); sumOf(p[:atHeaderCRC]) != sum && !invariant.Planted("record/header-unchecked") {
		return Header{}, corrupt("header checksum")
	}
	if v := p[atVersion]; v != version {
		return Header{}, fmt.Errorf("version %d: %w", v, ErrVersion)
	}
	h := decodeHeader(p)
	return h, h.check(p)
}

func decodeHeader(p []byte) Header {
	return Header{
		Identity: Identity{
			Stream:      StreamID(le.Uint64(p[atStream:])),
			Epoch:       Epoch(le.Uint32(p[atEpoch:])),
			Incarnation: Incarnation(le.Uint32(p[atIncarnation:])),
			Seq:         Seq(le.Uint64(p[atSeq:])),
		},
		Kind:     Kind(p[atKind]),
		Time:     Time(le.Uint64(p[atTime:])),
		First:    Ticket(le.Uint64(p[atFirst:])),
		Last:     Ticket(le.Uint64(p[atLast:])),
		Blocks:   int(le.Uint32(p[atBlocks:])),
		Extents:  int(le.Uint32(p[atExtents:])),
		Body:     int(le.Uint32(p[atBody:])),
		Raw:      int64(le.Uint32(p[atRaw:])),
		Stored:   int64(le.Uint32(p[atStored:])),
		Size:     int(le.Uint32(p[atSize:])),
		Checksum: le.Uint32(p[atHeaderCRC:]),
		tables:   le.Uint32(p[atTablesCRC:]),
	}
}

// put writes the header into p[:HeaderBytes], its checksum last.
func (h *Header) put(p []byte) {
	p = p[:HeaderBytes]
	clear(p)
	le.PutUint32(p[atMagic:], magic)
	p[atVersion] = version
	p[atKind] = byte(h.Kind)
	le.PutUint64(p[atStream:], uint64(h.Stream))
	le.PutUint32(p[atEpoch:], uint32(h.Epoch))
	le.PutUint32(p[atIncarnation:], uint32(h.Incarnation))
	le.PutUint64(p[atSeq:], uint64(h.Seq))
	le.PutUint64(p[atTime:], uint64(h.Time))
	le.PutUint64(p[atFirst:], uint64(h.First))
	le.PutUint64(p[atLast:], uint64(h.Last))
	le.PutUint32(p[atBlocks:], uint32(h.Blocks))
	le.PutUint32(p[atExtents:], uint32(h.Extents))
	le.PutUint32(p[atBody:], uint32(h.Body))
	le.PutUint32(p[atRaw:], uint32(h.Raw))
	le.PutUint32(p[atStored:], uint32(h.Stored))
	le.PutUint32(p[atSize:], uint32(h.Size))
	le.PutUint32(p[atTablesCRC:], h.tables)
	h.Checksum = sumOf(p[:atHeaderCRC])
	le.PutUint32(p[atHeaderCRC:], h.Checksum)
}

// check holds the header's own rules: what may be zero, the limits, and that the
// lengths add up.
func (h *Header) check(p []byte) error {
	if h.Kind < KindData || h.Kind > KindResyncClose && h.Kind != KindFolded {
		return fmt.Errorf("kind %d: %w", uint8(h.Kind), ErrKind)
	}
	if le.Uint16(p[atZero1:]) != 0 || !allZero(p[atZero2:atHeaderCRC]) {
		return corrupt("reserved bytes in use")
	}
	if h.Stream == 0 || h.Epoch == 0 || h.Incarnation == 0 || h.Seq == 0 || h.Time <= 0 || h.First == 0 {
		return corrupt("zero identity, time or ticket")
	}
	if (h.Kind == KindFolded) != (h.Stream == FoldedStream) {
		return corrupt("a folded record of a source, or a source's record of the folded stream")
	}
	if h.Kind == KindData || h.Kind == KindFolded {
		if h.Extents == 0 || h.Body != 0 || h.Last < h.First || h.Last-h.First > 1<<32-1 {
			return corrupt("data record without extents, with a body or with tickets that fall")
		}
	} else if h.Blocks != 0 || h.Extents != 0 || h.Raw != 0 || h.Stored != 0 || h.Body == 0 || h.First != h.Last {
		return corrupt("control record with a payload or without a body")
	}
	if h.Blocks > MaxBlocks || h.Extents > MaxExtents || h.Body > MaxBody || h.Raw > MaxRawBytes || h.Stored > h.Raw {
		return corrupt("a length beyond its limit")
	}
	if h.TablesEnd()+int(h.Stored) != h.Size {
		return corrupt("lengths that do not add up")
	}
	return nil
}

func corrupt(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }
