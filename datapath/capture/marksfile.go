package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A marks file: one a volume, memory-backed, mapped by its filter alone. FORMAT.md has the layout.
const (
	marksMagic   = 0x3153_4b52_414d_4648 // "HFMARKS1"
	marksVersion = 1

	marksAtMagic   = 0
	marksAtVersion = 8
	marksAtGens    = 12
	marksAtBoot    = 16
	marksAtGroup   = 32
	marksAtVolume  = 40
	marksAtBlock   = 44
	marksAtBytes   = 48
	marksAtClean   = 64 // 1: closed in order; 2: open
	marksAtMtime   = 72 // of the disk at a clean close, ns; 0 when it has none
	marksAtPast    = 80 // a Past
	marksAtLog     = 88 // logLacks, logTold
	marksAtMirror  = 96 // the token of a mirror volume's bitmap, which its guest's QEMU keeps; 0 for none

	marksAtTable  = 4096 // generation headers
	genHeader     = 64
	genAtState    = 0
	genAtNumber   = 8
	genAtNote     = 16
	marksAtDirty  = 8192
	marksClean    = 1
	marksOpen     = 2
	maxClosedGens = 16
	genCount      = maxClosedGens + 2 // with the current one, and one to rotate into
)

// What the marks file says of the activity log: bits of one word.
const (
	logLacks = 1 // regions were written to that it may not have
	logTold  = 2 // the log told what had changed before this boot
)

// States of a generation in the file.
const (
	genFree    = 1 + iota
	genCurrent // its writes begin now
	genClosed  // a write of it may be in flight
	genNoted   // none is, and note is the highest ticket one can have
)

var _ [marksAtDirty - marksAtTable - genCount*genHeader]byte

// marksFile is the mapped file.
type marksFile struct {
	name  string
	id    marksIdentity
	grew  bool // it was that of a smaller disk: what is new is dirty
	mem   []byte
	lock  *os.File // flocked while we have the marks
	dirty bitmap
	gens  [genCount]genFile
}

// genFile is one generation's place in the file.
type genFile struct {
	state, number, note *atomic.Uint64
	bits                bitmap
}

// marksIdentity is what a file must say for its marks to be this volume's.
type marksIdentity struct {
	boot   bootID
	group  record.GroupID
	volume record.VolumeID
	bytes  int64
}

func (id marksIdentity) blocks() int64 { return (id.bytes + BlockBytes - 1) / BlockBytes }

func marksFileBytes(blocks int64) int64 {
	sum, words := bitmapBytes(blocks)
	return marksAtDirty + (1+genCount)*(sum+words)
}

// openMarks maps the volume's marks, and makes the file when it is absent, of another
// boot or of another size; whole says that its marks can be trusted. It waits for
// another filter that still has the file. In one made anew what told sets is dirty, and everything if it says false.
// One of a smaller disk grows: grew says so, and what is new is dirty. Before anything of that, grows is called: lost must
// tell of what is new by the time that the larger file has its name, since nothing in the file says that it does not.
func openMarks(dir string, id marksIdentity, told func(dirty []uint64) bool, grows func()) (m *marksFile, whole bool, err error) {
	name := marksName(dir, id.group, id.volume)
	lock, err := wait.Lock(succeedWait, func() (*os.File, error) { return tryLockFile(name + ".lock") }, ErrInUse)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	mem, was, err := mapMarks(name, id)
	switch {
	case err == nil && was != id:
		grows()
		m := layMarks(mem, name, was, lock)
		if err = m.grow(id); err != nil {
			unmapAll(mem)
			return nil, false, err
		}
		unmapAll(mem)
		return m, true, nil
	case err == nil:
		whole = true
	case errors.Is(err, ErrVersion):
		return nil, false, fmt.Errorf("marks %s: %w", name, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrCorrupt), errors.Is(err, errOtherMarks):
		if mem, err = makeMarks(name, id, told); err != nil {
			return nil, false, fmt.Errorf("marks %s: %w", name, err)
		}
	default:
		return nil, false, fmt.Errorf("marks %s: %w", name, err)
	}
	return layMarks(mem, name, id, lock), whole, nil
}

func marksName(dir string, group record.GroupID, volume record.VolumeID) string {
	return filepath.Join(dir, fmt.Sprintf("marks-%s-%d", group, volume))
}

