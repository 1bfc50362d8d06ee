package stripe

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares bytes with a file of testdata; old ones must be read for ever.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		ok(t, os.WriteFile(file, got, 0o600))
	}
	want, err := os.ReadFile(file)
	ok(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s: other bytes than this release writes", name)
	}
	return want
}

func sampleTable() *table {
	t := &table{Geometry: Geometry{2, 1}, id: testID, length: 3 * BlockBytes, shard: 1}
	for i := range t.stripes() * t.width() {
		t.sums = append(t.sums, uint32(i+1)*0x01010101)
	}
	return t
}

func sampleNames() *names {
	n := newNames(0x1122334455667788, Geometry{2, 1})
	n.generation = 5
	for _, e := range sampleEntries() {
		if err := n.apply(e); err != nil {
			panic(err)
		}
	}
	return n
}

func sampleEntries() []entry {
	return []entry{
		{kind: entryMember, member: 1, state: memberIn, name: "/a"},
		{kind: entryMember, member: 2, state: memberOut, name: "/b"},
		{kind: entryMember, member: 4, state: memberRetiring, name: "/c"},
		{kind: entryFolder, name: "/j"},
		{kind: entryFile, name: "/j/x", object: objectInfo{Geometry: Geometry{1, 1}, id: 1, dirty: true, places: []uint32{1, 2}}},
		{kind: entryFile, name: "/j/y", object: objectInfo{Geometry: Geometry{2, 1}, id: 9, length: 70000, places: []uint32{1, 0, 4}}},
	}
}

func TestGoldenTable(t *testing.T) {
	s := sampleTable()
	p := make([]byte, s.bytes())
	s.put(p)
	got, err := parseTable(golden(t, "v1.table", p))
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%v: %+v", err, got)
	}
}

func TestGoldenNames(t *testing.T) {
	n := sampleNames()
	p := encodeNames(n, 4)
	later := []entry{{kind: entryInstalled}, {kind: entryRename, name: "/j/x", to: "/j/z"}, {kind: entryRemove, name: "/j/y"}}
	p = appendBatch(bytes.Clone(p), 5, int64(len(p)), later)
	p = appendBatch(p, 5, int64(len(p)), []entry{{kind: entryPlaced, object: objectInfo{Geometry: Geometry{1, 1}, id: 1, places: []uint32{4}}}, {kind: entryMemberGone, member: 2}})
	got, member, end, err := parseNames(golden(t, "v1.names", p))
	ok(t, err)
	if member != 4 || end != int64(len(p)) || got.generation != 5 || got.set != n.set || !got.installed {
		t.Errorf("member %d, end %d of %d, %+v", member, end, len(p), got)
	}
	if len(got.objects) != 1 || got.objects[1].name != "/j/z" || got.objects[1].dirty || got.nextObject != 10 || got.nextMember != 5 || len(got.members) != 2 {
		t.Errorf("%+v", got)
	}
}

// The parity of a known file is always the same bytes: a parity block of an older release must do.
func TestGoldenParity(t *testing.T) {
	d := faultdisk.New(1)
	put(t, d, testSegment, bytes.Repeat([]byte("holdfast"), 20000))
	ok(t, Protect(d, testSegment, testID, nil))
	p, err := get(d, ParityName(testSegment))
	ok(t, err)
	golden(t, "v1.par.sum", le.AppendUint32(nil, sumOf(p)))
	golden(t, "v1.par.table", p[:4096])
}

func TestUnknownVersions(t *testing.T) {
	s := sampleTable()
	p := make([]byte, s.bytes())
	s.put(p)
	le.PutUint16(p[atVersion:], 2)
	le.PutUint32(p[atHeaderCRC:], sumOf(p[:atHeaderCRC]))
	if _, err := parseTable(p); !errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) {
		t.Errorf("table: %v", err)
	}
	p = encodeNames(sampleNames(), 1)
	le.PutUint16(p[atVersion:], 2)
	le.PutUint32(p[atNamesCRC:], sumOf(p[:atNamesCRC]))
	if _, _, _, err := parseNames(p); !errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) {
		t.Errorf("names: %v", err)
	}
}

