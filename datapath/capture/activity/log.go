package activity

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity/regions"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// LateAfter is how long a write waits for the log.
const LateAfter = 50 * time.Millisecond

// IdleSeconds is how long nothing is written to a region before it leaves.
const IdleSeconds = 600

// Config says what a log is of, and how it learns what stands beside it.
type Config struct {
	FS   ioengine.FS
	Path string
	ID   Identity
	Idle uint32 // calls of Tick until a region is idle

	Lock  sync.Locker               // guards who is in flight; held by the caller of what ends in Locked
	Marks func(into []uint64)       // sets a bit for every block that the target may lack; called without Lock
	Flush func() error              // makes durable what was written to the disk
	Busy  func(off, end int64) bool // a write to the range is in flight; called with Lock
	Tell  func(regions.State)       // the state may have changed; called with Lock
	Log   *slog.Logger
}

// Log is the log of one disk, while its filter has it.
type Log struct {
	cfg Config

	// Guarded by cfg.Lock.
	regions *regions.Log
	left    bool          // regions have left, and the file does not say so
	next    chan struct{} // closed when the round that is not begun has ended
	under   chan struct{} // of the round under way, and of what follows where it failed
	gone    chan struct{} // while the file lacks regions and may be found: closed when it is gone
	file    ioengine.File // nil while it is Off
	told    regions.State

	head header

	logImage, marksImage []byte // what the file holds; the first the writer's, the second keeping's

	keeping sync.Mutex // who writes the marks, or makes the file anew
	marks   []uint64
	broken  []ioengine.File // not to be used any more

	kick chan struct{} // capacity 1: the writer has something to do
	stop chan struct{}
	wg   sync.WaitGroup
}

// Open goes on with what was found, if follows, or makes a new file of what is marked now. Where that fails the log
// is Off, and Keep tries again. Close or Abandon ends it.
func Open(cfg Config, found *Found, follows bool) *Log {
	log, marks := cfg.ID.parts()
	l := &Log{
		cfg: cfg, next: make(chan struct{}), kick: make(chan struct{}, 1), stop: make(chan struct{}), told: regions.On,
		logImage: buf.Aligned(int(log.bytes())), marksImage: buf.Aligned(int(marks.bytes())), marks: make([]uint64, cfg.ID.Words()),
	}
	l.regions = regions.New(cfg.ID.regions(), cfg.Idle, regions.NewSet(cfg.ID.regions()), regions.Off)
	err := errors.ErrUnsupported
	if follows {
		err = l.goOn(found)
	}
	if !follows || err != nil {
		err = l.make()
	}
	if err != nil {
		cfg.Log.Warn("no activity log can be kept: after a crash of the host all of the disk is compared", "error", err)
		l.discard()
	}
	l.wg.Go(l.write)
	cfg.Lock.Lock()
	defer cfg.Lock.Unlock()
	l.tellLocked()
	return l
}

// goOn takes over the file that was found, in which all of this boot stands.
func (l *Log) goOn(found *Found) error {
	file, err := l.cfg.FS.Open(l.cfg.Path, ioengine.Direct)
	if err != nil {
		return err
	}
	l.head = header{Identity: l.cfg.ID, made: found.made}
	log, marks := l.cfg.ID.parts()
	for i := range len(l.logImage) / pageBytes {
		l.head.page(l.logImage[i*pageBytes:], log, i, found.Active)
	}
	for i := range len(l.marksImage) / pageBytes {
		l.head.page(l.marksImage[i*pageBytes:], marks, i, found.Marks)
	}
	if err := l.putHeader(file, l.head); err != nil {
		return errors.Join(err, file.Close())
	}
	l.file = file
	l.regions = regions.New(l.cfg.ID.regions(), l.cfg.Idle, found.Active, regions.On)
	return nil
}

// putHeader writes the header and syncs the file.
func (l *Log) putHeader(file ioengine.File, h header) error {
	p := buf.Aligned(pageBytes)
	copy(p, h.encode())
	if _, err := file.WriteAt(p, 0); err != nil {
		return err
	}
	return file.Sync()
}