// marked says whether the volume's marks are those of a disk of at least so many bytes: they take memory, which nobody
// has who only says so.
func (t *Tap) marked(v record.VolumeID, bytes int64) bool {
	var st unix.Stat_t
	size := marksFileBytes((bytes + BlockBytes - 1) / BlockBytes)
	return unix.Stat(marksName(t.cfg.RunDir, t.cfg.Group, v), &st) == nil && st.Size >= size && st.Blocks*512 >= size
}

var errOtherMarks = errors.New("marks of another boot, volume or size")

// mapMarks maps the file of id, or of the same disk as long as it was smaller: was tells.
func mapMarks(name string, id marksIdentity) (mem []byte, was marksIdentity, err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, was, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, was, err
	}
	head := make([]byte, marksAtDirty)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, was, fmt.Errorf("header: %v: %w", err, ErrCorrupt)
	}
	was = id
	if had := int64(binary.LittleEndian.Uint64(head[marksAtBytes:])); had > 0 && had < id.bytes {
		was.bytes = had
	}
	if err := checkMarks(head, st.Size(), was); err != nil {
		return nil, was, err
	}
	mem, err = mapFD(int(f.Fd()), st.Size(), true)
	return mem, was, err
}

// checkMarks says whether head starts a marks file of id, and size is its size.
func checkMarks(head []byte, size int64, id marksIdentity) error {
	le := binary.LittleEndian
	if len(head) < marksAtDirty || le.Uint64(head[marksAtMagic:]) != marksMagic {
		return fmt.Errorf("no marks file: %w", ErrCorrupt)
	}
	if v := le.Uint32(head[marksAtVersion:]); v != marksVersion {
		return fmt.Errorf("marks version %d: %w", v, ErrVersion)
	}
	if bootID(head[marksAtBoot:marksAtBoot+16]) != id.boot || le.Uint64(head[marksAtGroup:]) != uint64(id.group) ||
		le.Uint32(head[marksAtVolume:]) != uint32(id.volume) || int64(le.Uint64(head[marksAtBytes:])) != id.bytes {
		return errOtherMarks
	}
	if le.Uint32(head[marksAtGens:]) != genCount || le.Uint32(head[marksAtBlock:]) != BlockBytes || size != marksFileBytes(id.blocks()) {
		return fmt.Errorf("marks layout: %w", ErrCorrupt)
	}
	for i := range int64(genCount) {
		if s := le.Uint64(head[marksAtTable+i*genHeader+genAtState:]); s < genFree || s > genNoted {
			return fmt.Errorf("generation %d in state %d: %w", i, s, ErrCorrupt)
		}
	}
	if c := le.Uint64(head[marksAtClean:]); c != marksClean && c != marksOpen {
		return fmt.Errorf("marks neither clean nor open: %w", ErrCorrupt)
	}
	if l := le.Uint64(head[marksAtLog:]); l > logLacks|logTold {
		return fmt.Errorf("marks with %d for the activity log: %w", l, ErrCorrupt)
	}
	if p := le.Uint64(head[marksAtPast:]); p > uint64(PastUnsynced) {
		return fmt.Errorf("marks with %d for who writes past the filter: %w", p, ErrCorrupt)
	}
	return nil
}

// newMarksHead returns the header of a file without marks.
func newMarksHead(id marksIdentity) []byte {
	head := make([]byte, marksAtDirty)
	le := binary.LittleEndian
	le.PutUint64(head[marksAtMagic:], marksMagic)
	le.PutUint32(head[marksAtVersion:], marksVersion)
	le.PutUint32(head[marksAtGens:], genCount)
	copy(head[marksAtBoot:], id.boot[:])
	le.PutUint64(head[marksAtGroup:], uint64(id.group))
	le.PutUint32(head[marksAtVolume:], uint32(id.volume))
	le.PutUint32(head[marksAtBlock:], BlockBytes)
	le.PutUint64(head[marksAtBytes:], uint64(id.bytes))
	le.PutUint64(head[marksAtClean:], marksOpen)
	for i := range int64(genCount) {
		le.PutUint64(head[marksAtTable+i*genHeader+genAtState:], genFree)
	}
	return head
}

// makeMarks makes the file with every block dirty that told says, or every one: nobody knows what was written before.
// All its memory is set aside now, since a fault on a full file system would kill the filter.
func makeMarks(name string, id marksIdentity, told func(dirty []uint64) bool) (mem []byte, err error) {
	if mem, err = mapNewMarks(name+".new", id); err != nil {
		return nil, err
	}
	dirty := layBitmap(mem, marksAtDirty, id.blocks())
	if known := make([]uint64, len(dirty.words)); told(known[:(id.blocks()+63)/64]) {
		for w, m := range known {
			if m != 0 {
				dirty.or(int64(w), m)
			}
		}
		word(mem, marksAtLog).Store(logTold)
	} else {
		dirty.set(0, id.blocks())
	}
	if err := os.Rename(name+".new", name); err != nil {
		unmapAll(mem)
		return nil, err
	}
	return mem, nil
}

