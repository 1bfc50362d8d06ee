package journal

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"reflect"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var update = flag.Bool("update", false, "write golden files anew")

// everyEntry has each kind of entry, in an order that a group could state them.
var everyEntry = []entry{
	{kind: entryEpoch, life: life{epoch: 3}},
	{kind: entryVolume, volume: 1, bytes: 1 << 30, name: "disk one"},
	{kind: entryAdmitted, stream: 70, life: life{3, 4}},
	{kind: entryApplied, stream: 70, life: life{3, 4}, seq: 12, sum: 0xdeadbeef},
	{kind: entryApplied, stream: 70, life: life{3, 4}, seq: 20, sum: 0xfeedface, closed: true},
	{kind: entryBad, number: 9, reason: "block 4 is damaged"},
	{kind: entryAbandoned, number: 2, end: 1 << 20},
	{kind: entryMark},
}

func testManifest(t *testing.T, disk *faultdisk.Disk) *manifest {
	t.Helper()
	ok(t, disk.Mkdir("/m"))
	ok(t, disk.SyncDir("/"))
	m, err := createManifest(disk, "/m", GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage})
	ok(t, err)
	return m
}

func TestGoldenManifest(t *testing.T) {
	const name = "testdata/v1.manifest"
	disk := faultdisk.New(512)
	m := testManifest(t, disk)
	for _, e := range everyEntry {
		ok(t, m.put(false, e))
	}
	want := m.now()
	got, err := readManifest(disk, "/m/manifest")
	ok(t, err)
	if *update {
		ok(t, os.WriteFile(name, got, 0o666))
	}
	golden, err := os.ReadFile(name)
	ok(t, err)
	if !bytes.Equal(got, golden) {
		t.Errorf("the bytes of a manifest changed; first at %d", firstDifference(got, golden))
	}
	r := &manifest{group: testGroup, facts: newFacts()}
	ok(t, r.replay(golden))
	if !reflect.DeepEqual(r.facts, want) {
		t.Errorf("golden manifest states %+v, want %+v", r.facts, want)
	}
}

// Damage came later than the other kinds, and has a golden file of its own.
func TestGoldenDamage(t *testing.T) {
	const name = "testdata/v1-damage.manifest"
	es := []entry{{kind: entryGroup, lineage: testLineage, name: "group"},
		{kind: entryDamaged, number: 4096, end: 8192, reason: "record 1: block 2: corrupt record"},
		{kind: entryDamaged, volume: 9, number: 0, end: 4096, reason: "block 0"}, {kind: entryMark}}
	var p []byte
	for i, e := range es {
		p = appendEntry(p, frame{testGroup, uint64(i + 1), uint64(i)}, e)
	}
	if *update {
		ok(t, os.WriteFile(name, p, 0o666))
	}
	golden, err := os.ReadFile(name)
	ok(t, err)
	r := &manifest{group: testGroup, facts: newFacts()}
	ok(t, r.replay(golden))
	want := damages{{0, 4096, 8192, es[1].reason}, {9, 0, 4096, es[2].reason}}
	if !bytes.Equal(p, golden) || !reflect.DeepEqual(r.facts.damaged, want) {
		t.Errorf("golden damage is %v, want %v; first difference at %d", r.facts.damaged, want, firstDifference(p, golden))
	}
	if again := r.facts.entries(); !slices.Contains(again, es[1]) || !slices.Contains(again, es[2]) {
		t.Errorf("written anew it states %v", again)
	}
}

