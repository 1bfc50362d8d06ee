package load

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
)

// Kind names what the bytes of a workload resemble.
type Kind string

// The kinds.
const (
	DB     Kind = "db"     // 8 KiB slotted pages of short rows: LZ4 about 2.1 to 2.3 in 32 KiB blocks
	Text   Kind = "text"   // words
	Zero   Kind = "zero"   // nothing
	Random Kind = "random" // does not compress
	Mixed  Kind = "mixed"  // 64 KiB of db, then 64 KiB of random
)

// Kinds are all there are.
var Kinds = []Kind{DB, Text, Zero, Random, Mixed}

// ParseKind returns the kind of that name.
func ParseKind(s string) (Kind, error) {
	if k := Kind(s); slices.Contains(Kinds, k) {
		return k, nil
	}
	return "", fmt.Errorf("no data set is called %q; there are %v", s, Kinds)
}

const (
	corpusBytes = 16 << 20
	pageBytes   = 8 << 10
	mixedRun    = 64 << 10
)

// Corpus returns 16 MiB of the kind; the same seed gives the same bytes.
func Corpus(kind Kind, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))
	p := make([]byte, corpusBytes)
	switch kind {
	case DB:
		fillPages(p, rng)
	case Text:
		fillWords(p, rng)
	case Random:
		fillRandom(p, rng)
	case Mixed:
		for at := 0; at < len(p); at += 2 * mixedRun {
			fillPages(p[at:at+mixedRun], rng)
			fillRandom(p[at+mixedRun:at+2*mixedRun], rng)
		}
	}
	return p
}

// Noise returns n bytes that do not compress, of any number; the same seed gives the same bytes.
func Noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

func fillRandom(p []byte, rng *rand.Rand) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
}

var words = []string{"account", "order", "shipped", "pending", "customer", "invoice", "the", "of", "to", "and", "return", "value",
	"north", "street", "paid", "open", "closed", "item", "total", "with", "for", "from", "region", "status", "error", "update"}

func fillWords(p []byte, rng *rand.Rand) {
	for at := 0; at < len(p); {
		at += copy(p[at:], words[rng.IntN(len(words))])
		if at < len(p) {
			p[at] = " \n\t.,"[min(rng.IntN(16), 4)]
			at++
		}
	}
}

// fillPages writes slotted pages: a header, an array of slots growing up, rows
// growing down. A row is a header like its neighbours', a rising key, a foreign key,
// a word, a sum of money and some bytes that look like a hash.
func fillPages(p []byte, rng *rand.Rand) {
	le := binary.LittleEndian
	key := rng.Uint64N(1 << 40)
	for at := 0; at < len(p); at += pageBytes {
		page := p[at : at+pageBytes]
		le.PutUint64(page, 0x0001_0004_2000_0000|uint64(at/pageBytes)<<40)
		le.PutUint64(page[8:], key)
		slot, end := 24, pageBytes
		for {
			name := words[rng.IntN(len(words))]
			n := 24 + 8 + 8 + len(name) + 16 + 3 + rng.IntN(5)
			n = (n + 7) &^ 7
			if end-n < slot+4 {
				break
			}
			end -= n
			row := page[end : end+n]
			le.PutUint32(row, 0x2ee1) // made by transaction
			le.PutUint32(row[4:], 0)  // not deleted
			le.PutUint64(row[8:], 0x0007_0902_18)
			key++
			le.PutUint64(row[24:], key)
			le.PutUint32(row[32:], rng.Uint32N(5_000))
			w := 40 + copy(row[40:], name)
			le.PutUint32(row[w:], rng.Uint32N(1_000_000))
			for w += 16; w < n; w++ {
				row[w] = byte(rng.Uint32())
			}
			le.PutUint32(page[slot:], uint32(end)|uint32(n)<<16)
			slot += 4
		}
		le.PutUint32(page[16:], uint32(slot))
		le.PutUint32(page[20:], uint32(end))
	}
}
