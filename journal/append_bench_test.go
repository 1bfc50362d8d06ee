package journal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// BenchmarkRounds appends records with 32 in flight, each acknowledged after the
// store's sync, on a real file system: HOLDFAST_BENCH_DIR, or the temporary folder. An
// operation is a record. CPU is that of the process between the first Append and the
// last ack; the read-back of closed segments is in it.
//
//	go test ./journal -run '^$' -bench Rounds -benchtime 2048x
func BenchmarkRounds(b *testing.B) {
	for _, groups := range []int{1, 300} {
		for _, shape := range []struct {
			name   string
			writes int
			bytes  int
		}{{"1MiB", 32, 32 << 10}, {"16x4KiB", 16, 4 << 10}} {
			name := fmt.Sprintf("%dgroups/%s", groups, shape.name)
			if groups == 1 {
				name = "one/" + shape.name
			}
			b.Run(name, func(b *testing.B) { benchAppend(b, groups, shape.writes, shape.bytes) })
		}
	}
}

const benchVolume = 100 << 30

func benchAppend(b *testing.B, groups, writes, bytes int) {
	dir := b.TempDir()
	if in := os.Getenv("HOLDFAST_BENCH_DIR"); in != "" {
		var err error
		dir, err = os.MkdirTemp(in, "append")
		if err != nil {
			b.Fatal(err)
		}
		defer os.RemoveAll(dir)
	}
	cfg := Config{FS: ioengine.OS(), Dir: filepath.Join(dir, "store")}
	if groups > 1 {
		cfg.SegmentBytes = 16 << 20 // so that all of them have the space
	}
	store, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	var all []*Group
	for i := range groups {
		g, err := store.OpenGroup(GroupInfo{ID: record.GroupID(i + 1), Name: fmt.Sprint("g", i), Lineage: 1})
		if err == nil {
			err = g.SetVolumes([]VolumeInfo{{ID: 1, Name: "v", Bytes: benchVolume}})
		}
		if err == nil {
			_, err = g.Admit(testStream, 1, 1)
		}
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, g)
	}
	slots := make(chan struct{}, 32)
	send := func(g *Group, p []byte) {
		r, err := record.Parse(p)
		if err != nil {
			b.Fatal(err)
		}
		slots <- struct{}{}
		err = g.Append(r, func(err error) {
			if err != nil {
				b.Error(err)
			}
			<-slots
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	drain := func() {
		for range cap(slots) {
			slots <- struct{}{}
		}
		for range cap(slots) {
			<-slots
		}
	}
	for _, g := range all {
		id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: 1}
		send(g, record.AppendResyncOpen(nil, id, 1, 1, record.Resync{Reason: "bench"}))
	}
	records, payload := benchRecords(b.N, groups, writes, bytes)
	drain()
	b.SetBytes(payload / int64(b.N))
	before := cpuTime()
	b.ResetTimer()
	for i, p := range records {
		send(all[i%groups], p)
	}
	drain()
	b.StopTimer()
	b.ReportMetric((cpuTime()-before).Seconds()/(float64(payload)/(1<<30)), "CPU-s/GiB")
}

// benchRecords seals n records of incompressible writes, group by group in turn.
func benchRecords(n, groups, writes, bytes int) (records [][]byte, payload int64) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 4<<20)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	comp := record.NewCompressor()
	batch := record.NewBatch(record.Limits{})
	for i := range n {
		batch.Reset()
		seq := record.Seq(2 + i/groups)
		base := rng.Int64N(benchVolume/int64(writes*bytes)-1) * int64(writes*bytes)
		for w := range writes {
			at := rng.IntN(len(random) - bytes)
			off := base + int64(w*bytes)
			if bytes == 4<<10 {
				off = rng.Int64N(benchVolume/4096) * 4096
			}
			if !batch.Add(record.Piece{Volume: 1, Off: off, Len: int64(bytes), Ticket: record.Ticket(int(seq)*writes + w), Data: random[at : at+bytes]}) {
				panic("a batch takes no more")
			}
		}
		id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: seq}
		p := batch.Seal(nil, id, record.Time(i+2), comp)
		records = append(records, p)
		payload += int64(len(p))
	}
	return records, payload
}

// cpuTime is what the process has used of the processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
