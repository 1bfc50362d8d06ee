package view

import (
	"fmt"
	"math"

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

// Below is what a view's writes are moved into.
type Below interface {
	// Put takes parts in rising order; it lends them.
	Put([]Part) error
	// Sync makes durable what was put.
	Sync() error
}

// Settle moves up to most bytes of what was written to a volume into what lies beneath, in portions
// of that many bytes, and then has scratch tell of it no more. What is written meanwhile stays scratch. moved is how many
// blocks that were; 0: there were none, or all changed meanwhile. After an error, or a crash, scratch still has them or both
// have the same. One call for a volume goes on at a time. Of a view that passes the disks themselves are what lies
// beneath, and to is not asked.
func (v *View) Settle(vol record.VolumeID, portion, most int64, to Below) (moved int64, err error) {
	d, ok := v.Device(vol)
	if !ok {
		return 0, fmt.Errorf("volume %d is not in the view", vol)
	}
	if d.scratch == nil {
		return 0, nil
	}
	if d.scratch.files.Load() == nil {
		return 0, d.standsAlone()
	}
	if p := d.plainly(); p != nil {
		to = into{p}
	}
	defer d.scratch.unwatch()
	var own []owned
	for next, left := int64(0), most; left > 0; left -= portion {
		got, err := d.settlePortion(next, min(portion, left), to)
		if err != nil {
			return 0, err
		}
		if len(got) == 0 {
			break
		}
		next = got[len(got)-1].first + got[len(got)-1].count
		own = append(own, got...)
	}
	if len(own) == 0 {
		return 0, d.standsAlone()
	}
	if err := to.Sync(); err != nil {
		return 0, err
	}
	if err := d.enter(0, 0); err != nil {
		return 0, err
	}
	defer d.leave()
	inFile, moved, err := d.scratch.forget(own)
	v.used.Add(-inFile * blockBytes)
	if err == nil {
		err = d.flush()
	}
	return moved, err
}

// owned are blocks that follow each other, as scratch told of them; more than one only of zeros.
type owned struct {
	first, count int64
	w            word
}

// settlePortion puts up to most bytes from a block on, and returns what that was.
func (d *Device) settlePortion(from, most int64, to Below) ([]owned, error) {
	if err := d.enter(0, 0); err != nil {
		return nil, err
	}
	defer d.leave()
	own := d.scratch.watch(from, most)
	parts, err := d.read(own)
	if err == nil && len(parts) > 0 && !invariant.Planted("journal/view/settle-unput") {
		err = to.Put(parts)
	}
	return own, err
}

// watch chooses what is settled next, up to most bytes from a block on, and from now on notes which of it is written.
func (s *scratch) watch(from, most int64) (own []owned) {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	if s.settling == nil {
		s.settling = make(map[int64]struct{})
	}
	s.blocks.from(from, func(first, count int64, w word) bool {
		if w == zerosWord {
			count = min(count, settleZeros)
		} else if most -= blockBytes; most < 0 {
			return false
		} else {
			s.settling[first] = struct{}{}
		}
		own = append(own, owned{first, count, w})
		return count < settleZeros && len(own) < settleZeros
	})
	return own
}

// unwatch ends that.
func (s *scratch) unwatch() {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	s.settling = nil
}

// read reads what is settled. A block that changes meanwhile is read as it was or as it is, or is left out.
func (d *Device) read(own []owned) (parts []Part, err error) {
	for _, o := range own {
		p := Part{Off: o.first * blockBytes, Len: min(o.count*blockBytes, d.disk.Bytes-o.first*blockBytes)}
		if o.w != zerosWord {
			whole := make([]byte, blockBytes)
			if ok, err := d.scratch.readOne(whole, o.first, o.w); err != nil {
				return nil, d.spoiled(err)
			} else if !ok { // it is zeros now
				continue
			}
			p.Data = whole[:p.Len]
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// forget has the map tell no more of the blocks that are still what they were: by entries, which count for sure once
// they are flushed. Until then no slot of them is written, nor is its space given back. After an error it tells of them as before.
func (s *scratch) forget(own []owned) (inFile, moved int64, err error) {
	defer s.unlock(s.lock(0, 63)) // who has read that a block is in scratch is done with that
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mapping.Lock()
	defer s.mapping.Unlock()
	f := s.files.Load()
	if err := s.failure(); err != nil || f == nil {
		return 0, 0, err
	}
	if f.log.header.version < version { // an older release made the map, and its kind has no such entries
		if err := s.rewriteMap(f); err != nil {
			return 0, 0, err
		}
	}
	gone := s.unchanged(own)
	if len(gone) == 0 {
		return 0, 0, nil
	}
	for _, o := range gone {
		f.log.add(&mapEntry{kind: entryBase, first: uint64(o.first), count: uint32(o.count)})
	}
	if err := f.log.write(); err != nil {
		return 0, 0, fmt.Errorf("scratch: %w", err)
	}
	var free []uint32
	for _, o := range gone {
		for b := o.first; b < o.first+o.count; b++ {
			if w := s.blocks.at(b); w != zerosWord {
				inFile++
				if s.slots.retire(w.slot(), true) {
					free = append(free, w.slot())
				}
			}
		}
		s.blocks.forget(o.first, o.first+o.count-1)
		moved += o.count
	}
	s.punch(f, free)
	s.wrote.Add(1) // there is something to flush
	return inFile, moved, nil
}

// unchanged are the blocks, as few runs as they make, that were not written since they were watched. s.mapping is held.
func (s *scratch) unchanged(own []owned) (runs []owned) {
	for _, o := range own {
		for b := o.first; b < o.first+o.count; b++ {
			same := s.blocks.at(b) == o.w
			if _, watched := s.settling[b]; o.w != zerosWord && !watched && !invariant.Planted("journal/view/settle-same-slot") { // another write may have come to the same slot, with the same sum
				same = false
			}
			if !same && !invariant.Planted("journal/view/settle-newer") {
				continue
			}
			if n := len(runs); n > 0 && runs[n-1].first+runs[n-1].count == b && runs[n-1].count < math.MaxUint32 {
				runs[n-1].count++
			} else {
				runs = append(runs, owned{first: b, count: 1})
			}
		}
	}
	return runs
}
