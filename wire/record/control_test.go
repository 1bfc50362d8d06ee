package record

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func drawVolumes(t *rapid.T) []VolumeSize {
	v := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) VolumeSize {
		return VolumeSize{VolumeID(rapid.Uint32Min(1).Draw(t, "id")), rapid.Int64Range(1, VolumeLimit).Draw(t, "bytes")}
	}), 0, 9, func(v VolumeSize) VolumeID { return v.ID }).Draw(t, "volumes")
	return v
}

func sorted(v []VolumeSize) []VolumeSize {
	if len(v) == 0 {
		return nil
	}
	return sortedByID(v)
}

// TestControlRoundTrip: what was put into a control record comes out, and is left as it was.
func TestControlRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		volumes := drawVolumes(t)
		before := append([]VolumeSize{}, volumes...)
		ticket := Ticket(rapid.Uint64Min(1).Draw(t, "ticket"))
		n := rapid.Uint64Min(1).Draw(t, "checkpoint")
		cut := Cut{
			Checkpoint: n, Wall: rapid.Int64Min(1).Draw(t, "wall"), Listed: rapid.Uint64Range(0, n-1).Draw(t, "listed"),
			Tag: rapid.StringN(0, 64, MaxTag).Draw(t, "tag"), Solo: rapid.Bool().Draw(t, "solo"), Freeze: Freeze(rapid.IntRange(0, 2).Draw(t, "freeze")), Volumes: volumes,
		}
		if !cut.Solo {
			cut.Sources = uint8(rapid.SampledFrom([]int{0, 2, MaxSources}).Draw(t, "sources"))
		}
		parse := func(p []byte, k Kind) Record {
			r, err := Parse(p)
			if err != nil || r.Kind != k || r.First != ticket || r.Last != ticket || r.Identity != testID {
				t.Fatalf("%v: %v %+v", k, err, r.Header)
			}
			return r
		}
		got, err := ParseCut(parse(AppendCut(nil, testID, testTime, ticket, cut), KindCut))
		cut.Volumes = sorted(volumes)
		if err != nil || !reflect.DeepEqual(got, cut) {
			t.Fatalf("%+v, %v, want %+v", got, err, cut)
		}
		resync := Resync{Initial: rapid.Bool().Draw(t, "initial"), Reason: cut.Tag, Volumes: volumes}
		p := AppendResyncOpen(nil, testID, testTime, ticket, resync)
		again, err := ParseResync(parse(p, KindResyncOpen))
		resync.Volumes = sorted(volumes)
		if err != nil || !reflect.DeepEqual(again, resync) {
			t.Fatalf("%+v, %v, want %+v", again, err, resync)
		}
		if !reflect.DeepEqual(before, append([]VolumeSize{}, volumes...)) {
			t.Fatal("the caller's volumes were sorted")
		}
		if m, err := ParseConfirm(parse(AppendConfirm(nil, testID, testTime, ticket, n), KindConfirm)); err != nil || m != n {
			t.Fatal(m, err)
		}
		for _, v := range volumes {
			if w, err := ParseResize(parse(AppendResize(nil, testID, testTime, ticket, v), KindResize)); err != nil || w != v {
				t.Fatal(w, err)
			}
		}
	})
}

// TestControlRules breaks one rule of the bodies at a time, behind right checksums.
func TestControlRules(t *testing.T) {
	f := func(name string, record string, at int, v byte) {
		t.Helper()
		p := bytes.Clone(controls()[record])
		p[HeaderBytes+at] = v
		if _, err := Parse(fixSums(p)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	list := cutList + listHead
	f("cut 0", "cut", cutCheckpoint, 0)
	f("wall below 0", "cut", cutWall+7, 0x80)
	f("listed not before", "cut", cutListed, 12)
	f("unknown flag", "cut", cutList, 9)
	f("frozen, and not", "cut", cutList, 7)
	f("solo of two", "cut", cutList+listSources, 2)
	f("one of several", "cut-shared", cutList+listSources, 1)
	f("too many sources", "cut-shared", cutList+listSources, MaxSources+1)
	f("tag too long", "cut", cutList+listText+1, 2)
	f("tag shorter", "cut", cutList+listText, 1)
	f("many volumes", "cut", cutList+listCount+3, 0xFF)
	f("volume 0", "cut", list, 0)
	f("volumes out of order", "cut", list, 3)
	f("volume twice", "cut", list, 2)
	f("volume of no size", "cut", list+5, 0)
	f("volume too large", "cut", list+4+7, 2)
	f("tag not UTF-8", "cut", list+2*volumeBytes, 0xFF)
	f("confirm of 0", "confirm", 0, 0)
	f("resize of 0", "resize", 0, 0)
	f("resync flag", "resync-open", 0, 2)
	for name, p := range controls() { // a body longer or shorter than its kind has
		r := mustParse(t, p)
		for _, n := range []int{1, r.Header.Body - 1, r.Header.Body + 1} {
			q := append(bytes.Clone(p), 7)[:HeaderBytes+n]
			le.PutUint32(q[atBody:], uint32(n))
			if _, err := Parse(fixSums(q)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s with a body of %d: %v", name, n, err)
			}
		}
		for _, parse := range []func(Record) error{
			func(r Record) error { _, err := ParseCut(r); return err },
			func(r Record) error { _, err := ParseConfirm(r); return err },
			func(r Record) error { _, err := ParseResize(r); return err },
			func(r Record) error { _, err := ParseResync(r); return err },
		} {
			if err := parse(mustParse(t, mixed(t))); !errors.Is(err, ErrKind) {
				t.Errorf("data taken for a control record: %v", err)
			}
		}
	}
}

func TestTexts(t *testing.T) {
	if CheckTag(strings.Repeat("ü", 128)) != nil || CheckTag(strings.Repeat("ü", 129)) == nil || CheckTag("\xff") == nil || CheckTag("") != nil {
		t.Error("CheckTag")
	}
	for _, s := range []string{"short", strings.Repeat("x", 255) + "ü", strings.Repeat("ü", 200), strings.Repeat("\xffx", 300)} {
		p := AppendResyncClose(nil, testID, testTime, 1, Resync{Reason: s})
		got, err := ParseResync(mustParse(t, p))
		if err != nil || len(got.Reason) > MaxTag || len(got.Reason) < min(len(s), MaxTag-1) || !utf8.ValidString(got.Reason) {
			t.Errorf("%q: %q, %v", s, got.Reason, err)
		}
	}
}
