package spill

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// SegmentBytes is how large a file is, from its first byte on: what goes and comes in such steps
	// finds out soon that a disk is full, and gives its space back soon.
	SegmentBytes = 32 << 20
	// LeftFree is how much of the file system is left to others, in bytes: a target's catalogue may stand there.
	LeftFree = 512 << 20
	// runBytes is how much is read or written at a time, a longer record alone.
	runBytes = 1 << 20

	suffix   = ".spill"
	lockName = "lock"
)

// Disk is the folder in which the windows of a VRA keep what memory has no room for. Nothing in it
// outlives the process that wrote it: the marks of the filters do.
type Disk struct {
	fs    ioengine.FS
	dir   string
	owner uint64

	mu struct {
		sync.Mutex
		lock    io.Closer // nil until it is ready
		trouble error     // why it is not
	}
}

// errNotReady is why nothing is put into a folder that was not looked at yet.
var errNotReady = errors.New("its folder was not looked at yet")

// NewDisk returns the folder dir. Owner is a number that no other process draws, not 0. It is used once Open has been called.
func NewDisk(fs ioengine.FS, dir string, owner uint64) *Disk {
	d := &Disk{fs: fs, dir: dir, owner: owner}
	d.mu.trouble = errNotReady
	return d
}

// Open makes the folder where it is missing, takes it for this process, and removes what an earlier
// one left there. Until it has once returned nil nothing is put there; it may be tried again.
func (d *Disk) Open() error {
	err := d.open()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.trouble = err
	return err
}

func (d *Disk) open() error {
	if err := d.fs.Mkdir(d.dir); err != nil {
		return err
	}
	lock, err := d.fs.Lock(path.Join(d.dir, lockName))
	if err != nil {
		return err
	}
	names, err := d.fs.List(d.dir)
	for _, name := range names {
		if err == nil && strings.HasSuffix(name, suffix) && !invariant.Planted("spill/leavings-stay") {
			err = d.fs.Remove(path.Join(d.dir, name))
		}
	}
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.lock = lock
	return nil
}

// Close gives the folder up.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.lock == nil {
		return nil
	}
	lock := d.mu.lock
	d.mu.lock, d.mu.trouble = nil, errNotReady
	return lock.Close()
}

// ready is nil once Open has worked.
func (d *Disk) ready() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.trouble
}

// segment is a file of records.
type segment struct {
	name string
	file ioengine.File
	tail int64 // where the next run begins
	live int   // records in it that stand nowhere else; guarded by files.mu
}

// place is where a record stands.
type place struct {
	in  *segment
	off int64
}

// Allot is a window's part of a disk that several windows have together. Its methods must not call the window.
type Allot interface {
	// Room is how many bytes it may take now.
	Room() int64
	// Take takes so many if it may; Give gives them back.
	Take(bytes int64) bool
	Give(bytes int64)
}

// files are those of one window. Write, room and sweep are for one goroutine, read for one, drop and bytes for all.
type files struct {
	disk   *Disk
	allot  Allot
	stream record.StreamID
	next   int
	tail   *segment // that is written to; nil for none
	out    []byte   // of write
	in     []byte   // of read

	mu struct {
		sync.Mutex
		segments []*segment
	}
}

// errFull says that the file system has no room for others and another segment, errAllot that
// other windows have taken what was there a moment ago.
var (
	errFull  = errors.New("its disk is full")
	errAllot = errors.New("its part of the disk is taken")
)

// room is how many bytes may be written now, where n are wanted at least; less than n: nothing is.
func (f *files) room(n int64) int64 {
	if f.tail != nil && f.tail.tail+n <= SegmentBytes {
		return SegmentBytes - f.tail.tail
	}
	if f.allot.Room() < SegmentBytes {
		return 0
	}
	return SegmentBytes
}

