package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"
	"path"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The catalogue's folder says what it is, and how it was left; see FORMAT.md.
const (
	formatName  = "holdfast"
	formatText  = "holdfast catalogue 1\n"
	inUseName   = "in-use"
	inUseNew    = "in-use.new"
	saysOpening = "opening " // followed by the boot and a line feed
	saysOpen    = "open "
)

// badgerFolder is the folder in which Badger keeps a catalogue.
type badgerFolder struct{ cfg BadgerConfig }

// open opens what is there, if it is a catalogue of this release that may be trusted, and
// else begins one.
func (f *badgerFolder) open() (Map, error) {
	err := f.examine()
	if err == nil && !invariant.Planted("journal/index/unverified") {
		err = f.verify()
	}
	if err == nil {
		var m Map
		if m, err = f.begin(); err == nil {
			return m, nil
		}
	}
	f.cfg.Log.Info("the catalogue is made anew", "because", err)
	return f.anew()
}

// anew empties the folder and begins a catalogue.
func (f *badgerFolder) anew() (Map, error) {
	if err := f.empty(); err != nil {
		return nil, err
	}
	m, err := f.begin()
	if err == nil {
		err = f.write(formatName, formatName+".new", formatText)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// examine says why what lies in the folder is not to be trusted: it is nothing that this
// release left closed, or in use when its process ended on a machine that went on.
func (f *badgerFolder) examine() error {
	text, err := f.read(formatName)
	if err != nil {
		return err
	}
	if text != formatText {
		return fmt.Errorf("it says %q, not %q", text, formatText)
	}
	text, err = f.read(inUseName)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if invariant.Planted("journal/index/trust-other-boot") {
		return nil
	}
	if boot, ok := strings.CutPrefix(text, saysOpen); !ok || f.cfg.Boot == "" || boot != f.cfg.Boot+"\n" {
		return errors.New("it was in use when the machine, or an opening, ended")
	}
	return nil // what the process wrote is in the page cache
}

// begin opens Badger in the folder. Should that end the process, the next one begins anew.
func (f *badgerFolder) begin() (m Map, err error) {
	if err := f.write(inUseName, inUseNew, saysOpening+f.cfg.Boot+"\n"); err != nil {
		return nil, err
	}
	db, err := f.openBadger()
	if err != nil {
		return nil, err
	}
	if err = f.write(inUseName, inUseNew, saysOpen+f.cfg.Boot+"\n"); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	b := &badgerMap{db: db, folder: f}
	b.back()
	return b, nil
}

// openBadger opens it; a file that it cannot make sense of may be a panic.
func (f *badgerFolder) openBadger() (db *badger.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("badger: %v", r)
		}
	}()
	return badger.Open(badgerOptions(f.cfg.Dir, f.cfg.Log))
}

// closed says that all is on disk and durable.
func (f *badgerFolder) closed() error {
	if err := f.cfg.FS.Remove(path.Join(f.cfg.Dir, inUseName)); err != nil {
		return err
	}
	return f.cfg.FS.SyncDir(f.cfg.Dir)
}

// empty makes the folder and removes all files in it, first what says what it is.
func (f *badgerFolder) empty() error {
	fs, dir := f.cfg.FS, f.cfg.Dir
	if err := fs.Mkdir(dir); err != nil {
		return err
	}
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	if slices.Contains(names, formatName) {
		err = errors.Join(fs.Remove(path.Join(dir, formatName)), fs.SyncDir(dir))
	}
	for _, n := range names {
		if n != formatName {
			err = errors.Join(err, fs.Remove(path.Join(dir, n)))
		}
	}
	return errors.Join(err, fs.SyncDir(dir), fs.SyncDir(path.Dir(path.Clean(dir))))
}

func (f *badgerFolder) read(name string) (string, error) {
	file, err := f.cfg.FS.Open(path.Join(f.cfg.Dir, name), ioengine.ReadOnly)
	if err != nil {
		return "", err
	}
	defer file.Close()
	p := make([]byte, 256)
	n, err := file.ReadAt(p, 0)
	if err == io.EOF {
		err = nil
	}
	return string(p[:n]), err
}

