package spill

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// KeptConfig says whose window a file is. One whose file says anything else is begun anew.
type KeptConfig struct {
	Name    string // in a memory-backed folder
	Stream  record.StreamID
	Group   record.GroupID
	Lineage uint64
	Page    uint64 // the order page's own number: its tickets are those of the records
	Boot    string // 32 hexadecimal digits
	Bytes   int64  // that the window may hold
}

// Standing is how the stream of a window stood at its end: what the next process needs to go on with it.
type Standing struct {
	Incarnation record.Incarnation
	Epoch       record.Epoch
	OpensAt     record.Seq // of the boundary that opened the incarnation
	First       record.Seq // the oldest in the window
	Next        record.Seq // behind the newest
	At
	Freezes bool   // the target takes cuts that tell of a freeze
	Listed  uint64 // the newest checkpoint that the target has told of as listed; 0 for none
}

// At is how the stream stands behind a record.
type At struct {
	Through record.Ticket // as Record's
	Last    record.Ticket // of the record: no lower one comes after it
	Time    record.Time   // as well
	Since   record.Seq    // of the boundary that closed the last resync; 0: one is open
	Covered uint64        // the count of lost that it covers
}

// Carried is what a process left that ended.
type Carried struct {
	Standing
	Records []*Record // from First to before Next
	Bytes   int64     // of them, sealed
}

// Kept is a memory-backed file in which a window's records stand, so that they outlive the process. FORMAT.md
// has its bytes. What counts is its standing alone, which is written after what it tells of.
type Kept struct {
	file *os.File
	mem  []byte
	span int64  // bytes for each class
	turn uint64 // of the standing written last; the window's lock guards it

	mu struct {
		sync.Mutex
		classes [slabClasses]keptClass
		closed  bool
	}
}

// keptClass are the slabs of one size that hold no record. Those that have memory are used last in, first out.
type keptClass struct {
	free []*Slab // with memory
	bare []*Slab // without
	high int64   // how many there ever were
	low  int     // the fewest that were free since the last Trim
}

const (
	keptMagic   = 0x4e574648 // "HFWN"
	keptVersion = 1
	standMagic  = 0x53574648 // "HFWS"
	slabMagic   = 0x52574648 // "HFWR"

	keptHeader   = 128
	standBytes   = 128
	standAt      = 4096    // two, written by turns
	slabsAt      = 8 << 20 // where the areas begin, one a class
	spanUnit     = 8 << 20
	spanMore     = 64 << 20 // of what the pipeline holds beside the window
	maxSpan      = 1 << 42
	bootDigits   = 32
	tmpfsMagic   = 0x01021994
	keptLeft     = 4 // one part of so many of the file system is left to others, LeftFree at most
	standAlive   = 1
	standFreezes = 2
	atStandCRC   = standBytes - 4
	atKeptCRC    = keptHeader - 4
	atSlabCRC    = slabHead - 4
	atKeptSpan   = 40
	atKeptBoot   = 48
	atStandTurn  = 8
)

// keptWait outlasts the end of the process before, which lets go of its locks one after the other.
const keptWait = 250 * time.Millisecond

// errNotMemory says that a file would stand on a disk, which it would write all the time.
var errNotMemory = errors.New("the runtime folder is not in memory (tmpfs)")