// Whatever was put is stated after a crash at any operation, by this manifest or the
// next, and after it was written anew.
func TestManifestCrash(t *testing.T) {
	disk := faultdisk.New(512)
	rng := seeded(1)
	stated := newFacts()
	stated.lineage, stated.name = testLineage, "group"
	m := testManifest(t, disk)
	holds := func(disk *faultdisk.Disk) {
		t.Helper()
		again, err := openManifest(disk, "/m", testGroup)
		if err != nil {
			t.Errorf("operation %d: %v", disk.Ops(), err)
			return
		}
		have := again.now()
		for n := range stated.bad {
			if have.bad[n] != "why" {
				t.Errorf("operation %d: entry %d was stated and is gone", disk.Ops(), n)
			}
		}
		if have.epoch < stated.epoch {
			t.Errorf("operation %d: epoch %d was stated, now it is %d", disk.Ops(), stated.epoch, have.epoch)
		}
	}
	disk.OnOp(func(faultdisk.Op, string) {
		for _, keep := range keeps {
			holds(disk.Crash(rng, keep))
		}
	})
	for n := uint64(1); n < 40; n++ {
		es := []entry{{kind: entryBad, number: n, reason: "why"}, {kind: entryEpoch, life: life{epoch: record.Epoch(n)}}}
		if n%10 == 0 {
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO})
		}
		if n%15 == 0 {
			m.at = maxManifest + 1 // time to be written anew
		}
		if err := m.put(n%3 == 0, es...); n%30 == 0 {
			if err == nil {
				t.Error("the sync of a new file failed, and nobody was told")
			}
			ok(t, m.put(n%3 == 0, es...))
		} else {
			ok(t, err)
		}
		stated.apply(es[0])
		stated.apply(es[1])
	}
}

// A tail that was never acknowledged is cut; damage before it is found. The last entry
// alone, without a witness, cannot be told from a torn one.
func TestManifestDamage(t *testing.T) {
	disk := faultdisk.New(512)
	m := testManifest(t, disk)
	for n := range uint64(5) {
		ok(t, m.put(false, entry{kind: entryBad, number: n + 1, reason: "why"}))
	}
	ok(t, m.put(true, entry{kind: entryEpoch, life: life{epoch: 9}}))
	whole, err := readManifest(disk, "/m/manifest")
	ok(t, err)
	slots := len(whole) / slotBytes
	for at := range len(whole) {
		if at%slotBytes > 60 && at%17 != 0 {
			continue
		}
		p := bytes.Clone(whole)
		p[at] ^= 0x40
		r := &manifest{group: testGroup, facts: newFacts()}
		err := r.replay(p)
		last := at/slotBytes == slots-1 // the mark
		if !last && !errors.Is(err, ErrCorrupt) || last && (err != nil || r.facts.epoch != 9) {
			t.Errorf("damage at %d of %d: %v, epoch %d", at, len(whole), err, r.facts.epoch)
		}
	}
	for n := range len(whole) { // cut short
		r := &manifest{group: testGroup, facts: newFacts()}
		if err := r.replay(whole[:n]); (err == nil) != (n >= slotBytes) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	r := &manifest{group: testGroup + 1, facts: newFacts()}
	if err := r.replay(whole); !errors.Is(err, ErrCorrupt) {
		t.Errorf("manifest of another group: %v", err)
	}
}

func TestManifestOfNewerVersion(t *testing.T) {
	p := appendEntry(nil, frame{testGroup, 1, 0}, entry{kind: entryGroup, lineage: 1, name: "x"})
	p[atVersion] = 2
	sealSlot(p)
	r := &manifest{group: testGroup, facts: newFacts()}
	if err := r.replay(p); !errors.Is(err, ErrFormat) {
		t.Errorf("version 2: %v", err)
	}
}

// sealSlot puts the right checksum on a slot that was changed.
func sealSlot(p []byte) {
	n := atPayload + int(p[atLength]) + int(p[atLength+1])<<8
	copy(p[n:], appendSum(nil, p[:n]))
}

func FuzzEntry(f *testing.F) {
	for i, e := range append(everyEntry, entry{kind: entryGroup, lineage: 1, name: "x"}, entry{kind: entryDamaged, volume: 3, number: 5, end: 9, reason: "why"}) {
		f.Add(appendEntry(nil, frame{testGroup, uint64(i + 1), 0}, e))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		p = append(bytes.Clone(p), make([]byte, slotBytes)...)[:slotBytes]
		if n := int(p[atLength]) + int(p[atLength+1])<<8; n <= maxPayload {
			sealSlot(p)
		}
		fr, e, err := parseEntry(p, testGroup)
		if err == nil && !bytes.Equal(appendEntry(nil, fr, e), p) {
			t.Fatalf("%+v reads from %x and is written otherwise", e, p)
		}
	})
}
