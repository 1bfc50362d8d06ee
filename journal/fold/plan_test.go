package fold

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const volumeBytes = 6 * record.LineBytes

// row is a history of two streams, each with a volume of its own.
type row struct {
	records     []record.Record
	pos         []segment.Pos
	checkpoints []index.Checkpoint
	seqs        [2]record.Seq
	end         segment.Pos
}

func (h *row) add(p []byte) {
	r, err := record.Parse(p)
	if err != nil {
		panic(err)
	}
	h.records, h.pos = append(h.records, r), append(h.pos, h.end)
	h.end += segment.Pos(r.Size)
}

func (h *row) next(stream int) record.Identity {
	h.seqs[stream]++
	return record.Identity{Stream: record.StreamID(stream + 1), Epoch: 1, Incarnation: 1, Seq: h.seqs[stream]}
}

func (h *row) write(rng *rand.Rand, stream int) {
	b := record.NewBatch(record.Limits{})
	for i := range 1 + rng.IntN(6) {
		off := rng.Int64N(volumeBytes - 1)
		p := record.Piece{Volume: record.VolumeID(stream + 1), Off: off, Len: min(1+rng.Int64N(20000), volumeBytes-off), Ticket: record.Ticket(i + 1)}
		if rng.IntN(4) != 0 {
			p.Data = bytes.Repeat([]byte{byte(1 + rng.IntN(255)), byte(i), byte(off)}, int(p.Len)/3+1)[:p.Len]
		} else if rng.IntN(4) == 0 {
			p.Off, p.Len = off, longZero+rng.Int64N(1<<20) // beyond what is looked at, as a whole disk's discard is
		}
		b.Add(p)
	}
	h.add(b.Seal(nil, h.next(stream), 1, record.NewCompressor()))
}

// cut makes a checkpoint of both streams: a cut in each, and then the confirms.
func (h *row) cut(number uint64) {
	c := index.Checkpoint{Number: number}
	for s := range 2 {
		h.add(record.AppendCut(nil, h.next(s), 1, 1, record.Cut{Checkpoint: number, Wall: 1}))
		c.At = append(c.At, index.StreamAt{Stream: record.StreamID(s + 1), Seq: h.seqs[s]})
	}
	for s := range 2 {
		h.add(record.AppendConfirm(nil, h.next(s), 1, 1, number))
	}
	h.checkpoints = append(h.checkpoints, c)
}

// part is a record, or what is left of some for a checkpoint.
type part struct {
	id    record.Identity
	apply func(images [2][]byte)
}

func parts(h *row) []part {
	var ps []part
	for _, r := range h.records {
		ps = append(ps, part{r.Identity, func(images [2][]byte) {
			for i := range r.Extents {
				put(images, r, r.Extent(i))
			}
		}})
	}
	return ps
}

func put(images [2][]byte, r record.Record, e record.Extent) {
	image := images[e.Volume-1]
	if e.Off >= int64(len(image)) {
		return
	}
	dst := image[e.Off:min(e.Off+e.Len, int64(len(image)))]
	if e.Kind == record.ExtentZero {
		clear(dst)
		return
	}
	block, err := r.OpenBlock(nil, e.Block)
	if err != nil {
		panic(err)
	}
	copy(dst, block[e.BlockOff:e.BlockOff+int(e.Len)])
}

// image is what the checkpoint gives back.
func image(ps []part, c *index.Checkpoint) [2][]byte {
	images := [2][]byte{bytes.Repeat([]byte{0xEE}, volumeBytes), bytes.Repeat([]byte{0xEE}, volumeBytes)}
	for _, p := range ps {
		if holds(c, p.id) {
			p.apply(images)
		}
	}
	return images
}

// TestFoldedRowSaysTheSame folds a random part of a random history, for random kept
// checkpoints, and compares all of them; and folds the result again for fewer.
func TestFoldedRowSaysTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		h := new(row)
		for n := range rapid.IntRange(1, 12).Draw(t, "checkpoints") {
			for range rng.IntN(5) {
				h.write(rng, rng.IntN(2))
			}
			h.cut(uint64(n+1) * 10)
		}
		for range rng.IntN(3) {
			h.write(rng, rng.IntN(2))
		}
		from := rapid.IntRange(0, len(h.records)-1).Draw(t, "from")
		to := rapid.IntRange(from+1, len(h.records)).Draw(t, "to")
		var kept []index.Checkpoint
		for i, c := range h.checkpoints { // the last is always kept
			if i == len(h.checkpoints)-1 || rapid.Bool().Draw(t, "kept") {
				kept = append(kept, c)
			}
		}
		p := NewPlanner(kept)
		for i := from; i < to; i++ {
			if err := p.Add(h.pos[i], h.records[i]); err != nil {
				t.Fatal(err)
			}
		}
		before := parts(h)
		var after []part
		after = append(after, before[:from]...)
		cuts := 0
		for _, s := range p.Steps() {
			after = append(after, folded(t, h, s, &cuts))
		}
		after = append(after, before[to:]...)
		for i := range kept {
			want, got := image(before, &kept[i]), image(after, &kept[i])
			for v := range want {
				if !bytes.Equal(want[v], got[v]) {
					t.Fatalf("checkpoint %d, volume %d differs", kept[i].Number, v+1)
				}
			}
		}
		latest := index.Checkpoint{Number: 1 << 40, At: []index.StreamAt{{Stream: 1, Seq: 1 << 40}, {Stream: 2, Seq: 1 << 40}}}
		if want, got := image(before, &latest), image(after, &latest); !bytes.Equal(want[0], got[0]) || !bytes.Equal(want[1], got[1]) {
			t.Fatal("the newest state differs")
		}
		for s := range 2 { // the last record of each stream is still there
			for i := to - 1; i >= from; i-- {
				if h.records[i].Stream != record.StreamID(s+1) {
					continue
				}
				found := false
				for _, q := range after {
					found = found || q.id == h.records[i].Identity
				}
				if !found {
					t.Fatalf("the last record of stream %d is gone", s+1)
				}
				break
			}
		}
	})
}

