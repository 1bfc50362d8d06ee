package record

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Codec says how a block is stored.
type Codec uint8

// The codecs. LZ4 is the LZ4 block format, without frame; such a block is always
// smaller than its raw bytes.
const (
	CodecRaw Codec = 1
	CodecLZ4 Codec = 2
)

// Block is an entry of the block table: up to LineBytes of data, stored together.
type Block struct {
	Codec  Codec
	Raw    int    // bytes before compression
	Stored int    // bytes as stored
	CRC    uint32 // CRC32C over identity, number, raw length, codec and stored bytes
	At     int    // where the stored bytes begin, from the record's start
}

const (
	blockBytes = 16

	blockCodec  = 0 // u8, then a zero byte
	blockRaw    = 2
	blockStored = 4 // u16, then two zero bytes
	blockAt     = 8
	blockCRC    = 12
)

// ExtentKind says what an extent puts in its place.
type ExtentKind uint8

// The kinds of extent.
const (
	ExtentData ExtentKind = 1
	ExtentZero ExtentKind = 2
)

// Extent is one write, or the part of one that lies in one line of its volume. A
// zero extent may be of any length, has no block and is not cut at lines.
type Extent struct {
	Volume   VolumeID
	Kind     ExtentKind
	Off, Len int64 // bytes in the volume
	Ticket   Ticket
	Block    int // of a data extent: the block that holds it, and where in its raw bytes
	BlockOff int
}

const (
	extentBytes = 24

	extentOff      = 0  // 7 bytes
	extentKind     = 7  // u8
	extentLen      = 8  // data: u16; zero: u64
	extentBlock    = 10 // data: u16
	extentBlockOff = 12 // data: u16, then two zero bytes
	extentVolume   = 16
	extentTicket   = 20 // from the record's first

	offMask = VolumeLimit - 1
)

func (b Block) put(p []byte) {
	le.PutUint16(p[blockCodec:], uint16(b.Codec))
	le.PutUint16(p[blockRaw:], uint16(b.Raw))
	le.PutUint32(p[blockStored:], uint32(b.Stored))
	le.PutUint32(p[blockAt:], uint32(b.At))
	le.PutUint32(p[blockCRC:], b.CRC)
}

// decodeBlock takes the zero bytes as the upper parts of codec and stored length: set, they
// make values that no check lets pass.
func decodeBlock(p []byte) (b Block, codec uint16) {
	return Block{
		Codec:  Codec(p[blockCodec]),
		Raw:    int(le.Uint16(p[blockRaw:])),
		Stored: int(le.Uint32(p[blockStored:])),
		At:     int(le.Uint32(p[blockAt:])),
		CRC:    le.Uint32(p[blockCRC:]),
	}, le.Uint16(p[blockCodec:])
}

func (e Extent) put(p []byte, first Ticket) {
	le.PutUint64(p[extentOff:], uint64(e.Off)|uint64(e.Kind)<<56)
	if e.Kind == ExtentZero {
		le.PutUint64(p[extentLen:], uint64(e.Len))
	} else {
		le.PutUint64(p[extentLen:], uint64(e.Len)|uint64(e.Block)<<16|uint64(e.BlockOff)<<32)
	}
	le.PutUint32(p[extentVolume:], uint32(e.Volume))
	le.PutUint32(p[extentTicket:], uint32(e.Ticket-first))
}

func decodeExtent(p []byte, first Ticket) Extent {
	p = p[:extentBytes]
	place := le.Uint64(p[extentOff:])
	e := Extent{
		Volume: VolumeID(le.Uint32(p[extentVolume:])),
		Kind:   ExtentKind(p[extentKind]),
		Off:    int64(place & offMask),
		Len:    int64(le.Uint64(p[extentLen:])),
		Ticket: first + Ticket(le.Uint32(p[extentTicket:])),
	}
	if e.Kind != ExtentZero {
		e.Len = int64(le.Uint16(p[extentLen:]))
		e.Block = int(le.Uint16(p[extentBlock:]))
		e.BlockOff = int(le.Uint32(p[extentBlockOff:])) // the zero bytes as its upper part
	}
	return e
}

