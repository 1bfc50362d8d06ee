package journal

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/retain"
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
	es := []entry{
		{kind: entryDamaged, number: 4096, end: 8192, reason: "record 1: block 2: corrupt record"},
		{kind: entryDamaged, volume: 9, number: 0, end: 4096, reason: "block 0"}, {kind: entryMark}}
	want := damages{{0, 4096, 8192, es[0].reason}, {9, 0, 4096, es[1].reason}}
	if got := stated(t, goldenOf(t, "testdata/v1-damage.manifest", es)).damaged; !reflect.DeepEqual(got, want) {
		t.Errorf("golden damage is %v, want %v", got, want)
	}
}

// states says whether e is among the entries.
func states(es []entry, e entry) bool {
	return slices.ContainsFunc(es, func(have entry) bool { return reflect.DeepEqual(have, e) })
}

// version2 has each kind of entry that came with version 2.
var version2 = []entry{
	{kind: entryTag, number: 20, reason: "before the upgrade"},
	{kind: entryTag, number: 21},
	{kind: entryPin, number: 22, pinned: true, reason: "audit"},
	{kind: entryPin, number: 23, pinned: true},
	{kind: entryPin, number: 23},
	{kind: entryGone, number: 15},
	{kind: entryPromoted, number: 15, count: 2, at: []index.StreamAt{{Stream: 70, Seq: 100}, {Stream: 71, Seq: 9}}},
	{kind: entryPolicy, reason: "\x01policy"},
	{kind: entryThinned, spans: []span{{16, 18}, {30, 40}}},
	{kind: entryFolded, number: 3, end: 7, into: 12},
	{kind: entryDamaged, volume: 9, number: 0, end: 4096, reason: "block 0"},
	{kind: entryRepaired, volume: 9, number: 1024, end: 2048},
	{kind: entryParity, reason: "\x01parity"},
	{kind: entryMark},
}

// version3 has what came with version 3.
var version3 = []entry{
	{kind: entryFailover, failover: failover.Failover{State: failover.Raised, ID: "5b3e", Checkpoint: 21, Epoch: 4, View: 17, Began: 3e18, Timer: time.Hour, Then: failover.Commit, Left: time.Hour,
		At: retain.Instant{Boot: [16]byte{1, 2}, Mono: time.Minute, Wall: 3e18}}},
	{kind: entryFailover, failover: failover.Failover{State: failover.Recovering, ID: "5b3e", Checkpoint: 21, Epoch: 5, View: 18, Note: "nobody answers", Began: 3e18, Then: failover.Rollback}},
	{kind: entryMark},
}

// version4 has what came with version 4.
var version4 = []entry{
	{kind: entryVolume, volume: 2, bytes: 8192, name: "two"},
	{kind: entryDisk, volume: 2, reason: "/images/two.raw"},
	settledEntry,
	{kind: entryReleased},
	{kind: entryMark},
}

func TestGoldenVersion4(t *testing.T) {
	states := stated(t, goldenOf(t, "testdata/v4.manifest", version4))
	if states.failover.State != failover.Released || states.epoch != 5 || states.disks[2] != "/images/two.raw" {
		t.Errorf("golden manifest states %+v", states)
	}
	for _, e := range []entry{{kind: entryDisk, reason: "/images/two.raw"}, {kind: entryDisk, volume: 2, reason: "two.raw"}, {kind: entryDisk, volume: 2}} {
		if _, _, err := parseEntry(appendEntry(nil, frame{testGroup, 1, 0}, e), testGroup); err == nil {
			t.Errorf("%+v is read", e)
		}
	}
}

func TestGoldenVersion3(t *testing.T) {
	golden := goldenOf(t, "testdata/v3.manifest", version3)
	r := &manifest{group: testGroup, facts: newFacts()}
	ok(t, r.replay(golden))
	if r.facts.epoch != 5 || r.facts.failover != version3[1].failover {
		t.Errorf("golden failover is %+v in epoch %d", r.facts.failover, r.facts.epoch)
	}
	if again := r.facts.entries(); !states(again, version3[1]) || states(again, version3[0]) {
		t.Errorf("written anew it states %v", again)
	}
	for i, change := range []func(*failover.Failover){
		func(f *failover.Failover) { f.State = failover.None },
		func(f *failover.Failover) { f.State = failover.Settled + 1 },
		func(f *failover.Failover) { f.Then = 0 },
		func(f *failover.Failover) { f.Epoch = 0 },
		func(f *failover.Failover) { f.Checkpoint = 0 },
		func(f *failover.Failover) { f.View = 0 },
		func(f *failover.Failover) { f.ID = "" },
		func(f *failover.Failover) { f.Left = f.Timer + 1 },
	} {
		e := version3[0]
		change(&e.failover)
		if _, _, err := parseEntry(appendEntry(nil, frame{testGroup, 1, 0}, e), testGroup); err == nil {
			t.Errorf("change %d: %+v is read", i, e.failover)
		}
	}
}

