package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Watermarks is the file of a store that keeps the watermark of each of its groups.
// It is two slots; each Raise writes the whole into the older one and syncs it, so
// that a torn write leaves the other. Raise and Close are for one goroutine at a
// time; Get may be called beside them.
type Watermarks struct {
	fs         ioengine.FS
	dir, name  string
	file       ioengine.File // nil after a failure: the next Raise makes another
	generation uint64
	page       []byte // aligned; one slot

	mu struct {
		sync.RWMutex
		marks map[record.GroupID]Watermark
	}
}

// MaxGroups bounds the groups of a store.
const MaxGroups = (slotBytes - slotHeaderBytes) / markBytes

const (
	slotMagic       = 0x31574648 // "HFW1"
	slotBytes       = 64 << 10
	slotHeaderBytes = 32
	markBytes       = 24

	atGeneration = 8
	atMarks      = 16
	atSlotZero   = 20
	atSlotCRC    = 28
)

var _ [slotHeaderBytes]byte = [atSlotCRC + 4]byte{}

// OpenWatermarks opens the file of that name in dir, which must be there. The file
// is made when absent; when it is there and neither slot is whole: ErrCorrupt.
func OpenWatermarks(fsys ioengine.FS, dir, name string) (*Watermarks, error) {
	m := &Watermarks{fs: fsys, dir: dir, name: name, page: buf.Aligned(slotBytes)}
	m.mu.marks = map[record.GroupID]Watermark{}
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("watermarks: %w", err)
	}
	// What was read may not be durable, and a file whose sync failed is not to be
	// synced again: each life has a file of its own.
	if err := m.replace(m.mu.marks); err != nil {
		return nil, fmt.Errorf("watermarks: %w", err)
	}
	return m, nil
}

func (m *Watermarks) load() error {
	file, err := m.fs.Open(path.Join(m.dir, m.name), ioengine.ReadOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(m.loadFrom(file), file.Close())
}

func (m *Watermarks) loadFrom(file ioengine.File) error {
	var why error
	for slot := range int64(2) {
		if err := readFull(file, m.page, slot*slotBytes); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return err
			}
			why = errors.Join(why, err)
			continue
		}
		generation, marks, err := parseSlot(m.page)
		switch {
		case errors.Is(err, ErrVersion):
			return err
		case err != nil:
			why = errors.Join(why, fmt.Errorf("slot %d: %w", slot, err))
		case generation > m.generation:
			m.generation, m.mu.marks = generation, marks
		}
	}
	if m.generation == 0 {
		return fmt.Errorf("%w: neither slot is whole: %w", ErrCorrupt, why)
	}
	return nil
}

// Get returns a group's watermark; the zero Watermark when it has none.
func (m *Watermarks) Get(group record.GroupID) Watermark {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mu.marks[group]
}

// Raise sets the given watermarks and returns when they are durable. A place lower
// than the one that stands changes nothing. Many groups cost what one costs: one
// write and one sync; nothing risen costs nothing. After an error Get says what it
// said before; what is on disk may be higher, and the next Raise makes a new file.
func (m *Watermarks) Raise(raised map[record.GroupID]Watermark) error {
	marks := maps.Clone(m.mu.marks) // only Raise changes it
	rose := false
	for g, w := range raised {
		old := marks[g]
		marks[g] = Watermark{First: max(old.First, w.First), Durable: max(old.Durable, w.Durable)}
		rose = rose || marks[g] != old
	}
	if !rose {
		return nil
	}
	if len(marks) > MaxGroups {
		return fmt.Errorf("watermarks: %d groups in a store that takes %d", len(marks), MaxGroups)
	}
	if err := m.write(marks); err != nil {
		return fmt.Errorf("watermarks: %w", err)
	}
	m.mu.Lock()
	m.mu.marks = marks
	m.mu.Unlock()
	return nil
}

