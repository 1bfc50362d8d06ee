package view

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// again opens the user's view anew, on what the end of the process left of its disk.
func (u *user) again(t *testing.T) *user {
	t.Helper()
	c := u.copy(u.disk.Kill(), u.boot)
	must(t, c.open(true))
	return c
}

// A flipped byte of what was written is an error for those who read its block, also when
// they write to a part of it; the view says so; and who writes it whole has it back.
func TestScratchRot(t *testing.T) {
	w := newWorld(t, 6)
	u := newUser(w, w.disk, 5, 1)
	must(t, u.open(false))
	for i := range 12 {
		must(t, u.d.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 2*blockBytes), int64(3*i)*blockBytes))
	}
	must(t, u.d.Flush())
	s := u.d.scratch
	for block := range int64(36) {
		word := s.blocks.at(block)
		if word.place() != inFile {
			continue
		}
		c := u.again(t)
		told := 0
		c.v.cfg.Spoiled = func(error) { told++ }
		good := make([]byte, blockBytes)
		must(t, c.d.ReadAt(good, block*blockBytes))
		must(t, c.disk.Rot(s.name+dataSuffix, slotAt(word.slot())+block*97, 1))
		p := make([]byte, testBytes)
		off := block * blockBytes
		for _, part := range [][2]int64{{off, blockBytes}, {off + 100, 7}, {0, testBytes}, {max(0, off-5000), 12000}} {
			if err := c.d.ReadAt(p[:part[1]], part[0]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("block %d: read of %d at %d: %v", block, part[1], part[0], err)
			}
		}
		if err := c.d.WriteAt(p[:10], off+50); !errors.Is(err, ErrCorrupt) {
			t.Errorf("block %d: write to a part: %v", block, err)
		}
		if told != 1 || !errors.Is(c.v.Spoiled(), ErrCorrupt) {
			t.Errorf("block %d: told %d times: %v", block, told, c.v.Spoiled())
		}
		for other := range int64(36) {
			if err := c.d.ReadAt(p[:blockBytes], other*blockBytes); err != nil && other != block {
				t.Errorf("block %d: block %d: %v", block, other, err)
			}
		}
		must(t, c.d.WriteAt(good, off))
		must(t, c.d.ReadAt(p[:blockBytes], off))
		if !bytes.Equal(p[:blockBytes], good) {
			t.Errorf("block %d is not what was written", block)
		}
		must(t, c.v.Leave())
	}
}

// A block that stands in another's slot, or behind the end of a file that was cut, is an
// error.
func TestScratchMisplaced(t *testing.T) {
	w := newWorld(t, 6)
	u := newUser(w, w.disk, 5, 1)
	must(t, u.open(false))
	p := bytes.Repeat([]byte("same"), blockBytes/4) // also when both hold the same
	must(t, u.d.WriteAt(p, 0))
	must(t, u.d.WriteAt(p, 7*blockBytes))
	must(t, u.d.Flush())
	c := u.again(t)
	s := c.d.scratch
	one, other := s.blocks.at(0), s.blocks.at(7)
	s.blocks.set(0, other)
	s.blocks.set(7, one)
	for _, block := range []int64{0, 7} {
		if err := c.d.ReadAt(p, block*blockBytes); !errors.Is(err, ErrCorrupt) {
			t.Errorf("block %d in another's slot: %v", block, err)
		}
	}
	c = u.again(t)
	must(t, c.d.scratch.files.Load().data.Truncate(slotAt(max(one.slot(), other.slot()))+100))
	if err := c.d.ReadAt(make([]byte, 8*blockBytes), 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a file that was cut: %v", err)
	}
}

