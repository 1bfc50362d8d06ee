package main

import (
	"encoding/binary"
	"os"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

// badgerArgs say what the peer holds: payload of 64 KiB as values, which is what a
// journal would do that has no segments.
type badgerArgs struct {
	Dir   string
	Size  int
	Bytes int64
}

func badgerChild(a badgerArgs) (r appendResult, err error) {
	o := badger.DefaultOptions(a.Dir).WithLogger(nil).WithCompression(options.None).WithBlockCacheSize(0).WithValueThreshold(kib)
	db, err := badger.Open(o)
	if err != nil {
		return r, err
	}
	data := noise(16*mib, 1)
	ahead := make([]byte, a.Bytes) // as ours: made before the clock starts
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
		if time.Since(last) >= 100*time.Millisecond {
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
	for i := range b.pairs {
		var ours, peer appendResult
		var foreign [2]float64
		err := b.pair(i, func() (err error) {
			ours, foreign[0], err = b.append(appendArgs{Groups: 1, Writes: 1, Size: 64 * kib, Bytes: bytes, Volume: 100 * gib, Ahead: true})
			return err
		}, func() (err error) {
			dir, err := b.fresh("badger")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			peer, foreign[1], err = in[appendResult](b, "badger", badgerArgs{dir, 64 * kib, bytes})
			return err
		}, func() float64 { return max(foreign[0], foreign[1]) })
		if err != nil {
			return err
		}
		perGiB := func(r appendResult) float64 { return r.CPU / (float64(r.Stored) / gib) }
		f := max(foreign[0], foreign[1])
		b.sample(bars.Sample{Row: "badger-cpu", Value: perGiB(peer) / perGiB(ours), Ours: perGiB(ours), Peer: perGiB(peer), OursUnit: "CPU-s/GiB", Foreign: f})
		b.sample(bars.Sample{Row: "badger-memory", Value: float64(peer.Memory) / float64(max(ours.Memory, mib)), Ours: float64(ours.Memory) / mib, Peer: float64(peer.Memory) / mib, OursUnit: "MiB", Foreign: f})
	}
	return nil
}
