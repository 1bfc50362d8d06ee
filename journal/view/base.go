package view

import (
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// pieces are reused: a read looks up as many as it crosses.
var pieces = sync.Pool{New: func() any { return new([]index.Piece) }}

// lookAgain is how often a read looks up what was dropped before it could be read:
// what leaves the log is in the replica then, so once does unless promotion runs away.
const lookAgain = 8

// readBase fills p with what the checkpoint holds at off.
func (d *Device) readBase(p []byte, off int64) error {
	found := pieces.Get().(*[]index.Piece)
	defer pieces.Put(found)
	cfg := &d.view.cfg
	how := trying{steady: cfg.Steady == nil, tell: cfg.Repair == nil}
	again, repairs := 0, 0
	for {
		bad, err := d.tryBase(p, off, found, how)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, segment.ErrRange) && again < lookAgain && !invariant.Planted("journal/view/look-once"):
			again++
			how.steady = true
			continue
		case damage(err) && !how.steady && !invariant.Planted("journal/view/folded-is-damage"):
			how.steady = true
			continue
		case damage(err) && !how.tell && !invariant.Planted("journal/view/repair-unread"):
			// A segment is repaired whole, and a piece of the replica: who reads many may meet damage in several.
			repairs++
			how.tell = bad.Len == 0 || repairs > len(*found) || !cfg.Repair(Damage{d.disk.ID, bad, err})
			continue
		}
		return fmt.Errorf("checkpoint %d: volume %d: %w", cfg.Checkpoint, d.disk.ID, err)
	}
}

// trying says how a try to read is made.
type trying struct {
	steady bool // nothing is folded meanwhile: what is damaged then is damaged
	tell   bool // and is told of: it is not repaired
}

// tryBase looks up and reads. A fold may change the log in between, and what was looked up
// is then not there: only a steady try, during which nothing is folded, finds damage. It
// returns the piece that an error is of. What repairs waits for folds, so that is never
// done from here.
func (d *Device) tryBase(p []byte, off int64, found *[]index.Piece, how trying) (bad index.Piece, err error) {
	cfg := &d.view.cfg
	if how.steady && cfg.Steady != nil {
		cfg.Steady.RLock()
		defer cfg.Steady.RUnlock()
	}
	if *found, err = cfg.Versions.Lookup((*found)[:0], d.disk.ID, off, int64(len(p)), cfg.At); err != nil {
		return bad, err
	}
	return d.readPieces(p, off, *found, how.steady && how.tell)
}

// readPieces fills p, which begins at off, from the pieces, and returns the one that does
// not read. What is damaged is told of only by one that is sure.
func (d *Device) readPieces(p []byte, off int64, pieces []index.Piece, sure bool) (bad index.Piece, err error) {
	for i := 0; i < len(pieces); {
		piece, read := &pieces[i], 1
		to := p[piece.Off-off:][:piece.Len]
		var err error
		switch piece.In {
		case index.IsZero:
			clear(to)
		case index.InLog:
			read, err = d.view.readLog(p, off, pieces[i:])
			piece = &pieces[i+max(read, 1)-1]
		default:
			err = d.disk.Replica.ReadAt(to, piece.Off)
		}
		if err != nil {
			if sure && d.view.cfg.Damaged != nil && damage(err) {
				d.tell(piece, err)
			}
			return *piece, fmt.Errorf("at %d: %w", piece.Off, err)
		}
		i += read
	}
	return bad, nil
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

// damage says whether bytes that were kept are not what they were.
func damage(err error) bool {
	return errors.Is(err, record.ErrCorrupt) || errors.Is(err, segment.ErrCorrupt) || errors.Is(err, replica.ErrCorrupt)
}

// extentsBytes is how much of a range is looked up at a time when its extents are asked for: who asks may ask for
// the whole disk and take in its beginning only, or a history with an entry for each of its blocks.
const extentsBytes = 4 << 20

// baseExtents tells what the checkpoint holds in [off, off+n).
func (d *Device) baseExtents(off, n int64, tell func(n int64, hole bool) bool) error {
	cfg := &d.view.cfg
	step := int64(extentsBytes)
	if invariant.Planted("journal/view/extents-of-all") {
		step = n
	}
	found := pieces.Get().(*[]index.Piece)
	defer pieces.Put(found)
	more := true
	for end := off + n; off < end && more; {
		k := min(step, end-off)
		var err error
		if *found, err = cfg.Versions.Lookup((*found)[:0], d.disk.ID, off, k, cfg.At); err != nil {
			return fmt.Errorf("checkpoint %d: volume %d at %d: %w", cfg.Checkpoint, d.disk.ID, off, err)
		}
		if more, err = d.pieceExtents(*found, tell); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// pieceExtents tells what pieces hold, and says whether more is asked for.
func (d *Device) pieceExtents(found []index.Piece, tell func(n int64, hole bool) bool) (more bool, err error) {
	more = true
	for i := 0; i < len(found) && more; i++ {
		piece := &found[i]
		if piece.In != index.InReplica {
			more = tell(piece.Len, piece.In == index.IsZero)
			continue
		}
		err := d.disk.Replica.Extents(piece.Off, piece.Len, func(n int64, hole bool) bool {
			more = tell(n, hole)
			return more
		})
		if err != nil {
			return false, err
		}
	}
	return more, nil
}
