package journal

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// go test ./journal -run '^$' -bench ViewRead
//
// HOLDFAST_BENCH_DIR is a folder on the disk to measure. Cold is past the store's cache;
// the log is read past the page cache, the replica through it, so for a cold replica
// drop that before, and give -benchtime a small count.
func BenchmarkViewRead(b *testing.B) {
	dir := os.Getenv("HOLDFAST_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "viewread")
	ok(b, err)
	defer os.RemoveAll(dir)
	const size = 256 << 20
	for _, cache := range []int64{1, 2 * size} {
		name := filepath.Join(dir, fmt.Sprint(cache))
		store, err := Open(Config{FS: ioengine.OS(), Dir: name, CacheBytes: cache, Log: slog.New(slog.DiscardHandler)})
		ok(b, err)
		g, err := store.OpenGroup(GroupInfo{ID: testGroup, Name: "bench", Lineage: 1})
		ok(b, err)
		ok(b, g.SetVolumes([]VolumeInfo{{ID: 1, Name: "log", Bytes: size}, {ID: 2, Name: "replica", Bytes: size}}))
		fillViewed(b, g, size)
		raw, err := os.Create(filepath.Join(dir, "raw"))
		ok(b, err)
		defer raw.Close()
		fill := make([]byte, 1<<20)
		for off := int64(0); off < size; off += int64(len(fill)) {
			benchData(fill, off)
			_, err := raw.WriteAt(fill, off)
			ok(b, err)
		}
		ok(b, raw.Sync())
		cp, err := g.Latest()
		ok(b, err)
		v, err := g.OpenView(cp.Number, ViewOptions{})
		ok(b, err)
		fromLog, _ := v.Device(1)
		fromReplica, _ := v.Device(2)
		for where, read := range map[string]func([]byte, int64) error{
			"log": fromLog.ReadAt, "replica": fromReplica.ReadAt,
			"raw": func(p []byte, off int64) error { _, err := raw.ReadAt(p, off); return err },
		} {
			if where == "raw" && cache != 1 {
				continue
			}
			for _, depth := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/cached=%v/order=random/size=4K/qd=%d", where, cache != 1, depth), func(b *testing.B) {
					readAtRandom(b, read, size, depth)
				})
			}
			b.Run(fmt.Sprintf("%s/cached=%v/order=forward/size=64K/qd=1", where, cache != 1), func(b *testing.B) {
				b.SetBytes(64 << 10)
				p, off := make([]byte, 64<<10), int64(0)
				for b.Loop() {
					ok(b, read(p, off))
					off = (off + int64(len(p))) % size
				}
			})
		}
		ok(b, store.Close())
	}
}

func readAtRandom(b *testing.B, read func([]byte, int64) error, size int64, depth int) {
	b.SetBytes(4096)
	b.ReportAllocs()
	var wg sync.WaitGroup
	for i := range depth {
		wg.Go(func() {
			rng, p := rand.New(rand.NewPCG(uint64(i), 1)), make([]byte, 4096)
			for range b.N/depth + 1 {
				if err := read(p, rng.Int64N(size/4096)*4096); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// benchData fills p with what stands at off: half of it compresses.
func benchData(p []byte, off int64) {
	rng := rand.New(rand.NewPCG(uint64(off), 2))
	for i := 0; i < len(p); i += 8 {
		if i%16 == 0 {
			n := rng.Uint64()
			for k := range 8 {
				p[i+k] = byte(n >> (8 * k))
			}
		} else {
			copy(p[i:i+8], "holdfast")
		}
	}
}

// fillViewed brings one volume into the replica, then all of another into the log, as
// 4 KiB writes at random.
func fillViewed(b *testing.B, g *Group, size int64) {
	id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1}
	_, err := g.Admit(testStream, 1, 1)
	ok(b, err)
	listed := make(chan struct{}, 1)
	g.OnListed(func(Checkpoint) { listed <- struct{}{} })
	ticket, clock := record.Ticket(0), record.Time(1)
	var last sync.WaitGroup
	put := func(p []byte) {
		r, err := record.Parse(p)
		ok(b, err)
		last.Add(1)
		ok(b, g.Append(r, func(err error) {
			if err != nil {
				b.Error(err)
			}
			last.Done()
		}))
	}
	next := func() record.Identity { id.Seq++; clock++; return id }
	ticket++
	put(record.AppendResyncOpen(nil, next(), clock, ticket, record.Resync{Initial: true, Reason: "bench"}))
	c := record.NewCompressor()
	batch := record.NewBatch(record.Limits{})
	write := func(vol record.VolumeID, off, n int64) {
		ticket++
		p := record.Piece{Volume: vol, Off: off, Len: n, Ticket: ticket, Data: make([]byte, n)}
		benchData(p.Data, off)
		if !batch.Add(p) {
			put(batch.Seal(nil, next(), clock, c))
			batch.Reset()
			batch.Add(p)
		}
	}
	flush := func() { put(batch.Seal(nil, next(), clock, c)); batch.Reset() }
	for off := int64(0); off < size; off += record.LineBytes {
		write(2, off, record.LineBytes)
	}
	flush()
	ticket++
	put(record.AppendResyncClose(nil, next(), clock, ticket, record.Resync{Initial: true}))
	for _, block := range rand.New(rand.NewPCG(1, 3)).Perm(int(size / 4096)) {
		write(1, int64(block)*4096, 4096)
	}
	flush()
	ticket++
	put(record.AppendCut(nil, next(), clock, ticket, record.Cut{Checkpoint: 1, Wall: time.Now().UnixNano(), Solo: true,
		Volumes: []record.VolumeSize{{ID: 1, Bytes: size}, {ID: 2, Bytes: size}}}))
	last.Wait()
	<-listed
}
