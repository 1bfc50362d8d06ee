package view

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Blocks that lie behind each other in the log are read at once: maxGap is what may lie
// between them, and maxSpan the most that is read at once.
const (
	maxGap  = 16 << 10
	maxSpan = 256 << 10
)

// spans are what stored blocks are read into.
var spans = sync.Pool{New: func() any { p := make([]byte, 2*record.LineBytes); return &p }}

// raws are what blocks are opened into; what is kept is copied, in its own length.
var raws = sync.Pool{New: func() any { p := make([]byte, record.LineBytes); return &p }}

// start is where a piece's block stands in the log.
func start(piece *index.Piece) segment.Pos { return piece.Pos + segment.Pos(piece.Block.At) }

// key names a piece's block in the cache. A folded segment stands for the places of
// others: the checksum keeps its blocks apart from theirs.
func (v *View) key(piece *index.Piece) index.CacheKey {
	return index.CacheKey{Owner: v.cfg.Owner, At: uint64(piece.Pos), Part: uint64(piece.Number)<<32 | uint64(piece.Block.CRC)}
}

// readLog fills the parts of p, which begins at off, that the first pieces belong in,
// and returns how many those are: of the block of the first, and of blocks that the log
// has behind it. An error is that of the first. With a nil p the blocks are only cached.
func (v *View) readLog(p []byte, off int64, pieces []index.Piece) (read int, err error) {
	block, ok := v.cfg.Cache.Get(v.key(&pieces[0]))
	if ok && (p != nil && int64(len(block)) >= int64(pieces[0].BlockOff)+pieces[0].Len || len(block) == pieces[0].Block.Raw) {
		return 1, give(p, off, &pieces[0], block)
	}
	if count, stored := v.together(pieces); count > 1 {
		if v.readSpan(p, off, pieces[:count], stored) == nil {
			return count, nil
		}
	}
	return 1, v.readSpan(p, off, pieces[:1], pieces[0].Block.Stored)
}

// together returns how many of the pieces, from the first on, are read at once, and how
// many bytes of the log that is.
func (v *View) together(pieces []index.Piece) (count, stored int) {
	begin := start(&pieces[0])
	end := begin + segment.Pos(pieces[0].Block.Stored)
	for count = 1; count < len(pieces); count++ {
		piece := &pieces[count]
		if piece.In != index.InLog {
			break
		}
		at := start(piece)
		if last := &pieces[count-1]; at == start(last) {
			continue
		}
		next := at + segment.Pos(piece.Block.Stored)
		if at < end || at-end > maxGap || next-begin > maxSpan {
			break
		}
		if _, ok := v.cfg.Cache.Get(v.key(piece)); ok {
			break
		}
		end = next
	}
	return count, int(end - begin)
}

// readSpan reads that many bytes of the log, from the first piece's block on, and opens
// the blocks of all pieces, which lie in them.
func (v *View) readSpan(p []byte, off int64, pieces []index.Piece, stored int) error {
	mem := spans.Get().(*[]byte)
	defer spans.Put(mem)
	if cap(*mem) < stored {
		*mem = make([]byte, max(stored, maxSpan))
	}
	span := (*mem)[:stored]
	begin := start(&pieces[0])
	if err := v.cfg.Log.ReadAt(span, begin); err != nil {
		return fmt.Errorf("record %s: %w", pieces[0].ID, err)
	}
	return v.openSpan(p, off, pieces, span)
}

// openSpan opens the blocks of all pieces, which lie in what was read of the log from the first one's on.
func (v *View) openSpan(p []byte, off int64, pieces []index.Piece, span []byte) error {
	begin := start(&pieces[0])
	raw := raws.Get().(*[]byte)
	defer raws.Put(raw)
	var block []byte
	for i := range pieces {
		piece := &pieces[i]
		if i == 0 || start(piece) != start(&pieces[i-1]) {
			from := int(start(piece) - begin)
			opened, err := record.OpenPrefix(*raw, piece.ID, piece.Number, piece.Block, span[from:from+piece.Block.Stored], v.wanted(p, pieces[i:]))
			if err != nil {
				return fmt.Errorf("record %s: block %d: %w", piece.ID, piece.Number, err)
			}
			block = v.keep(p, piece, opened)
		}
		if err := give(p, off, piece, block); err != nil {
			return err
		}
	}
	return nil
}

// keep puts the piece's block, as far as it was opened, into the cache once it is whole:
// read ahead, or asked for again. Else the cache is only told that it was asked for: of what is
// read at random most is never asked for again, and a copy of it would cost as much as
// the rest of the read, and drive out what is.
func (v *View) keep(p []byte, piece *index.Piece, opened []byte) []byte {
	key := v.key(piece)
	if p != nil && (len(opened) < piece.Block.Raw || !v.cfg.Cache.Again(key)) {
		v.cfg.Cache.Note(key)
		return opened
	}
	block := opened
	if !invariant.Planted("journal/view/keep-borrowed") {
		block = bytes.Clone(opened)
	}
	v.cfg.Cache.Put(key, block)
	return block
}

// wanted is how much of the first piece's block is opened: what the pieces in it reach to,
// when they are read at random. Decompressing is most of what a small read costs. A
// block that was asked for not long ago is wanted again, and then whole.
func (v *View) wanted(p []byte, pieces []index.Piece) int {
	first := &pieces[0]
	if p == nil || v.cfg.Cache.Again(v.key(first)) {
		return first.Block.Raw
	}
	most := 0
	for i := range pieces {
		if start(&pieces[i]) != start(first) {
			break
		}
		most = max(most, pieces[i].BlockOff+int(pieces[i].Len))
	}
	return most
}

// give copies a piece's part of its block to where it belongs in p, which begins at off.
func give(p []byte, off int64, piece *index.Piece, block []byte) error {
	if p == nil {
		return nil
	}
	if piece.BlockOff < 0 || int64(len(block)) < int64(piece.BlockOff)+piece.Len {
		return fmt.Errorf("block %d of record %s has %d bytes: %w", piece.Number, piece.ID, len(block), record.ErrCorrupt)
	}
	copy(p[piece.Off-off:][:piece.Len], block[piece.BlockOff:])
	return nil
}
