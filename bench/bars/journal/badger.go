package main

import (
	"context"
	"encoding/binary"
	"os"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// badgerArgs say what the peer holds: payload of 64 KiB as values, which is what a
// journal would do that has no segments.
type badgerArgs struct {
	Dir   string
	Size  int
	Bytes int64
}

// syncEvery is how often both sides wait until all that they were given is durable.
const syncEvery = 100 * time.Millisecond

func badgerPart(_ context.Context, a badgerArgs) (r appendResult, err error) {
	o := badger.DefaultOptions(a.Dir).WithLogger(nil).WithCompression(options.None).WithBlockCacheSize(0).WithValueThreshold(kib)
	db, err := badger.Open(o)
	if err != nil {
		return r, err
	}
	data := load.Noise(16*mib, 1)
	ahead := buf.Row(int(a.Bytes), 1)[0] // as ours: made before the clock starts, in huge pages
	for n := 0; n < len(ahead); n += copy(ahead[n:], data) {
	}
	from, mem := now(), watchMemory()
	batch, last := db.NewWriteBatch(), time.Now()
	for n := int64(0); n+int64(a.Size) <= a.Bytes; n += int64(a.Size) {
		key := binary.BigEndian.AppendUint64(nil, uint64(n))
		if err := batch.Set(key, ahead[n:n+int64(a.Size)]); err != nil {
			return r, err
		}
		r.Stored += int64(a.Size)
		if time.Since(last) >= syncEvery {
			if err := batch.Flush(); err != nil {
				return r, err
			}
			if err := db.Sync(); err != nil {
				return r, err
			}
			batch, last = db.NewWriteBatch(), time.Now()
		}
	}
	if err := batch.Flush(); err != nil {
		return r, err
	}
	if err := db.Sync(); err != nil {
		return r, err
	}
	to := now()
	r.Seconds, r.CPU, r.Memory = to.at.Sub(from.at).Seconds(), to.cpu-from.cpu, mem.peak()
	err = db.Close()
	r.Written = now().written - from.written
	return r, err
}

func (b *bench) badger() error {
	bytes := b.size(2 * gib)
	ours := func() (appendResult, float64, error) {
		return b.append(appendArgs{Groups: 1, Writes: 1, Size: 64 * kib, Bytes: bytes, Volume: 100 * gib, Ahead: true, Every: syncEvery})
	}
	peer := func() (r appendResult, foreign float64, err error) {
		dir, err := b.Fresh("badger")
		if err != nil {
			return r, 0, err
		}
		defer os.RemoveAll(dir)
		return bars.Alone[appendResult](b.Run, "badger", badgerArgs{dir, 64 * kib, bytes})
	}
	return bars.Pairs(b.Run, ours, peer, func(ours, peer appendResult, foreign float64) {
		perGiB := func(r appendResult) float64 { return r.CPU / (float64(r.Stored) / gib) }
		b.Sample(bars.Sample{Row: "badger-cpu", Value: perGiB(peer) / perGiB(ours), Ours: perGiB(ours), Peer: perGiB(peer), OursUnit: "CPU-s/GiB", Foreign: foreign})
		b.Sample(bars.Sample{Row: "badger-memory", Value: float64(peer.Memory) / float64(max(ours.Memory, mib)), Ours: float64(ours.Memory) / mib, Peer: float64(peer.Memory) / mib, OursUnit: "MiB", Foreign: foreign})
	})
}
