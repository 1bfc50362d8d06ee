package spill

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
)

var someEntry = entry{stream: 0xa2, seq: 7, owner: 0x1122334455667788, life: 3}

func entryOf(e entry, sealed []byte) []byte {
	p := bytes.Repeat([]byte{0xee}, space(len(sealed)))
	e.put(p, sealed)
	return p
}

// TestGoldenEntry holds the format to what stands in testdata.
func TestGoldenEntry(t *testing.T) {
	text, err := os.ReadFile("testdata/entry-1.hex")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	sealed := []byte("what was sealed is kept as it is")
	if p := entryOf(someEntry, sealed); !bytes.Equal(p, golden) {
		t.Errorf("an entry is\n%x, golden is\n%x", p, golden)
	}
	e, got, err := parseEntry(golden)
	if err != nil || !bytes.Equal(got, sealed) {
		t.Fatalf("%q, %v", got, err)
	}
	want := someEntry
	if want.length = uint32(len(sealed)); !e.same(want) {
		t.Errorf("parsed %+v, want %+v", e, want)
	}
}

// TestWrongEntries: whatever bit is another one, nothing comes back, or what was put.
func TestWrongEntries(t *testing.T) {
	sealed := []byte("sealed")
	whole := entryOf(someEntry, sealed)
	for bit := range len(whole) * 8 {
		p := bytes.Clone(whole)
		p[bit/8] ^= 1 << (bit % 8)
		_, got, err := parseEntry(p)
		if err == nil && (bit/8 < entryBytes+len(sealed) || !bytes.Equal(got, sealed)) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("bit %d: %q, %v", bit, got, err)
		}
	}
	for n := range whole {
		if _, _, err := parseEntry(whole[:n]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	want := someEntry
	want.length = uint32(len(sealed))
	for i, change := range []func(*entry){
		func(e *entry) { e.stream++ }, func(e *entry) { e.seq++ }, func(e *entry) { e.owner++ }, func(e *entry) { e.life++ }, func(e *entry) { e.length++ },
	} {
		other := want
		if change(&other); want.same(other) {
			t.Errorf("change %d is not seen", i)
		}
	}
}

// FuzzEntry: no bytes make the decoder panic, or give more than was put.
func FuzzEntry(f *testing.F) {
	f.Add(entryOf(someEntry, []byte("sealed")))
	f.Add(entryOf(someEntry, bytes.Repeat([]byte{1}, 200))[:entryBytes])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		e, sealed, err := parseEntry(p)
		if err != nil {
			if !errors.Is(err, ErrDamaged) || sealed != nil {
				t.Fatalf("%q, %v", sealed, err)
			}
			return
		}
		if again := entryOf(e, sealed); !bytes.Equal(again[:entryBytes+len(sealed)], p[:entryBytes+len(sealed)]) {
			t.Fatalf("parse and encode disagree on %x", p)
		}
	})
}