// verify reads every file to its end, and holds the tables against their checksums.
// Badger would meet what is wrong with them by ending the process, or by a list that
// ends early; a part of the disk that cannot be read is a SIGBUS through mmap, and here
// an error.
func (f *badgerFolder) verify() error {
	names, err := f.cfg.FS.List(f.cfg.Dir)
	if err != nil {
		return err
	}
	p := make([]byte, 1<<20)
	for _, n := range names {
		p, err = f.readFile(p, n)
		if err == nil && strings.HasSuffix(n, ".sst") {
			err = verifyTable(p)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// readFile reads a file whole into p, or into a larger buffer.
func (f *badgerFolder) readFile(p []byte, name string) ([]byte, error) {
	file, err := f.cfg.FS.Open(path.Join(f.cfg.Dir, name), ioengine.ReadOnly)
	if err != nil {
		return p, err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil || size > maxFileBytes {
		return p, errors.Join(err, fmt.Errorf("%d bytes", size))
	}
	p = slices.Grow(p[:0], int(size))[:size]
	if n, err := file.ReadAt(p, 0); n < len(p) {
		return p, err
	}
	return p, nil
}

// maxFileBytes is more than any file in the folder has.
const maxFileBytes = 64 << 20

// verifyTable holds all of a table of Badger's against its checksums. A table is blocks and
// an index that says where they are; each ends with its CRC32C, as a protobuf message, and
// the length of that, big-endian.
func verifyTable(p []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("table index: %v: %w", r, ErrCorrupt)
		}
	}()
	rest, sum, ok := cutSum(p)
	if !ok || len(rest) < 4 {
		return fmt.Errorf("table ends early: %w", ErrCorrupt)
	}
	length := binary.BigEndian.Uint32(rest[len(rest)-4:])
	if rest = rest[:len(rest)-4]; int64(length) > int64(len(rest)) {
		return fmt.Errorf("table index of %d bytes: %w", length, ErrCorrupt)
	}
	blocks, index := rest[:len(rest)-int(length)], rest[len(rest)-int(length):]
	if !bytes.Equal(sum, sumOf(index)) {
		return fmt.Errorf("table index: checksum: %w", ErrCorrupt)
	}
	table, at := fb.GetRootAsTableIndex(index, 0), fb.BlockOffset{}
	for i := range table.OffsetsLength() {
		if !table.Offsets(&at, i) || int64(at.Offset())+int64(at.Len()) > int64(len(blocks)) {
			return fmt.Errorf("block %d lies outside: %w", i, ErrCorrupt)
		}
		data, sum, ok := cutSum(blocks[at.Offset():][:at.Len()])
		if !ok || !bytes.Equal(sum, sumOf(data)) {
			return fmt.Errorf("block %d: checksum: %w", i, ErrCorrupt)
		}
	}
	return nil
}

// cutSum takes the checksum off the end of p.
func cutSum(p []byte) (rest, sum []byte, ok bool) {
	if len(p) < 4 {
		return nil, nil, false
	}
	length := binary.BigEndian.Uint32(p[len(p)-4:])
	if p = p[:len(p)-4]; int64(length) > int64(len(p)) {
		return nil, nil, false
	}
	return p[:len(p)-int(length)], p[len(p)-int(length):], true
}

// sumOf is the checksum of p as a table has it: the message's second field.
func sumOf(p []byte) []byte {
	return binary.AppendUvarint([]byte{2 << 3}, uint64(crc32.Checksum(p, castagnoli)))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// write makes a file appear, durable and whole.
func (f *badgerFolder) write(name, temporary, text string) error {
	fs, dir := f.cfg.FS, f.cfg.Dir
	file, err := fs.Open(path.Join(dir, temporary), ioengine.Create)
	if err != nil {
		return err
	}
	if err = file.Truncate(0); err == nil {
		_, err = file.WriteAt([]byte(text), 0)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err = fs.Rename(path.Join(dir, temporary), path.Join(dir, name)); err != nil {
		return err
	}
	return fs.SyncDir(dir)
}

// tidy makes one table row of all when half of what there is, and more than a few tables, lies
// unsorted: each byte is then rewritten about as often as what is there doubles. It does
// so only with space for twice all that.
func (f *badgerFolder) tidy(m Map) {
	b := m.(*badgerMap)
	var all, unsorted int64
	tables := 0
	for _, l := range b.db.Levels() {
		all += l.Size
		if l.Level == 0 {
			unsorted, tables = l.Size, l.NumTables
		}
	}
	if tables < tidyTables || 3*unsorted < all {
		return
	}
	free, err := f.cfg.FS.Free(f.cfg.Dir)
	if err != nil || free < f.cfg.Floor+2*all+openBytes {
		return
	}
	if err := b.db.Flatten(1); err != nil {
		f.cfg.Log.Warn("the catalogue is not tidied", "error", err)
	}
}

// tidyTables is how many tables may lie beside each other unsorted: each costs a list
// and a look-up a little.
const tidyTables = 8