// settledEntry states a failover whose disks may become plain, or be given away.
var settledEntry = entry{kind: entryFailover, failover: failover.Failover{State: failover.Settled, ID: "5b3e", Checkpoint: 21, Epoch: 5, View: 18, Began: 3e18, Then: failover.Rollback}}

// version6 has what came with version 6.
var version6 = []entry{
	settledEntry,
	{kind: entryPlain, state: failover.Passing},
	settledEntry,
	{kind: entryPlain, state: failover.OnDisks},
	{kind: entryMark},
}

// version7 has what came with version 7.
var version7 = []entry{
	settledEntry,
	{kind: entryPlain, state: failover.Passing},
	{kind: entryMoving},
	{kind: entryPlain, state: failover.OnDisks},
	{kind: entryMark},
}

// goldenOf makes the manifest of a group with those entries, and holds the file of that name against it.
func goldenOf(t *testing.T, name string, es []entry) []byte {
	t.Helper()
	var p []byte
	for i, e := range append([]entry{{kind: entryGroup, lineage: testLineage, name: "group"}}, es...) {
		p = appendEntry(p, frame{testGroup, uint64(i + 1), uint64(i)}, e)
	}
	if *update {
		ok(t, os.WriteFile(name, p, 0o666))
	}
	file, err := os.ReadFile(name)
	ok(t, err)
	if !bytes.Equal(p, file) {
		t.Errorf("%s has another first at %d", name, firstDifference(p, file))
	}
	return file
}

// stated is what a manifest states. Written anew it says the same.
func stated(t *testing.T, p []byte) facts {
	t.Helper()
	r := &manifest{group: testGroup, facts: newFacts()}
	ok(t, r.replay(p))
	again := newFacts()
	for _, e := range r.facts.entries() {
		again.apply(e)
	}
	if !reflect.DeepEqual(again, r.facts) {
		t.Errorf("written anew it states\n%+v, want\n%+v", again, r.facts)
	}
	return r.facts
}

func TestGoldenVersion6(t *testing.T) {
	f := func(version string, es []entry, states map[int]failover.State) {
		t.Helper()
		p := goldenOf(t, "testdata/"+version+".manifest", es)
		for slots, want := range states {
			if got := stated(t, p[:slots*slotBytes]).failover; got.State != want || got.ID != "5b3e" {
				t.Errorf("%s: %d slots of it state %+v, want %s", version, slots, got, want)
			}
		}
	}
	f("v6", version6, map[int]failover.State{2: failover.Settled, 3: failover.Passing, 4: failover.Settled, 6: failover.OnDisks})
	f("v7", version7, map[int]failover.State{3: failover.Passing, 4: failover.Moving, 5: failover.OnDisks, 6: failover.OnDisks})
	for _, s := range []failover.State{failover.None, failover.Settled, failover.Released, failover.OnDisks + 1} {
		if _, _, err := parseEntry(appendEntry(nil, frame{testGroup, 1, 0}, entry{kind: entryPlain, state: s}), testGroup); err == nil {
			t.Errorf("%s is read", s)
		}
	}
}

// version5 has what came with version 5.
var version5 = []entry{
	{kind: entryEnded, ended: failover.Ended{ID: "5b3e", By: failover.ByTimer, Wall: 3e18, Machines: 4}},
	{kind: entryEnded, ended: failover.Ended{ID: strings.Repeat("x", failover.MaxID), By: failover.BeforeIt, Wall: 4e18}},
	{kind: entryMark},
}

func TestGoldenVersion5(t *testing.T) {
	golden := goldenOf(t, "testdata/v5.manifest", version5)
	r := &manifest{group: testGroup, facts: newFacts()}
	ok(t, r.replay(golden))
	if want := []failover.Ended{version5[0].ended, version5[1].ended}; !slices.Equal(r.facts.ended, want) {
		t.Errorf("golden ends are %+v", r.facts.ended)
	}
	if again := r.facts.entries(); !states(again, version5[0]) || !states(again, version5[1]) {
		t.Errorf("written anew it states %v", again)
	}
	for i, change := range []func(*failover.Ended){
		func(e *failover.Ended) { e.ID = "" },
		func(e *failover.Ended) { e.ID += "x" },
		func(e *failover.Ended) { e.By = 0 },
		func(e *failover.Ended) { e.By = failover.Succeeded + 1 },
	} {
		e := version5[1]
		change(&e.ended)
		if _, _, err := parseEntry(appendEntry(nil, frame{testGroup, 1, 0}, e), testGroup); err == nil {
			t.Errorf("change %d: %+v is read", i, e.ended)
		}
	}
}

