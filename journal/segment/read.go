package segment

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// ReadAt fills p with the durable bytes at pos: records, and between rounds commits
// and padding. p may span segments. What is not durable, or was dropped, is
// ErrRange. It may be called beside Append, and by many.
func (l *Log) ReadAt(p []byte, pos Pos) error {
	for len(p) > 0 {
		n, err := l.readPart(p, pos)
		if err != nil {
			return err
		}
		p, pos = p[n:], pos+Pos(n)
	}
	return nil
}

// ReadAhead reads at least the n durable bytes at pos, and what follows them in their segment as far as mem
// has room for it, straight into mem, whose address and length are multiples of buf.Align and which is larger than n by
// at least that. What is returned is a part of mem and begins at pos, less than buf.Align into mem. The first held bytes are there
// already, of an earlier call with the same memory, and are not read again: moved to where their address is the same
// modulo buf.Align, in the first buf.Align of mem. Errors are those of ReadAt, and
// ErrRange also where the bytes are of several segments.
func (l *Log) ReadAhead(mem []byte, pos Pos, n, held int) (p []byte, err error) {
	err = l.inFile(pos, n, func(o *openFile, off int64, most int) error {
		if n > most {
			return fmt.Errorf("%w: %d bytes of several segments", ErrRange, n)
		}
		skip := int(off & (buf.Align - 1))
		most = min(most, len(mem)-skip)
		p = mem[skip : skip+most]
		held := min(held, most)
		if o.file.Align() == 1 {
			return readFull(o.file, p[held:], off+int64(held))
		}
		from := (skip + held) &^ (buf.Align - 1)
		return readFull(o.file, mem[from:buf.RoundUp(skip+most)], off+int64(from-skip))
	})
	return p, err
}

// readPart reads what one segment has of p.
func (l *Log) readPart(p []byte, pos Pos) (n int, err error) {
	err = l.inFile(pos, len(p), func(o *openFile, off int64, most int) error {
		n = min(len(p), most)
		return l.files.readOpen(o, p[:n], off)
	})
	return n, err
}

// inFile calls read with the file of the segment that holds pos, where pos is in it, and how many durable bytes it has from there on. n is how
// many are wanted.
func (l *Log) inFile(pos Pos, n int, read func(o *openFile, off int64, most int) error) error {
	l.names.RLock()
	s, most, err := l.find(pos, n)
	if err != nil {
		l.names.RUnlock()
		return err
	}
	defer s.pins.Add(-1)
	o, err := l.files.get(s.header)
	l.names.RUnlock()
	if errors.Is(err, fs.ErrNotExist) && l.left(s) {
		return fmt.Errorf("%w: %d bytes at %s were dropped", ErrRange, n, pos)
	}
	if err == nil {
		err = read(o, offset(s.First, pos), most)
		l.files.put(o)
	}
	if err != nil {
		return fmt.Errorf("group %s at %s: %w", l.group, pos, err)
	}
	return nil
}

// Loan is the file of a segment, lent to who reads it by himself.
type Loan struct {
	File ioengine.File
	Off  int64 // in it, where the bytes begin

	log  *Log
	of   *segment
	open *openFile
}

// Lend gives out the file that has the n durable bytes at pos. It is given back, by Return, once; until then it stays what it is,
// and Close waits. ErrRange: they are not durable, were dropped, or are of several segments.
func (l *Log) Lend(pos Pos, n int) (Loan, error) {
	l.names.RLock()
	defer l.names.RUnlock()
	s, most, err := l.find(pos, n)
	if err != nil {
		return Loan{}, err
	}
	if most < n {
		s.pins.Add(-1)
		return Loan{}, fmt.Errorf("%w: %d bytes of several segments", ErrRange, n)
	}
	o, err := l.files.get(s.header)
	if err != nil {
		s.pins.Add(-1)
		return Loan{}, fmt.Errorf("group %s at %s: %w", l.group, pos, err)
	}
	return Loan{File: o.file, Off: offset(s.First, pos), log: l, of: s, open: o}, nil
}

// Return gives the file back.
func (o *Loan) Return() {
	o.log.files.put(o.open)
	o.of.pins.Add(-1)
}

// find returns the segment that holds pos, pinned, and how many durable bytes it holds from there on. There are at least n of
// them in the log.
func (l *Log) find(pos Pos, n int) (*segment, int, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.mu.closed {
		return nil, 0, ErrClosed
	}
	segs, durable := l.mu.segs, l.durableLocked()
	if pos >= segs[0].First && n >= 0 && pos+Pos(n) <= durable {
		s := segs[sort.Search(len(segs), func(i int) bool { return segs[i].limit() > pos })]
		if within := s.end - pos; within > 0 && (Pos(n) <= within || !s.folded()) {
			s.pins.Add(1)
			return s, int(min(s.end, durable) - pos), nil
		}
	}
	return nil, 0, fmt.Errorf("%w: %d bytes at %s", ErrRange, n, pos)
}