// A map that is gone, was cut, or is an older one is damage, and never a view that holds
// less; so is data that is gone or another's.
func TestScratchCut(t *testing.T) {
	w := newWorld(t, 7)
	u := newUser(w, w.disk, 5, 1)
	must(t, u.open(false))
	var old []byte
	for i := range 6 {
		must(t, u.d.WriteAt(bytes.Repeat([]byte{byte(i)}, 5000), int64(i)*9000))
		must(t, u.d.Flush())
		if i == 3 {
			old = content(t, u.disk, u.d.scratch.name+mapSuffix)
		}
	}
	name := u.d.scratch.name
	last := u.d.scratch.files.Load().log
	// The last mark begins the last page but one: what is behind it counts for nothing.
	marked := last.end - markPage
	for _, boot := range []byte{1, 2} {
		opens := func(what string, want error, how func(ioengine.FS) error) {
			t.Helper()
			disk := w.disk.Kill()
			must(t, how(disk))
			c := u.copy(disk, boot)
			if err := c.open(true); !errors.Is(err, want) {
				t.Errorf("boot %d: %s: %v", boot, what, err)
			}
		}
		cut := func(suffix string, size int64) func(ioengine.FS) error {
			return func(fs ioengine.FS) error {
				f, err := fs.Open(name+suffix, 0)
				must(t, err)
				return errors.Join(f.Truncate(size), f.Close())
			}
		}
		opens("nothing done", nil, func(ioengine.FS) error { return nil })
		for size := int64(0); size <= marked; size += 416 {
			opens(fmt.Sprintf("the map cut to %d", size), ErrCorrupt, cut(mapSuffix, size))
		}
		opens("the map gone", ErrCorrupt, func(fs ioengine.FS) error { return fs.Remove(name + mapSuffix) })
		opens("the data gone", ErrCorrupt, func(fs ioengine.FS) error { return fs.Remove(name + dataSuffix) })
		opens("the data cut to nothing", ErrCorrupt, cut(dataSuffix, 0))
		opens("an older map", ErrCorrupt, func(fs ioengine.FS) error {
			f, err := fs.Open(name+mapSuffix, 0)
			must(t, err)
			_, err = f.WriteAt(old, 0)
			return errors.Join(err, f.Truncate(int64(len(old))), f.Close())
		})
		opens("the map of another life", ErrCorrupt, func(fs ioengine.FS) error {
			// A new map is made, which the data knows, and then the old one comes back.
			c := u.copy(fs.(*faultdisk.Disk), 3)
			keep := content(t, fs, name+mapSuffix)
			must(t, errors.Join(c.open(true), c.v.Leave()))
			f, err := fs.Open(name+mapSuffix, 0)
			must(t, err)
			_, err = f.WriteAt(keep, 0)
			return errors.Join(err, f.Truncate(int64(len(keep))), f.Close())
		})
		for copies := range 2 {
			opens("one copy of the head damaged", nil, func(fs ioengine.FS) error {
				return fs.(*faultdisk.Disk).Rot(name+dataSuffix, int64(copies)*headBytes+20, 1)
			})
		}
		opens("both copies of the head damaged", ErrCorrupt, func(fs ioengine.FS) error {
			d := fs.(*faultdisk.Disk)
			return errors.Join(d.Rot(name+dataSuffix, 20, 1), d.Rot(name+dataSuffix, headBytes+20, 1))
		})
		opens("scratch of version 1", ErrFormat, func(fs ioengine.FS) error {
			f, err := fs.Open(name+mapSuffix, 0)
			must(t, err)
			p := content(t, fs, name+mapSuffix)
			p[atVersion] = 1
			_, err = f.WriteAt(mapHeaderSum(p[:headerBytes]), 0)
			return errors.Join(err, f.Close())
		})
	}
	must(t, u.v.Close())
}

// content is all that a file holds.
func content(t *testing.T, fs ioengine.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name, ioengine.ReadOnly)
	must(t, err)
	defer f.Close()
	size, err := f.Size()
	must(t, err)
	p := make([]byte, size)
	_, err = f.ReadAt(p, 0)
	must(t, err)
	return p
}