// check says what is wrong with a block by itself, or nothing.
func (b Block) check() string {
	switch {
	case b.Raw < 1 || b.Raw > LineBytes:
		return "raw length"
	case b.Codec == CodecRaw && b.Stored != b.Raw:
		return "stored length of a raw block"
	case b.Codec == CodecLZ4 && (b.Stored < 1 || b.Stored >= b.Raw || b.Raw > b.Stored*255+64):
		return "stored length of an LZ4 block" // which LZ4 cannot have made
	case b.Codec != CodecRaw && b.Codec != CodecLZ4:
		return "codec"
	}
	return ""
}

// checkTables holds the rules between header, block table and extent table. p has
// at least TablesEnd bytes.
func (h *Header) checkTables(p []byte) error {
	p = p[HeaderBytes:h.TablesEnd()]
	if sumOf(p) != h.tables {
		return corrupt("checksum of the tables")
	}
	blocks, p := p[:h.Blocks*blockBytes], p[h.Blocks*blockBytes:]
	if err := h.checkBlocks(blocks); err != nil {
		return err
	}
	if h.Kind != KindData && h.Kind != KindFolded {
		return h.checkBody(p)
	}
	return h.checkExtents(blocks, p[:h.Extents*extentBytes])
}

func (h *Header) checkBlocks(table []byte) error {
	at, raw := h.TablesEnd(), 0
	for i := range h.Blocks {
		b, codec := decodeBlock(table[i*blockBytes:])
		if what := b.check(); what != "" {
			return fmt.Errorf("%w: block %d: %s", ErrCorrupt, i, what)
		}
		if codec != uint16(b.Codec) || b.At != at {
			return fmt.Errorf("%w: block %d: place", ErrCorrupt, i)
		}
		at += b.Stored
		raw += b.Raw
	}
	if at != h.Size || int64(raw) != h.Raw {
		return corrupt("blocks that do not add up")
	}
	return nil
}

// checkExtents walks the extents beside the blocks that they fill; those of a folded
// record may leave some of a block's bytes out.
func (h *Header) checkExtents(blocks, table []byte) error {
	block, room, used := -1, 0, 0 // the block being filled: its number, raw bytes, and how many are taken
	ticket := h.First
	for i := range h.Extents {
		entry := table[i*extentBytes:]
		e := decodeExtent(entry, h.First)
		if e.Volume == 0 || e.Len < 1 || e.Len > VolumeLimit || e.Off+e.Len > VolumeLimit {
			return fmt.Errorf("%w: extent %d: volume or place", ErrCorrupt, i)
		}
		if e.Ticket < ticket || i == 0 && e.Ticket != h.First {
			return fmt.Errorf("%w: extent %d: ticket out of order", ErrCorrupt, i)
		}
		ticket = e.Ticket
		if e.Kind == ExtentZero {
			continue
		}
		if e.Kind != ExtentData {
			return fmt.Errorf("%w: extent %d: kind %d", ErrCorrupt, i, e.Kind)
		}
		if e.Off/LineBytes != (e.Off+e.Len-1)/LineBytes && !invariant.Planted("record/line-unchecked") {
			return fmt.Errorf("%w: extent %d: crosses a line", ErrCorrupt, i)
		}
		gaps := h.Kind == KindFolded
		if used == room || gaps && e.Block == block+1 {
			if block++; block == h.Blocks {
				return fmt.Errorf("%w: extent %d: beyond the last block", ErrCorrupt, i)
			}
			room, used = int(le.Uint16(blocks[block*blockBytes+blockRaw:])), 0
		}
		if gaps && e.BlockOff > used {
			used = e.BlockOff
		}
		if e.Block != block || e.BlockOff != used || used+int(e.Len) > room {
			return fmt.Errorf("%w: extent %d: place in its block", ErrCorrupt, i)
		}
		used += int(e.Len)
	}
	if block != h.Blocks-1 || used != room && h.Kind != KindFolded {
		return corrupt("blocks that no extent fills")
	}
	if ticket != h.Last {
		return corrupt("last ticket")
	}
	return nil
}
