package record

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// encoded makes a block of raw, in memory that is marked behind it.
func encoded(t testing.TB, c *Compressor, raw []byte) []byte {
	t.Helper()
	copy(c.raw[:], raw)
	var dst room
	for i := range dst {
		dst[i] = 0xA5
	}
	n := c.seen.encode(&dst, &c.raw, len(raw))
	for i := len(raw); i < len(dst); i++ {
		if dst[i] != 0xA5 {
			t.Fatalf("%d raw bytes: byte %d of the room was written", len(raw), i)
		}
	}
	if len(raw) > searchTail && len(raw) <= LineBytes {
		agree(t, &dst, &c.raw, len(raw), n)
	}
	if n < 0 || n > 0 && n >= len(raw) {
		t.Fatalf("%d raw bytes became %d", len(raw), n)
	}
	return dst[:n]
}

// agree holds a block of n bytes that was encoded to what Go's search makes of the same bytes.
func agree(t testing.TB, dst, src *room, raw, n int) {
	t.Helper()
	var other room
	out, anchor := searchInGo(new(positions), &other, src, raw)
	m := 0
	if out >= 0 {
		m = other.literals(out, src, anchor, raw)
	}
	if m != n || !bytes.Equal(other[:m], dst[:n]) {
		t.Fatalf("%d raw bytes become %d, and %d by the search in Go", raw, n, m)
	}
}

// lz4Ends walks a block and says how many bytes before its raw end the last match
// begins, and how many literals end it.
func lz4Ends(raw int, src []byte) (matchAt, literals int) {
	d := 0
	for matchAt = raw; ; {
		token := src[0]
		src = src[1:]
		length := func(n int) int {
			for more := byte(255); n >= longRun && more == 255; src = src[1:] {
				more = src[0]
				n += int(more)
			}
			return n
		}
		literals = length(int(token >> 4))
		src, d = src[literals:], d+literals
		if len(src) == 0 {
			return matchAt, literals
		}
		src = src[2:]
		matchAt = raw - d
		d += length(int(token&15)) + minMatch
	}
}

// holdsFormat says what is wrong with the block that was made of raw, as any decoder of LZ4 sees it.
func holdsFormat(raw, packed []byte) error {
	out := make([]byte, len(raw))
	if n, err := lz4.UncompressBlock(packed, out); err != nil || n != len(raw) || !bytes.Equal(out, raw) {
		return fmt.Errorf("the library decodes %d of %d bytes, %v", n, len(raw), err)
	}
	if !decodeLZ4(out, packed) || !bytes.Equal(out, raw) {
		return fmt.Errorf("we decode other bytes")
	}
	if match, literals := lz4Ends(len(raw), packed); match < 12 || literals < 5 {
		return fmt.Errorf("the last match begins %d bytes before the end, and %d literals end it", match, literals)
	}
	return nil
}

// TestEncoderKeepsTheFormat: blocks of every sort of data and of many lengths open with
// the library's decoder and with ours, and end as the format wants it.
func TestEncoderKeepsTheFormat(t *testing.T) {
	c := NewCompressor()
	rng := rand.New(rand.NewPCG(7, 7))
	sorts := compressible()
	late := randomData(LineBytes-100, 5) // whose one match comes where the block has become larger than it was
	sorts["late"] = append(append(late, late[:40]...), randomData(30, 6)...)
	r := randomData(100, 3)
	sorts["ends"] = append(append(make([]byte, 200), r...), r[5:15]...) // whose last bytes were there before
	for name, whole := range sorts {
		for i := range 20 {
			n := len(whole)
			if i > 0 {
				n = 1 + rng.IntN(n)
			}
			raw := whole[len(whole)-n:]
			packed := encoded(t, c, raw)
			if len(packed) == 0 {
				continue
			}
			if err := holdsFormat(raw, packed); err != nil {
				t.Fatalf("%s, %d bytes: %v", name, n, err)
			}
		}
	}
}