// A process that ends while an entry is written in part leaves a map that opens, and
// what is written behind it counts.
func TestMapEntryInPart(t *testing.T) {
	w := newWorld(t, 8)
	u := newUser(w, w.disk, 5, 1)
	must(t, u.open(false))
	p := bytes.Repeat([]byte{7}, 30*blockBytes)
	must(t, u.d.WriteAt(p[:blockBytes], 0))
	f := u.d.scratch.files.Load().log
	// 30 blocks are six cells, of which three end a sector.
	for f.end%512 != 512-3*entryBytes {
		must(t, u.d.WriteAt(p[:blockBytes], 0))
	}
	entry := mapEntry{kind: entryRun, count: 30, first: 0, number: f.last + 1, slot: 100, sums: make([]uint32, 30)}
	_, err := f.file.WriteAt(entry.appendTo(nil, f.header.life)[:3*entryBytes], f.end)
	must(t, err)
	want := make([]byte, testBytes)
	must(t, u.d.ReadAt(want, 0))
	c := u.again(t)
	must(t, same(c.d, c.rng, want))
	must(t, c.d.WriteAt(p, 9*blockBytes))
	copy(want[9*blockBytes:], p)
	c = c.again(t)
	must(t, same(c.d, c.rng, want))
	must(t, c.d.Flush())
	must(t, same(c.again(t).d, c.rng, want))
	// A cell that was all there and does not read is no such beginning.
	log := c.d.scratch.files.Load().log
	must(t, c.d.WriteAt(p[:blockBytes], 0))
	must(t, c.disk.Rot(log.name, log.end-5, 1))
	d := u.copy(c.disk.Kill(), u.boot)
	if err := d.open(true); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a last entry that does not read: %v", err)
	}
}

// Readers of blocks that are written anew all the time see the one or the other, while
// slots change hands.
func TestReadersWhileSlotsAreReused(t *testing.T) {
	w := newWorld(t, 9)
	_, d := w.open(t, 5, Options{Scratch: true})
	const span = 12
	whole := func(b byte) []byte { return bytes.Repeat([]byte{b}, span*blockBytes) }
	must(t, d.WriteAt(whole(1), 0))
	var done atomic.Bool
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			p := make([]byte, span*blockBytes)
			for !done.Load() {
				off := rng.Int64N(span * blockBytes)
				n := 1 + rng.Int64N(span*blockBytes-off)
				if err := d.ReadAt(p[:n], off); err != nil {
					t.Errorf("read: %v", err)
					return
				}
				for at := int64(0); at < n; {
					next := min(n, (off+at)/blockBytes*blockBytes+blockBytes-off)
					if bytes.Count(p[at:next], p[at:at+1]) != int(next-at) {
						t.Error("a block is of two writes")
						return
					}
					at = next
				}
			}
		})
	}
	for i := range 600 {
		block := int64(i*7) % span
		must(t, d.WriteAt(whole(byte(i))[:blockBytes], block*blockBytes))
		if i%5 == 0 {
			must(t, d.WriteAt(whole(byte(i)), 0))
		}
		if i%9 == 0 {
			must(t, d.Flush())
		}
	}
	done.Store(true)
	wg.Wait()
}

// What is written over and over without a flush takes neither a map without end nor
// much of a file.
func TestWithoutFlush(t *testing.T) {
	w := newWorld(t, 9)
	v, d := w.open(t, 5, Options{Scratch: true})
	d.scratch.rewrite, d.scratch.force = 4*headerBytes, 8*headerBytes
	p := make([]byte, 3*blockBytes)
	most := int64(0)
	for i := range 5000 {
		p[i%len(p)]++
		must(t, d.WriteAt(p, int64(i%7)*blockBytes))
		most = max(most, d.scratch.files.Load().log.end)
	}
	if most > 20*headerBytes {
		t.Errorf("the map is %d bytes long", most)
	}
	if size, err := d.scratch.files.Load().data.Size(); err != nil || size > 64*blockBytes {
		t.Errorf("the data of 9 blocks takes %d bytes: %v", size, err)
	}
	w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO, Ever: true})
	failed := error(nil)
	for i := 0; i < 5000 && failed == nil; i++ {
		failed = d.WriteAt(p, 0)
	}
	if !errors.Is(failed, ErrFailed) {
		t.Errorf("after a sync that failed: %v", failed)
	}
	w.disk.Heal()
	must(t, v.Close())
}
