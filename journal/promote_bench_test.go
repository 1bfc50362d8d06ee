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

// go test ./journal -run '^$' -bench Promote -benchtime 1x -count 6
//
// HOLDFAST_BENCH_DIR is a folder on the disk to measure. What is timed is one pass that
// brings 1 GiB of writes at random into a replica, with nothing beside it.
func BenchmarkPromote(b *testing.B) {
	dir := os.Getenv("HOLDFAST_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "promote")
	ok(b, err)
	defer os.RemoveAll(dir)
	for _, size := range []int64{64 << 10, 4 << 10} {
		total := int64(1 << 30)
		if size < 64<<10 {
			total = 128 << 20
		}
		b.Run(fmt.Sprintf("write=%dK", size>>10), func(b *testing.B) {
			b.SetBytes(total)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				name := filepath.Join(dir, fmt.Sprint(size, i))
				store, err := Open(Config{FS: ioengine.OS(), Dir: name, Still: true, Log: slog.New(slog.DiscardHandler)})
				ok(b, err)
				g, err := store.OpenGroup(GroupInfo{ID: testGroup, Name: "bench", Lineage: 1})
				ok(b, err)
				const volume = 8 << 30
				ok(b, g.SetVolumes([]VolumeInfo{{ID: 1, Name: "disk", Bytes: volume}}))
				fillRandom(b, g, volume, size, total, nil)
				b.StartTimer()
				ok(b, g.promote(2, noPace))
				b.StopTimer()
				ok(b, store.Close())
				ok(b, os.RemoveAll(name))
				b.StartTimer()
			}
		})
	}
}

// fillRandom closes an empty initial sync, takes writes at random places, and cuts twice:
// before them and behind them.
func fillRandom(b testing.TB, g *Group, volume, size, total int64, image []byte) {
	id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1}
	_, err := g.Admit(testStream, 1, 1)
	ok(b, err)
	listed := make(chan struct{}, 2)
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
	next := func() record.Identity { id.Seq++; clock++; ticket++; return id }
	cut := func(n uint64) {
		put(record.AppendCut(nil, next(), clock, ticket, record.Cut{Checkpoint: n, Wall: time.Now().UnixNano(), Listed: n - 1, Solo: true,
			Volumes: []record.VolumeSize{{ID: 1, Bytes: volume}}}))
		last.Wait()
		<-listed
	}
	put(record.AppendResyncOpen(nil, next(), clock, ticket, record.Resync{Initial: true, Reason: "bench"}))
	put(record.AppendResyncClose(nil, next(), clock, ticket, record.Resync{Initial: true}))
	cut(1)
	rng, data := rand.New(rand.NewPCG(1, 3)), make([]byte, 16<<20)
	for i := 0; i < len(data); i += 8 {
		n := rng.Uint64()
		for k := range 8 {
			data[i+k] = byte(n>>(8*k)) + byte(g.info.ID) // at the same places in all groups
		}
	}
	c, batch := record.NewCompressor(), record.NewBatch(record.Limits{})
	for done := int64(0); done < total; done += size {
		at := rng.Int64N(int64(len(data))-size) / 512 * 512
		ticket++
		p := record.Piece{Volume: 1, Off: rng.Int64N(volume/size) * size, Len: size, Ticket: ticket, Data: data[at : at+size]}
		if image != nil {
			copy(image[p.Off:], p.Data)
		}
		if !batch.Add(p) {
			put(batch.Seal(nil, next(), clock, c))
			batch.Reset()
			batch.Add(p)
		}
	}
	put(batch.Seal(nil, next(), clock, c))
	cut(2)
}
