package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/holdfast-dr/holdfast/control/config"
)

const sectorBytes = 512

// foreignFormats are the disk formats that a raw disk could be mistaken for: what
// stands at an offset of the file.
var foreignFormats = []struct {
	name, qemu string
	at         int64
	magic      []byte
}{
	{"qcow2", "qcow2", 0, []byte("QFI\xfb")},
	{"qed", "qed", 0, []byte("QED\x00")},
	{"VMDK", "vmdk", 0, []byte("KDMV")},
	{"VMDK", "vmdk", 0, []byte("# Disk DescriptorFile")},
	{"VHDX", "vhdx", 0, []byte("vhdxfile")},
	{"VDI", "vdi", 64, []byte{0x7f, 0x10, 0xda, 0xbe}},
	{"VHD", "vpc", 0, []byte("conectix")},
}

// checkImage says whether the file can be protected as a raw disk, and returns its
// size in bytes.
func checkImage(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("image %s does not exist: check the path", path)
		}
		return 0, fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("image: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() && mode.Type() != os.ModeDevice {
		return 0, fmt.Errorf("image %s is neither a file nor a block device: name a raw disk", path)
	}
	size, err := f.Seek(0, io.SeekEnd) // a device's size is not in its Stat
	if err != nil {
		return 0, fmt.Errorf("image: %w", err)
	}
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("image: %w", err)
	}
	for _, format := range foreignFormats {
		if from := min(int64(n), format.at); bytes.HasPrefix(head[from:n], format.magic) {
			return 0, fmt.Errorf("image %s is in %s format and not a raw disk: convert it with: qemu-img convert -O raw %s %s.raw", path, format.name, path, path)
		}
	}
	if size == 0 {
		return 0, fmt.Errorf("image %s is empty: name a raw disk", path)
	}
	if size%sectorBytes != 0 {
		return 0, fmt.Errorf("image %s has %d bytes, which is no multiple of %d: enlarge it with: truncate --size %%%d %s", path, size, sectorBytes, sectorBytes, path)
	}
	return size, nil
}

// makeDisk makes an empty disk, without using space.
func makeDisk(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

const copyBytes = 1 << 20

// copyDisk copies a raw disk; holes stay holes and zeros become holes. done is told
// how many more bytes of the disk are dealt with.
func copyDisk(ctx context.Context, from, to string, size int64, done func(int64)) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return err
	}
	buf, zero := make([]byte, copyBytes), make([]byte, copyBytes)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, end := nextData(in, off, size)
		done(data - off)
		for off = data; off < end; {
			p := buf[:min(copyBytes, end-off)]
			if _, err := io.ReadFull(io.NewSectionReader(in, off, int64(len(p))), p); err != nil {
				return fmt.Errorf("%s at %d: %w", from, off, err)
			}
			if !bytes.Equal(p, zero[:len(p)]) {
				if _, err := out.WriteAt(p, off); err != nil {
					return err
				}
			}
			off += int64(len(p))
			done(int64(len(p)))
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// lseek's ways to find data and holes.
const (
	seekData = 3
	seekHole = 4
)

// nextData finds the next data at or after off. Where the file system cannot tell,
// all is data; where only holes follow, it is at the end.
func nextData(f *os.File, off, size int64) (at, end int64) {
	at, err := f.Seek(off, seekData)
	if errors.Is(err, syscall.ENXIO) {
		return size, size
	}
	if err != nil || at < off {
		return off, size
	}
	end, err = f.Seek(at, seekHole)
	if err != nil || end <= at {
		end = size
	}
	return min(at, size), min(end, size)
}

// journalSpace is what a lab keeps free beside its disks, in bytes: two segments of
// the journal and what Badger, marks and logs take.
const journalSpace = 1 << 30

// checkSpace says whether dir's file system has room for disks of so many bytes at
// both sites. dir need not exist yet.
func checkSpace(dir string, disks int64) error {
	free, known := freeAt(dir)
	need := 2*disks + journalSpace
	if known && (need < 0 || need > free) {
		return fmt.Errorf("no space for the lab in %s: both sites and the journal may need %s, and %s are free: make room, use smaller disks, or say --overcommit if the disks will stay mostly empty",
			dir, config.Size(max(need, disks)).Text(), config.Size(free).Text())
	}
	return nil
}

// CheckFree says whether dir's file system has so many bytes free.
func CheckFree(dir string, need int64) error {
	if free, known := freeAt(dir); known && need > free {
		return fmt.Errorf("no space in %s: %s may be needed, and %s are free: make room or name another folder with --dir", dir, config.Size(need).Text(), config.Size(free).Text())
	}
	return nil
}

// freeAt is how many bytes the file system of dir, or of what will hold it, has free.
func freeAt(dir string) (free int64, known bool) {
	var fs syscall.Statfs_t
	for syscall.Statfs(dir, &fs) != nil {
		above := filepath.Dir(dir)
		if above == dir {
			return 0, false
		}
		dir = above
	}
	if fs.Blocks == 0 {
		return 0, false // not on a disk at all: making a folder will say so
	}
	return int64(fs.Bavail) * int64(fs.Bsize), true
}
