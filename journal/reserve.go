package journal

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// reserve is space that a store sets aside for its next opening. To open takes space:
// the watermarks and the manifests are written anew, and each log begins a segment
// with a copy of its last round. On a disk that filled up there is none, and a store
// that cannot be opened shows nobody its checkpoints.
//
// It is given back first thing when the store opens and taken again when all groups are
// open. While it is not whole no source is let in: else each restart would
// begin with less. The file needs no sync: after a crash that lost it the space is
// as free as without it, and the next opening comes before any intake.
//
// A pass of promotion that finds no space at all borrows a little of it, once, for what it must
// note before it may drop anything.
type reserve struct {
	fs   ioengine.FS
	name string
	log  *slog.Logger

	mu    sync.Mutex
	want  int64 // as was last asked for
	bytes int64 // set aside now
	short error // why it is not whole; nil: it is
}

const (
	// reserveStore is for the watermarks, and for what the file system itself needs.
	reserveStore = 4 << 20
	// reserveGroup is for a group: its last round twice, since the copy that an opening
	// on a full disk made stays until the next has replaced it; and its manifest.
	reserveGroup = 2*maxRound + 4<<20
	// reserveStep is how much is taken at once where there is not enough for all.
	reserveStep = 1 << 20
)

// errReserve says that there is too little space to take data.
var errReserve = errors.New("too little space for the store to be opened again, and no data is taken until there is more")

// giveBack frees the reserve of the run before.
func (r *reserve) giveBack() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes = 0
	if err := r.fs.Remove(r.name); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return nil
}

// hold makes the reserve large enough for so many groups, and says why it is not. What
// there is too little of is taken all the same, so that nobody else does.
func (r *reserve) hold(groups int) error {
	want := int64(reserveStore + groups*reserveGroup)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.want = want; r.bytes >= want {
		r.short = nil
		return nil
	}
	err := r.grow(want)
	if err != nil {
		err = fmt.Errorf("%w: %d of %d MiB set aside: %w", errReserve, r.bytes>>20, want>>20, err)
	}
	if (err == nil) != (r.short == nil) {
		r.log.Warn("space for the next opening", "whole", err == nil, "bytes", r.bytes, "error", err)
	}
	r.short = err
	return err
}

func (r *reserve) grow(want int64) error {
	f, err := r.fs.Open(r.name, ioengine.Create)
	if err != nil {
		return err
	}
	err = f.Allocate(0, want)
	for errors.Is(err, syscall.ENOSPC) && r.bytes+reserveStep < want {
		if f.Allocate(r.bytes, reserveStep) != nil {
			break
		}
		r.bytes += reserveStep
	}
	if err = errors.Join(err, f.Close()); err == nil {
		r.bytes = want
	}
	return err
}

// reserveLent is how much of it may be lent: a manifest, and more.
const reserveLent = 4 << 20

// lend gives some of it back to the disk for what frees more: without any space a pass can
// note nothing, and so drop nothing. Until it is whole again no source is let in. False: all
// that may be lent is, whoever has it now.
func (r *reserve) lend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := r.want - reserveLent
	if invariant.Planted("journal/reserve-lent-again") {
		left = r.bytes - reserveLent
	}
	if r.bytes <= left || invariant.Planted("journal/reserve-unlent") {
		return false
	}
	f, err := r.fs.Open(r.name, 0)
	if err == nil {
		err = errors.Join(f.Truncate(left), f.Close())
	}
	if err != nil {
		r.log.Warn("space for the next opening is not lent to promotion", "error", err)
		return false
	}
	r.bytes = left
	r.short = fmt.Errorf("%w: %d MiB of what is set aside are lent to promotion", errReserve, reserveLent>>20)
	r.log.Warn("the disk is full: space for the next opening is lent to promotion", "left", r.bytes)
	return true
}

// held is how many bytes are set aside.
func (r *reserve) held() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// missing says why the reserve is not whole; nil: it is.
func (r *reserve) missing() error {
	if invariant.Planted("journal/intake-without-reserve") {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.short
}

// mayTake says whether sources may be let in, having tried again.
func (s *Store) mayTake() error {
	if err := s.indexFull(); err != nil {
		return err
	}
	if s.reserve.missing() == nil {
		return nil
	}
	s.mu.Lock()
	n := len(s.groups)
	s.mu.Unlock()
	return s.reserve.hold(n)
}
