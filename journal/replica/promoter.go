package replica

import (
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Promoter brings the replicas of one group to a later state, while they are read.
//
// What it is given is still in the group's log until the whole promotion is durable. So
// a block that changes as a whole needs no care: whatever a crash or an error leaves of
// it is read from the log, and written again. Of a block that changes in part the rest
// is nowhere else: it is read, verified, put together with what is new, and goes through
// a double-write file, synced, before its place is touched. What a crash tears is put
// there again by the next Recover; what an error tears, by the next Apply, and is read
// from memory until then.
//
// It works in cycles of at most 16 MiB. Blocks are written past the page cache, many
// at once, and their sums through it: a page of them for nearly every write at random, so the
// later they are synced, the more of them are one write. A sync comes after every 16 Ki
// writes, so that no more than 64 MiB of unwritten pages are ever in the way of other syncs
// of that disk, and at the end of each cycle that has images, whose file is then used again. The
// pages are written half a megabyte at a time before such a sync: who writes to that disk
// beside it waits for so much and not for all. A Promoter is for one goroutine.
type Promoter struct {
	double   doubleWrite
	owed     []owedImage // of a cycle that failed: in the file, and not surely in place
	chunk    []byte
	sums     []byte
	planner  planner
	rows     rows
	unsynced []*Volume // written since their last sync
	behind   int       // writes of sums since then
	// Pace is called before each cycle with 0, and before each write of blocks with its
	// bytes, by many at once; it may wait, and its error ends Apply. Nil: no wait.
	Pace func(bytes int64) error
	// Rest is called with the bytes of sums that begin to be written back, before those that are next; it may wait, and its error ends
	// Apply or Finish. Nil: no wait.
	Rest func(bytes int64) error
	// Depth is how many writes are under way at once, at most Placers; 0: as many as that.
	Depth int
}

type owedImage struct {
	v *Volume
	image
}

const (
	// cycleBytes is how much is planned at once.
	cycleBytes = 16 << 20
	// syncWrites is how often sums are written between two syncs.
	syncWrites = 16 << 10
	// writeBackBytes is about how many of them begin to be written at once.
	writeBackBytes = 512 << 10
)

// Damage is a block that was found not to be what was written, or that became so
// because what it was to hold is lost. No bytes are served for it.
type Damage struct {
	Off, Len int64
	Err      error
}

// OpenPromoter makes the promoter of the group whose replicas are in dir, and puts in
// place again what a crash may have torn: whole once it returns without an error.
func OpenPromoter(fs ioengine.FS, dir string, group record.GroupID, volume func(record.VolumeID) *Volume) (*Promoter, error) {
	p := &Promoter{double: doubleWrite{fs: fs, dir: dir, group: group}}
	err := p.recover(volume)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("replica %s: double write: %w", group, err), p.double.drop())
	}
	return p, nil
}

// recover writes all images that are whole, also over blocks that verify: a page cache
// may show what the disk has not.
func (p *Promoter) recover(volume func(record.VolumeID) *Volume) error {
	images, err := p.double.read()
	if err != nil {
		return err
	}
	for _, m := range images {
		v := volume(m.volume)
		if v == nil || m.block >= v.blocks() {
			return fmt.Errorf("block %d of volume %d, which is not there: %w", m.block, m.volume, ErrCorrupt)
		}
		p.owed = append(p.owed, owedImage{v, m})
	}
	if invariant.Planted("journal/replica/no-recover") {
		p.owed = nil
	}
	if err := p.settle(); err != nil {
		return err
	}
	return p.Finish()
}

// Finish makes all that was applied durable, and forgets the images of the last cycle. It
// is called when a promotion ends: whatever happens to a block later must not bring back
// what it was. After an error everything since the last Finish is applied again.
func (p *Promoter) Finish() error {
	if len(p.owed) > 0 {
		return errors.New("blocks are owed")
	}
	if err := p.sync(); err != nil {
		return err
	}
	return p.double.write(nil)
}

