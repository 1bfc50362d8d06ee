package crc32c

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// The checksum is the standard library's: of most lengths up to many folds, wherever the bytes
// lie, and in whatever pieces they come.
func TestLikeTheStandardLibrary(t *testing.T) {
	t.Logf("folds: %v", canFold)
	rng := rand.New(rand.NewPCG(1, 0xc3c))
	p := make([]byte, 40000)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for i := range 9000 {
		n := i
		if i%3 == 0 {
			n = 15000 + i // where it takes large ones another way
		}
		q := p[n%64:][:n]
		crc := rng.Uint32()
		if got, want := Update(crc, q), crc32.Update(crc, table, q); got != want {
			t.Fatalf("%d bytes: %08x, want %08x", n, got, want)
		}
	}
	for range 200 {
		crc, rest := uint32(0), p
		for len(rest) > 0 {
			n := 1 + rng.IntN(len(rest))
			crc, rest = Update(crc, rest[:n]), rest[n:]
		}
		if want := crc32.Checksum(p, table); crc != want {
			t.Fatalf("in pieces %08x, want %08x", crc, want)
		}
	}
	if got := Checksum([]byte("123456789")); got != 0xe3069283 { // RFC 3720's check value
		t.Errorf("check value %08x", got)
	}
}

// CopyFar copies all, no more, and sums what it copied, wherever the two lie.
func TestCopyFar(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 0xc3c))
	src, dst := make([]byte, 9000), make([]byte, 9200)
	for i := range src {
		src[i] = byte(rng.Uint32())
	}
	for n := range 3000 {
		if n > 1400 && n%7 != 0 {
			continue
		}
		from, to := rng.IntN(130), rng.IntN(130)
		for i := range dst {
			dst[i] = 0xEE
		}
		p := src[from:][:n]
		crc := rng.Uint32()
		if got, want := CopyFar(crc, dst[to:], p), crc32.Update(crc, table, p); got != want {
			t.Fatalf("%d bytes from %d to %d: %08x, want %08x", n, from, to, got, want)
		}
		if !bytes.Equal(dst[to:to+n], p) {
			t.Fatalf("%d bytes from %d to %d: another copy", n, from, to)
		}
		for i, b := range dst {
			if (i < to || i >= to+n) && b != 0xEE {
				t.Fatalf("%d bytes from %d to %d: byte %d was written too", n, from, to, i)
			}
		}
	}
}

// Each bit of a large block counts.
func TestEachBitCounts(t *testing.T) {
	p := make([]byte, 2048+256+17)
	seen := map[uint32]int{Checksum(p): -1}
	for i := range 8 * len(p) {
		p[i/8] ^= 1 << (i % 8)
		sum := Checksum(p)
		if was, twice := seen[sum]; twice {
			t.Fatalf("bits %d and %d give the same checksum", was, i)
		}
		seen[sum] = i
		p[i/8] ^= 1 << (i % 8)
	}
}

// Known factors of another polynomial: those of Intel's paper for that of Ethernet.
func TestPower(t *testing.T) {
	for n, want := range map[int]uint64{4*128 + 32: 0x154442bd4, 4*128 - 32: 0x1c6e41596, 128 + 32: 0x1751997d0, 128 - 32: 0x0ccaa009e} {
		if got := power(crc32.IEEE, n); got != want {
			t.Errorf("x^%d: %#x, want %#x", n, got, want)
		}
	}
}

func FuzzUpdate(f *testing.F) {
	f.Add(uint32(0), []byte("a"), uint16(2000))
	f.Fuzz(func(t *testing.T, crc uint32, p []byte, times uint16) {
		for len(p) > 0 && len(p) < int(times) {
			p = append(p, p...)
		}
		if got, want := Update(crc, p), crc32.Update(crc, table, p); got != want {
			t.Fatalf("%08x, want %08x", got, want)
		}
	})
}

// Memory that no cache holds, as slots and windows are.
func BenchmarkCopyFar(b *testing.B) {
	const block = 32 << 10
	src, dst := make([]byte, 128<<20), make([]byte, 128<<20)
	for i := range src {
		src[i], dst[i] = byte(i), 1
	}
	for name, do := range map[string]func(dst, src []byte){
		"far":  func(dst, src []byte) { CopyFar(0, dst, src) },
		"near": func(dst, src []byte) { near(0, dst, src) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(block)
			at := 0
			for b.Loop() {
				do(dst[at:at+block], src[at:at+block])
				at = (at + block) % len(src)
			}
		})
	}
}

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{1 << 10, 4 << 10, 32 << 10, 1 << 20} {
		p := make([]byte, n)
		for name, sum := range map[string]func([]byte) uint32{
			"ours": Checksum, "std": func(p []byte) uint32 { return crc32.Checksum(p, table) },
		} {
			b.Run(fmt.Sprintf("bytes=%d/%s", n, name), func(b *testing.B) {
				b.SetBytes(int64(n))
				for range b.N {
					sum(p)
				}
			})
		}
	}
}

func TestAllocatesNothing(t *testing.T) {
	p, q := make([]byte, 4096), make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { Checksum(p); CopyFar(0, q, p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