// Damage in names that were durable is not taken for the torn end of what was not.
func TestDamagedNamesAreSeen(t *testing.T) {
	p := encodeNames(sampleNames(), 1)
	snapshot := len(p)
	for range 3 {
		p = appendBatch(bytes.Clone(p), 5, int64(len(p)), []entry{{kind: entryRename, name: "/j/x", to: "/j/x"}})
	}
	f := func(at int, wantEnd int64, wantErr error) {
		t.Helper()
		q := bytes.Clone(p)
		q[at] ^= 1
		_, _, end, err := parseNames(q)
		if !errors.Is(err, wantErr) || err == nil && end != wantEnd {
			t.Errorf("damage at %d: end %d, %v", at, end, err)
		}
	}
	f(4, 0, ErrCorrupt)
	f(buf.Align+40, 0, ErrCorrupt)
	f(snapshot+10, 0, ErrCorrupt)
	f(snapshot+buf.Align+10, 0, ErrCorrupt)
	f(snapshot+2*buf.Align+10, int64(snapshot+2*buf.Align), nil) // the last batch: nothing vouches for it
}

func TestSumsTellThePlace(t *testing.T) {
	b := noise(1, BlockBytes)
	sums := map[uint32]bool{}
	for _, id := range []Identity{testID, {8, 3, 99}, {7, 4, 99}, {7, 3, 98}} {
		for stripe := range 3 {
			for shard := range 3 {
				sums[id.sum(stripe, shard, b)] = true
			}
		}
	}
	if len(sums) != 36 {
		t.Errorf("%d sums of 36 places", len(sums))
	}
}

func FuzzTable(f *testing.F) {
	s := sampleTable()
	p := make([]byte, s.bytes())
	s.put(p)
	f.Add(p)
	f.Add(p[:tableHeaderBytes])
	f.Fuzz(func(t *testing.T, p []byte) {
		got, err := parseTable(p)
		if err != nil {
			return
		}
		q := make([]byte, got.bytes())
		got.put(q)
		if n := tableHeaderBytes + 4*len(got.sums); !bytes.Equal(q[:n], p[:n]) {
			t.Fatalf("parse and encode disagree")
		}
	})
}

// fix makes the checksums of a file of names right, so that a fuzzer gets behind them.
func fix(p []byte) {
	if len(p) < buf.Align {
		return
	}
	le.PutUint32(p[atNamesCRC:], sumOf(p[:atNamesCRC]))
	for at := buf.Align; at+entryHeaderBytes < len(p); {
		head := le.Uint32(p[at:])
		size := int(head &^ batchBit)
		if size < entryFixed || size > len(p)-at-entryHeaderBytes {
			if at = buf.RoundUp(at + 1); size != 0 {
				return
			}
			continue
		}
		le.PutUint32(p[at+4:], entrySum(le.Uint64(p[atGeneration:]), int64(at), head, p[at+entryHeaderBytes:][:size]))
		at += entryHeaderBytes + size
	}
}

func FuzzNames(f *testing.F) {
	p := encodeNames(sampleNames(), 1)
	f.Add(p)
	f.Add(appendBatch(bytes.Clone(p), 5, int64(len(p)), []entry{{kind: entryRename, name: "/j/x", to: "/j/y"}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		fix(p)
		n, _, _, err := parseNames(p)
		if err != nil {
			return
		}
		again, _, _, err := parseNames(encodeNames(n, 1))
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if !reflect.DeepEqual(again.objects, n.objects) || !reflect.DeepEqual(again.folders, n.folders) || !reflect.DeepEqual(again.files, n.files) {
			t.Fatalf("%+v, then %+v", n, again)
		}
	})
}

func FuzzEntry(f *testing.F) {
	for _, e := range sampleEntries() {
		f.Add(e.append(nil))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		e, err := parseEntry(p)
		if err == nil && !bytes.Equal(e.append(nil), p) {
			t.Fatalf("%+v is not %x", e, p)
		}
	})
}
