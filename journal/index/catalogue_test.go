package index

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var update = flag.Bool("update", false, "write golden files anew")

var goldenCheckpoint = Checkpoint{
	Number: 42, Time: 1_700_000_000_123_456_789, Wall: 1_700_000_000_000_000_000, Tag: "before the upgrade", State: Bad, Reason: "block 7",
	Volumes: []record.VolumeSize{{ID: 1, Bytes: 1 << 30}, {ID: 9, Bytes: 512}},
	At:      []StreamAt{{Stream: 5, Seq: 100}, {Stream: 6, Seq: 200}},
}

var (
	goldenMarker = Marker{Pos: 1 << 33, Segment: 5, Life: 0xfeedface}
	goldenCounts = Counts{Good: 1000, Verifying: 3, Bad: 2, Tagged: 7, Pinned: 1}
)

var goldenSegment = segment.Info{Number: 3, First: 4096, End: 1 << 28, Records: 77, State: segment.StateVerified}

func TestGoldenValues(t *testing.T) {
	f := func(name string, value []byte) []byte {
		t.Helper()
		name = "testdata/" + name
		if *update {
			if err := os.WriteFile(name, value, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(golden, value) {
			t.Errorf("%s changed: %v", name, err)
		}
		return golden
	}
	cp, err := parseCheckpoint(f("v1.checkpoint", appendCheckpoint(nil, goldenCheckpoint)), 42)
	if err != nil || !reflect.DeepEqual(cp, goldenCheckpoint) {
		t.Errorf("checkpoint reads as %+v, %v", cp, err)
	}
	pinned := goldenCheckpoint
	pinned.Pinned, pinned.Label = true, "audit"
	cp, err = parseCheckpoint(f("v2.checkpoint", appendCheckpoint(nil, pinned)), 42)
	if err != nil || !reflect.DeepEqual(cp, pinned) {
		t.Errorf("pinned checkpoint reads as %+v, %v", cp, err)
	}
	frozen := goldenCheckpoint
	frozen.Freeze = record.Frozen
	cp, err = parseCheckpoint(f("v3.checkpoint", appendCheckpoint(nil, frozen)), 42)
	if err != nil || !reflect.DeepEqual(cp, frozen) {
		t.Errorf("frozen checkpoint reads as %+v, %v", cp, err)
	}
	pinned.Freeze = record.FreezeFailed
	cp, err = parseCheckpoint(appendCheckpoint(nil, pinned), 42)
	if err != nil || !reflect.DeepEqual(cp, pinned) {
		t.Errorf("pinned checkpoint of a freeze that failed reads as %+v, %v", cp, err)
	}
	marker, err := parseMarker(f("v1.marker", appendMarker(nil, goldenMarker)))
	if err != nil || marker != goldenMarker {
		t.Errorf("marker reads as %+v, %v", marker, err)
	}
	counts, err := parseCounts(f("v1.counts", appendCounts(nil, goldenCounts)))
	if err != nil || counts != goldenCounts {
		t.Errorf("counts read as %+v, %v", counts, err)
	}
	s, err := parseSegment(f("v1.segment", appendSegment(nil, goldenSegment)), 3)
	if err != nil || s != goldenSegment {
		t.Errorf("segment reads as %+v, %v", s, err)
	}
}

func FuzzValues(f *testing.F) {
	f.Add(appendCheckpoint(nil, goldenCheckpoint))
	f.Add(appendCheckpoint(nil, Checkpoint{Number: 1, State: Good}))
	f.Add(appendCheckpoint(nil, Checkpoint{Number: 1, State: Bad, Reason: "why", Pinned: true, Label: "for"}))
	f.Add(appendSegment(nil, goldenSegment))
	f.Add(appendMarker(nil, goldenMarker))
	f.Add(appendCounts(nil, goldenCounts))
	f.Fuzz(func(t *testing.T, p []byte) {
		if cp, err := parseCheckpoint(p, 1); err == nil && !bytes.Equal(appendCheckpoint(nil, cp), p) {
			t.Fatalf("checkpoint %+v reads from %x and is written otherwise", cp, p)
		}
		if m, err := parseMarker(p); err == nil && !bytes.Equal(appendMarker(nil, m), p) {
			t.Fatalf("marker %+v reads from %x and is written otherwise", m, p)
		}
		if c, err := parseCounts(p); err == nil && !bytes.Equal(appendCounts(nil, c), p) {
			t.Fatalf("counts %+v read from %x and are written otherwise", c, p)
		}
		if s, err := parseSegment(p, 1); err == nil && !bytes.Equal(appendSegment(nil, s), p) {
			t.Fatalf("segment %+v reads from %x and is written otherwise", s, p)
		}
	})
}

// maps are the implementations of Map, each empty.
func maps(t *testing.T) map[string]Map {
	t.Helper()
	cfg := badgerIn(t)
	db := OpenBadger(cfg)
	t.Cleanup(func() { db.Close() })
	full := badgerIn(t) // all waits in memory
	full.Floor = math.MaxInt64
	waiting := OpenBadger(full)
	t.Cleanup(func() { waiting.Close() })
	return map[string]Map{"badger": db, "waiting": waiting, "memory": new(Memory)}
}

// Whatever the catalogue holds, Reconcile makes it what is true, and leaves other
// groups alone.
func TestReconcile(t *testing.T) {
	for name, m := range maps(t) {
		rng := rand.New(rand.NewPCG(1, 1))
		c := NewCatalogue(m)
		other := Checkpoint{Number: 5, State: Good, Tag: "of another group"}
		must(t, c.Put(8, other))
		must(t, c.Put(6, other))
		for range 20 {
			var cps []Checkpoint
			var infos []segment.Info
			for n := uint64(1); n < 40; n++ {
				if rng.IntN(3) != 0 {
					cps = append(cps, Checkpoint{Number: n * 7, State: Good, Tag: fmt.Sprint(rng.IntN(3))})
				}
				if rng.IntN(3) != 0 {
					infos = append(infos, segment.Info{Number: n, First: segment.Pos(rng.IntN(3)), End: 10, State: segment.StateOpen})
				}
			}
			_, err := c.Reconcile(7, cps, infos)
			must(t, err)
			got, err := c.Checkpoints(7, 0, 1000)
			if err != nil || !slices.EqualFunc(got, cps, func(a, b Checkpoint) bool { return reflect.DeepEqual(a, b) }) {
				t.Fatalf("%s: checkpoints %v, %v; want %v", name, got, err, cps)
			}
			segments, err := c.Segments(7)
			if err != nil || !slices.Equal(segments, infos) {
				t.Fatalf("%s: segments %v, %v; want %v", name, segments, err, infos)
			}
			if n, err := c.Reconcile(7, cps, infos); n != 0 || err != nil {
				t.Fatalf("%s: a true catalogue was changed in %d places: %v", name, n, err)
			}
		}
		for _, group := range []record.GroupID{6, 8} {
			if cp, ok, err := c.Checkpoint(group, 5); err != nil || !ok || !reflect.DeepEqual(cp, other) {
				t.Errorf("%s: group %s: %+v, %v, %v", name, group, cp, ok, err)
			}
		}
	}
}

func TestPages(t *testing.T) {
	for name, m := range maps(t) {
		c := NewCatalogue(m)
		var want []uint64
		for n := uint64(1); n <= 2500; n += 2 {
			must(t, c.Put(7, Checkpoint{Number: n, State: Good}))
			want = append(want, n)
		}
		var got []uint64
		for after := uint64(0); ; {
			cps, err := c.Checkpoints(7, after, 100)
			must(t, err)
			if len(cps) == 0 {
				break
			}
			for _, cp := range cps {
				got = append(got, cp.Number)
			}
			after = got[len(got)-1]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d checkpoints in pages, want %d", name, len(got), len(want))
		}
		if cps, err := c.Checkpoints(7, 0, 0); err != nil || len(cps) != 0 {
			t.Errorf("%s: no limit gives %d, %v", name, len(cps), err)
		}
		if _, ok, err := c.Checkpoint(7, 2); ok || err != nil {
			t.Errorf("%s: checkpoint 2: %v, %v", name, ok, err)
		}
	}
}

// The largest checkpoint there is finds room.
func TestLargestCheckpoint(t *testing.T) {
	cp := Checkpoint{Number: 1, State: Bad, Tag: strings.Repeat("t", maxText), Reason: strings.Repeat("r", maxText)}
	for i := range record.MaxVolumes {
		cp.Volumes = append(cp.Volumes, record.VolumeSize{ID: record.VolumeID(i + 1), Bytes: 512})
	}
	for i := range maxStreams {
		cp.At = append(cp.At, StreamAt{Stream: record.StreamID(i + 1), Seq: 1})
	}
	for name, m := range maps(t) {
		c := NewCatalogue(m)
		must(t, c.Put(7, cp))
		if got, ok, err := c.Checkpoint(7, 1); err != nil || !ok || !reflect.DeepEqual(got, cp) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
