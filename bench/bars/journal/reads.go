package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// readArgs say what is read: blocks of 4 KiB at random, at a depth, for a while.
type readArgs struct {
	Path       string // of the store, or of the raw file
	Checkpoint uint64
	Volume     int64
	Blocks     int // that the history wrote
	LogOnly    bool
	Depth      int
	Seconds    float64
}

type readResult struct {
	Reads   int
	Seconds float64
}

// readPart reads a view in this process, and checks every block.
func readPart(_ context.Context, a readArgs) (r readResult, err error) {
	s, err := openStore(a.Path)
	if err != nil {
		return r, err
	}
	defer s.Close()
	g, ok := s.Group(record.GroupID(1))
	if !ok {
		return r, errors.New("no group")
	}
	v, err := g.OpenView(a.Checkpoint, journal.ViewOptions{})
	if err != nil {
		return r, err
	}
	defer v.Close()
	d, ok := v.Device(volumeID)
	if !ok {
		return r, errors.New("no volume")
	}
	written := make(map[int64]bool, a.Blocks)
	var list []int64
	place := places(a.Volume, a.Blocks)
	for i := range a.Blocks {
		off := place(i)
		written[off] = true
		list = append(list, off)
	}
	if err := bars.DropCaches(); err != nil {
		return r, err
	}
	return a.run(func(p []byte, rng *rand.Rand) error {
		off := list[rng.IntN(len(list))]
		if !a.LogOnly {
			off = rng.Int64N(a.Volume/blockBytes) * blockBytes
		}
		if err := d.ReadAt(p, off); err != nil {
			return err
		}
		version := uint64(0)
		if written[off] {
			version = 1
		}
		if !stamped(p, off, version) {
			return fmt.Errorf("block at %d is not version %d", off, version)
		}
		return nil
	})
}

// rawPart reads a file past the page cache.
func rawPart(_ context.Context, a readArgs) (r readResult, err error) {
	f, err := ioengine.OS().Open(a.Path, ioengine.ReadOnly|ioengine.Direct)
	if err != nil {
		return r, err
	}
	defer f.Close()
	return a.run(func(p []byte, rng *rand.Rand) error {
		off := rng.Int64N(a.Volume/blockBytes) * blockBytes
		if _, err := f.ReadAt(p, off); err != nil {
			return err
		}
		if !stamped(p, off, 0) {
			return fmt.Errorf("block at %d is another", off)
		}
		return nil
	})
}

// run reads at the depth until the time is over.
func (a readArgs) run(read func(p []byte, rng *rand.Rand) error) (r readResult, err error) {
	defer bars.Profile()()
	from := time.Now()
	end := from.Add(time.Duration(a.Seconds * float64(time.Second)))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range a.Depth {
		wg.Go(func() {
			rng, p, n := rand.New(rand.NewPCG(uint64(i), 11)), buf.Aligned(blockBytes), 0
			var failed error
			for failed == nil && time.Now().Before(end) {
				failed = read(p, rng)
				n++
			}
			mu.Lock()
			defer mu.Unlock()
			r.Reads += n
			err = errors.Join(err, failed)
		})
	}
	wg.Wait()
	r.Seconds = time.Since(from).Seconds()
	return r, err
}

func (b *bench) reads() error {
	a := historyArgs{Groups: 1, Volume: b.size(8*gib) / (64 * mib) * (64 * mib), Base: true, Writes: 16}
	a.Blocks = int(a.Volume / blockBytes / 5)
	made, drop, err := b.history("reads", b.keptReads, a)
	if err != nil {
		return err
	}
	defer drop()
	a = made.Args
	raw := filepath.Join(filepath.Dir(a.Dir), "raw")
	if _, err = os.Stat(raw); errors.Is(err, fs.ErrNotExist) {
		err = rawFile(raw, a)
	}
	if err != nil {
		return err
	}
	for _, depth := range []int{1, 16} {
		for _, logOnly := range []bool{false, true} {
			row := fmt.Sprintf("read-qd%d", depth)
			if logOnly {
				row += "-log"
			}
			if !b.Wanted(row) {
				continue
			}
			ra := readArgs{Path: a.Dir, Checkpoint: made.Checkpoint, Volume: a.Volume, Blocks: a.Blocks, LogOnly: logOnly, Depth: depth, Seconds: 6 * min(1, max(b.scale, 0.2))}
			rb := ra
			rb.Path = raw
			err := bars.Pairs(b.Run,
				func() (readResult, float64, error) { return bars.Alone[readResult](b.Run, "read", ra) },
				func() (readResult, float64, error) { return bars.Alone[readResult](b.Run, "raw", rb) },
				func(ours, peer readResult, foreign float64) {
					o, p := float64(ours.Reads)/ours.Seconds, float64(peer.Reads)/peer.Seconds
					b.Sample(bars.Sample{Row: row, Value: o / p, Ours: o, Peer: p, OursUnit: "reads/s", Foreign: foreign})
				})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// rawFile is the peer: the same bytes as the base, in a file.
func rawFile(name string, a historyArgs) error {
	w := newWriter(a)
	f, err := os.Create(name + ".new")
	if err != nil {
		return err
	}
	p := make([]byte, mib)
	for off := int64(0); off < a.Volume; off += mib {
		for i := 0; i < mib; i += blockBytes {
			w.stamp(p[i:i+blockBytes], off+int64(i), 0)
		}
		if _, err := f.Write(p); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