// TestEncoderFindsAsMuch: of each sort of data it stores no more than the library's does,
// but for a tenth; 8 KiB pages are what most guests write.
func TestEncoderFindsAsMuch(t *testing.T) {
	var library lz4.Compressor
	c, theirs := NewCompressor(), make([]byte, lz4.CompressBlockBound(LineBytes))
	for name, raw := range map[string][]byte{"db": dbData(LineBytes, 3), "zeros": make([]byte, LineBytes), "words": compressible()["words"]} {
		n, err := library.CompressBlock(raw, theirs)
		if err != nil {
			t.Fatal(err)
		}
		if ours := len(encoded(t, c, raw)); ours == 0 || ours > n+n/10 {
			t.Errorf("%s: %d bytes become %d, and %d by the library", name, len(raw), ours, n)
		}
	}
}

// TestWrongBlocksAreSeen: of a block that is spoiled somewhere, or is one of other bytes, nobody says that it
// opens as it should.
func TestWrongBlocksAreSeen(t *testing.T) {
	c := NewCompressor()
	for name, raw := range compressible() {
		packed := encoded(t, c, raw)
		if len(packed) == 0 {
			continue
		}
		if !c.opens(packed, len(raw)) {
			t.Fatalf("%s: a good block is called wrong", name)
		}
		out := make([]byte, len(raw))
		for at := 0; at < len(packed); at += 1 + len(packed)/500 {
			packed[at] ^= 0x41
			n, err := lz4.UncompressBlock(packed, out)
			same := err == nil && n == len(raw) && bytes.Equal(out, raw) // another way to say the same
			if c.opens(packed, len(raw)) != same {
				t.Fatalf("%s: byte %d of %d is another, and nobody sees it", name, at, len(packed))
			}
			packed[at] ^= 0x41
		}
		c.raw[len(raw)/2] ^= 1
		if c.opens(packed, len(raw)) {
			t.Fatalf("%s: a block of other bytes opens as it should", name)
		}
	}
}

// TestOneInSixteenIsOpened: and all are once one was wrong.
func TestOneInSixteenIsOpened(t *testing.T) {
	c := NewCompressor()
	looked := func(blocks int) (n int) {
		for range blocks {
			if c.looks() {
				n++
			}
		}
		return n
	}
	if !c.looks() {
		t.Error("the first is not opened")
	}
	if n := looked(16 * 10); n != 10 {
		t.Errorf("%d of 160 are opened", n)
	}
	c.doubted = true
	if n := looked(100); n != 100 {
		t.Errorf("%d of 100 are opened after a wrong one", n)
	}
}

// TestEncoderIsFresh: what was encoded before shows in nothing that is encoded after.
func TestEncoderIsFresh(t *testing.T) {
	used := NewCompressor()
	for seed := range uint64(20) {
		raw := dbData(LineBytes, seed)
		raw = raw[:1+int(seed*1700)]
		if got, want := encoded(t, used, raw), encoded(t, NewCompressor(), raw); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: a used compressor makes another block than a new one", len(raw))
		}
	}
}

// FuzzEncode: whatever it is given, the block opens and keeps the format.
func FuzzEncode(f *testing.F) {
	for _, raw := range compressible() {
		f.Add(raw)
	}
	c := NewCompressor()
	f.Fuzz(func(t *testing.T, raw []byte) {
		raw = raw[:min(len(raw), LineBytes)]
		if packed := encoded(t, c, raw); len(packed) > 0 {
			if err := holdsFormat(raw, packed); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// BenchmarkEncode stands beside the library's encoder, on the same blocks.
//
//	go test ./wire/record -run '^$' -bench Encode -count 10 >new.txt; benchstat -col /by new.txt
func BenchmarkEncode(b *testing.B) {
	data := dbData(4<<20, 1)
	var library lz4.Compressor
	c, dst := NewCompressor(), make([]byte, lz4.CompressBlockBound(LineBytes))
	for name, run := range map[string]func([]byte){
		"ours":    func(p []byte) { copy(c.raw[:], p); c.encode(dst, len(p)) },
		"library": func(p []byte) { _, _ = library.CompressBlock(p, dst) },
	} {
		b.Run("by="+name, func(b *testing.B) {
			b.SetBytes(LineBytes)
			for i := 0; b.Loop(); i++ {
				at := i * LineBytes % len(data)
				run(data[at : at+LineBytes])
			}
		})
	}
}
