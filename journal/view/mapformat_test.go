package view

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

var goldenHeader = mapHeader{version: version, group: 0x0102030405060708, view: 9, volume: 3, size: 1<<30 + 512, life: 5, boot: [16]byte{1, 2, 15: 16}}

var goldenEntries = []mapEntry{
	{kind: entryRun, count: 8, first: 77, number: 1, slot: 4, sums: []uint32{1, 2, 3, 4, 5, 6, 7, 8}},
	{kind: entryZeros, count: 1, first: 78, number: 4},
	{kind: entryMark, first: 4, number: 5},
	{kind: entryBlock, count: 1, first: 262144, number: 6, slot: 12, sums: []uint32{0xfedcba98}},
	{kind: entryMark, count: 2, first: 6, number: 7},
	{kind: entryZeros, count: 9, first: 0, number: 8},
	{kind: entryRun, count: 2, first: 9, number: 9, slot: 1, sums: []uint32{9, 10}},
	{kind: entryBase, count: 2, first: 8, number: 11},
}

const goldenMarked = 7

// goldenOf are the header and entries as a version may have them.
func goldenOf(v uint8) (mapHeader, []mapEntry) {
	h, es := goldenHeader, goldenEntries
	if h.version = v; v == 2 {
		es = es[:len(es)-1]
	}
	return h, es
}

// goldenMap is a map of a version with all there can be in one.
func goldenMap(v uint8) []byte {
	h, es := goldenOf(v)
	p := h.appendTo(nil)
	for _, e := range es {
		p = e.appendTo(p, goldenHeader.life)
		for e.kind == entryMark && len(p)%markPage != 0 {
			p = append(p, 0)
		}
	}
	return p
}

// replayBytes replays what p holds, a header and what follows.
func replayBytes(p []byte, h mapHeader, trust bool) (r replayed, entries []mapEntry, err error) {
	c := &cells{file: bytes.NewReader(p), size: int64(len(p))}
	r, err = c.replay(&h, trust, func(e *mapEntry) {
		own := *e
		own.sums = slices.Clone(e.sums)
		entries = append(entries, own)
	})
	return r, entries, err
}

// The bytes of versions 2 and 3 do not change, and go on opening; version 1 is refused.
func TestMapGolden(t *testing.T) {
	for v := uint8(2); v <= version; v++ {
		golden(t, v)
	}
	old, err := os.ReadFile("testdata/v1.map")
	must(t, err)
	if _, err := parseMapHeader(old); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "older release") {
		t.Errorf("version 1: %v", err)
	}
}

func golden(t *testing.T, v uint8) {
	header, es := goldenOf(v)
	head := header.appendHead(header.appendHead(nil, 3), goldenMarked)
	p := goldenMap(v)
	for name, want := range map[string][]byte{"map": p, "head": head} {
		name = fmt.Sprintf("testdata/v%d.%s", v, name)
		if *update {
			must(t, os.WriteFile(name, want, 0o666))
		}
		p, err := os.ReadFile(name)
		must(t, err)
		if !bytes.Equal(p, want) {
			t.Errorf("%s changed", name)
		}
	}
	h, err := parseMapHeader(p)
	must(t, err)
	if h != header {
		t.Errorf("header %+v", h)
	}
	var want []mapEntry
	for _, e := range es {
		if e.kind != entryMark {
			want = append(want, e)
		}
	}
	for trust, n := range map[bool]int{true: len(want), false: 3} {
		r, have, err := replayBytes(p, h, trust)
		must(t, err)
		if r.last != 8+uint64(v) || r.end != int64(len(p)) || r.marked != goldenMarked || trust && r.high != 13 || !reflect.DeepEqual(have, want[:n]) {
			t.Errorf("version %d, trust %v: %+v: %+v", v, trust, r, have)
		}
	}
	h, marked, err := parseHead(head[headBytes:])
	must(t, err)
	if h.boot = header.boot; h != header || marked != goldenMarked {
		t.Errorf("head %+v, %d", h, marked)
	}
}

// Each flipped bit is found: an error, or an entry that no later mark says was durable.
func TestMapFlips(t *testing.T) {
	whole := goldenMap(version)
	for i := range whole {
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
		at := i - headerBytes
		padding := at >= 5*entryBytes && at < markPage || at >= markPage+2*entryBytes && at < 2*markPage
		_, have, err := replayBytes(p, h, true)
		if !errors.Is(err, ErrCorrupt) && !(padding && err == nil && len(have) == 6) {
			// Of the last entry only: it was being written.
			if last := len(whole) - entryBytes; i < last || len(have) != 5 {
				t.Fatalf("byte %d flipped, and nothing was lost: %v, %d entries", i, err, len(have))
			}
		}
		_, have, err = replayBytes(p, h, false)
		switch {
		case at < 5*entryBytes: // the second mark says that it was durable
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d of a durable entry flipped: %v", i, err)
			}
		case err != nil || len(have) > 3:
			t.Fatalf("byte %d flipped: %v, %d entries", i, err, len(have))
		}
	}
	for _, v := range []byte{1, version + 1} {
		p := bytes.Clone(whole)
		p[atVersion] = v
		p = append(mapHeaderSum(p[:headerBytes]), p[headerBytes:]...)
		if _, err := parseMapHeader(p); !errors.Is(err, ErrFormat) {
			t.Errorf("version %d: %v", v, err)
		}
	}
	head := goldenHeader.appendHead(nil, goldenMarked)
	for i := range head {
		head[i] ^= 4
		if _, _, err := parseHead(head); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d of the head flipped: %v", i, err)
		}
		head[i] ^= 4
	}
}

func FuzzMap(f *testing.F) {
	f.Add(goldenMap(2))
	f.Add(goldenMap(version))
	f.Add(goldenHeader.appendTo(nil))
	f.Add(goldenHeader.appendHead(nil, goldenMarked))
	f.Fuzz(func(t *testing.T, p []byte) {
		if h, marked, err := parseHead(p); err == nil && !bytes.Equal(h.appendHead(nil, marked), p[:headBytes]) {
			t.Fatalf("head %x is taken", p[:headBytes])
		}
		h, err := parseMapHeader(p)
		if err != nil {
			h = goldenHeader
		} else if !bytes.Equal(h.appendTo(nil), p[:headerBytes]) {
			t.Fatalf("header %x is taken", p[:headerBytes])
		}
		_, some, err := replayBytes(p, h, false)
		_, all, err2 := replayBytes(p, h, true)
		if err != nil && err2 == nil || err2 == nil && len(some) > len(all) {
			t.Fatalf("%v, %v: %d of %d entries", err, err2, len(some), len(all))
		}
		for _, e := range append(some, all...) {
			if e.first+uint64(e.count) > h.blocks() || e.kind == entryMark || e.kind != entryZeros && e.kind != entryBase && int(e.count) != len(e.sums) {
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