func (m *Watermarks) write(marks map[record.GroupID]Watermark) error {
	if m.file == nil {
		return m.replace(marks)
	}
	m.generation++
	off := int64(m.generation%2) * slotBytes
	if invariant.Planted("journal/segment/one-slot") {
		off = 0
	}
	n := putSlot(m.page, m.generation, marks)
	_, err := m.file.WriteAt(m.page[:n], off)
	if err == nil {
		err = m.file.Sync()
	}
	if err == nil {
		return nil
	}
	err = errors.Join(err, m.file.Close()) // a failed sync is final for its file
	m.file = nil
	if again := m.replace(marks); again != nil {
		return errors.Join(err, again)
	}
	return nil
}

// replace puts a new file into the place of the old: whole, or not at all.
func (m *Watermarks) replace(marks map[record.GroupID]Watermark) error {
	m.generation++
	name := path.Join(m.dir, m.name)
	temp := name + ".new"
	if err := m.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := m.fs.Open(temp, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	if err != nil {
		return err
	}
	n := putSlot(m.page, m.generation, marks)
	if _, err = file.WriteAt(m.page[:n], int64(m.generation%2)*slotBytes); err == nil {
		err = file.Truncate(2 * slotBytes)
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = m.fs.Rename(temp, name)
	}
	if err == nil {
		err = m.fs.SyncDir(m.dir)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	m.file = file
	return nil
}

// Close closes the file.
func (m *Watermarks) Close() error {
	if m.file == nil {
		return nil
	}
	file := m.file
	m.file = nil
	return file.Close()
}

// putSlot fills the slot and returns how much of it is in use, in whole pages.
func putSlot(p []byte, generation uint64, marks map[record.GroupID]Watermark) int {
	clear(p)
	le.PutUint32(p[atMagic:], slotMagic)
	le.PutUint16(p[atVersion:], version)
	le.PutUint64(p[atGeneration:], generation)
	le.PutUint32(p[atMarks:], uint32(len(marks)))
	end := slotHeaderBytes
	for _, g := range slices.Sorted(maps.Keys(marks)) {
		le.PutUint64(p[end:], uint64(g))
		le.PutUint64(p[end+8:], uint64(marks[g].First))
		le.PutUint64(p[end+16:], uint64(marks[g].Durable))
		end += markBytes
	}
	le.PutUint32(p[atSlotCRC:], slotSum(p, end))
	return buf.RoundUp(end)
}

// slotSum covers the slot up to end but its own four bytes.
func slotSum(p []byte, end int) uint32 {
	return crc32.Update(crc32.Checksum(p[:atSlotCRC], castagnoli), castagnoli, p[slotHeaderBytes:end])
}

func parseSlot(p []byte) (generation uint64, marks map[record.GroupID]Watermark, err error) {
	if len(p) < slotBytes {
		return 0, nil, corrupt("slot is cut short")
	}
	n := int(le.Uint32(p[atMarks:]))
	if le.Uint32(p[atMagic:]) != slotMagic || n > MaxGroups {
		return 0, nil, corrupt("magic or count")
	}
	end := slotHeaderBytes + n*markBytes
	if slotSum(p, end) != le.Uint32(p[atSlotCRC:]) {
		return 0, nil, corrupt("checksum")
	}
	if v := le.Uint16(p[atVersion:]); v != version {
		return 0, nil, fmt.Errorf("version %d: %w", v, ErrVersion)
	}
	generation = le.Uint64(p[atGeneration:])
	if generation == 0 || le.Uint16(p[atZero:]) != 0 || !allZero(p[atSlotZero:atSlotCRC]) {
		return 0, nil, corrupt("a field without sense")
	}
	marks = make(map[record.GroupID]Watermark, n)
	last := record.GroupID(0)
	for q := p[slotHeaderBytes:end]; len(q) > 0; q = q[markBytes:] {
		g := record.GroupID(le.Uint64(q))
		w := Watermark{First: Pos(le.Uint64(q[8:])), Durable: Pos(le.Uint64(q[16:]))}
		if g <= last || w.First < 0 || w.Durable < 0 || w.First > maxPos || w.Durable > maxPos {
			return 0, nil, corrupt("a group without sense, or out of order")
		}
		marks[g], last = w, g
	}
	return generation, marks, nil
}