// Keep has records stand in a file from now on, and returns what an earlier process left there; where that is nothing
// to go on with, why says so, and the file is begun anew. With an error records stand in the heap, as without Keep.
func (s *Slabs) Keep(cfg KeptConfig) (c *Carried, why string, err error) {
	f, err := wait.Lock(keptWait, func() (*os.File, error) { return lockKept(cfg.Name) }, unix.EWOULDBLOCK)
	if err != nil {
		return nil, "", fmt.Errorf("lock %s: %w", cfg.Name, err)
	}
	k := &Kept{file: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if err := inMemory(f); err != nil {
		return nil, "", err
	}
	if why, err = k.open(cfg); err == nil && why == "" {
		c, why = k.scan(cfg.Stream, s)
	}
	if err == nil && why != "" {
		err = k.anew(cfg)
	}
	if err != nil {
		return nil, "", err
	}
	s.kept = k
	return c, why, nil
}

// lockKept opens the file, made when absent, and claims it.
func lockKept(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := claim(f, name); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// claim locks a file that was opened by that name; EWOULDBLOCK: another process has it, or has removed it since.
func claim(f *os.File, name string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	opened, err := f.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Stat(name); err != nil || !os.SameFile(opened, named) {
		return unix.EWOULDBLOCK
	}
	return nil
}

// Kept is the file that records stand in; nil for none.
func (s *Slabs) Kept() *Kept { return s.kept }

// Forget has nothing gone on with of what was found, nil for nothing.
func (s *Slabs) Forget(c *Carried) {
	if c == nil {
		return
	}
	s.kept.stand(c.Standing, false)
	for _, r := range c.Records {
		r.Buffer.Release()
	}
}

// Close gives the file up, as it is. No slab may be in use.
func (s *Slabs) Close() error {
	if s.kept == nil {
		return nil
	}
	return s.kept.close()
}

// Trim gives memory back that no record needed since the last call.
func (s *Slabs) Trim() {
	if s.kept != nil {
		s.kept.trim()
	}
}

// RemoveKept removes a file that no process uses, and says whether it did.
func RemoveKept(name string) bool {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return claim(f, name) == nil && os.Remove(name) == nil
}

func inMemory(f *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != tmpfsMagic {
		return errNotMemory
	}
	return nil
}

// open maps what stands there, if it is the file that cfg means.
func (k *Kept) open(cfg KeptConfig) (why string, err error) {
	head := make([]byte, keptHeader)
	switch n, err := k.file.ReadAt(head, 0); {
	case err != nil && err != io.EOF:
		return "", err
	case n == 0:
		return "there is none of an earlier process", nil
	case n < keptHeader || binary.LittleEndian.Uint32(head) != keptMagic || binary.LittleEndian.Uint32(head[atKeptCRC:]) != crc32c.Checksum(head[:atKeptCRC]):
		return "its file is damaged", nil
	case binary.LittleEndian.Uint32(head[4:]) != keptVersion:
		return "its file is of another version", nil
	}
	k.span = int64(binary.LittleEndian.Uint64(head[atKeptSpan:]))
	st, err := k.file.Stat()
	if err != nil {
		return "", err
	}
	switch {
	case k.span < spanUnit || k.span > maxSpan || k.span%spanUnit != 0 || st.Size() != k.size():
		return "its file is damaged", nil
	case string(head[atKeptBoot:atKeptBoot+bootDigits]) != cfg.Boot:
		return "the host restarted", nil
	case string(head) != string(cfg.header(k.span)):
		return "its file is of another group, or the order page was made anew", nil
	}
	return "", k.mapIt()
}

// anew empties the file, and makes it cfg's.
func (k *Kept) anew(cfg KeptConfig) error {
	k.unmap()
	k.span = min((2*cfg.Bytes+spanMore+spanUnit-1)/spanUnit*spanUnit, maxSpan)
	k.turn, k.mu.classes = 0, [slabClasses]keptClass{}
	if err := k.file.Truncate(0); err != nil {
		return err
	}
	if err := k.file.Truncate(k.size()); err != nil {
		return err
	}
	if err := unix.Fallocate(int(k.file.Fd()), 0, 0, 2*standAt); err != nil {
		return err
	}
	if err := k.mapIt(); err != nil {
		return err
	}
	copy(k.mem, cfg.header(k.span))
	return nil
}

func (k *Kept) size() int64 { return slabsAt + slabClasses*k.span }

func (k *Kept) mapIt() (err error) {
	k.mem, err = unix.Mmap(int(k.file.Fd()), 0, int(k.size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

func (k *Kept) unmap() {
	if k.mem != nil {
		_ = unix.Munmap(k.mem) // one that cannot be unmapped is ours to keep
		k.mem = nil
	}
}

func (k *Kept) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.closed {
		return nil
	}
	k.mu.closed = true
	k.unmap()
	return k.file.Close()
}

func (c KeptConfig) header(span int64) []byte {
	p := make([]byte, keptHeader)
	binary.LittleEndian.PutUint32(p, keptMagic)
	binary.LittleEndian.PutUint32(p[4:], keptVersion)
	binary.LittleEndian.PutUint64(p[8:], uint64(c.Stream))
	binary.LittleEndian.PutUint64(p[16:], uint64(c.Group))
	binary.LittleEndian.PutUint64(p[24:], c.Lineage)
	binary.LittleEndian.PutUint64(p[32:], c.Page)
	binary.LittleEndian.PutUint64(p[atKeptSpan:], uint64(span))
	copy(p[atKeptBoot:atKeptBoot+bootDigits], c.Boot)
	binary.LittleEndian.PutUint32(p[atKeptCRC:], crc32c.Checksum(p[:atKeptCRC]))
	return p
}

// seal writes the checksum behind what it is of, last: until then the other bytes are none.
func seal(p []byte) {
	sum := crc32c.Checksum(p[:len(p)-4])
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&p[len(p)-4])), sum)
}

func sealed(p []byte) bool {
	return binary.LittleEndian.Uint32(p[len(p)-4:]) == crc32c.Checksum(p[:len(p)-4])
}

// stand writes how the window stands; one that is not alive is not gone on with.
func (k *Kept) stand(s Standing, alive bool) {
	k.turn++
	p := k.mem[standAt+int64(k.turn&1)*standBytes:][:standBytes]
	s.put(p, k.turn, alive)
}

func (s Standing) put(p []byte, turn uint64, alive bool) {
	le := binary.LittleEndian
	le.PutUint32(p, standMagic)
	le.PutUint32(p[4:], 0)
	if alive {
		le.PutUint32(p[4:], standAlive)
	}
	if s.Freezes {
		p[4] |= standFreezes
	}
	le.PutUint64(p[atStandTurn:], turn)
	le.PutUint32(p[16:], uint32(s.Incarnation))
	le.PutUint32(p[20:], uint32(s.Epoch))
	for i, v := range [...]uint64{uint64(s.OpensAt), uint64(s.First), uint64(s.Next), uint64(s.Through), uint64(s.Last), uint64(s.Time), uint64(s.Since), s.Covered, s.Listed} {
		le.PutUint64(p[24+8*i:], v)
	}
	clear(p[96:atStandCRC])
	seal(p)
}

// standing reads one; ok: it is whole.
func standing(p []byte) (s Standing, turn uint64, alive, ok bool) {
	le := binary.LittleEndian
	if le.Uint32(p) != standMagic || !sealed(p) {
		return s, 0, false, false
	}
	word := func(i int) uint64 { return le.Uint64(p[24+8*i:]) }
	s = Standing{
		Incarnation: record.Incarnation(le.Uint32(p[16:])), Epoch: record.Epoch(le.Uint32(p[20:])),
		OpensAt: record.Seq(word(0)), First: record.Seq(word(1)), Next: record.Seq(word(2)), Listed: word(8),
		At: At{Through: record.Ticket(word(3)), Last: record.Ticket(word(4)), Time: record.Time(word(5)), Since: record.Seq(word(6)), Covered: word(7)},
	}
	flags := le.Uint32(p[4:])
	s.Freezes = flags&standFreezes != 0
	return s, le.Uint64(p[atStandTurn:]), flags&^standFreezes == standAlive, true
}

// say notes in a slab's header which record stands in it. False: it is none of a file.
func (b *Slab) say(r *Record, inc record.Incarnation) bool {
	if b.whole == nil || unsafe.SliceData(b.P) != &b.whole[slabHead] {
		return false
	}
	p, le := b.whole[:slabHead], binary.LittleEndian
	le.PutUint32(p[4:], uint32(len(b.P)))
	le.PutUint64(p[8:], uint64(r.Seq))
	le.PutUint32(p[16:], uint32(inc))
	le.PutUint32(p[20:], 0)
	le.PutUint64(p[24:], uint64(r.Through))
	le.PutUint64(p[32:], uint64(r.Oldest))
	le.PutUint64(p[40:], uint64(r.Raw))
	clear(p[48:atSlabCRC])
	le.PutUint32(p, slabMagic)
	seal(p)
	b.told = true
	return true
}

// said reads a slab's header; nil where no record stands in it.
func (b *Slab) said() (r *Record, inc record.Incarnation) {
	p, le := b.whole[:slabHead], binary.LittleEndian
	n := int64(le.Uint32(p[4:]))
	if le.Uint32(p) != slabMagic || !sealed(p) || n == 0 || n > int64(len(b.whole)-slabHead) {
		return nil, 0
	}
	b.P = b.whole[slabHead:][:n]
	r = &Record{
		Seq: record.Seq(le.Uint64(p[8:])), Through: record.Ticket(le.Uint64(p[24:])), Oldest: int64(le.Uint64(p[32:])), Raw: int64(le.Uint64(p[40:])), Buffer: b,
	}
	return r, record.Incarnation(le.Uint32(p[16:]))
}

// unsay notes in a slab's header, which must have memory, that no record stands in it.
func (b *Slab) unsay() { atomic.StoreUint32((*uint32)(unsafe.Pointer(&b.whole[0])), 0) }

// slab is one of a class, by its index.
func (k *Kept) slab(class int, index int64) *Slab {
	size := int64(1) << (class + slabMinBits)
	at := slabsAt + int64(class)*k.span + index*size
	whole := k.mem[at : at+size : at+size]
	return &Slab{whole: whole, P: whole[slabHead:slabHead], class: class, index: index}
}

// get gives a slab of the class that holds nothing; nil where the file has none.
func (k *Kept) get(class int) *Slab {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &k.mu.classes[class]
	if n := len(c.free); n > 0 {
		b := c.free[n-1]
		c.free = c.free[:n-1]
		c.low = min(c.low, n-1)
		return b
	}
	if k.mu.closed || !k.roomLocked(1<<(class+slabMinBits)) {
		return nil
	}
	var b *Slab
	if n := len(c.bare); n > 0 {
		b = c.bare[n-1]
	} else if (c.high+1)<<(class+slabMinBits) <= k.span {
		b = k.slab(class, c.high)
	} else {
		return nil
	}
	if err := unix.Fallocate(int(k.file.Fd()), 0, k.offset(b), b.Held()); err != nil {
		return nil // there was room a moment ago
	}
	if b.index == c.high {
		c.high++
	} else {
		c.bare = c.bare[:len(c.bare)-1]
	}
	return b
}

func (k *Kept) offset(b *Slab) int64 { return slabsAt + int64(b.class)*k.span + b.index*b.Held() }

// roomLocked says whether the file may grow: what is written by a mapping where the file system is full ends the process.
func (k *Kept) roomLocked(n int64) bool {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(k.file.Fd()), &fs); err != nil {
		return false
	}
	left := min(int64(fs.Blocks)*fs.Bsize/keptLeft, LeftFree)
	return int64(fs.Bavail)*fs.Bsize-n >= left
}

