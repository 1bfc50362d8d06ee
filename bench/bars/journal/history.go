package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const blockBytes = 4 * kib

// historyArgs describe a store to make.
type historyArgs struct {
	Dir    string
	Groups int
	Volume int64 // bytes of each group's volume
	// Base fills the volume before the history, into the replica.
	Base bool
	// Blocks are how many blocks of 4 KiB the history writes in each group, at places and with
	// bytes that follow from the seed; each at most once while there are enough.
	Blocks int
	Writes int // of a record
	// Hollow: the payload is zeros that take no space on disk, and the process dies by
	// SIGKILL when all is durable, so that the store is as a crash leaves it.
	Hollow bool
	// Small: each block holds little but its stamp, so that many fit on the disk.
	Small bool
}

type historyResult struct{ Checkpoint uint64 }

func historyPart(_ context.Context, a historyArgs) (r historyResult, err error) {
	cfg := journal.Config{FS: ioengine.OS(), Dir: a.Dir}
	if a.Hollow {
		cfg.FS = hollow{cfg.FS}
	}
	s, err := journal.Open(cfg)
	if err != nil {
		return r, err
	}
	streams, err := openGroups(s, a.Groups, a.Volume)
	if err != nil {
		return r, err
	}
	w := newWriter(a)
	for _, st := range streams {
		st.compressor.StoreOnly = a.Hollow
		if err := w.base(st); err != nil {
			return r, err
		}
	}
	if err := w.history(streams); err != nil {
		return r, err
	}
	for _, st := range streams {
		if r.Checkpoint, err = st.cut(); err != nil {
			return r, err
		}
	}
	if a.Hollow {
		fmt.Printf("{\"Checkpoint\":%d}\n", r.Checkpoint)
		return r, syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return r, s.Close()
}

// places returns where the history of a volume writes: every block at most once, in an order
// that follows from the seed, while it has so many; else any, again and again.
func places(volume int64, blocks int) func(i int) int64 {
	n := uint64(volume / blockBytes)
	if uint64(blocks) > n {
		rng := rand.New(rand.NewPCG(5, 5))
		return func(int) int64 { return rng.Int64N(int64(n)) * blockBytes }
	}
	// A full cycle: an odd step over a power of two, what is outside skipped.
	size := uint64(1)
	for size < n {
		size *= 2
	}
	at := uint64(12345)
	return func(int) int64 {
		for {
			at = (at*6364136223846793005 + 1442695040888963407) % size
			if at < n {
				return int64(at) * blockBytes
			}
		}
	}
}

// writer fills blocks.
type writer struct {
	args   historyArgs
	corpus []byte
	bufs   chan []byte
	failed chan error
}

func newWriter(a historyArgs) *writer {
	w := &writer{args: a, corpus: load.Corpus(load.DB, 7), bufs: make(chan []byte, inFlight), failed: make(chan error, 1)}
	for range inFlight {
		w.bufs <- nil
	}
	return w
}

// stamp makes p the block at off in its version: 0 in the base, 1 in the history.
func (w *writer) stamp(p []byte, off int64, version uint64) {
	if w.args.Small {
		clear(p)
	} else {
		at := int(off+int64(version)*5*blockBytes) % (len(w.corpus) - len(p))
		copy(p, w.corpus[at:])
	}
	putStamp(p, off, version)
}

func putStamp(p []byte, off int64, version uint64) {
	binary.LittleEndian.PutUint64(p, uint64(off)+1)
	binary.LittleEndian.PutUint64(p[8:], version+1)
}

// stamped says whether p is the block at off in the version.
func stamped(p []byte, off int64, version uint64) bool {
	return binary.LittleEndian.Uint64(p) == uint64(off)+1 && binary.LittleEndian.Uint64(p[8:]) == version+1
}

// base is the initial sync.
func (w *writer) base(st *stream) error {
	if err := st.syncing(); err != nil {
		return err
	}
	const perRecord = 32
	buf := make([]byte, perRecord*16*blockBytes)
	for off := int64(0); w.args.Base && off < w.args.Volume; off += int64(len(buf)) {
		var writes []write
		for i := 0; i < len(buf); i += blockBytes {
			w.stamp(buf[i:i+blockBytes], off+int64(i), 0)
		}
		for i := 0; i < len(buf); i += 16 * blockBytes {
			writes = append(writes, write{off + int64(i), buf[i : i+16*blockBytes]})
		}
		if err := w.append(st, writes); err != nil {
			return err
		}
	}
	if err := w.drain(); err != nil {
		return err
	}
	return st.synced()
}

// history writes what comes after, over all groups in turn.
func (w *writer) history(streams []*stream) error {
	buf := make([]byte, w.args.Writes*blockBytes)
	place := make([]func(int) int64, len(streams))
	for i := range place {
		place[i] = places(w.args.Volume, w.args.Blocks)
	}
	for done := 0; done < w.args.Blocks; done += w.args.Writes {
		for g, st := range streams {
			var writes []write
			for i := range min(w.args.Writes, w.args.Blocks-done) {
				off, p := place[g](done+i), buf[i*blockBytes:(i+1)*blockBytes]
				w.stamp(p, off, 1)
				writes = append(writes, write{off, p})
			}
			if err := w.append(st, writes); err != nil {
				return err
			}
		}
	}
	return w.drain()
}

// append seals a record and sends it; 32 are in flight.
func (w *writer) append(st *stream, writes []write) error {
	p := <-w.bufs
	if err := st.fill(writes); err != nil {
		return err
	}
	if w.args.Hollow { // the batch reads the bytes when it is sealed: then they are zeros
		for _, x := range writes {
			clear(x.data)
		}
	}
	p = st.sealFilled(p[:0])
	rec, err := record.Parse(p)
	if err != nil {
		return err
	}
	err = st.group.Append(rec, func(err error) {
		if err != nil {
			select {
			case w.failed <- err:
			default:
			}
		}
		w.bufs <- p
	})
	return errors.Join(w.first(), err) // what follows one that failed fails too
}

// first is the first error of what was in flight.
func (w *writer) first() error {
	select {
	case err := <-w.failed:
		return err
	default:
		return nil
	}
}

// drain waits until all is durable.
func (w *writer) drain() error {
	var bufs [][]byte
	for range inFlight {
		bufs = append(bufs, <-w.bufs)
	}
	for _, p := range bufs {
		w.bufs <- p
	}
	return w.first()
}