// mapNewMarks makes a file without marks, all of whose memory is set aside.
func mapNewMarks(name string, id marksIdentity) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := marksFileBytes(id.blocks())
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return nil, fmt.Errorf("set %d bytes aside: %w", size, err)
	}
	if _, err := f.WriteAt(newMarksHead(id), 0); err != nil {
		return nil, err
	}
	return mapFD(int(f.Fd()), size, true)
}

// grow makes m the marks of a disk that has grown, as takeIn does, while nobody else knows them.
func (m *marksFile) grow(id marksIdentity) error {
	mem, err := mapNewMarks(m.name+".new", id)
	if err == nil {
		next, _ := m.larger(mem, id)
		_, err = m.takeIn(next)
	}
	if err != nil {
		return fmt.Errorf("marks %s: %w", m.name, err)
	}
	return nil
}

// larger lays the marks of a disk that has grown in mem, a new file without marks: what is new is dirty there, which
// are fresh blocks. The bits are set before anybody waits, as they may be many.
func (m *marksFile) larger(mem []byte, id marksIdentity) (next *marksFile, fresh int64) {
	next = layMarks(mem, m.name, id, m.lock)
	if !invariant.Planted("capture/grown-unmarked") {
		fresh = next.dirty.set(m.id.bytes/BlockBytes, id.blocks())
	}
	return next, fresh
}

// takeIn brings all that is marked into next, which larger made, and gives it the name: whoever kills the filter leaves
// the one file or the other, and each has every mark of the part that was served. Nothing is marked meanwhile. Places of
// generations stay, so that who knows them goes on; the memory that m had is the caller's to unmap, or on an error next's
// is unmapped. had is how many blocks of what is new were dirty before: one that the old end divides.
func (m *marksFile) takeIn(next *marksFile) (had int64, err error) {
	copy(next.mem[:marksAtDirty], m.mem[:marksAtDirty])
	binary.LittleEndian.PutUint64(next.mem[marksAtBytes:], uint64(next.id.bytes))
	if !invariant.Planted("capture/grown-without-marks") {
		if b := m.id.bytes / BlockBytes; b < m.dirty.blocks && m.dirty.all(b, b+1) {
			had++
		}
		m.dirty.orInto(&next.dirty)
		for i := range m.gens {
			m.gens[i].bits.orInto(&next.gens[i].bits)
		}
	}
	if err := os.Rename(m.name+".new", m.name); err != nil {
		unmapAll(next.mem)
		return 0, err
	}
	*m = *next
	m.grew = true
	return had, nil
}

func layMarks(mem []byte, name string, id marksIdentity, lock *os.File) *marksFile {
	blocks := id.blocks()
	m := &marksFile{name: name, id: id, mem: mem, lock: lock, dirty: layBitmap(mem, marksAtDirty, blocks)}
	sum, words := bitmapBytes(blocks)
	for i := range int64(genCount) {
		at := marksAtTable + i*genHeader
		m.gens[i] = genFile{
			state:  word(mem, at+genAtState),
			number: word(mem, at+genAtNumber),
			note:   word(mem, at+genAtNote),
			bits:   layBitmap(mem, marksAtDirty+(1+i)*(sum+words), blocks),
		}
	}
	return m
}

func layBitmap(mem []byte, at, blocks int64) bitmap {
	sum, words := bitmapBytes(blocks)
	return bitmap{sum: asWords(mem[at : at+sum]), words: asWords(mem[at+sum : at+sum+words]), blocks: blocks}
}

func asWords(mem []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}

func (m *marksFile) clean() *atomic.Uint64 { return word(m.mem, marksAtClean) }
func (m *marksFile) mtime() *atomic.Uint64 { return word(m.mem, marksAtMtime) }
func (m *marksFile) past() *atomic.Uint64  { return word(m.mem, marksAtPast) }
func (m *marksFile) log() *atomic.Uint64   { return word(m.mem, marksAtLog) }

func (m *marksFile) mirror() *atomic.Uint64 { return word(m.mem, marksAtMirror) }

func (m *marksFile) close() {
	unmapAll(m.mem)
	m.lock.Close()
}
