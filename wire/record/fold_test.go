package record

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// foldedMixed is a folded record of two stored blocks, loose data and zeros.
func foldedMixed(t testing.TB) []byte {
	r := mustParse(t, mixed(t))
	var f Fold
	taken := 0
	for i := range r.Blocks {
		var wanted []Extent
		for j := range r.Extents {
			if e := r.Extent(j); e.Kind == ExtentData && e.Block == i && j%2 == 0 {
				wanted = append(wanted, e)
			}
		}
		b := r.Block(i)
		if err := f.Stored(r.Identity, i, b, r.Bytes()[b.At:b.At+b.Stored], wanted); err != nil {
			t.Fatal(err)
		}
		taken += len(wanted)
	}
	if taken == 0 {
		t.Fatal("nothing was taken")
	}
	f.Data(3, LineBytes-10, []byte("ten bytes!"), NewCompressor())
	f.Zero(3, 1<<30, 5<<20)
	f.Data(4, 512, bytes.Repeat([]byte("text "), 100), NewCompressor())
	return f.Seal(nil, 77, 2, 1234, NewCompressor())
}

func TestFoldedRecordHoldsWhatWasWanted(t *testing.T) {
	r := mustParse(t, foldedMixed(t))
	if want := (Identity{FoldedStream, 1, 2, 77}); r.Identity != want || r.Kind != KindFolded {
		t.Fatalf("%v %v", r.Kind, r.Identity)
	}
	if err := r.VerifyPayload(); err != nil {
		t.Fatal(err)
	}
	old := mustParse(t, mixed(t))
	for i := range old.Extents {
		e := old.Extent(i)
		if e.Kind != ExtentData || i%2 != 0 {
			continue
		}
		block, err := old.OpenBlock(nil, e.Block)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytesAt(t, r, e.Volume, e.Off); !bytes.Equal(got, block[e.BlockOff:e.BlockOff+int(e.Len)]) {
			t.Errorf("extent %d differs", i)
		}
	}
	if got := bytesAt(t, r, 3, LineBytes-10); string(got) != "ten bytes!" {
		t.Errorf("%q", got)
	}
}

// bytesAt returns the data of the extent at the place.
func bytesAt(t testing.TB, r Record, v VolumeID, off int64) []byte {
	t.Helper()
	for i := range r.Extents {
		e := r.Extent(i)
		if e.Volume != v || e.Off != off || e.Kind != ExtentData {
			continue
		}
		block, err := r.OpenBlock(nil, e.Block)
		if err != nil {
			t.Fatal(err)
		}
		return block[e.BlockOff : e.BlockOff+int(e.Len)]
	}
	t.Fatalf("no extent at %d of volume %d", off, v)
	return nil
}

func TestFoldTakesNothingDamaged(t *testing.T) {
	r := mustParse(t, mixed(t))
	b := r.Block(0)
	stored := bytes.Clone(r.Bytes()[b.At : b.At+b.Stored])
	wanted := []Extent{{Volume: 1, Kind: ExtentData, Off: 0, Len: 10, BlockOff: 0}}
	f := func(id Identity, number int, b Block, stored []byte, wanted ...Extent) {
		t.Helper()
		var fold Fold
		if err := fold.Stored(id, number, b, stored, wanted); !errors.Is(err, ErrCorrupt) || !fold.Empty() {
			t.Errorf("Stored: %v, empty %v", err, fold.Empty())
		}
	}
	other := r.Identity
	other.Seq++
	f(other, 0, b, stored, wanted...)
	f(r.Identity, 1, b, stored, wanted...)
	f(r.Identity, 0, b, stored[1:], wanted...)
	stored[3] ^= 1
	f(r.Identity, 0, b, stored, wanted...)
	stored[3] ^= 1
	f(r.Identity, 0, b, stored, Extent{Volume: 1, Kind: ExtentData, Len: 10, BlockOff: b.Raw - 9})
	f(r.Identity, 0, b, stored, wanted[0], wanted[0])
}

// TestFoldedIsOfNoSource: the kind and the stream belong together.
func TestFoldedIsOfNoSource(t *testing.T) {
	p := foldedMixed(t)
	h, err := ParseHeader(p)
	if err != nil {
		t.Fatal(err)
	}
	h.Stream = 5
	h.put(p)
	if _, err := Parse(p); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a folded record of stream 5: %v", err)
	}
	p = mixed(t)
	h, err = ParseHeader(p)
	if err != nil {
		t.Fatal(err)
	}
	h.Stream = FoldedStream
	h.put(p)
	if _, err := Parse(p); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a source's record of the folded stream: %v", err)
	}
}

// TestFoldAnyMixture seals what chance gives, and finds all of it again.
func TestFoldAnyMixture(t *testing.T) {
	c := NewCompressor()
	rapid.Check(t, func(t *rapid.T) {
		var f Fold
		want := map[int64][]byte{}
		zeros := 0
		for i := range rapid.IntRange(1, 60).Draw(t, "pieces") {
			off := int64(i) * LineBytes
			if rapid.IntRange(0, 4).Draw(t, "zero") == 0 {
				f.Zero(1, off, LineBytes)
				zeros++
				continue
			}
			n := rapid.IntRange(1, LineBytes).Draw(t, "length")
			p := bytes.Repeat([]byte{byte(i), byte(n), 7}, n/3+1)[:n]
			f.Data(1, off, p, c)
			want[off] = p
		}
		bound := f.Bytes()
		p := f.Seal(nil, 5, 1, 9, c)
		if len(p) > bound || !f.Empty() {
			t.Fatalf("%d bytes, at most %d; empty %v", len(p), bound, f.Empty())
		}
		r, err := Parse(p)
		if err != nil {
			t.Fatal(err)
		}
		if r.Extents != len(want)+zeros {
			t.Fatalf("%d extents of %d", r.Extents, len(want)+zeros)
		}
		for i := range r.Extents {
			e := r.Extent(i)
			if e.Kind == ExtentZero {
				continue
			}
			block, err := r.OpenBlock(nil, e.Block)
			if err != nil || !bytes.Equal(block[e.BlockOff:e.BlockOff+int(e.Len)], want[e.Off]) {
				t.Fatalf("extent at %d: %v", e.Off, err)
			}
		}
	})
}
