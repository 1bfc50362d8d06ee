package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// compressible returns data of every character that the encoder treats differently.
func compressible() map[string][]byte {
	m := map[string][]byte{
		"one byte":   {7},
		"zeros":      make([]byte, LineBytes),
		"db":         dbData(LineBytes, 3),
		"db 512":     dbData(8192, 4)[4000:4512],
		"random":     randomData(LineBytes, 1),
		"pairs":      bytes.Repeat([]byte{1, 2}, LineBytes/2),
		"seventeens": bytes.Repeat(randomData(17, 9), LineBytes/17),
		"long runs":  append(append(randomData(9000, 2), make([]byte, 9000)...), randomData(9000, 2)...),
		"words":      []byte(strings.Repeat(strings.Join(words, " "), 60)),
	}
	for back := 1; back < 40; back++ { // every distance around the width of the wide copies
		m["period "+string(rune('0'+back))] = bytes.Repeat(randomData(back, 8), 700/back)
	}
	return m
}

// TestLZ4RoundTrip: what the encoder makes, our decoder opens, to the byte.
func TestLZ4RoundTrip(t *testing.T) {
	var c lz4.Compressor
	packed := make([]byte, lz4.CompressBlockBound(LineBytes))
	for name, raw := range compressible() {
		n, err := c.CompressBlock(raw, packed)
		if err != nil {
			t.Fatal(err)
		}
		got := bytes.Repeat([]byte{0xEE}, len(raw))
		if n > 0 && (!decodeLZ4(got, packed[:n]) || !bytes.Equal(got, raw)) {
			t.Errorf("%s: other bytes came back", name)
		}
		if n > 0 && (decodeLZ4(got[:len(raw)-1], packed[:n]) || decodeLZ4(make([]byte, len(raw)+1), packed[:n])) {
			t.Errorf("%s: decoded to another length", name)
		}
	}
}

// TestLZ4Malformed lists what a decoder must not take, one reason each.
func TestLZ4Malformed(t *testing.T) {
	f := func(name, src string, dst int) {
		t.Helper()
		p, err := hex.DecodeString(strings.ReplaceAll(src, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out := make([]byte, dst)
		if decodeLZ4(out, p) {
			t.Errorf("%s: taken, as %x", name, out)
		}
	}
	good, _ := hex.DecodeString("1161010050" + "6162636465")
	if out := make([]byte, 11); !decodeLZ4(out, good) || string(out) != "aaaaaaabcde" {
		t.Fatalf("the good one: %q", out)
	}
	f("empty", "", 0)
	f("empty into something", "", 4)
	f("short of dst", "1061", 2)
	f("beyond dst", "2061 62", 1)
	f("literals beyond src", "3061", 3)
	f("length without its bytes", "f0", 15)
	f("length that never ends", "f0 ff ff ff", 800)
	f("half an offset", "1061 01", 8)
	f("offset zero", "1161 0000 50 6162636465", 11)
	f("offset before the start", "1161 0200 50 6162636465", 11)
	f("match beyond dst", "1f61 0100 ff ff 00 50 6162636465", 30)
	f("match with nothing after", "1161 0100", 6)
	f("a match first", "01 0100 50 6162636465", 10)
}

// TestLZ4NoStaleBytes: a block that claims more than it holds shows nothing of what
// was in the buffer before.
func TestLZ4NoStaleBytes(t *testing.T) {
	for _, src := range [][]byte{
		{0x1f, 'a', 1, 0, 0xff, 0x20, 0x50, 1, 2, 3, 4, 5},
		{0x10, 'a'},
		{0x13, 'a', 1, 0, 0xf0, 25, 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b', 'b'},
	} {
		for n := range 400 {
			twoFills(t, src, n)
		}
	}
}

// twoFills decodes into buffers filled differently: the outcome must be the same.
func twoFills(t *testing.T, src []byte, n int) ([]byte, bool) {
	t.Helper()
	a, b := bytes.Repeat([]byte{0x55}, n+16), bytes.Repeat([]byte{0xAA}, n+16)
	okA, okB := decodeLZ4(a[:n:n], src), decodeLZ4(b[:n:n], src)
	if okA != okB || okA && !bytes.Equal(a[:n], b[:n]) {
		t.Fatalf("%x into %d bytes depends on what was there", src, n)
	}
	if !bytes.Equal(a[n:], bytes.Repeat([]byte{0x55}, 16)) {
		t.Fatalf("%x wrote beyond its %d bytes", src, n)
	}
	return a[:n], okA
}

// plainLZ4 is the block format as its description reads, a byte at a time.
func plainLZ4(size int, src []byte) (dst []byte, ok bool) {
	next := func() int {
		if len(src) == 0 {
			ok = false
			return 0
		}
		b := src[0]
		src = src[1:]
		return int(b)
	}
	length := func(n int) int {
		for more := 255; n >= 15 && more == 255 && ok; {
			more = next()
			n += more
		}
		return n
	}
	ok = len(src) > 0
	for ok {
		token := next()
		for n := length(token >> 4); n > 0 && ok; n-- {
			dst = append(dst, byte(next()))
			ok = ok && len(dst) <= size
		}
		if len(src) == 0 {
			break
		}
		back := next() | next()<<8
		if !ok || back == 0 || back > len(dst) {
			return nil, false
		}
		for n := length(token&15) + 4; n > 0 && ok; n-- {
			dst = append(dst, dst[len(dst)-back])
			ok = len(dst) <= size
		}
		ok = ok && len(src) > 0
	}
	return dst, ok && len(dst) == size
}

// FuzzLZ4 holds our decoder to the promise of two fills, to the format's description,
// and to the fast decoder of the library: what both of these take, they take alike.
// (The library refuses some blocks that no encoder makes, when a match ends close to the end.)
func FuzzLZ4(f *testing.F) {
	var c lz4.Compressor
	packed := make([]byte, lz4.CompressBlockBound(LineBytes))
	for _, raw := range compressible() {
		if n, _ := c.CompressBlock(raw, packed); n > 0 && n < 4096 {
			f.Add(bytes.Clone(packed[:n]), uint16(len(raw)))
		}
	}
	f.Add([]byte{0x1f, 'a', 1, 0, 0xff, 0x20, 0x50, 1, 2, 3, 4, 5}, uint16(300))
	f.Fuzz(func(t *testing.T, src []byte, n uint16) {
		size := min(int(n), LineBytes)
		got, ok := twoFills(t, src, size)
		if plain, can := plainLZ4(size, src); can != ok || ok && !bytes.Equal(got, plain) {
			t.Fatalf("%x into %d bytes: %v %x, want %v %x", src, size, ok, got, can, plain)
		}
		other := make([]byte, size)
		if m, err := lz4.UncompressBlock(src, other); ok && err == nil && m == size && !bytes.Equal(got, other) {
			t.Fatalf("%x: we decode %x, the library %x", src, got, other)
		}
	})
}

// FuzzCompress: whatever the guest wrote comes back, through the codec that the
// compressor chose, in room of exactly its own size.
func FuzzCompress(f *testing.F) {
	for _, raw := range compressible() {
		f.Add(raw)
	}
	c := NewCompressor()
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) == 0 || len(raw) > LineBytes {
			return
		}
		p := bytes.Clone(raw)
		codec, n := c.store(p)
		b := Block{Codec: codec, Raw: len(raw), Stored: n}
		if what := b.check(); what != "" {
			t.Fatalf("block %+v: %s", b, what)
		}
		if codec == CodecRaw {
			if !bytes.Equal(p, raw) {
				t.Fatal("a raw block is not what it was")
			}
			return
		}
		got := make([]byte, len(raw))
		if !decodeLZ4(got, p[:n]) || !bytes.Equal(got, raw) {
			t.Fatal("other bytes came back")
		}
	})
}

