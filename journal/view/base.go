package view

import (
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// pieces are reused: a read looks up as many as it crosses.
var pieces = sync.Pool{New: func() any { return new([]index.Piece) }}

// readBase fills p with what the checkpoint holds at off.
func (d *Device) readBase(p []byte, off int64) error {
	found := pieces.Get().(*[]index.Piece)
	defer pieces.Put(found)
	cfg := &d.view.cfg
	var err error
	if *found, err = cfg.Versions.Lookup((*found)[:0], d.disk.ID, off, int64(len(p)), cfg.At); err != nil {
		return fmt.Errorf("checkpoint %d: volume %d at %d: %w", cfg.Checkpoint, d.disk.ID, off, err)
	}
	for i := range *found {
		piece := &(*found)[i]
		at := piece.Off - off
		if err := d.readPiece(p[at:at+piece.Len], piece); err != nil {
			err = fmt.Errorf("checkpoint %d: volume %d at %d: %w", cfg.Checkpoint, d.disk.ID, piece.Off, err)
			if cfg.Damaged != nil && damage(err) {
				d.tell(piece, err)
			}
			return err
		}
	}
	return nil
}

// tell says which blocks of a piece are damaged. A piece of the replica may be long:
// each of its blocks is read by itself, and the last error is only that of one.
func (d *Device) tell(piece *index.Piece, err error) {
	if piece.In != index.InReplica {
		d.view.cfg.Damaged(Damage{d.disk.ID, *piece, err})
		return
	}
	for off := piece.Off / blockBytes * blockBytes; off < piece.Off+piece.Len; off += blockBytes {
		one := index.Piece{Off: off, Len: min(blockBytes, d.disk.Bytes-off), In: index.InReplica}
		from, to := max(off, piece.Off), min(off+blockBytes, piece.Off+piece.Len)
		if err := d.disk.Replica.ReadAt(make([]byte, to-from), from); damage(err) {
			d.view.cfg.Damaged(Damage{d.disk.ID, one, err})
		}
	}
}

func (d *Device) readPiece(p []byte, piece *index.Piece) error {
	switch piece.In {
	case index.IsZero:
		clear(p)
		return nil
	case index.InLog:
		block, err := d.view.block(piece)
		if err != nil {
			return err
		}
		if piece.BlockOff+len(p) > len(block) {
			return fmt.Errorf("block %d of record %s has %d bytes: %w", piece.Number, piece.ID, len(block), record.ErrCorrupt)
		}
		copy(p, block[piece.BlockOff:])
		return nil
	}
	return d.disk.Replica.ReadAt(p, piece.Off)
}

// damage says whether bytes that were kept are not what they were.
func damage(err error) bool {
	return errors.Is(err, record.ErrCorrupt) || errors.Is(err, segment.ErrCorrupt) || errors.Is(err, replica.ErrCorrupt)
}

// baseExtents tells what the checkpoint holds in [off, off+n).
func (d *Device) baseExtents(off, n int64, tell func(n int64, hole bool) bool) error {
	cfg := &d.view.cfg
	found, err := cfg.Versions.Lookup(nil, d.disk.ID, off, n, cfg.At)
	if err != nil {
		return fmt.Errorf("checkpoint %d: volume %d at %d: %w", cfg.Checkpoint, d.disk.ID, off, err)
	}
	for _, piece := range found {
		more := true
		if piece.In == index.InReplica {
			err := d.disk.Replica.Extents(piece.Off, piece.Len, func(n int64, hole bool) bool {
				more = tell(n, hole)
				return more
			})
			if err != nil {
				return err
			}
		} else {
			more = tell(piece.Len, piece.In == index.IsZero)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// blockKey names a block of the log.
type blockKey struct {
	pos    segment.Pos
	number int
}

// blockCache keeps the blocks opened last: a row of small reads would else open the
// same block for each. Blocks in it are never written.
type blockCache struct {
	mu     sync.Mutex
	blocks map[blockKey][]byte
	order  [cachedBlocks]blockKey // oldest at next
	next   int
}

const cachedBlocks = 128

// block returns a block of the log, verified and opened; it is shared, not to be written.
func (v *View) block(piece *index.Piece) ([]byte, error) {
	key := blockKey{piece.Pos, piece.Number}
	c := &v.blocks
	c.mu.Lock()
	block, ok := c.blocks[key]
	c.mu.Unlock()
	if ok {
		return block, nil
	}
	stored := make([]byte, piece.Block.Stored)
	if err := v.cfg.Log.ReadAt(stored, piece.Pos+segment.Pos(piece.Block.At)); err != nil {
		return nil, fmt.Errorf("record %s: %w", piece.ID, err)
	}
	block, err := record.OpenStored(make([]byte, 0, piece.Block.Raw), piece.ID, piece.Number, piece.Block, stored)
	if err != nil {
		return nil, fmt.Errorf("record %s: block %d: %w", piece.ID, piece.Number, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks == nil {
		c.blocks = make(map[blockKey][]byte, cachedBlocks)
	}
	if _, ok := c.blocks[key]; !ok {
		delete(c.blocks, c.order[c.next])
		c.order[c.next], c.blocks[key] = key, block
		c.next = (c.next + 1) % cachedBlocks
	}
	return block, nil
}
