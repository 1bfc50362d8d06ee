package replica

import (
	"errors"
	"fmt"
	"io"
	"path"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// BlockBytes is what one checksum covers.
const BlockBytes = 4096

// ErrFailed says that a sync of a replica failed, which is final for its files: nothing is
// written to them until they are opened again.
var ErrFailed = errors.New("a sync failed, and the replica is not written until it is opened again")

// ErrCorrupt says that a block or file is not what was written.
var ErrCorrupt = errors.New("corrupt replica")

// Place names a volume's replica.
type Place struct {
	Group  record.GroupID
	Volume record.VolumeID
}

func (p Place) String() string { return fmt.Sprintf("replica %s/%08x", p.Group, uint32(p.Volume)) }

// Volume is the replica of one volume.
type Volume struct {
	place     Place
	fs        ioengine.FS
	dir       string
	image     string       // the image's name; empty: it stands beside the sums
	bytes     atomic.Int64 // of the volume; the image is rounded up to whole blocks
	raw, sums ioengine.File
	warmed    []atomic.Uint64                  // a bit for each stretch of the sums that was read ahead; see warm
	locks     rangeLocks                       // of readers against writers, block by block
	owed      atomic.Pointer[map[int64][]byte] // what blocks hold that may be torn in place

	mu     sync.Mutex    // of writers
	past   ioengine.File // the image past the page cache; nil: not opened yet
	filled span          // bytes of the image known to be no hole
	rows   rows          // of Fill
	chunk  []byte        // made at the first write: most volumes are only read
	sum    []byte
	dirty  bool
	failed error // of a sync: final for these files
}

// chunkBytes is the most that is read or written at once.
const chunkBytes = 256 << 10

// Create makes the replica of a volume of so many bytes, all zero, in dir, and
// returns when it is durable. What an earlier Create left there unfinished is
// overwritten: only a volume known to exist may be opened with Open.
func Create(fs ioengine.FS, dir string, p Place, bytes int64) (*Volume, error) {
	v := &Volume{place: p, fs: fs, dir: dir}
	v.bytes.Store(bytes)
	err := v.openFiles(ioengine.Create)
	if err == nil {
		err = v.format()
	}
	if err == nil {
		err = fs.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: create: %w", p, err), v.Close())
	}
	return v, nil
}

// Open opens the replica of a volume of so many bytes.
func Open(fs ioengine.FS, dir string, p Place, bytes int64) (*Volume, error) {
	return OpenAt(fs, dir, "", p, bytes)
}

// OpenAt is Open of one whose image is the disk of that name, which nobody else has then; empty: it stands in dir.
func OpenAt(fs ioengine.FS, dir, image string, p Place, bytes int64) (*Volume, error) {
	v := &Volume{place: p, fs: fs, dir: dir, image: image}
	v.bytes.Store(bytes)
	err := v.openFiles(0)
	if err == nil {
		err = v.hold()
	}
	if err == nil {
		err = v.check()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: open: %w", p, err), v.Close())
	}
	return v, nil
}

func (v *Volume) openFiles(flags ioengine.Flags) (err error) {
	if v.raw, err = v.fs.Open(v.rawName(), flags); err != nil {
		return err
	}
	v.warmed = make([]atomic.Uint64, sumAt(v.blocks())/warmBytes/64+1)
	v.sums, err = v.fs.Open(v.sumsName(), flags)
	return err
}

func (v *Volume) rawName() string {
	if v.image != "" {
		return v.image
	}
	return ImageName(v.dir, v.place.Volume)
}

func (v *Volume) sumsName() string { return v.name() + ".sum" }
func (v *Volume) name() string {
	return path.Join(v.dir, fmt.Sprintf("%08x", uint32(v.place.Volume)))
}

// ImageSuffix is what the names of images end with.
const ImageSuffix = ".raw"

// ImageName is the file in dir that is the image of a volume's replica, without a header: a raw disk.
func ImageName(dir string, volume record.VolumeID) string {
	return path.Join(dir, fmt.Sprintf("%08x", uint32(volume))+ImageSuffix)
}

// format makes both files those of a volume of zeros.
func (v *Volume) format() error {
	for _, f := range []ioengine.File{v.raw, v.sums} {
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	if _, err := v.sums.WriteAt(appendHeader(nil, v.place), 0); err != nil {
		return err
	}
	if err := v.resize(0, v.Bytes()); err != nil {
		return err
	}
	return v.syncLocked()
}

// check holds the files against what they should be.
func (v *Volume) check() error {
	h := make([]byte, headerBytes)
	if _, err := v.sums.ReadAt(h, 0); err != nil && err != io.EOF {
		return err
	}
	if err := parseHeader(h, v.place); err != nil {
		return err
	}
	for f, want := range map[ioengine.File]int64{v.raw: v.blocks() * BlockBytes, v.sums: sumAt(v.blocks())} {
		n, err := f.Size()
		if err != nil {
			return err
		}
		if n < want {
			return fmt.Errorf("%d bytes of %d: %w", n, want, ErrCorrupt)
		}
	}
	return nil
}

func (v *Volume) blocks() int64 { return blocksOf(v.bytes.Load()) }

func blocksOf(bytes int64) int64 { return (bytes + BlockBytes - 1) / BlockBytes }

// ImageBytes is how long the image of a volume of so many bytes is: whole blocks.
func ImageBytes(volume int64) int64 { return blocksOf(volume) * BlockBytes }

// resize sets the files' sizes for a volume that had was bytes and is to have bytes. An image that is as large already keeps
// its size, as a device must; since its sums say so, what is new of it is made zeros.
func (v *Volume) resize(was, bytes int64) error {
	v.dirty = true
	from, want := ImageBytes(was), ImageBytes(bytes)
	size, err := v.raw.Size()
	if err == nil {
		err = v.raw.Truncate(max(size, want)) // also where it has that size: a sync that failed may have lost it
	}
	if v.image != "" && errors.Is(err, syscall.EINVAL) { // a device, which only its owner can enlarge
		if err = nil; size < want {
			err = fmt.Errorf("%s has %d bytes, and its volume %d: enlarge it: %w", v.image, size, bytes, syscall.EINVAL)
		}
	}
	if have := min(size, want); err == nil && have > from {
		err = v.raw.Zero(from, have-from)
	}
	if err != nil {
		return err
	}
	return v.sums.Truncate(sumAt(blocksOf(bytes)))
}

// Bytes returns the volume's size.
func (v *Volume) Bytes() int64 { return v.bytes.Load() }

// Grow makes the volume larger, durably; what is new reads as zeros.
func (v *Volume) Grow(bytes int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.bytes.Load()
	if bytes <= was {
		return nil
	}
	err := v.resize(was, bytes)
	if err == nil {
		err = v.syncLocked()
	}
	if err != nil {
		return fmt.Errorf("%s: grow: %w", v.place, err)
	}
	v.bytes.Store(bytes) // who reads there finds it whole
	return nil
}

// Write puts p at off. Blocks that it covers only in part are read, and not verified:
// while a replica is written, a crash may have torn a block against its sum, and what
// was torn had not been acknowledged, so it is written again after this.
func (v *Volume) Write(p []byte, off int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.writeLocked(p, off)
}

func (v *Volume) writeLocked(p []byte, off int64) error {
	if err := v.writable(off, int64(len(p))); err != nil {
		return err
	}
	if v.chunk == nil {
		v.chunk, v.sum = buf.Aligned(chunkBytes), buf.Aligned(chunkBytes/BlockBytes*sumBytes)
	}
	for len(p) > 0 {
		first, skip := off/BlockBytes, int(off%BlockBytes)
		n := min(len(p), len(v.chunk)-skip)
		blocks := (skip + n + BlockBytes - 1) / BlockBytes
		c := v.chunk[:blocks*BlockBytes]
		for _, b := range [...]int{0, blocks - 1} { // only they can be covered in part
			lo, hi := b*BlockBytes, (b+1)*BlockBytes
			if lo >= skip && hi <= skip+n {
				continue
			}
			if _, err := v.raw.ReadAt(c[lo:hi], (first+int64(b))*BlockBytes); err != nil && err != io.EOF {
				return fmt.Errorf("%s: %w", v.place, err)
			}
		}
		copy(c[skip:], p[:n])
		if err := v.putLocked(c, first); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// putLocked writes whole blocks and their sums.
func (v *Volume) putLocked(c []byte, first int64) error {
	defer v.locks.write(first*BlockBytes, int64(len(c)))()
	return v.put(c, v.sum, first)
}

// put writes whole blocks and their sums, which it makes in sums. The blocks' range is
// locked.
func (v *Volume) put(c, sums []byte, first int64) error {
	v.dirty = true
	return v.putIn(v.raw, [][]byte{c}, sums, first)
}

// putIn writes them in raw, which is the image; each part has whole blocks.
func (v *Volume) putIn(raw interface{ WriteParts([][]byte, int64) error }, parts [][]byte, sums []byte, first int64) error {
	n := 0
	for _, c := range parts {
		for ; len(c) > 0; c = c[BlockBytes:] {
			putSum(sums, n, sumOf(v.place, first+int64(n), c[:BlockBytes]))
			n++
		}
	}
	sums = sums[:n*sumBytes]
	if err := raw.WriteParts(parts, first*BlockBytes); err != nil {
		return fmt.Errorf("%s: %w", v.place, err)
	}
	if invariant.Planted("journal/replica/stale-sum") && first > 0 {
		return nil
	}
	if _, err := v.sums.WriteAt(sums, sumAt(first)); err != nil {
		return fmt.Errorf("%s: %w", v.place, err)
	}
	return nil
}

// zeros is what a part of a block is overwritten with.
var zeros [BlockBytes]byte

// Zero makes the range read as zeros and gives its space back.
func (v *Volume) Zero(off, n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.writable(off, n); err != nil {
		return err
	}
	end := off + n
	if part := off % BlockBytes; part != 0 {
		k := min(BlockBytes-part, n)
		if err := v.writeLocked(zeros[:k], off); err != nil {
			return err
		}
		off += k
	}
	if tail := end % BlockBytes; tail != 0 && end > off {
		if end == v.bytes.Load() { // nothing of the volume stands behind it in its last block
			end += BlockBytes - tail
		} else {
			end -= tail
			if err := v.writeLocked(zeros[:tail], end); err != nil {
				return err
			}
		}
	}
	if end <= off {
		return nil
	}
	defer v.locks.all()()
	return v.zeroBlocks(off/BlockBytes, (end-off)/BlockBytes)
}

// zeroBlocks makes blocks zeros and gives their space back. Their range is locked.
func (v *Volume) zeroBlocks(first, count int64) error {
	v.dirty, v.filled = true, span{}
	err := v.raw.Zero(first*BlockBytes, count*BlockBytes)
	if err == nil {
		err = v.sums.Zero(sumAt(first), count*sumBytes)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", v.place, err)
	}
	return nil
}

func (v *Volume) writable(off, n int64) error {
	if v.failed != nil {
		return v.failed
	}
	return v.inside(off, n)
}

func (v *Volume) inside(off, n int64) error {
	if size := v.bytes.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%s: %d bytes at %d of %d: outside", v.place, n, off, size)
	}
	return nil
}

// Sync makes everything written durable. A failure is final: the system may have
// thrown away what it could not write, so from then on every write and sync fails.
func (v *Volume) Sync() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.syncLocked()
}

func (v *Volume) syncLocked() error {
	if v.failed != nil || !v.dirty {
		return v.failed
	}
	err := v.raw.Sync()
	if err == nil && !invariant.Planted("journal/replica/no-sum-sync") {
		err = v.sums.Sync()
	}
	if err != nil {
		v.failed = fmt.Errorf("%s: %w: %w", v.place, ErrFailed, err)
		return v.failed
	}
	v.dirty = false
	return nil
}

// Close closes the files, without a sync.
func (v *Volume) Close() error {
	var err error
	for _, f := range []ioengine.File{v.raw, v.sums, v.past} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}