// make makes the file anew: what is marked now, and all regions that were written to while it was Off. Keeping is
// held, or nobody else is there yet.
func (l *Log) make() error {
	l.cfg.Lock.Lock()
	there := l.regions.Logged()
	l.cfg.Lock.Unlock()
	file, err := l.makeFile(there)
	if err != nil {
		return err
	}
	l.cfg.Lock.Lock()
	defer l.cfg.Lock.Unlock()
	l.file = file
	l.goneLocked()
	l.regions.Back(there)
	l.tellLocked()
	l.rouse()
	return nil
}

func (l *Log) makeFile(there regions.Set) (file ioengine.File, err error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	h := header{Identity: l.cfg.ID, made: binary.LittleEndian.Uint64(id[:]) | 1}
	name := l.cfg.Path + ".new"
	if err := l.cfg.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if file, err = l.cfg.FS.Open(name, ioengine.Create|ioengine.Direct); err != nil {
		return nil, err
	}
	made := file
	defer func() {
		if err != nil {
			err = errors.Join(err, made.Close())
		}
	}()
	log, marks := l.cfg.ID.parts()
	if err := file.Allocate(0, marks.at+marks.bytes()); err != nil {
		return nil, err
	}
	if err := l.cfg.Flush(); err != nil { // of what was written to other regions, before the log was Off
		return nil, fmt.Errorf("sync of the disk: %w", err)
	}
	l.head = h
	clear(l.logImage)
	clear(l.marksImage)
	if _, err := l.put(file, log, l.logImage, there); err != nil {
		return nil, err
	}
	l.readMarks()
	if _, err := l.put(file, marks, l.marksImage, l.marks); err != nil {
		return nil, err
	}
	if err := l.putHeader(file, h); err != nil {
		return nil, err
	}
	if err := l.cfg.FS.Rename(name, l.cfg.Path); err != nil {
		return nil, err
	}
	return file, l.cfg.FS.SyncDir(path.Dir(l.cfg.Path))
}

func (l *Log) readMarks() {
	clear(l.marks)
	l.cfg.Marks(l.marks)
}

// most is how much one write of an image is at most.
const most = 256 << 10

// put writes those pages of a part that differ from their image, from the image, and says whether there were any.
func (l *Log) put(file ioengine.File, pt part, image []byte, words []uint64) (changed bool, err error) {
	var page [pageBytes]byte
	from, to := 0, 0 // to be written
	flush := func() error {
		if from == to {
			return nil
		}
		changed = true
		_, err := file.WriteAt(image[from:to], pt.at+int64(from))
		return err
	}
	for at := 0; at < len(image); at += pageBytes {
		l.head.page(page[:], pt, at/pageBytes, words)
		if bytes.Equal(page[:], image[at:at+pageBytes]) {
			continue
		}
		copy(image[at:], page[:])
		if at != to || to-from >= most {
			if err := flush(); err != nil {
				return changed, err
			}
			from = at
		}
		to = at + pageBytes
	}
	return changed, flush()
}

// rouse has the writer look.
func (l *Log) rouse() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// EnterLocked is a write to [off, end) that is about to begin. Nil: it may. Else it waits, by Wait, and then may: its
// regions stand in the log then, or no crash finds the log, or it took too long.
func (l *Log) EnterLocked(off, end int64) <-chan struct{} {
	if l == nil {
		return nil
	}
	from, to := int(off/RegionBytes), int((end-1)/RegionBytes)+1
	switch l.regions.Enter(from, to) {
	case regions.Goes:
		return nil
	case regions.GoesOn:
		l.rouse()
		return nil
	}
	if l.gone != nil {
		return l.gone
	}
	l.rouse()
	if l.under != nil && !l.regions.Wanted(from, to) {
		return l.under
	}
	return l.next
}

// Wait waits for what EnterLocked returned, at most LateAfter. Lock is not held.
func (l *Log) Wait(stands <-chan struct{}) {
	late := time.NewTimer(LateAfter)
	defer late.Stop()
	select {
	case <-stands:
	case <-late.C:
		l.cfg.Lock.Lock()
		defer l.cfg.Lock.Unlock()
		l.regions.GoOn()
		l.tellLocked()
	}
}

