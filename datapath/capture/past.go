package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Past says who may write to a volume's disk past the filter. While somebody may, all of the
// volume is dirty and no sync read takes any of it: no resync can close, so no checkpoint is
// listed. Once nobody does, all of it is made dirty again, and read.
//
// It stands in the marks file, so that it outlives the filter. Whoever kills the filter at any
// moment leaves it said: it is noted before the volume is made dirty, and taken back after that.
type Past uint64

// What it can be.
const (
	PastNone Past = iota // every write comes through the filter
	PastTold             // detached: whoever did that says when it is over
	PastSeen             // another process has the disk open for writing; over when it no longer does
	// PastUnmirrored: QEMU does not mirror the guest's writes to the volume, which is a mirror target. Not all of it is
	// dirty then, since QEMU keeps what changes in a bitmap; one block is, so that no resync can close.
	PastUnmirrored
	// PastUnsynced: a sync of a disk that is cached failed. The page cache may hold, and show, what the disk never gets, and a later sync
	// would not tell: so none succeeds any more, whichever filter is asked. Over once somebody says so to a filter that came after.
	PastUnsynced
)

func (p Past) String() string {
	switch p {
	case PastNone:
		return "all writes come through the filter"
	case PastTold:
		return "the guest is detached: holdfast attach"
	case PastSeen:
		return "another process has the disk open for writing: a running guest is brought over by holdfast attach"
	case PastUnmirrored:
		return "its guest's writes are not mirrored: holdfast attach --mirror"
	case PastUnsynced:
		return "a flush of the disk failed, and nobody knows what it holds: end its guest, see to the disk, start the filter again, then holdfast attach --no-guest"
	}
	return fmt.Sprintf("unknown (%d)", uint64(p))
}

// errPast is why a sync read takes nothing.
var errPast = errors.New("its disk is written to past the filter")

// past is who may write past the filter now.
func (v *volume) past() Past {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.pastLocked()
}

func (v *volume) pastLocked() Past { return Past(v.mu.marks.file.past().Load()) }

// setPast changes it from one to the other, unless it is something else by now. Whichever
// way it goes, all of the volume is dirty then.
func (v *volume) setPast(from, to Past) bool {
	v.mu.Lock()
	if v.pastLocked() != from {
		v.mu.Unlock()
		return false
	}
	if to != PastNone {
		v.mu.marks.file.past().Store(uint64(to))
	}
	if !invariant.Planted("capture/past-unmarked") {
		v.dropLocked(0, v.disk.size.Load())
	}
	v.mu.marks.file.past().Store(uint64(to))
	stands := v.activity.EnterLocked(0, v.disk.size.Load())
	v.mu.Unlock()
	if stands != nil {
		v.activity.Wait(stands)
	}
	return true
}

// detach notes that somebody may write past the filter.
func (v *volume) detach() {
	for p := v.past(); p != PastTold && p != PastUnsynced; p = v.past() {
		v.setPast(p, PastTold)
	}
}

// attach notes that nobody does any more, unless somebody is seen.
func (v *volume) attach() error {
	if v.written() {
		return errors.New("another process still has the disk open for writing")
	}
	if v.past() == PastUnsynced {
		if v.syncFailed.Load() {
			return errors.New("a flush of the disk failed under this filter: end its guest, and start the filter again first")
		}
		v.dropCache() // what is shown from now on is what the disk has
	}
	for p := v.past(); p != PastNone; p = v.past() {
		v.setPast(p, PastNone)
	}
	return nil
}

// unsynced notes that a sync failed: what was answered may not be on the disk.
func (v *volume) unsynced(why error) {
	if v.mirror != nil || invariant.Planted("capture/unsynced-forgotten") {
		return
	}
	v.log.Error("a sync of the disk failed: no flush succeeds any more, and all of the disk is dirty", "error", why)
	if !v.disk.cached { // it shows what it has
		v.mark(0, v.disk.size.Load())
		return
	}
	for p := v.past(); p != PastUnsynced; p = v.past() {
		v.setPast(p, PastUnsynced)
	}
}

// dropCache has a disk that is cached read again from where it is.
func (v *volume) dropCache() {
	c, is := v.disk.file.(ioengine.Cached)
	if !v.disk.cached || !is {
		return
	}
	if err := c.DropCache(); err != nil {
		v.log.Warn("what the page cache holds of the disk could not be dropped", "error", err)
	}
}