// TestCodecChoice: the probe and the encoder store each sort of data as meant.
func TestCodecChoice(t *testing.T) {
	c := NewCompressor()
	f := func(name string, data []byte, want Codec) {
		t.Helper()
		for size := 512; size <= LineBytes; size *= 2 {
			if got, n := c.store(bytes.Clone(data[:size])); got != want || n > size {
				t.Errorf("%s, %d bytes: codec %d, %d stored", name, size, got, n)
			}
		}
	}
	f("db", dbData(64<<10, 1)[4096:], CodecLZ4)
	f("random", randomData(LineBytes, 1), CodecRaw)
	f("one value", bytes.Repeat([]byte{9}, LineBytes), CodecLZ4)
	c.StoreOnly = true
	f("store only", dbData(LineBytes, 1), CodecRaw)
}

// TestGrownBlocks: what the encoder would make larger, and the probe lets through, stays raw.
func TestGrownBlocks(t *testing.T) {
	c := NewCompressor()
	for n := 1; n < minProbable; n++ {
		raw := randomData(n, uint64(n))
		if packed := encoded(t, c, raw); len(packed) > 0 { // what would be kept only if it opened
			t.Fatalf("%d random bytes: encoded as %d", n, len(packed))
		}
		p := bytes.Clone(raw)
		if codec, stored := c.store(p); codec != CodecRaw || stored != n || !bytes.Equal(p, raw) {
			t.Fatalf("%d random bytes: codec %d, %d stored", n, codec, stored)
		}
	}
}

// TestPrefixIsThatOfTheWhole opens a block as far as any number of bytes.
func TestPrefixIsThatOfTheWhole(t *testing.T) {
	r := mustParse(t, mixed(t))
	for i := range r.Blocks {
		b := r.Block(i)
		stored := r.Bytes()[b.At : b.At+b.Stored]
		whole, err := r.OpenBlock(nil, i)
		if err != nil {
			t.Fatal(err)
		}
		for want := 0; want <= b.Raw+1; want += 1 + want/7 {
			got, err := OpenPrefix(bytes.Repeat([]byte{0x55}, LineBytes), r.Identity, i, b, stored, want)
			if err != nil || !bytes.Equal(got, whole[:min(want, b.Raw)]) {
				t.Fatalf("block %d, first %d bytes: %d, %v", i, want, len(got), err)
			}
		}
		spoiled := bytes.Clone(stored)
		spoiled[len(spoiled)-1] ^= 1 // beyond what is decompressed
		if _, err := OpenPrefix(nil, r.Identity, i, b, spoiled, 1); !errors.Is(err, ErrCorrupt) {
			t.Errorf("block %d: damage beyond the first byte: %v", i, err)
		}
	}
}