// tellLocked tells of a change of the state.
func (l *Log) tellLocked() {
	s := l.regions.State()
	l.cfg.Tell(s)
	switch {
	case s == l.told:
	case s == regions.On:
		l.cfg.Log.Info("the activity log is whole again")
	case s == regions.Late:
		l.cfg.Log.Warn("the activity log is slow: writes go on without it")
	}
	l.told = s
}

// write carries out rounds until Close.
func (l *Log) write() {
	for {
		select {
		case <-l.stop:
			return
		case <-l.kick:
		}
		for l.round() {
		}
	}
}

// round writes what is wanted, or has left; false: nothing is, or the log is gone.
func (l *Log) round() bool {
	l.cfg.Lock.Lock()
	all, ok := l.regions.Take(l.left)
	file := l.file
	if ok {
		l.left = false
		l.under, l.next = l.next, make(chan struct{})
	}
	l.cfg.Lock.Unlock()
	if !ok {
		return false
	}
	log, _ := l.cfg.ID.parts()
	_, err := l.put(file, log, l.logImage, all)
	if err == nil {
		err = file.Sync()
	}
	l.cfg.Lock.Lock()
	gone := l.file != file // the marks beside it could not be written
	failed := err != nil || gone
	if !failed {
		l.regions.Done(true)
		l.tellLocked()
	} else if !gone {
		l.failLocked(err)
	}
	if failed && !invariant.Planted("activity/goes-before-gone") { // who waits for the round waits for that too; until it has ended nobody makes another file
		l.cfg.Lock.Unlock()
		l.keeping.Lock()
		l.discard()
		l.keeping.Unlock()
		l.cfg.Lock.Lock()
	}
	close(l.under)
	l.under = nil
	l.cfg.Lock.Unlock()
	return !failed
}

// failLocked gives up a file that cannot be written.
func (l *Log) failLocked(err error) {
	l.cfg.Log.Warn("the activity log cannot be written: after a crash of the host all of the disk is compared", "error", err)
	l.giveUpLocked()
}

// giveUpLocked gives the file up.
func (l *Log) giveUpLocked() {
	l.broken = append(l.broken, l.file)
	l.file = nil
	l.regions.Fail()
	l.gone, l.next = l.next, make(chan struct{}) // who waits for the next round waits for that instead
	l.tellLocked()
}

// goneLocked says that no crash finds the file that lacks regions, or that it cannot be helped.
func (l *Log) goneLocked() {
	l.regions.Gone()
	if l.gone != nil {
		close(l.gone)
		l.gone = nil
	}
}

// discard sees to it that a crash finds no file that lacks regions, as far as the store takes that. Keeping is held.
func (l *Log) discard() {
	l.cfg.Lock.Lock()
	off := l.file == nil
	l.cfg.Lock.Unlock()
	if !off {
		return
	}
	defer func() {
		l.cfg.Lock.Lock()
		defer l.cfg.Lock.Unlock()
		l.goneLocked()
	}()
	err := l.cfg.FS.Remove(l.cfg.Path)
	if err == nil {
		err = l.cfg.FS.SyncDir(path.Dir(l.cfg.Path))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.cfg.Log.Warn("the activity log cannot be removed: a crash of the host may find it as it was", "error", err)
	}
}

// Grow makes it the log of a disk that has grown to that many bytes. The file is made anew, and until it is there a
// crash of the host finds none.
func (l *Log) Grow(bytes int64) {
	if l == nil || bytes <= l.cfg.ID.Bytes { // done already, where something else failed then
		return
	}
	l.keepAloneLocked()
	l.cfg.ID.Bytes = bytes
	l.regions.Grow(l.cfg.ID.regions())
	log, marks := l.cfg.ID.parts()
	l.logImage, l.marksImage = buf.Aligned(int(log.bytes())), buf.Aligned(int(marks.bytes()))
	l.marks = make([]uint64, l.cfg.ID.Words())
	l.cfg.Lock.Unlock()
	defer l.keeping.Unlock()
	l.discard()
	l.closeBroken()
	if err := l.make(); err != nil {
		l.cfg.Log.Warn("no activity log can be kept of the disk that has grown: after a crash of the host all of it is compared", "error", err)
		l.discard() // it may have its name
	}
}