// sync makes durable what was written since the last one.
func (p *Promoter) sync() error {
	if invariant.Planted("journal/replica/promote-no-sync") {
		return nil
	}
	for _, v := range p.unsynced {
		if err := p.writeBack(v); err != nil {
			return err
		}
		if err := v.Sync(); err != nil {
			return err
		}
	}
	p.unsynced, p.behind = p.unsynced[:0], 0
	return nil
}

// writeBack has the sums of the volume that were written since the last sync, at places all over them, written back, some at a time.
func (p *Promoter) writeBack(v *Volume) error {
	if invariant.Planted("journal/replica/promote-syncs-at-once") {
		return nil
	}
	all := sumAt(v.blocks())
	dirty := min(all, int64(p.behind)*BlockBytes)
	steps := (dirty + writeBackBytes - 1) / writeBackBytes
	for i := range steps {
		from, to := all*i/steps, all*(i+1)/steps
		v.sums.WriteBack(from, to-from)
		if p.Rest != nil {
			if err := p.Rest(dirty / steps); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close closes the file. What is owed is put in place when it is opened again.
func (p *Promoter) Close() error { return p.double.drop() }

// Apply writes the changes, in rising order and apart; they are durable once Finish has
// returned, and read at once. All that changes in one block is given in one call: else a
// block that changes as a whole would be two that change in part. Damage that Apply
// finds, or is told, becomes durable with the rest. After an error some of it may be
// there; the same changes are given again, or others of the same log.
func (p *Promoter) Apply(v *Volume, changes []Change) (found []Damage, err error) {
	if found, err = p.apply(v, changes); err != nil {
		return found, err
	}
	if p.behind >= syncWrites {
		return found, p.sync()
	}
	return found, nil
}

func (p *Promoter) apply(v *Volume, changes []Change) (found []Damage, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := p.settle(); err != nil {
		return nil, err
	}
	p.planner = planner{bytes: v.bytes.Load(), ops: p.planner.ops[:0]}
	cycle := func() error {
		damage, err := p.cycle(v, p.planner.ops)
		found = append(found, damage...)
		p.planner.taken()
		if err != nil {
			return fmt.Errorf("%s: promote: %w", v.place, err)
		}
		return nil
	}
	for _, c := range changes {
		for first := true; first || c.Len > 0; first = false {
			part := c // long ones in parts, so that no cycle is longer than it should be
			if c.Data != nil && c.Len > cycleBytes {
				part.Len, part.Data = cycleBytes, c.Data[:cycleBytes]
			}
			if err := p.planner.take(part); err != nil {
				return found, fmt.Errorf("BUG: %s: %w", v.place, err)
			}
			c.Off, c.Len = c.Off+part.Len, c.Len-part.Len
			if c.Data != nil {
				c.Data = c.Data[part.Len:]
			}
			if p.planner.full() {
				if err := cycle(); err != nil {
					return found, err
				}
			}
		}
	}
	p.planner.close()
	return found, cycle()
}

// cycle carries the ops out:
//
//  1. images are completed from what stands in place, if that verifies;
//  2. they are made durable in the double-write file;
//  3. all is put in place, blocks and sums;
//  4. and synced, if there are images.
func (p *Promoter) cycle(v *Volume, ops []op) (found []Damage, err error) {
	if len(ops) == 0 {
		return nil, v.failed
	}
	if v.failed != nil {
		return nil, v.failed
	}
	if p.Pace != nil {
		if err := p.Pace(0); err != nil {
			return nil, err
		}
	}
	p.work()
	var images []image
	for i := range ops {
		o := &ops[i]
		switch o.kind {
		case opImage:
			err := p.complete(v, o)
			if errors.Is(err, ErrCorrupt) { // it stays what it is: damaged
				found = append(found, v.damage(o, err))
				o.count = 0
				continue
			}
			if err != nil {
				return found, err
			}
			images = append(images, image{v.place.Volume, o.first, o.data})
		case opLost:
			found = append(found, v.damage(o, fmt.Errorf("what it was to hold is lost: %w", ErrCorrupt)))
		}
	}
	if err := p.double.write(images); err != nil {
		return found, err
	}
	for _, m := range images {
		p.owed = append(p.owed, owedImage{v, m})
	}
	v.owe(p.owed)
	if !slices.Contains(p.unsynced, v) {
		p.unsynced = append(p.unsynced, v)
	}
	if err := p.place(v, ops); err != nil {
		return found, err
	}
	if len(images) == 0 {
		return found, nil
	}
	if !invariant.Planted("journal/replica/promote-no-sync") {
		if err := v.syncLocked(); err != nil {
			return found, err
		}
	}
	p.owed = nil
	v.owe(nil)
	return found, nil
}

// work makes the memory for one block and its sum.
func (p *Promoter) work() {
	if p.chunk == nil {
		p.chunk, p.sums = buf.Aligned(BlockBytes), buf.Aligned(BlockBytes)
	}
}

// damage is where an op's blocks stand, as far as they are the volume's.
func (v *Volume) damage(o *op, err error) Damage {
	off := o.first * BlockBytes
	return Damage{Off: off, Len: min(o.count*BlockBytes, v.bytes.Load()-off), Err: err}
}

// complete puts what stands in place around the parts of an image.
func (p *Promoter) complete(v *Volume, o *op) error {
	have := p.chunk[:BlockBytes]
	if invariant.Planted("journal/replica/launder") {
		if err := readFull(v.raw, have, o.first*BlockBytes); err != nil {
			return err
		}
	} else if err := v.readBlocks(have, p.sums, o.first); err != nil {
		return err
	}
	for _, c := range o.parts {
		copy(have[c.from:c.to], o.data[c.from:c.to])
	}
	copy(o.data, have)
	return nil
}

// clear zeroes blocks, or makes them unreadable.
func (p *Promoter) clear(v *Volume, o *op) error {
	if o.kind == opZero {
		defer v.lockFor(o)()
		return v.zeroBlocks(o.first, o.count)
	}
	for b := o.first; b < o.first+o.count; b++ {
		if err := p.spoil(v, b); err != nil {
			return err
		}
	}
	return nil
}

// lockFor takes all that a zeroing covers.
func (v *Volume) lockFor(o *op) (unlock func()) {
	if n := o.count * BlockBytes; n <= chunkBytes {
		return v.locks.write(o.first*BlockBytes, n)
	}
	return v.locks.all()
}

// spoil makes a block unreadable: by a sum that is not that of what stands there,
// however often it is done.
func (p *Promoter) spoil(v *Volume, block int64) error {
	defer v.locks.write(block*BlockBytes, BlockBytes)()
	have := p.chunk[:BlockBytes]
	if err := readFull(v.raw, have, block*BlockBytes); err != nil {
		return err
	}
	putSum(p.sums, 0, sumOf(v.place, block, have)^1)
	v.dirty = true
	_, err := v.sums.WriteAt(p.sums[:sumBytes], sumAt(block))
	return err
}

// settle puts in place what an earlier cycle may have left undone. The volumes' own
// writers are not at work: the caller's volume is locked, and of the others only an
// initial sync writes, which no promotion stands beside.
func (p *Promoter) settle() error {
	if len(p.owed) == 0 {
		return nil
	}
	p.work()
	var volumes []*Volume
	for _, m := range p.owed {
		if m.v.failed != nil {
			return m.v.failed
		}
		unlock := m.v.locks.write(m.block*BlockBytes, BlockBytes)
		err := m.v.put(m.data, p.sums, m.block)
		unlock()
		if err != nil {
			return err
		}
		if !slices.Contains(volumes, m.v) {
			volumes = append(volumes, m.v)
		}
	}
	for _, v := range volumes {
		if err := v.syncLocked(); err != nil {
			return err
		}
		v.owe(nil)
	}
	p.owed = nil
	return nil
}

// owe says which of the volume's blocks are to be read from memory should they not
// verify in place.
func (v *Volume) owe(images []owedImage) {
	if len(images) == 0 {
		v.owed.Store(nil)
		return
	}
	m := make(map[int64][]byte, len(images))
	for _, o := range images {
		if o.v == v {
			m[o.block] = o.data
		}
	}
	v.owed.Store(&m)
}
