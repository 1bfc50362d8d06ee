package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"
	"path"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// ErrVersion says that a newer release wrote a file.
var ErrVersion = errors.New("written by a newer release")

// image is a block as it is to be.
type image struct {
	volume record.VolumeID
	block  int64
	data   []byte
}

// The double-write file: a header page, the table, and the images, each in whole pages.
// FORMAT.md.
const (
	doubleName    = "doublewrite"
	doubleMagic   = 0x31444648 // "HFD1"
	doubleVersion = 1
	maxImages     = 256 // in one file: what it takes on disk is 1 MiB
	tableBytes    = maxImages * imageEntry
	imageEntry    = 16
	doubleBytes   = headerBytes + tableBytes + maxImages*BlockBytes

	atDoubleVersion = 4
	atDoubleGroup   = 8
	atDoubleCount   = 16
	atDoubleTable   = 20 // its checksum
	atDoubleZero    = 24
	atDoubleCRC     = headerBytes - 4
)

var _ [tableBytes]byte = [headerBytes]byte{}

// doubleWrite is the file through which blocks go that are overwritten in part.
type doubleWrite struct {
	fs    ioengine.FS
	dir   string
	group record.GroupID
	file  ioengine.File // nil: it is not there, or no more to be trusted
	page  []byte        // of doubleBytes
	holds bool          // the file may hold images that count
}

func (d *doubleWrite) name() string { return path.Join(d.dir, doubleName) }

// read returns the images that the file holds; those that were not written whole were
// never begun to be put in place. They are durable when it returns: the process that wrote
// them may have been killed before its sync, and what is not durable must not be put in
// place. They are written once more for that, and not only synced, since a sync of it may
// have failed before.
func (d *doubleWrite) read() (images []image, err error) {
	file, err := d.fs.Open(d.name(), 0)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d.file = file
	p := make([]byte, doubleBytes)
	n, err := file.ReadAt(p, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	images, err = parseDouble(p[:n], d.group)
	d.holds = len(images) > 0
	if err != nil || !d.holds || invariant.Planted("journal/replica/recover-unsynced") {
		return images, err
	}
	if _, err = file.WriteAt(p[:n], 0); err == nil {
		err = file.Sync()
	}
	return images, err
}

// write makes the images durable, in the place of those before. After an error the file
// is not trusted again.
func (d *doubleWrite) write(images []image) (err error) {
	if len(images) == 0 && (!d.holds || invariant.Planted("journal/replica/images-stay")) {
		return nil
	}
	if d.file == nil {
		if err := d.create(); err != nil {
			return err
		}
	}
	if d.page == nil {
		d.page = buf.Aligned(doubleBytes)
	}
	d.holds = true
	n := putDouble(d.page, d.group, images)
	if invariant.Planted("journal/replica/no-double-write") {
		return nil
	}
	if _, err = d.file.WriteAt(d.page[:n], 0); err == nil {
		err = d.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("double write: %w", errors.Join(err, d.drop()))
	}
	d.holds = len(images) > 0
	return nil
}

// create makes a new file, with the space for all that it can hold.
func (d *doubleWrite) create() (err error) {
	if err := d.fs.Remove(d.name()); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	if d.file, err = d.fs.Open(d.name(), ioengine.Create|ioengine.Exclusive); err != nil {
		return err
	}
	if err = d.file.Allocate(0, doubleBytes); err == nil {
		err = d.fs.SyncDir(d.dir)
	}
	if err != nil {
		return errors.Join(err, d.drop())
	}
	return nil
}

// drop gives the file up: another is made for the next images.
func (d *doubleWrite) drop() error {
	if d.file == nil {
		return nil
	}
	err := d.file.Close()
	d.file = nil
	return err
}

// putDouble fills p and returns how much of it is to be written.
func putDouble(p []byte, group record.GroupID, images []image) int {
	le := binary.LittleEndian
	clear(p[:headerBytes+tableBytes])
	table := p[headerBytes : headerBytes+tableBytes]
	for i, m := range images {
		e := table[i*imageEntry:]
		le.PutUint32(e, uint32(m.volume))
		le.PutUint32(e[4:], sumOf(Place{Group: group, Volume: m.volume}, m.block, m.data))
		le.PutUint64(e[8:], uint64(m.block))
		copy(p[headerBytes+tableBytes+i*BlockBytes:], m.data)
	}
	le.PutUint32(p, doubleMagic)
	le.PutUint32(p[atDoubleVersion:], doubleVersion)
	le.PutUint64(p[atDoubleGroup:], uint64(group))
	le.PutUint32(p[atDoubleCount:], uint32(len(images)))
	le.PutUint32(p[atDoubleTable:], crc32.Checksum(table, castagnoli))
	le.PutUint32(p[atDoubleCRC:], crc32.Checksum(p[:atDoubleCRC], castagnoli))
	if len(images) == 0 {
		return headerBytes + tableBytes
	}
	return headerBytes + tableBytes + len(images)*BlockBytes
}

// parseDouble returns the images in p that are whole. A header or a table that is not
// was being written, and nothing in it counts. ErrVersion: a newer release wrote it.
func parseDouble(p []byte, group record.GroupID) (images []image, err error) {
	le := binary.LittleEndian
	if len(p) < headerBytes+tableBytes || le.Uint32(p) != doubleMagic ||
		crc32.Checksum(p[:atDoubleCRC], castagnoli) != le.Uint32(p[atDoubleCRC:]) {
		return nil, nil
	}
	if v := le.Uint32(p[atDoubleVersion:]); v != doubleVersion {
		return nil, fmt.Errorf("double write of version %d: %w", v, ErrVersion)
	}
	count := le.Uint32(p[atDoubleCount:])
	table := p[headerBytes : headerBytes+tableBytes]
	if record.GroupID(le.Uint64(p[atDoubleGroup:])) != group || count > maxImages || !allZero(p[atDoubleZero:atDoubleCRC]) ||
		crc32.Checksum(table, castagnoli) != le.Uint32(p[atDoubleTable:]) {
		return nil, nil
	}
	for i := range int(count) {
		e, at := table[i*imageEntry:], headerBytes+tableBytes+i*BlockBytes
		m := image{volume: record.VolumeID(le.Uint32(e)), block: int64(le.Uint64(e[8:]))}
		if at+BlockBytes > len(p) || m.block < 0 {
			break
		}
		m.data = p[at : at+BlockBytes]
		if sumOf(Place{Group: group, Volume: m.volume}, m.block, m.data) == le.Uint32(e[4:]) {
			images = append(images, m)
		}
	}
	return images, nil
}