// left says whether s is no longer part of the log.
func (l *Log) left(s *segment) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return s.gone
}

// errGone says that a segment is no longer part of the log.
var errGone = errors.New("the segment is gone")

// pin holds the file of s for work that Close waits for, until unpin.
func (l *Log) pin(s *segment) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.mu.closed {
		return ErrClosed
	}
	if s.gone {
		return errGone
	}
	s.pins.Add(1)
	l.busy.Add(1)
	return nil
}

func (l *Log) unpin(s *segment) {
	s.pins.Add(-1)
	l.busy.Done()
}

// files are the segment files open for reading, by the life of the segment. The
// open segment's file is one of them: its writer holds it too.
type files struct {
	fs    ioengine.FS
	dir   string
	limit int

	mu struct {
		sync.Mutex
		open  map[uint64]*openFile
		clock uint64
	}
	bounce sync.Pool // of *[]byte, aligned
}

type openFile struct {
	file  ioengine.File
	users int // calls under way, and the writer
	used  uint64

	forgotten bool // no longer in the map: the last user closes it
}

func newFiles(fs ioengine.FS, dir string, limit int) *files {
	f := &files{fs: fs, dir: dir, limit: limit}
	f.mu.open = map[uint64]*openFile{}
	return f
}

// add takes the file of a segment that is being written, until drop.
func (f *files) add(life uint64, file ioengine.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.open[life] = &openFile{file: file, users: 1}
}

// drop ends the writer's hold on its file. One that was replaced is forgotten, since
// nothing in it can be asked for.
func (f *files) drop(life uint64, replaced bool) {
	f.mu.Lock()
	o := f.mu.open[life]
	f.mu.Unlock()
	if replaced {
		f.forget(life)
	}
	f.put(o)
}

// forget takes the segment's file out: who holds it reads on, whoever comes next opens
// what has the name then.
func (f *files) forget(life uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.mu.open[life]
	if o == nil {
		return
	}
	delete(f.mu.open, life)
	o.forgotten = true
	if o.users == 0 {
		_ = o.file.Close() // nothing of it is unsynced, or what is is not wanted
	}
}

// get opens the segment's file, or finds it open, and holds it until put.
func (f *files) get(h header) (*openFile, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.mu.open[h.Life]
	if o == nil {
		file, err := f.fs.Open(path.Join(f.dir, fileName(h.Number)), ioengine.ReadOnly|ioengine.Direct)
		if err != nil {
			return nil, err
		}
		o = &openFile{file: file}
		f.mu.open[h.Life] = o
	}
	o.users++
	f.mu.clock++
	o.used = f.mu.clock
	return o, nil
}

// put gives o back, and closes what was read longest ago while too many are open.
func (f *files) put(o *openFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o.users--
	if o.forgotten && o.users == 0 {
		_ = o.file.Close()
		return
	}
	for len(f.mu.open) > f.limit {
		var oldest uint64
		for life, c := range f.mu.open {
			if c.users == 0 && (oldest == 0 || c.used < f.mu.open[oldest].used) {
				oldest = life
			}
		}
		if oldest == 0 {
			return
		}
		_ = f.mu.open[oldest].file.Close() // nothing of it is unsynced: a close has nothing to tell
		delete(f.mu.open, oldest)
	}
}

func (f *files) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	for life, o := range f.mu.open {
		err = errors.Join(err, o.file.Close())
		delete(f.mu.open, life)
	}
	return err
}

// read fills p from the segment's file at off.
func (f *files) read(h header, p []byte, off int64) error {
	o, err := f.get(h)
	if err != nil {
		return err
	}
	defer f.put(o)
	return f.readOpen(o, p, off)
}

// readOpen is read of a file that get gave.
func (f *files) readOpen(o *openFile, p []byte, off int64) error {
	if o.file.Align() == 1 {
		return readFull(o.file, p, off)
	}
	begin := off &^ (buf.Align - 1)
	mem := f.takeBounce(buf.RoundUp(int(off-begin) + len(p)))
	defer f.bounce.Put(mem)
	if err := readFull(o.file, *mem, begin); err != nil {
		return err
	}
	copy(p, (*mem)[off-begin:])
	return nil
}

// takeBounce returns an aligned buffer of n bytes.
func (f *files) takeBounce(n int) *[]byte {
	mem, _ := f.bounce.Get().(*[]byte)
	if mem == nil || cap(*mem) < n {
		b := buf.Aligned(max(n, 64<<10))
		mem = &b
	}
	*mem = (*mem)[:n]
	return mem
}

// readFull fills p; the segment is known to hold that much.
func readFull(file ioengine.File, p []byte, off int64) error {
	n, err := file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: the file ends at %d", ErrCorrupt, off+int64(n))
	}
	return err
}
