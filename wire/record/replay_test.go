package record

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// image is a few small volumes held as bytes.
type image map[VolumeID][]byte

const imageBytes = 5*LineBytes + 777

func newImage() image {
	m := image{}
	for v := VolumeID(1); v <= 3; v++ {
		m[v] = bytes.Repeat([]byte{0xAA}, imageBytes)
	}
	return m
}

func (m image) write(v VolumeID, off int64, data []byte) { copy(m[v][off:], data) }
func (m image) zero(v VolumeID, off, n int64)            { clear(m[v][off : off+n]) }

func (m image) equal(o image) error {
	for v := range m {
		if !bytes.Equal(m[v], o[v]) {
			for i := range m[v] {
				if m[v][i] != o[v][i] {
					return fmt.Errorf("volume %d differs first at %d: %02x, want %02x", v, i, o[v][i], m[v][i])
				}
			}
		}
	}
	return nil
}

// replay applies a record as a target does: extents in order, blocks opened once.
func (m image) replay(r Record) error {
	if err := r.VerifyPayload(); err != nil {
		return err
	}
	raw := make([][]byte, r.Blocks)
	for i := range raw {
		var err error
		if raw[i], err = r.OpenBlock(nil, i); err != nil {
			return err
		}
	}
	for i := range r.Extents {
		e := r.Extent(i)
		if e.Off+e.Len > imageBytes {
			return fmt.Errorf("extent %d beyond its volume: %+v", i, e)
		}
		if e.Kind == ExtentZero {
			m.zero(e.Volume, e.Off, e.Len)
			continue
		}
		m.write(e.Volume, e.Off, raw[e.Block][e.BlockOff:e.BlockOff+int(e.Len)])
	}
	return nil
}

// drawPiece draws a write that overlaps others often, follows the last one often,
// and holds every sort of data.
func drawPiece(t *rapid.T, last Piece) Piece {
	p := Piece{
		Volume: VolumeID(rapid.IntRange(1, 3).Draw(t, "volume")),
		Len:    int64(rapid.OneOf(rapid.IntRange(1, 700), rapid.SampledFrom([]int{512, 4096, 8192, 12288, 32768, 65536})).Draw(t, "len")),
		Ticket: last.Ticket + Ticket(rapid.SampledFrom([]int{0, 1, 1, 2, 1000}).Draw(t, "step")),
	}
	p.Ticket = max(p.Ticket, 1)
	p.Off = int64(rapid.IntRange(0, imageBytes-int(p.Len)).Draw(t, "off"))
	if next := last.Off + last.Len; rapid.Bool().Draw(t, "follow") && last.Volume != 0 && next+p.Len <= imageBytes {
		p.Volume, p.Off = last.Volume, next
		if rapid.Bool().Draw(t, "same ticket") {
			p.Ticket = last.Ticket
		}
	}
	seed := rapid.Uint64().Draw(t, "seed")
	switch rapid.IntRange(0, 4).Draw(t, "data") {
	case 0: // zeros told
	case 1:
		p.Data = make([]byte, p.Len) // zeros found
	case 2:
		p.Data = randomData(int(p.Len), seed)
	case 3:
		p.Data = dbData(int(p.Len)+8192, seed)[:p.Len]
	case 4: // zeros with little in between
		p.Data = make([]byte, p.Len)
		p.Data[seed%uint64(p.Len)] = 1
	}
	return p
}

// TestReplay holds the promise that the package exists for: any pieces, sealed in any
// number of records, parsed and replayed, give what applying them in order gives.
func TestReplay(t *testing.T) {
	c := NewCompressor()
	rapid.Check(t, func(t *rapid.T) {
		b := NewBatch(Limits{
			Raw:     rapid.SampledFrom([]int{0, 1, 40000, 100000}).Draw(t, "raw limit"),
			Extents: rapid.SampledFrom([]int{0, 1, 5}).Draw(t, "extent limit"),
		})
		c.StoreOnly = rapid.Bool().Draw(t, "store only")
		want, got := newImage(), newImage()
		id, last := testID, Piece{}
		seal := func() {
			bound := b.Bound()
			p := b.Seal(nil, id, testTime, c)
			r, err := Parse(p)
			if err != nil {
				t.Fatalf("parse of what was sealed: %v", err)
			}
			if len(p) > bound || r.First != b.First() || r.Last != b.Last() || r.Extents != b.Extents() || r.Raw != int64(b.Raw()) || r.Identity != id || r.Time != testTime {
				t.Fatalf("header %+v does not tell of its batch (%d of %d bytes)", r.Header, len(p), bound)
			}
			if err := got.replay(r); err != nil {
				t.Fatal(err)
			}
			checkTickets(t, r)
			id.Seq++
			b.Reset()
		}
		for range rapid.IntRange(1, 40).Draw(t, "pieces") {
			p := drawPiece(t, last)
			last = p
			if p.Data == nil {
				want.zero(p.Volume, p.Off, p.Len)
			} else {
				want.write(p.Volume, p.Off, p.Data)
			}
			if !b.Add(p) {
				seal()
				if !b.Add(p) {
					t.Fatalf("an empty batch refuses %d bytes", p.Len)
				}
			}
		}
		seal()
		if err := want.equal(got); err != nil {
			t.Fatal(err)
		}
	})
}

// checkTickets: merging never moves a byte to another ticket. Neighbours in the
// table that touch and share a ticket must have had a reason to stay apart.
func checkTickets(t *rapid.T, r Record) {
	for i := 1; i < r.Extents; i++ {
		a, b := r.Extent(i-1), r.Extent(i)
		touch := a.Volume == b.Volume && a.Ticket == b.Ticket && a.Kind == b.Kind && a.Off+a.Len == b.Off
		if touch && (a.Kind == ExtentZero || a.Block == b.Block && b.Off%LineBytes != 0) {
			t.Fatalf("extents %d and %d should be one: %+v %+v", i-1, i, a, b)
		}
	}
}

// TestTicketsKept counts bytes by ticket on both sides of a seal.
func TestTicketsKept(t *testing.T) {
	c := NewCompressor()
	rapid.Check(t, func(t *rapid.T) {
		b, last := NewBatch(Limits{}), Piece{}
		want, got := map[Ticket]int64{}, map[Ticket]int64{}
		for range rapid.IntRange(1, 30).Draw(t, "pieces") {
			last = drawPiece(t, last)
			if !b.Add(last) {
				t.Fatal("does not fit")
			}
			want[last.Ticket] += last.Len
		}
		r, err := Parse(b.Seal(nil, testID, testTime, c))
		if err != nil {
			t.Fatal(err)
		}
		for i := range r.Extents {
			got[r.Extent(i).Ticket] += r.Extent(i).Len
		}
		if fmt.Sprint(want) != fmt.Sprint(got) {
			t.Fatalf("bytes by ticket: %v, want %v", got, want)
		}
	})
}
