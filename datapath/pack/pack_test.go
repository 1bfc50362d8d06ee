package pack

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testTime record.Time = 1_700_000_000_000_000_000

func identity(seq int) record.Identity {
	return record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: record.Seq(seq)}
}

// rows resembles the pages of a database: short random keys between words that repeat.
func rows(n int, seed uint64) []byte {
	r, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, 0, n+64)
	for id := uint64(0); len(b) < n; id++ {
		b = fmt.Appendf(b, "%08d", id)
		for range 10 {
			b = append(b, byte(r.Uint32()))
		}
		for range 4 {
			b = append(b, [...]string{"order ", "customer ", "pending ", "berlin ", "invoice ", "total "}[r.IntN(6)]...)
		}
	}
	return b[:n]
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b) // never fails
	return b
}

// batch holds the data as 4 KiB writes.
func batch(data []byte) *record.Batch {
	b := record.NewBatch(record.Limits{})
	for off := 0; off < len(data); off += 4096 {
		n := min(4096, len(data)-off)
		if !b.Add(record.Piece{Volume: 1, Off: int64(off), Len: int64(n), Ticket: record.Ticket(off + 1), Data: data[off : off+n]}) {
			panic("does not fit")
		}
	}
	return b
}

// TestOrder: jobs that take a long or a short time to seal, and ready ones between
// them, come out whole and in the order in which they went in.
func TestOrder(t *testing.T) {
	const jobs = 300
	big, small, random := batch(rows(1<<20, 1)), batch(rows(600, 2)), batch(noise(1<<18, 3))
	in, out := make(chan *Job), make(chan *Job)
	go func() {
		defer close(in)
		r := rand.New(rand.NewPCG(1, 1))
		for i := 1; i <= jobs; i++ {
			switch j := (&Job{ID: identity(i), Time: testTime, Done: i}); r.IntN(8) {
			case 0:
				j.Batch = big
				in <- j
			case 1, 2:
				j.Out = record.AppendConfirm(nil, j.ID, testTime, 1, uint64(i))
				in <- j
			case 3:
				j.Batch = random
				in <- j
			default:
				j.Batch = small
				in <- j
			}
		}
	}()
	go Run(context.Background(), in, out)
	next := 1
	for j := range out {
		r, err := record.Parse(j.Out)
		if err != nil || r.Identity != identity(next) || j.Done != next || r.VerifyPayload() != nil {
			t.Fatalf("job %d came out as %v (%v), %v", next, j.Done, r.Identity, err)
		}
		if j.Batch != nil && (r.Kind != record.KindData || r.Raw != int64(j.Batch.Raw())) || j.Batch == nil && r.Kind != record.KindConfirm {
			t.Fatalf("job %d is %+v", next, r.Header)
		}
		next++
	}
	if next != jobs+1 {
		t.Errorf("%d of %d jobs came out", next-1, jobs)
	}
}

// TestStoreOnly: the job says, for itself alone, that compressing does not pay.
func TestStoreOnly(t *testing.T) {
	data := rows(1<<18, 1)
	in, out := make(chan *Job), make(chan *Job)
	go func() {
		defer close(in)
		for i := range 20 {
			in <- &Job{Batch: batch(data), ID: identity(i + 1), Time: testTime, StoreOnly: i%2 == 1}
		}
	}()
	go Run(context.Background(), in, out)
	for j := range out {
		r, err := record.Parse(j.Out)
		if err != nil || (r.Stored == r.Raw) != j.StoreOnly {
			t.Errorf("store only %v: %d of %d bytes, %v", j.StoreOnly, r.Stored, r.Raw, err)
		}
	}
}

// TestInFlight: a taker that stands still holds up the feeder after InFlight jobs,
// and the end of the feeder loses none of them.
func TestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := make(chan *Job), make(chan *Job)
		fed, stop := 0, make(chan struct{})
		b := batch(rows(4096, 1))
		go func() {
			defer close(in)
			for {
				select {
				case in <- &Job{Batch: b, ID: identity(fed + 1), Time: testTime}:
					fed++
				case <-stop:
					return
				}
			}
		}()
		go Run(context.Background(), in, out)
		synctest.Wait()
		if fed != InFlight() {
			t.Errorf("%d jobs are in flight, InFlight says %d", fed, InFlight())
		}
		close(stop)
		taken := 0
		for range out {
			taken++
		}
		if taken != fed {
			t.Errorf("%d jobs came out of %d", taken, fed)
		}
	})
}

// TestAllocations: jobs that go round with their buffers cost no allocation.
func TestAllocations(t *testing.T) {
	in, out := make(chan *Job), make(chan *Job)
	go Run(context.Background(), in, out)
	j := &Job{Batch: batch(rows(64<<10, 1)), ID: identity(1), Time: testTime}
	round := func() {
		in <- j
		if got := <-out; got != j {
			t.Error("another job")
		}
	}
	for range 2 * Workers() {
		round()
	}
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations a job", n)
	}
	close(in)
	<-out
}

func BenchmarkRun(b *testing.B) {
	const size = 1 << 20
	for _, shape := range []struct {
		name      string
		data      []byte
		storeOnly bool
	}{{"rows", rows(size, 1), false}, {"noise", noise(size, 1), false}, {"rows-stored", rows(size, 1), true}} {
		b.Run(fmt.Sprintf("data=%s/workers=%d", shape.name, Workers()), func(b *testing.B) {
			free, in, out := make(chan *Job, InFlight()), make(chan *Job), make(chan *Job)
			for range cap(free) {
				free <- &Job{Batch: batch(shape.data), ID: identity(1), Time: testTime, StoreOnly: shape.storeOnly}
			}
			go Run(context.Background(), in, out)
			go func() {
				defer close(in)
				for range b.N {
					in <- <-free
				}
			}()
			b.SetBytes(size)
			b.ReportAllocs()
			b.ResetTimer()
			stored := 0
			for j := range out {
				stored = len(j.Out)
				free <- j
			}
			b.ReportMetric(float64(stored)/size, "stored/raw")
		})
	}
}