func TestGoldenVersion2(t *testing.T) {
	golden := goldenOf(t, "testdata/v2.manifest", version2)
	want := newFacts()
	want.lineage, want.name, want.gone = testLineage, "group", 15
	want.tags = map[uint64]string{20: "before the upgrade", 21: ""}
	want.pins = map[uint64]string{22: "audit"}
	want.promoted = promoted{15, version2[6].at}
	want.policy, want.parity = "\x01policy", "\x01parity"
	want.thinned = spans{{16, 18}, {30, 40}}
	want.folded = []entry{version2[9]}
	want.damaged = damages{{9, 0, 1024, "block 0"}, {9, 2048, 4096, "block 0"}}
	if got := stated(t, golden); !reflect.DeepEqual(got, want) {
		t.Errorf("golden manifest states\n%+v, want\n%+v", got, want)
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
	mark := appendEntry(nil, frame{testGroup, 2, 1}, entry{kind: entryMark})
	f := func(version, kind byte) {
		t.Helper()
		mark[atVersion], mark[atKind] = version, kind
		sealSlot(mark)
		r := &manifest{group: testGroup, facts: newFacts()}
		if err := r.replay(slices.Concat(p, mark)); !errors.Is(err, ErrFormat) {
			t.Errorf("version %d, kind %d: %v", version, kind, err)
		}
	}
	f(4, byte(entryMark))
	f(3, byte(lastKnown)+1)
	f(2, byte(lastKnown)+1)
	f(2, byte(entryFailover))
	f(2, 255)
	f(1, byte(lastKnown)+1)
	f(1, byte(entryTag)) // what an older release would not have refused
	f(2, byte(entryMark))
	f(1, 0)
}

// A promoted checkpoint counts when all parts of its vector are there.
func TestPromotedInParts(t *testing.T) {
	f := func(streams int) {
		t.Helper()
		p := promoted{number: 9}
		for i := range streams {
			p.at = append(p.at, index.StreamAt{Stream: record.StreamID(i + 1), Seq: record.Seq(i)})
		}
		old := promoted{number: 4, at: []index.StreamAt{{Stream: 1, Seq: 1}}}
		es := append([]entry{{kind: entryGroup, lineage: 1}}, append(old.entries(), p.entries()...)...)
		var slots []byte
		for i, e := range es {
			slots = appendEntry(slots, frame{testGroup, uint64(i + 1), 0}, e)
		}
		for n := 2; n <= len(es); n++ {
			r := &manifest{group: testGroup, facts: newFacts()}
			ok(t, r.replay(slots[:n*slotBytes]))
			want := old
			if n == len(es) {
				want = p
			}
			if !reflect.DeepEqual(r.facts.promoted, want) {
				t.Errorf("%d streams, %d of %d entries: %+v", streams, n, len(es), r.facts.promoted)
			}
			r.facts.apply(entry{kind: entryPromoted, number: 10})
			if r.facts.promoted.number != 10 || len(r.facts.promoting.at) != 0 {
				t.Errorf("%d streams, %d of %d entries, then another: %+v", streams, n, len(es), r.facts.promoted)
			}
		}
	}
	f(0)
	f(1)
	f(maxParts)
	f(maxParts + 1)
	f(5 * maxParts)
}

// Tags and pins are forgotten with their checkpoints, and a pin holds its own.
func TestFactsStaySmall(t *testing.T) {
	f := newFacts()
	for n := uint64(1); n < 100; n++ {
		f.apply(entry{kind: entryTag, number: n, reason: "tag"})
		f.apply(entry{kind: entryBad, number: n, reason: "why"})
	}
	f.apply(entry{kind: entryPin, number: 50, pinned: true})
	f.apply(entry{kind: entryThinned, spans: []span{{40, 60}}})
	if f.lost(50) || !f.lost(49) || !f.lost(51) || f.lost(40) || f.lost(60) || len(f.tags) != 99-18 || len(f.bad) != 99-18 {
		t.Errorf("thinned: %+v", f)
	}
	f.apply(entry{kind: entryPin, number: 50})
	if _, tagged := f.tags[50]; tagged || !f.lost(50) {
		t.Errorf("no longer pinned: %+v", f)
	}
	f.apply(entry{kind: entryGone, number: 90})
	f.apply(entry{kind: entryGone, number: 80}) // never falls
	if f.gone != 90 || len(f.tags) != 10 || len(f.bad) != 10 || len(f.pins) != 0 || len(f.thinned) != 0 {
		t.Errorf("gone: %+v", f)
	}
}

// sealSlot puts the right checksum on a slot that was changed.
func sealSlot(p []byte) {
	n := atPayload + int(p[atLength]) + int(p[atLength+1])<<8
	copy(p[n:], appendSum(nil, p[:n]))
}

func FuzzEntry(f *testing.F) {
	for i, e := range append(slices.Concat(everyEntry, version2, version3), entry{kind: entryGroup, lineage: 1, name: "x"}, entry{kind: entryDamaged, volume: 3, number: 5, end: 9, reason: "why"}) {
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
