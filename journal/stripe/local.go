package stripe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// ParityName returns the name of the parity file of a segment file.
func ParityName(name string) string { return strings.TrimSuffix(name, path.Ext(name)) + ".par" }

// Protect writes the parity of a file that will not change any more, beside it, and
// returns when it is durable. What protected it before is replaced. The file must have
// been verified: parity keeps what it finds.
func Protect(fsys ioengine.FS, name string, id Identity, pace Pace) error {
	if err := protect(fsys, name, id, nil, pace); err != nil {
		return fmt.Errorf("protect %s: %w", name, err)
	}
	return nil
}

// protect makes parity; when it is known what the file was, of that and nothing else.
func protect(fsys ioengine.FS, name string, id Identity, known *table, pace Pace) error {
	src, length, err := openWhole(fsys, name)
	if err != nil {
		return err
	}
	defer src.Close()
	final := ParityName(name)
	temp := final + ".new"
	if err := removeIfThere(fsys, temp); err != nil {
		return err
	}
	dst, err := fsys.Open(temp, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	if err != nil {
		return err
	}
	err = writeParity(dst, src, id, length, known, pace)
	if err == nil && !invariant.Planted("journal/stripe/parity-unsynced") {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return errors.Join(err, removeIfThere(fsys, temp))
	}
	if err := fsys.Rename(temp, final); err != nil {
		return err
	}
	return fsys.SyncDir(path.Dir(final))
}

func openWhole(fsys ioengine.FS, name string) (ioengine.File, int64, error) {
	f, err := fsys.Open(name, ioengine.ReadOnly|ioengine.Direct)
	if err != nil {
		return nil, 0, err
	}
	n, err := f.Size()
	if err == nil && (n <= 0 || n > maxLength) {
		err = fmt.Errorf("%d bytes: parity is for files of 1 to %d bytes", n, int64(maxLength))
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, n, nil
}

func removeIfThere(fsys ioengine.FS, name string) error {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveParity removes the parity of a file that is gone. Nothing depends on it.
func RemoveParity(fsys ioengine.FS, name string) error { return removeIfThere(fsys, ParityName(name)) }

// writeParity reads the file once, front to back, and adds each block to the parity of its
// stripe, a zone at a time. A file that is not what known says is ErrCorrupt.
func writeParity(dst, src ioengine.File, id Identity, length int64, known *table, pace Pace) error {
	c, err := newCode(local)
	if err != nil {
		return err
	}
	t := &table{Geometry: local, id: id, length: length, shard: localShard}
	t.sums = make([]uint32, t.stripes()*t.width())
	front := int64(t.bytes())
	r := newBlockReader(src, length)
	var parity []byte
	for _, z := range zonesOf(local, length) {
		if parity == nil {
			parity = buf.Aligned(z.stripes * local.M * BlockBytes) // the first zone is the largest
		}
		clear(parity)
		if err := c.zone(t, z, r, parity, pace); err != nil {
			return err
		}
		if known != nil && !t.sameData(known, z) && !invariant.Planted("journal/stripe/parity-of-rot") {
			return corrupt("the file is not what its parity says: neither is to be trusted alone")
		}
		size := z.stripes * local.M * BlockBytes
		if _, err := dst.WriteAt(parity[:size], front+int64(z.stripe*local.M)*BlockBytes); err != nil {
			return err
		}
		if err := pace.spend(size); err != nil {
			return err
		}
	}
	p := buf.Aligned(t.bytes())
	t.put(p)
	if _, err := dst.WriteAt(p, front+int64(t.stripes()*local.M)*BlockBytes); err != nil {
		return err
	}
	_, err = dst.WriteAt(p, 0)
	return err
}

// zone adds the zone's blocks to its parity, which is zeros, and notes all their sums.
func (c *code) zone(t *table, z zone, r *blockReader, parity []byte, pace Pace) error {
	of := func(stripe int) [][]byte {
		rows := make([][]byte, c.M)
		for i := range rows {
			rows[i] = parity[(stripe*c.M+i)*BlockBytes:][:BlockBytes]
		}
		return rows
	}
	for j := range z.blocks {
		b, err := r.read(z.first + j)
		if err != nil {
			return err
		}
		stripe, shard := z.at(j)
		t.of(z.stripe + stripe)[shard] = t.id.sum(z.stripe+stripe, shard, b)
		if err := c.rs.EncodeIdx(b, shard, of(stripe)); err != nil {
			return err
		}
		if err := pace.spend(len(b)); err != nil {
			return err
		}
	}
	zeros := make([]byte, BlockBytes)
	for j := z.blocks; j < z.stripes*c.K; j++ {
		stripe, shard := z.at(j)
		t.of(z.stripe + stripe)[shard] = t.id.sum(z.stripe+stripe, shard, zeros)
	}
	for stripe := range z.stripes {
		for i, p := range of(stripe) {
			t.of(z.stripe + stripe)[c.K+i] = t.id.sum(z.stripe+stripe, c.K+i, p)
		}
	}
	return nil
}

// blockReader reads the blocks of a file, several ahead while they are asked for in order.
type blockReader struct {
	src    io.ReaderAt
	length int64
	ahead  []byte // aligned
	first  int    // block that ahead begins with
	count  int    // blocks in it
}

const readAhead = 16

func newBlockReader(src io.ReaderAt, length int64) *blockReader {
	return &blockReader{src: src, length: length, ahead: buf.Aligned(readAhead * BlockBytes)}
}

// read returns block i, filled with zeros beyond the end of the file. It is good until the next call.
func (r *blockReader) read(i int) ([]byte, error) {
	if i < r.first || i >= r.first+r.count {
		n := min(readAhead, blocksOf(r.length)-i)
		if i != r.first+r.count {
			n = 1 // not in order
		}
		if err := readPadded(r.src, r.ahead[:n*BlockBytes], int64(i)*BlockBytes, r.length); err != nil {
			r.count = 0
			return nil, err
		}
		r.first, r.count = i, n
	}
	return r.ahead[(i-r.first)*BlockBytes:][:BlockBytes], nil
}

// readPadded fills p from off on; what lies at or beyond length is zeros, and a file that
// ends before is ErrCorrupt.
func readPadded(src io.ReaderAt, p []byte, off, length int64) error {
	n, err := src.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return err
	}
	have := int(max(0, min(int64(len(p)), length-off)))
	if n < have {
		return corrupt("file is cut short")
	}
	clear(p[have:])
	return nil
}
