package view

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

var goldenHeader = mapHeader{group: 0x0102030405060708, view: 9, volume: 3, size: 1<<30 + 512, life: 5, boot: [16]byte{1, 2, 15: 16}}

var goldenEntries = []mapEntry{
	{kind: entryData, count: 2, first: 77, number: 1, life: 5},
	{kind: entryZeros, count: 1, first: 78, number: 2, life: 5},
	{kind: entryMark, first: 2, number: 3, life: 5},
	{kind: entryData, count: 1, first: 262144, number: 4, life: 5},
	{kind: entryMark, count: 2, first: 4, number: 5, life: 5},
	{kind: entryZeros, count: 9, first: 0, number: 6, life: 5},
}

// goldenMap is a map with all there can be in one.
func goldenMap() []byte {
	p := goldenHeader.appendTo(nil)
	for _, e := range goldenEntries {
		p = e.appendTo(p)
		for e.kind == entryMark && len(p)%markPage != 0 {
			p = append(p, 0)
		}
	}
	return p
}

// The bytes of version 1 do not change, and go on opening.
func TestMapGolden(t *testing.T) {
	const name = "testdata/v1.map"
	if *update {
		must(t, os.WriteFile(name, goldenMap(), 0o666))
	}
	p, err := os.ReadFile(name)
	must(t, err)
	if !bytes.Equal(goldenMap(), p) {
		t.Error("the map changed")
	}
	h, err := parseMapHeader(p)
	must(t, err)
	if h != goldenHeader {
		t.Errorf("header %+v", h)
	}
	for trust, want := range map[bool]int{true: 4, false: 3} {
		r, err := replayMap(p[headerBytes:], h, trust)
		must(t, err)
		if len(r.entries) != want || r.last != 6 || r.end != int64(len(p)) {
			t.Errorf("trust %v: %+v", trust, r)
		}
	}
}

// Each flipped bit is found: an error, or an entry that no later mark says was durable.
func TestMapFlips(t *testing.T) {
	whole := goldenMap()
	for i := 0; i < len(whole); i++ {
		p := bytes.Clone(whole)
		p[i] ^= 0x10
		h, err := parseMapHeader(p)
		if i < headerBytes {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d of the header flipped: %v", i, err)
			}
			continue
		}
		must(t, err)
		r, err := replayMap(p[headerBytes:], h, true)
		at := i - headerBytes
		switch {
		case at < 3*entryBytes: // the second mark says that it was durable
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d of a durable entry flipped: %v", i, err)
			}
		case err != nil:
			t.Fatalf("byte %d flipped: %v", i, err)
		case at%markPage < 3*entryBytes && len(r.entries) > 4:
			t.Fatalf("byte %d flipped: %+v", i, r)
		}
	}
	p := bytes.Clone(whole)
	p[atVersion] = 2
	p = append(mapHeaderSum(p[:headerBytes]), p[headerBytes:]...)
	if _, err := parseMapHeader(p); !errors.Is(err, ErrFormat) {
		t.Errorf("version 2: %v", err)
	}
}

func FuzzMap(f *testing.F) {
	f.Add(goldenMap())
	f.Add(goldenHeader.appendTo(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := parseMapHeader(p)
		if err != nil {
			h = goldenHeader
		} else if !bytes.Equal(h.appendTo(nil), p[:headerBytes]) {
			t.Fatalf("header %x is taken", p[:headerBytes])
		}
		p = p[min(headerBytes, len(p)):]
		some, err := replayMap(p, h, false)
		all, err2 := replayMap(p, h, true)
		if (err == nil) != (err2 == nil) || len(some.entries) > len(all.entries) {
			t.Fatalf("%v, %v: %d of %d entries", err, err2, len(some.entries), len(all.entries))
		}
		for _, e := range all.entries {
			if int64(e.first)*blockBytes >= h.size || e.kind == entryMark {
				t.Fatalf("entry %+v of %d bytes", e, h.size)
			}
		}
	})
}

// mapHeaderSum returns a header with its checksum made right.
func mapHeaderSum(p []byte) []byte {
	p = bytes.Clone(p)
	binary.LittleEndian.PutUint32(p[atHeaderCRC:], crc32.Checksum(p[:atHeaderCRC], castagnoli))
	return p
}