// folded is a step as a part.
func folded(t *rapid.T, h *row, s Step, cuts *int) part {
	if s.Size != 0 {
		for i, pos := range h.pos {
			if pos == s.Pos {
				if h.records[i].Kind == record.KindCut {
					*cuts++
				}
				return parts(&row{records: h.records[i : i+1]})[0]
			}
		}
		t.Fatalf("no record at %d", s.Pos)
	}
	id := record.Identity{Stream: record.FoldedStream, Epoch: 1, Incarnation: 1, Seq: record.Seq(s.Checkpoint)}
	return part{id, func(images [2][]byte) {
		for _, z := range s.Zeros {
			put(images, record.Record{}, z)
		}
		for _, b := range s.Blocks {
			for i, pos := range h.pos {
				if pos == b.Pos {
					if h.records[i].Block(b.Number) != b.Block {
						panic("another block")
					}
					for _, e := range b.Left {
						e.Block = b.Number
						put(images, h.records[i], e)
					}
				}
			}
		}
	}}
}

// TestHotBlockIsKeptOnce: a hundred versions between two checkpoints leave one.
func TestHotBlockIsKeptOnce(t *testing.T) {
	h := new(row)
	for n := range 4 {
		for i := range 100 {
			b := record.NewBatch(record.Limits{})
			b.Add(record.Piece{Volume: 1, Off: 4096, Len: 4096, Ticket: 1, Data: bytes.Repeat([]byte{byte(i + 1)}, 4096)})
			h.add(b.Seal(nil, h.next(0), 1, record.NewCompressor()))
		}
		h.cut(uint64(n + 1))
	}
	for keep, want := range map[int]int{1: 1, 2: 2, 4: 4} {
		var kept []index.Checkpoint
		for i := range keep {
			kept = append(kept, h.checkpoints[(i+1)*4/keep-1])
		}
		p := NewPlanner(kept)
		for i, r := range h.records {
			if err := p.Add(h.pos[i], r); err != nil {
				t.Fatal(err)
			}
		}
		blocks, cuts := 0, 0
		for _, s := range p.Steps() {
			blocks += len(s.Blocks)
			if s.Size != 0 && isCut(h, s.Pos) {
				cuts++
			}
		}
		if blocks != want || cuts != 2*keep {
			t.Errorf("%s: %d blocks, %d cuts", fmt.Sprint(keep, " kept"), blocks, cuts)
		}
	}
}

// TestLongZerosHideWhatIsOlder: a discard of much leaves nothing of what it lies over,
// and all of what came after.
func TestLongZerosHideWhatIsOlder(t *testing.T) {
	h := new(row)
	for _, p := range []record.Piece{
		{Volume: 1, Off: 0, Len: 4096, Ticket: 1, Data: bytes.Repeat([]byte{1}, 4096)},
		{Volume: 1, Off: 0, Len: longZero * 2, Ticket: 1},
		{Volume: 1, Off: 8192, Len: 4096, Ticket: 1, Data: bytes.Repeat([]byte{2}, 4096)},
	} {
		b := record.NewBatch(record.Limits{})
		b.Add(p)
		h.add(b.Seal(nil, h.next(0), 1, record.NewCompressor()))
	}
	h.cut(1)
	p := NewPlanner(h.checkpoints)
	for i, r := range h.records {
		if err := p.Add(h.pos[i], r); err != nil {
			t.Fatal(err)
		}
	}
	var s Step
	for _, s = range p.Steps() {
		if s.Size == 0 {
			break
		}
	}
	if len(s.Zeros) != 1 || len(s.Blocks) != 1 || s.Blocks[0].Left[0].Off != 8192 {
		t.Errorf("%+v", s)
	}
}

// TestVolumeChangesHands: one stream writes over what the last record of another put there,
// before any kept checkpoint.
func TestVolumeChangesHands(t *testing.T) {
	h := new(row)
	for i, stream := range []int{0, 1, 1} { // the last of each stays as it is
		b := record.NewBatch(record.Limits{})
		b.Add(record.Piece{Volume: 1, Off: int64(4096 + i/2*4096), Len: 4096, Ticket: 1, Data: bytes.Repeat([]byte{byte(stream + 1)}, 4096)})
		h.add(b.Seal(nil, h.next(stream), 1, record.NewCompressor()))
	}
	h.checkpoints = []index.Checkpoint{{Number: 1, At: []index.StreamAt{{Stream: 1, Seq: 1}, {Stream: 2, Seq: 2}}}} // its cuts come later
	p := NewPlanner(h.checkpoints)
	for i, r := range h.records {
		if err := p.Add(h.pos[i], r); err != nil {
			t.Fatal(err)
		}
	}
	cuts := 0
	var after []part
	for _, s := range p.Steps() {
		after = append(after, folded(nil, h, s, &cuts))
	}
	if got := image(after, &h.checkpoints[0]); got[0][4096] != 2 {
		t.Errorf("the checkpoint shows what stream %d wrote", got[0][4096])
	}
}

func isCut(h *row, pos segment.Pos) bool {
	for i, p := range h.pos {
		if p == pos {
			return h.records[i].Kind == record.KindCut
		}
	}
	return false
}