// look sees whether another process has the disk open for writing, and notes it.
func (v *volume) look() {
	if v.mirror != nil {
		v.mirror.look()
		return
	}
	switch seen := v.written(); {
	case seen && v.setPast(PastNone, PastSeen):
		v.log.Warn("another process has opened the disk for writing: no checkpoints until it closes it, or its guest is attached")
	case !seen && v.setPast(PastSeen, PastNone):
		v.log.Info("no other process has the disk open for writing any more: everything is dirty")
	}
}

// watch opens the disk to ask who else writes to it.
func watch(file ioengine.File, path string) *os.File {
	if _, real := file.(ioengine.Holder); !real {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil // it can be asked no more than that
	}
	return f
}

// qemuWrites is the byte of an image on which QEMU holds a lock while it may write to it, through
// whatever program of its (fcntl OFD locks; not with locking=off).
const qemuWrites = 101

// written says whether another opening of the disk holds that lock.
func (v *volume) written() bool {
	if v.watched == nil {
		return false
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: qemuWrites, Len: 1}
	for {
		switch err := unix.FcntlFlock(v.watched.Fd(), unix.F_OFD_GETLK, &l); err {
		case nil:
			return l.Type != unix.F_UNLCK
		case unix.EINTR:
		default:
			return false // a file system without such locks
		}
	}
}

// named finds the volume that a question of who is no VRA names, or says why it does not.
func (f *Filter) named(q request) (v *volume, why string) {
	if v = f.volume(q.volume); q.group != f.cfg.Group {
		why = fmt.Sprintf("this filter is of group %s", f.cfg.Group)
	} else if v == nil {
		why = noVolume(q.volume)
	}
	return v, why
}

// answerPast answers one question of who is no VRA.
func (f *Filter) answerPast(q request) reply {
	r := reply{id: q.id}
	v, why := f.named(q)
	if why != "" {
		r.fail = why
		return r
	}
	switch q.max {
	case pastTell:
		v.look()
	case pastDetach:
		if v.mirror != nil {
			v.mirror.lose("the guest is detached")
		} else {
			v.detach()
		}
		f.cfg.Log.Info("detached: writes past the filter are expected", "volume", v.name)
	case pastAttach:
		if v.mirror != nil {
			r.fail = "it is a mirror target: holdfast attach --mirror"
			return r
		}
		if err := v.attach(); err != nil {
			r.fail = err.Error()
			return r
		}
		f.cfg.Log.Info("attached: all writes come through the filter", "volume", v.name)
	default:
		r.fail = fmt.Sprintf("unknown wish %d", q.max)
		return r
	}
	r.body = pastBody(v.past(), v.path)
	return r
}

// VolumePast is what a filter says of one of its volumes.
type VolumePast struct {
	Past Past
	Path string // of the disk, as the filter opened it
}

// Filtered names a volume of a running filter.
type Filtered struct {
	PoolSocket string
	Group      record.GroupID
	Volume     record.VolumeID
}

// Past asks the filter who may write past it.
func (f Filtered) Past(ctx context.Context) (VolumePast, error) { return f.ask(ctx, pastTell) }

// Detach says that from now on somebody may. When it returns without an error, no checkpoint
// that is cut later is listed until Attach.
func (f Filtered) Detach(ctx context.Context) error {
	_, err := f.ask(ctx, pastDetach)
	return err
}

// Attach says that nobody does any more. The volume is then synced whole. The filter refuses
// while it sees somebody.
func (f Filtered) Attach(ctx context.Context) error {
	_, err := f.ask(ctx, pastAttach)
	return err
}

// pastWait bounds one question.
const pastWait = 5 * time.Second

func (f Filtered) ask(ctx context.Context, wish uint32) (VolumePast, error) {
	body, err := f.put(ctx, request{ask: askPast, max: wish}, pastWait)
	if err != nil {
		return VolumePast{}, err
	}
	return parsePast(body)
}

// put puts one question about the volume to the filter, on a connection of its own.
func (f Filtered) put(ctx context.Context, q request, most time.Duration) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", f.PoolSocket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	q.id, q.group, q.volume = 1, f.Group, f.Volume
	if _, err := c.Write(q.bytes()); err != nil {
		return nil, err
	}
	p, fds, err := readMessage(c.(*net.UnixConn), make([]byte, maxReply+1), 0)
	closeFDs(fds)
	if err != nil {
		return nil, fmt.Errorf("the filter at %s: %w", f.PoolSocket, err)
	}
	r, err := parseReply(p)
	if err == nil && r.fail != "" {
		err = errors.New(r.fail)
	}
	if err != nil {
		return nil, fmt.Errorf("the filter at %s: %w", f.PoolSocket, err)
	}
	return r.body, nil
}