// keepAloneLocked gives the file up and returns, with Lock and keeping held, when no round is under way.
func (l *Log) keepAloneLocked() {
	for {
		l.keeping.Lock()
		l.cfg.Lock.Lock()
		if l.file != nil {
			l.giveUpLocked()
		}
		under := l.under
		if under == nil {
			return
		}
		l.cfg.Lock.Unlock()
		l.keeping.Unlock()
		<-under
	}
}

// TickLocked lets a second pass.
func (l *Log) TickLocked() {
	if l != nil {
		l.regions.Tick()
	}
}

// Keep writes down what is marked now and then lets idle regions leave the log. Where the log is Off it makes a
// new one. It takes as long as the disk does; nobody waits for it.
func (l *Log) Keep() {
	if l == nil {
		return
	}
	l.keeping.Lock()
	defer l.keeping.Unlock()
	l.cfg.Lock.Lock()
	file, busy := l.file, l.under != nil
	idle := l.regions.Idle(nil, func(r int) bool { return l.cfg.Busy(int64(r)*RegionBytes, int64(r+1)*RegionBytes) })
	l.cfg.Lock.Unlock()
	if file == nil {
		if busy { // a round that has not heard of it yet
			return
		}
		l.closeBroken()
		if err := l.make(); err != nil {
			l.cfg.Log.Debug("no activity log yet", "error", err)
			l.discard() // it may have its name, and what is written to now does not come into it
		}
		return
	}
	if len(idle) > 0 && !invariant.Planted("activity/leave-unflushed") {
		if l.cfg.Flush() != nil {
			idle = nil // a failed sync is final: they stay
		}
	}
	if err := l.putMarks(file); err != nil {
		l.cfg.Lock.Lock()
		if l.file == file {
			l.failLocked(err)
		}
		l.cfg.Lock.Unlock()
		l.discard()
		return
	}
	if len(idle) == 0 {
		return
	}
	l.cfg.Lock.Lock()
	defer l.cfg.Lock.Unlock()
	l.regions.Leave(idle)
	l.left = true
	l.rouse()
}

// putMarks makes durable what is marked now.
func (l *Log) putMarks(file ioengine.File) error {
	_, marks := l.cfg.ID.parts()
	l.readMarks()
	changed, err := l.put(file, marks, l.marksImage, l.marks)
	if err == nil && changed {
		err = file.Sync()
	}
	return err
}

// closeBroken closes what is not used any more.
func (l *Log) closeBroken() {
	l.cfg.Lock.Lock()
	files := l.broken
	l.broken = nil
	l.cfg.Lock.Unlock()
	for _, f := range files {
		f.Close() // it failed before
	}
}

// Close notes that nothing is in flight and that the marks are whole, with the disk's mtime as of now, and
// ends the log. If that fails the file says what it said before, which is more.
func (l *Log) Close(mtime func() uint64) {
	if l == nil {
		return
	}
	l.end()
	defer l.closeFiles()
	if l.file == nil || l.regions.State() != regions.On {
		return
	}
	if err := l.closeClean(mtime); err != nil {
		l.cfg.Log.Warn("the activity log was not closed cleanly", "error", err)
	}
}

func (l *Log) closeClean(mtime func() uint64) error {
	if err := l.cfg.Flush(); err != nil {
		return err
	}
	if err := l.putMarks(l.file); err != nil {
		return err
	}
	log, _ := l.cfg.ID.parts()
	if _, err := l.put(l.file, log, l.logImage, regions.NewSet(l.cfg.ID.regions())); err != nil {
		return err
	}
	h := l.head
	h.clean, h.mtime = true, mtime()
	return l.putHeader(l.file, h)
}

// Abandon ends the log as a kill would: nothing is noted anywhere.
func (l *Log) Abandon() {
	if l == nil {
		return
	}
	l.end()
	l.closeFiles()
}

func (l *Log) end() {
	close(l.stop)
	l.wg.Wait()
}

func (l *Log) closeFiles() {
	l.closeBroken()
	if l.file != nil {
		l.file.Close() // all that counts was synced
	}
}
