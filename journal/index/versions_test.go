package index

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const modelBytes = 5*record.LineBytes + 1000

// model is what Versions must answer: for each byte and each number of records, which
// extent is the newest.
type model struct {
	newest  []origin   // now
	history [][]origin // after so many records of both streams
	seqs    [][2]record.Seq
}

// origin is where a byte is: record's place in the log and byte of its block.
type origin struct {
	in    Where
	pos   segment.Pos
	block int
	at    int
}

// TestVersions writes random extents of two streams and compares every byte at every
// point of history, in pieces of random size.
func TestVersions(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		v := NewVersions()
		m := &model{newest: make([]origin, modelBytes)}
		for i := range m.newest {
			m.newest[i].in = InReplica
		}
		pos := segment.Start
		var seqs [2]record.Seq
		m.remember(seqs)
		for range 25 {
			stream := rng.IntN(2)
			seqs[stream]++
			id := record.Identity{Stream: record.StreamID(stream + 1), Epoch: 2, Incarnation: 3, Seq: seqs[stream]}
			r := randomRecord(t, rng, id)
			if err := v.Add(pos, r); err != nil {
				t.Fatal(err)
			}
			m.add(pos, r)
			m.remember(seqs)
			pos += segment.Pos(r.Size + rng.IntN(3)*4096)
		}
		for n, want := range m.history {
			at := v.Vector(Checkpoint{At: []StreamAt{{Stream: 1, Seq: m.seqs[n][0]}, {Stream: 2, Seq: m.seqs[n][1]}}})
			for range 12 {
				off := rng.Int64N(modelBytes)
				length := 1 + rng.Int64N(modelBytes-off)
				got, err := v.Lookup(nil, 1, off, length, at)
				must(t, err)
				if err := agree(got, want, off, length); err != nil {
					t.Fatalf("seed %d, after %d records: %v", seed, n, err)
				}
			}
		}
		if p, err := v.Lookup(nil, 2, 5, 1<<40, Vector{}); err != nil || len(p) != 1 || p[0] != (Piece{Off: 5, Len: 1 << 40, In: InReplica}) {
			t.Errorf("volume without versions: %+v", p)
		}
	}
}

func randomRecord(t *testing.T, rng *rand.Rand, id record.Identity) record.Record {
	b := record.NewBatch(record.Limits{})
	for i := range 1 + rng.IntN(6) {
		off := rng.Int64N(modelBytes)
		p := record.Piece{Volume: 1, Off: off, Len: min(1+rng.Int64N(50000), modelBytes-off), Ticket: record.Ticket(i + 1)}
		if rng.IntN(6) == 0 {
			p.Len += longZero // a range that goes on behind the part we look at
		} else if rng.IntN(3) != 0 {
			p.Data = make([]byte, p.Len)
			p.Data[0] = 1
			for k := range p.Data {
				p.Data[k] = byte(rng.Uint32())
			}
		}
		b.Add(p)
	}
	r, err := record.Parse(b.Seal(nil, id, 1, record.NewCompressor()))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (m *model) add(pos segment.Pos, r record.Record) {
	for i := range r.Extents {
		e := r.Extent(i)
		for k := e.Off; k < min(e.Off+e.Len, modelBytes); k++ {
			m.newest[k] = origin{in: IsZero}
			if e.Kind == record.ExtentData {
				m.newest[k] = origin{in: InLog, pos: pos, block: e.Block, at: e.BlockOff + int(k-e.Off)}
			}
		}
	}
}

func (m *model) remember(seqs [2]record.Seq) {
	m.history = append(m.history, append([]origin(nil), m.newest...))
	m.seqs = append(m.seqs, seqs)
}

func agree(got []Piece, want []origin, off, n int64) error {
	at := off
	for _, p := range got {
		if p.Off != at || p.Len <= 0 {
			return fmt.Errorf("piece at %d of %d bytes, want it at %d", p.Off, p.Len, at)
		}
		for k := range p.Len {
			have := origin{in: p.In}
			if p.In == InLog {
				have = origin{in: InLog, pos: p.Pos, block: p.Number, at: p.BlockOff + int(k)}
			}
			if have != want[at+k] {
				return fmt.Errorf("byte %d is %+v, want %+v", at+k, have, want[at+k])
			}
		}
		at += p.Len
	}
	if at != off+n {
		return fmt.Errorf("pieces end at %d, want %d", at, off+n)
	}
	return nil
}

// What Add is told must be the log's order.
func TestVersionsOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	v := NewVersions()
	add := func(pos segment.Pos, seq record.Seq) error {
		return v.Add(pos, randomRecord(t, rng, record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: seq}))
	}
	if err := add(4096, 7); err != nil { // a stream may begin anywhere: its sync is not in the log
		t.Fatal(err)
	}
	if add(4096, 8) == nil || add(100, 8) == nil || add(90000, 7) == nil || add(90000, 9) == nil {
		t.Error("a record out of order was taken")
	}
	if err := add(1<<20, 8); err != nil {
		t.Fatal(err)
	}
	for seq, want := range map[record.Seq]bool{6: false, 7: true, 8: true, 9: false} {
		if _, ok := v.Sum(1, seq); ok != want {
			t.Errorf("sum of seq %d: %v", seq, ok)
		}
	}
}

// A lookup in a warm slice allocates nothing.
func TestLookupAllocates(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	v := NewVersions()
	for seq := record.Seq(1); seq < 50; seq++ {
		if err := v.Add(segment.Pos(seq)<<20, randomRecord(t, rng, record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: seq})); err != nil {
			t.Fatal(err)
		}
	}
	at := v.Vector(Checkpoint{At: []StreamAt{{Stream: 1, Seq: 40}}})
	dst := make([]Piece, 0, 1000)
	if n := testing.AllocsPerRun(20, func() { dst, _ = v.Lookup(dst[:0], 1, 100, modelBytes-200, at) }); n > 0 {
		t.Errorf("%v allocations a lookup", n)
	}
}

// go test ./journal/index -run '^$' -bench . -benchmem
func BenchmarkLookup(b *testing.B) {
	rng := rand.New(rand.NewPCG(3, 3))
	v := NewVersions()
	batch, c := record.NewBatch(record.Limits{}), record.NewCompressor()
	data := make([]byte, 4096)
	data[0] = 1
	for seq := record.Seq(1); seq <= 200; seq++ { // 200k writes of 4 KiB over 1 GiB
		for i := range 1000 {
			batch.Add(record.Piece{Volume: 1, Off: rng.Int64N(1<<18) << 12, Len: 4096, Ticket: record.Ticket(i + 1), Data: data})
		}
		r, err := record.Parse(batch.Seal(nil, record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: seq}, 1, c))
		if err != nil {
			b.Fatal(err)
		}
		batch.Reset()
		if err := v.Add(segment.Pos(seq)<<30, r); err != nil {
			b.Fatal(err)
		}
	}
	for _, seq := range []record.Seq{200, 100, 1} {
		at := v.Vector(Checkpoint{At: []StreamAt{{Stream: 1, Seq: seq}}})
		b.Run(fmt.Sprintf("size=4K/records=%d", seq), func(b *testing.B) {
			var dst []Piece
			for b.Loop() {
				dst, _ = v.Lookup(dst[:0], 1, rng.Int64N(1<<18)<<12, 4096, at)
			}
		})
	}
}
