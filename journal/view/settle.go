package view

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Part is a piece of a disk that a view has written; nil Data: zeros.
type Part struct {
	Off, Len int64
	Data     []byte
}

// settleZeros is the most blocks of zeros that one call settles.
const settleZeros = 1 << 20

// Rebase makes the view read from the replicas alone what it has not written: they hold its
// checkpoint now, and no version of the log counts any more.
func (v *View) Rebase() {
	alone := func() bool { _, yes := v.cfg.Versions.(ReplicasAlone); return yes }
	v.life.RLock()
	done := alone()
	v.life.RUnlock()
	if done {
		return
	}
	v.life.Lock()
	defer v.life.Unlock()
	v.ahead.Wait() // what reads ahead holds no lock; nobody begins it now
	v.cfg.Versions, v.cfg.At = ReplicasAlone{}, index.Vector{}
}

// ReplicasAlone are no versions: all that a view has not written stands in the replicas.
type ReplicasAlone struct{}

// Lookup implements Versions.
func (ReplicasAlone) Lookup(dst []index.Piece, _ record.VolumeID, off, n int64, _ index.Vector) ([]index.Piece, error) {
	return append(dst, index.Piece{Off: off, Len: n, In: index.InReplica}), nil
}

// Settle moves up to most bytes of what was written to a volume into what lies beneath, by put, which
// takes parts in rising order and returns when they are durable there; it lends them. What is written
// meanwhile stays scratch. moved is how many blocks scratch tells of no more; 0: there were none, or
// all changed meanwhile. After an error, or a crash, scratch still has them or both have the same.
func (v *View) Settle(vol record.VolumeID, most int64, put func([]Part) error) (moved int64, err error) {
	d, ok := v.Device(vol)
	if !ok {
		return 0, fmt.Errorf("volume %d is not in the view", vol)
	}
	if err := d.enter(0, 0); err != nil {
		return 0, err
	}
	defer d.leave()
	if d.scratch == nil || d.scratch.files.Load() == nil {
		return 0, nil
	}
	own, parts, err := d.toSettle(most)
	if err != nil || len(own) == 0 {
		return 0, err
	}
	if invariant.Planted("journal/view/settle-unput") {
		put = func([]Part) error { return nil }
	}
	if err := put(parts); err != nil {
		return 0, err
	}
	inFile, moved, err := d.scratch.forget(own)
	v.used.Add(-inFile * blockBytes)
	if errors.Is(err, ErrFailed) {
		v.fail(err)
	}
	return moved, err
}

// owned are blocks that follow each other, as scratch told of them; more than one only of zeros.
type owned struct {
	first, count int64
	w            word
}

// toSettle reads what is settled next. A block that changes meanwhile may be read as it was or
// is left out.
func (d *Device) toSettle(most int64) (own []owned, parts []Part, err error) {
	s := d.scratch
	s.blocks.each(func(first, count int64, w word) bool {
		if w == zerosWord {
			count = min(count, settleZeros)
		} else if most -= blockBytes; most < 0 {
			return false
		}
		own = append(own, owned{first, count, w})
		return count < settleZeros && len(own) < settleZeros
	})
	for i, o := range own {
		p := Part{Off: o.first * blockBytes, Len: min(o.count*blockBytes, d.disk.Bytes-o.first*blockBytes)}
		if o.w != zerosWord {
			whole := make([]byte, blockBytes)
			if ok, err := s.readOne(whole, o.first, o.w); err != nil {
				return nil, nil, d.spoiled(err)
			} else if !ok { // it is zeros now
				own[i].w = baseWord
				continue
			}
			p.Data = whole[:p.Len]
		}
		parts = append(parts, p)
	}
	return own, parts, nil
}

// forget makes the map tell no more of the blocks that are still what they were, durably. No write
// goes on meanwhile. If the map cannot be replaced it tells of them as before.
func (s *scratch) forget(own []owned) (inFile, moved int64, err error) {
	defer s.unlock(s.lock(0, 63))
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mapping.Lock()
	defer s.mapping.Unlock()
	f := s.files.Load()
	if err := s.failure(); err != nil || f == nil {
		return 0, 0, err
	}
	var gone []owned
	var slots []retired
	for _, o := range own {
		for b := o.first; b < o.first+o.count && o.w != baseWord; b++ {
			if s.blocks.at(b) != o.w && !invariant.Planted("journal/view/settle-newer") {
				continue // it was written since
			}
			s.blocks.set(b, baseWord)
			gone = append(gone, owned{b, 1, o.w})
			if o.w != zerosWord {
				slots = append(slots, retired{o.w.slot(), true})
			}
		}
	}
	if len(gone) == 0 {
		return 0, 0, nil
	}
	old := s.slots.cut()
	if err := f.data.Sync(); err != nil { // of what else the map tells of
		return 0, 0, s.fail(err)
	}
	switch err := f.log.rewrite(s.header.boot, &s.blocks); {
	case errors.Is(err, ErrFailed):
		return 0, 0, s.fail(err)
	case err != nil:
		s.slots.uncut(old)
		for _, o := range gone {
			s.blocks.set(o.first, o.w)
		}
		return 0, 0, fmt.Errorf("scratch: %w", err)
	}
	f.head.note(f.log.header, f.log.marked)
	f.rewriteAt = max(2*f.log.end, s.rewrite)
	s.free(f, append(old, slots...))
	return int64(len(slots)), int64(len(gone)), nil
}