// put takes a slab back, with its memory.
func (k *Kept) put(b *Slab) {
	if b.told {
		b.told = false
		b.unsay()
	}
	b.P = b.whole[slabHead:slabHead]
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &k.mu.classes[b.class]
	c.free = append(c.free, b)
}

// trim takes their memory from half of the slabs that were free all the time since the last one.
func (k *Kept) trim() {
	for class := range k.mu.classes {
		k.mu.Lock()
		c := &k.mu.classes[class]
		n := (min(c.low, len(c.free)) + 1) / 2
		out := append([]*Slab(nil), c.free[:n]...)
		c.free = append(c.free[:0], c.free[n:]...)
		c.low = len(c.free)
		closed := k.mu.closed
		k.mu.Unlock()
		if closed {
			return
		}
		for _, b := range out {
			_ = k.punch(k.offset(b), b.Held()) // else it keeps its memory while it holds nothing
		}
		k.mu.Lock()
		c.bare = append(c.bare, out...)
		k.mu.Unlock()
	}
}

func (k *Kept) punch(at, n int64) error {
	return unix.Fallocate(int(k.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
}

// scan finds what an earlier process left: each record from First to before Next, whole, and once, or why that is not so: what is
// behind a gap has no slots any more. Beyond Next there may be one whose slots still stand: it is forgotten.
func (k *Kept) scan(stream record.StreamID, home *Slabs) (*Carried, string) {
	s, why := k.lastStanding()
	if why != "" {
		return nil, why
	}
	n := uint64(s.Next - s.First)
	if s.First == 0 || s.Next < s.First || s.OpensAt == 0 || s.OpensAt > s.Next || n > uint64(k.size())>>slabMinBits {
		return nil, "its file is damaged"
	}
	c := &Carried{Standing: s, Records: make([]*Record, n)}
	missing := n
	var others []*Slab // that say a record stands in them, and none of the window does
	for class := range k.mu.classes {
		for index := range k.written(class) {
			b := k.slab(class, index)
			r, inc := b.said()
			if r == nil {
				continue
			}
			if inc != s.Incarnation || r.Seq < s.First || r.Seq >= s.Next {
				others = append(others, b)
				continue
			}
			if c.Records[r.Seq-s.First] != nil && !invariant.Planted("spill/any-of-two") {
				return nil, fmt.Sprintf("two of its records are %d", r.Seq)
			}
			if err := whole(r, record.Identity{Stream: stream, Epoch: s.Epoch, Incarnation: inc, Seq: r.Seq}); err != nil {
				return nil, fmt.Sprintf("record %d of it: %v", r.Seq, err)
			}
			b.told, b.home = true, home
			b.out.Store(true)
			c.Records[r.Seq-s.First] = r
			c.Bytes += int64(len(b.P))
			missing--
		}
	}
	if missing > 0 && !invariant.Planted("spill/adopts-over-a-gap") {
		return nil, fmt.Sprintf("%d of its %d records stood elsewhere, on the spill disk or in memory that ended with the process", missing, n)
	}
	c.Records = slices.DeleteFunc(c.Records, func(r *Record) bool { return r == nil })
	k.forget(others, c.Records)
	return c, ""
}

// lastStanding is the one that was written last.
func (k *Kept) lastStanding() (s Standing, why string) {
	alive, any := false, false
	for i := range int64(2) {
		one, turn, lives, ok := standing(k.mem[standAt+i*standBytes:][:standBytes])
		if ok && (!any || turn > k.turn) {
			s, k.turn, alive, any = one, turn, lives, true
		}
	}
	switch {
	case !any:
		return s, "nothing was sent yet"
	case !alive:
		return s, "its incarnation had ended"
	}
	return s, ""
}

// written gives the indices of the slabs of a class that something was ever written to, rising.
func (k *Kept) written(class int) func(yield func(int64) bool) {
	return func(yield func(int64) bool) {
		base, size := slabsAt+int64(class)*k.span, int64(1)<<(class+slabMinBits)
		for at := base; at < base+k.span; {
			data, err := unix.Seek(int(k.file.Fd()), at, unix.SEEK_DATA)
			if err != nil || data >= base+k.span {
				return
			}
			index := (data - base) / size
			if !yield(index) {
				return
			}
			at = base + (index+1)*size
		}
	}
}

// whole checks a record as its target would.
func whole(r *Record, want record.Identity) error {
	rec, err := record.Parse(r.Buffer.Bytes())
	if err == nil && rec.Identity != want {
		err = fmt.Errorf("%w: it is another one", ErrDamaged)
	}
	if err == nil {
		err = rec.VerifyPayload()
	}
	return err
}

// forget has others say nothing any more, and takes the memory of all slabs but those of records. One that cannot be taken is
// free beyond the highest of its class, or bare, as if it had been: what is written there next is all that it says.
func (k *Kept) forget(others []*Slab, records []*Record) {
	for _, b := range others {
		if !invariant.Planted("spill/forgotten-still-says") {
			b.unsay()
		}
	}
	var used [slabClasses]map[int64]bool
	for class := range used {
		used[class] = map[int64]bool{}
	}
	for _, r := range records {
		b := r.Buffer.(*Slab)
		used[b.class][b.index] = true
	}
	for class := range used {
		c := &k.mu.classes[class]
		for index := range used[class] {
			c.high = max(c.high, index+1)
		}
		from := slabsAt + int64(class)*k.span
		for index := range c.high {
			b := k.slab(class, index)
			if !used[class][index] {
				c.bare = append(c.bare, b)
				continue
			}
			if at := k.offset(b); at > from {
				_ = k.punch(from, at-from) // else it keeps its memory while it holds nothing
			}
			from = k.offset(b) + b.Held()
		}
		if end := slabsAt + int64(class+1)*k.span; end > from {
			_ = k.punch(from, end-from) // as well
		}
	}
}
