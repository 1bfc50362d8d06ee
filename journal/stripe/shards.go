package stripe

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// shardSet are the shard files of a striped object, opened when first read and closed with
// the last handle. Whoever reads them holds the object's layout, whoever closes them holds it
// for writing.
type shardSet struct {
	mu      sync.Mutex // of opening
	handles int
	table   *table // nil: not open
	code    *code
	files   []ioengine.File // nil: missing
}

// identity ties an object's blocks to the set, the object and the way it is striped.
func (o *objectInfo) identity(set uint64) Identity {
	return Identity{set, o.id, uint64(o.K)<<8 | uint64(o.M)}
}

// get opens the shard files and reads their table from any. With layout held.
func (o *object) getShards() (*shardSet, error) {
	ss := &o.shards
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.table != nil {
		return ss, nil
	}
	var err error
	if ss.code, err = newCode(o.info.Geometry); err != nil {
		return nil, err
	}
	files := make([]ioengine.File, len(o.info.places))
	failed := failures{}
	for i, id := range o.info.places {
		if id == 0 || o.set.isOut(id) {
			continue
		}
		f, err := o.openOn(id, ioengine.ReadOnly|ioengine.Direct)
		if err != nil {
			failed[id] = err
			if err != errMoved {
				o.set.readFailed(id)
			}
			continue
		}
		files[i] = f
		if ss.table != nil {
			continue
		}
		t, err := readTable(f, 0)
		switch {
		case err != nil:
			failed[id] = err
		case t.id != o.info.identity(o.set.names.set) || t.Geometry != o.info.Geometry || t.length != o.info.length:
			failed[id] = corrupt("shard of another file")
		default:
			ss.table = t
		}
	}
	if ss.table == nil {
		for _, f := range files {
			if f != nil {
				f.Close() // opened for reading: its close cannot lose anything
			}
		}
		if err := failed.err(); errors.Is(err, errMoved) {
			return nil, err
		}
		return nil, errors.Join(ErrLost, failed.err())
	}
	ss.files = files
	return ss, nil
}

func (ss *shardSet) close() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.closeLocked()
}

func (ss *shardSet) closeLocked() {
	for _, f := range ss.files {
		if f != nil {
			f.Close() // opened for reading: its close cannot lose anything
		}
	}
	ss.files, ss.table = nil, nil
}

// block reads a shard's block of a row into b; false: it is not what was written.
func (ss *shardSet) block(b []byte, row, shard int) bool {
	f := ss.files[shard]
	if f == nil {
		return false
	}
	at := int64(ss.table.bytes()) + int64(row)*BlockBytes
	if n, err := f.ReadAt(b, at); n < len(b) || err != nil && err != io.EOF {
		return false
	}
	return invariant.Planted("journal/stripe/read-unverified") || ss.table.id.sum(row, shard, b) == ss.table.of(row)[shard]
}

// whole returns a shard's block of a row, from itself or from the others; b is where to put it.
func (ss *shardSet) whole(b []byte, row, shard int) ([]byte, error) {
	if ss.block(b, row, shard) {
		return b, nil
	}
	blocks := make([][]byte, ss.table.width())
	have := 0
	for i := range blocks {
		if i == shard || have == ss.table.K {
			continue
		}
		p := buf.Aligned(BlockBytes)
		if ss.block(p, row, i) {
			blocks[i] = p
			have++
		}
	}
	blocks[shard] = b[:0]
	if have < ss.table.K {
		return nil, fmt.Errorf("row %d: %d of %d blocks are left: %w", row, have, ss.table.width(), ErrLost)
	}
	required := make([]bool, len(blocks))
	required[shard] = true
	if err := ss.code.rs.ReconstructSome(blocks, required); err != nil {
		return nil, err
	}
	if ss.table.id.sum(row, shard, blocks[shard]) != ss.table.of(row)[shard] {
		return nil, fmt.Errorf("row %d: block %d does not come out as it was written: %w", row, shard, ErrLost)
	}
	return blocks[shard], nil
}

// shardHandle reads a striped object. It takes any place and length.
type shardHandle struct {
	object   *object
	length   int64 // of the file: it does not change any more
	borrowed bool  // layout is held by who made it, and close is not its to do

	mu     sync.Mutex
	closed bool
	block  []byte // the last one that was read
	number int    // of it, and one; 0: none
}

var _ ioengine.File = (*shardHandle)(nil)

// openShards makes a handle of a striped object. With layout held.
func (o *object) openShards() (ioengine.File, error) {
	if _, err := o.getShards(); err != nil {
		return nil, err
	}
	o.shards.mu.Lock()
	o.shards.handles++
	o.shards.mu.Unlock()
	return &shardHandle{object: o, length: o.info.length}, nil
}

func (h *shardHandle) ReadAt(p []byte, off int64) (done int, err error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	if !h.borrowed {
		h.object.layout.RLock()
		defer h.object.layout.RUnlock()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, errClosed
	}
	ss, err := h.object.getShards()
	if err != nil {
		return 0, err
	}
	length := ss.table.length
	for done < len(p) && off < length {
		n := int(off / BlockBytes)
		b, err := h.readBlock(ss, n)
		if err != nil {
			return done, pathError("read", h.object.set.nameOf(h.object), err)
		}
		end := min(BlockBytes, length-int64(n)*BlockBytes)
		k := copy(p[done:], b[off%BlockBytes:end])
		done, off = done+k, off+int64(k)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readBlock returns a block of the file. With mu held.
func (h *shardHandle) readBlock(ss *shardSet, n int) ([]byte, error) {
	if h.number == n+1 {
		return h.block, nil
	}
	if h.block == nil {
		h.block = buf.Aligned(BlockBytes)
	}
	h.number = 0
	row, shard := n/ss.table.K, n%ss.table.K
	b, err := ss.whole(h.block, row, shard)
	if err != nil {
		return nil, err
	}
	h.block, h.number = b, n+1
	return b, nil
}

func (h *shardHandle) Size() (int64, error) { return h.length, nil }

func (h *shardHandle) NextData(off int64) (at, n int64, err error) {
	if n = h.length - off; n <= 0 {
		return 0, 0, nil
	}
	return off, n, nil
}

func (h *shardHandle) WillRead(int64, int64)                            {}
func (h *shardHandle) WriteBack(int64, int64)                           {}
func (h *shardHandle) Align() int                                       { return 1 }
func (h *shardHandle) Sync() error                                      { return nil } // it is durable
func (h *shardHandle) WriteAt([]byte, int64) (int, error)               { return 0, ErrSealed }
func (h *shardHandle) WriteParts([][]byte, int64) error                 { return ErrSealed }
func (h *shardHandle) Allocate(int64, int64) error                      { return ErrSealed }
func (h *shardHandle) Zero(int64, int64) error                          { return ErrSealed }
func (h *shardHandle) Truncate(int64) error                             { return ErrSealed }
func (h *shardHandle) WriteStart(_ [][]byte, _ int64, done func(error)) { go done(ErrSealed) }

// Close gives the shard files up with the last handle, when nobody reads them: who opened the
// file before it was sealed reads them without counting as a handle.
func (h *shardHandle) Close() error {
	h.object.layout.Lock()
	defer h.object.layout.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	h.closed = true
	ss := &h.object.shards
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.handles--; ss.handles == 0 {
		ss.closeLocked()
	}
	return nil
}