// write puts records into a segment, by one write, and returns where they stand. They are at most what
// runOf gave. After an error none of them stands anywhere.
func (f *files) write(life uint64, run []*Record) (places []place, err error) {
	n := 0
	for _, r := range run {
		n += space(len(r.Buffer.Bytes()))
	}
	n = buf.RoundUp(n)
	if err := f.begin(int64(n)); err != nil {
		return nil, err
	}
	if len(f.out) < n {
		f.out = buf.Aligned(max(n, runBytes))
	}
	at, s := 0, f.tail
	for _, r := range run {
		sealed := r.Buffer.Bytes()
		e := entry{stream: f.stream, seq: r.Seq, owner: f.disk.owner, life: life}
		e.put(f.out[at:], sealed)
		places = append(places, place{s, s.tail + int64(at)})
		at += space(len(sealed))
	}
	clear(f.out[at:n])
	if _, err := s.file.WriteAt(f.out[:n], s.tail); err != nil {
		f.tail = nil // what stands in it stays; nothing more goes there
		return nil, err
	}
	s.tail += int64(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	s.live += len(run)
	return places, nil
}

// begin sees to a segment that takes n bytes more.
func (f *files) begin(n int64) error {
	if f.tail != nil && f.tail.tail+n <= SegmentBytes {
		return nil
	}
	if err := f.disk.ready(); err != nil {
		return err
	}
	free, err := f.disk.fs.Free(f.disk.dir)
	if err != nil {
		return err
	}
	if free < SegmentBytes+LeftFree {
		return fmt.Errorf("%w: %d MiB are free, %d MiB are left to others", errFull, free>>20, LeftFree>>20)
	}
	if !f.allot.Take(SegmentBytes) {
		return errAllot
	}
	f.next++
	s := &segment{name: path.Join(f.disk.dir, fmt.Sprintf("%v-%08d%s", f.stream, f.next, suffix))}
	if s.file, err = f.disk.fs.Open(s.name, ioengine.Create|ioengine.Exclusive|ioengine.Direct); err != nil {
		f.allot.Give(SegmentBytes)
		return err
	}
	f.mu.Lock()
	f.mu.segments = append(f.mu.segments, s)
	f.mu.Unlock()
	if err := s.file.Allocate(0, SegmentBytes); err != nil {
		return err // it is swept away
	}
	f.tail = s
	return nil
}

// read reads records that stand one behind the other in one segment, and gives each to took, in
// order; what took gets is valid until it returns. After an error those that follow were not given.
func (f *files) read(life uint64, run []*Record, places []place, took func(i int, sealed []byte)) error {
	from := places[0].off
	end := places[len(run)-1].off + int64(space(run[len(run)-1].length))
	n := buf.RoundUp(int(end - from&^(buf.Align-1)))
	if len(f.in) < n {
		f.in = buf.Aligned(max(n, runBytes+2*buf.Align))
	}
	base := from &^ (buf.Align - 1)
	if got, err := places[0].in.file.ReadAt(f.in[:n], base); err != nil && (!errors.Is(err, io.EOF) || base+int64(got) < end) {
		return err
	}
	for i, r := range run {
		e, sealed, err := parseEntry(f.in[places[i].off-base : n])
		if err != nil {
			return fmt.Errorf("%s at %d: %w", places[i].in.name, places[i].off, err)
		}
		want := entry{stream: f.stream, seq: r.Seq, owner: f.disk.owner, life: life, length: uint32(r.length)}
		if !e.same(want) {
			return fmt.Errorf("%s at %d: %w: another record stands there", places[i].in.name, places[i].off, ErrDamaged)
		}
		took(i, sealed)
	}
	return nil
}

// drop says that the record at p is not needed there any more.
func (f *files) drop(p place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.in.live--
}

// bytes is how much of the disk the files take.
func (f *files) bytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.mu.segments)) * SegmentBytes
}

// empty says whether there is a segment to be swept away.
func (f *files) empty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.mu.segments, func(s *segment) bool { return s.live == 0 })
}

// sweep removes the segments that hold nothing any more. One that could not be removed stays
// for the next sweep, and counts.
func (f *files) sweep() (err error) {
	var empty []*segment
	f.mu.Lock()
	for _, s := range f.mu.segments {
		if s.live == 0 {
			empty = append(empty, s)
		}
	}
	f.mu.Unlock()
	for _, s := range empty {
		if f.tail == s {
			f.tail = nil
		}
		if e := f.disk.fs.Remove(s.name); e != nil && !errors.Is(e, fs.ErrNotExist) { // somebody tidied up
			err = errors.Join(err, e)
			continue
		}
		err = errors.Join(err, s.file.Close())
		f.allot.Give(SegmentBytes)
		f.mu.Lock()
		f.mu.segments = slices.DeleteFunc(f.mu.segments, func(have *segment) bool { return have == s })
		f.mu.Unlock()
	}
	return err
}
