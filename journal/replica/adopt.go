package replica

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Adopt makes the disk of that name the replica of a volume of so many bytes, with all that it holds, and
// returns when that is durable. The disk stays where it is and as it is, but that a file is filled up with
// zeros to whole blocks; its sums are made in dir, what an earlier Adopt left of them is overwritten. It is
// read once, but for its holes; read is told how far that has come, and ends it by an error. Nobody else may have the disk
// (ioengine.ErrLocked), until Close.
func Adopt(fs ioengine.FS, dir, image string, p Place, bytes int64, read func(upTo int64) error) (*Volume, error) {
	v := &Volume{place: p, fs: fs, dir: dir, image: image}
	v.bytes.Store(bytes)
	err := v.takeDisk()
	if err == nil {
		err = v.sumDisk(read)
	}
	if err == nil {
		v.dirty = true
		err = v.syncLocked()
	}
	if err == nil {
		err = fs.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: adopt %s: %w", p, image, err), v.Close())
	}
	return v, nil
}

// hold keeps all others from an image that stands elsewhere.
func (v *Volume) hold() error {
	if h, ok := v.raw.(ioengine.Holder); ok && v.image != "" && !invariant.Planted("journal/replica/shares-disk") {
		return h.Hold()
	}
	return nil
}

// takeDisk opens the disk, which must be there, and makes a file of sums for it.
func (v *Volume) takeDisk() (err error) {
	if v.raw, err = v.fs.Open(v.image, 0); err != nil {
		return err
	}
	if err = v.hold(); err != nil {
		return err
	}
	size, err := v.raw.Size()
	if err != nil {
		return err
	}
	whole := v.blocks() * BlockBytes
	if size != v.Bytes() && size != whole {
		return fmt.Errorf("it has %d bytes, and the volume %d", size, v.Bytes())
	}
	if size < whole {
		if err = v.raw.Truncate(whole); err != nil {
			return err
		}
	}
	if v.sums, err = v.fs.Open(v.sumsName(), ioengine.Create); err != nil {
		return err
	}
	if err = v.sums.Truncate(0); err != nil {
		return err
	}
	if _, err = v.sums.WriteAt(appendHeader(nil, v.place), 0); err != nil {
		return err
	}
	return v.sums.Truncate(sumAt(v.blocks()))
}

// sumDisk makes the sums of all blocks; those of holes are zero already.
func (v *Volume) sumDisk(read func(upTo int64) error) error {
	data, sums := buf.Aligned(chunkBytes), buf.Aligned(chunkBytes/BlockBytes*sumBytes)
	whole := v.blocks() * BlockBytes
	var at int64
	var err error
	for at < whole && err == nil {
		from, n, nerr := v.raw.NextData(at)
		if nerr != nil {
			return nerr
		}
		if n == 0 {
			break
		}
		at = max(at, from) / BlockBytes * BlockBytes
		for end := min(whole, from+n); at < end && err == nil; {
			c := data[:min(chunkBytes, (end-at+BlockBytes-1)/BlockBytes*BlockBytes)]
			if err = v.sumChunk(c, sums, at/BlockBytes); err == nil {
				at += int64(len(c))
				err = read(min(at, v.Bytes()))
			}
		}
	}
	if err == nil {
		err = read(v.Bytes())
	}
	return err
}

func (v *Volume) sumChunk(c, sums []byte, first int64) error {
	if _, err := v.raw.ReadAt(c, first*BlockBytes); err != nil {
		return err
	}
	blocks := len(c) / BlockBytes
	for i := range blocks {
		putSum(sums, i, sumOf(v.place, first+int64(i), c[i*BlockBytes:(i+1)*BlockBytes]))
	}
	_, err := v.sums.WriteAt(sums[:blocks*sumBytes], sumAt(first))
	return err
}
