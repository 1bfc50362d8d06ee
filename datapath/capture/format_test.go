package capture

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

var update = flag.Bool("update", false, "write the golden files")

// golden holds bytes against a golden file: their length, and the lines of hex that are not zeros alone.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	text := fmt.Sprintf("%d bytes\n", len(got))
	for line := range strings.Lines(hex.Dump(got)) {
		if !strings.Contains(line, strings.Repeat("00 ", 8)+" "+strings.Repeat("00 ", 8)) {
			text += line
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s is now\n%s", name, text)
	}
}

var (
	goldenBoot    = bootID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	goldenMarks   = marksIdentity{boot: goldenBoot, group: 0xa1a2, volume: 3, bytes: 1 << 30}
	goldenDesc    = desc{ticket: 0x1122334455, off: 4096, n: 20_000, captured: 99, volume: 3, slots: 3, next: 8, kind: Data}
	goldenRequest = request{ask: askSyncRead, id: 5, group: 0xa1a2, page: 0xbb, volume: 3, max: 7, off: 4096, n: 8192}
	goldenReply   = reply{id: 5, fail: "no", body: appendPair(nil, 3, 4096)}
	goldenWelcome = welcome{shape: shapeOf(200, 2, 0xcc), volumes: []VolumeInfo{{1, "vol1", 1 << 30}, {2, "b", 512}}}
)

func TestGolden(t *testing.T) {
	golden(t, "page-v1", newPage(0xa1a2, goldenBoot, 0xbb))
	golden(t, "marks-v1", newMarksHead(goldenMarks))
	p := make([]byte, poolHeaderBytes)
	putPoolHeader(p, descMagic, goldenWelcome.shape)
	golden(t, "desc-header-v1", p)
	d := make([]byte, descBytes)
	goldenDesc.put(d)
	golden(t, "desc-v1", d)
	e := make([]byte, ringEntryBytes)
	putRingEntry(e, 0x1122334455, 7, 0x99_0000_0066)
	golden(t, "ring-entry-v1", e)
	golden(t, "request-v1", goldenRequest.bytes())
	golden(t, "reply-v1", goldenReply.bytes())
	golden(t, "welcome-v1", goldenWelcome.bytes())
}

func TestRoundTrips(t *testing.T) {
	if boot, err := checkPage(newPage(0xa1a2, goldenBoot, 1), 0xa1a2); err != nil || boot != goldenBoot {
		t.Errorf("page: %v, %v", boot, err)
	}
	if err := checkMarks(newMarksHead(goldenMarks), marksFileBytes(goldenMarks.blocks()), goldenMarks); err != nil {
		t.Errorf("marks: %v", err)
	}
	p := make([]byte, descBytes)
	goldenDesc.put(p)
	if d, err := parseDesc(p, 200); err != nil || d != goldenDesc {
		t.Errorf("desc: %+v, %v", d, err)
	}
	if q, err := parseRequest(goldenRequest.bytes()); err != nil || q != goldenRequest {
		t.Errorf("request: %+v, %v", q, err)
	}
	join := mirrorJoin{token: 9, source: "nbd+unix:///a?socket=/b", bitmap: "c", changes: "nbd+unix:///d?socket=/b"}
	ask := request{ask: askMirror, id: 5, group: 0xa1a2, volume: 3, max: mirrorWishJoin, off: 9, text: join.text()}
	if q, err := parseRequest(ask.bytes()); err != nil || q != ask {
		t.Errorf("request: %+v, %v", q, err)
	} else if j, err := parseJoin(q); err != nil || j != join {
		t.Errorf("joining: %+v, %v", j, err)
	}
	if r, err := parseReply(goldenReply.bytes()); err != nil || !reflect.DeepEqual(r, goldenReply) {
		t.Errorf("reply: %+v, %v", r, err)
	}
	if w, err := parseWelcome(goldenWelcome.bytes()); err != nil || !reflect.DeepEqual(w, goldenWelcome) {
		t.Errorf("welcome: %+v, %v", w, err)
	}
}

// TestRefused breaks one rule at a time.
func TestRefused(t *testing.T) {
	f := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	with := func(p []byte, at int, b byte) []byte {
		p = bytes.Clone(p)
		p[at] = b
		return p
	}
	page := func(p []byte) error { _, err := checkPage(p, 0xa1a2); return err }
	good := newPage(0xa1a2, goldenBoot, 1)
	f("page magic", page(with(good, 0, 0)), ErrCorrupt)
	f("page version", page(with(good, pageAtVersion, 2)), ErrVersion)
	f("page size", page(good[:4096]), ErrCorrupt)
	f("page group", page(with(good, pageAtGroup, 1)), ErrCorrupt)
	f("page ticket 0", page(with(good, pageAtNext, 0)), ErrCorrupt)

	marks := func(p []byte, size int64) error { return checkMarks(p, size, goldenMarks) }
	head, size := newMarksHead(goldenMarks), marksFileBytes(goldenMarks.blocks())
	f("marks magic", marks(with(head, 0, 0), size), ErrCorrupt)
	f("marks version", marks(with(head, marksAtVersion, 9), size), ErrVersion)
	f("marks of another boot", marks(with(head, marksAtBoot, 9), size), errOtherMarks)
	f("marks of another volume", marks(with(head, marksAtVolume, 9), size), errOtherMarks)
	f("marks of another size", marks(with(head, marksAtBytes, 9), size), errOtherMarks)
	f("marks cut short", marks(head, size-1), ErrCorrupt)
	f("marks in no state", marks(with(head, marksAtTable, 0), size), ErrCorrupt)
	f("marks neither clean nor open", marks(with(head, marksAtClean, 0), size), ErrCorrupt)
	f("marks with a writer of no kind", marks(with(head, marksAtPast, 5), size), ErrCorrupt)

	shape := shapeOf(200, 2, 0xcc)
	p := make([]byte, poolHeaderBytes)
	putPoolHeader(p, descMagic, shape)
	f("pool magic", checkPoolHeader(p, stateMagic, shape), ErrCorrupt)
	f("pool version", checkPoolHeader(with(p, poolAtVersion, 7), descMagic, shape), ErrVersion)
	f("pool slots", checkPoolHeader(with(p, poolAtSlots, 7), descMagic, shape), ErrCorrupt)

	d := make([]byte, descBytes)
	goldenDesc.put(d)
	parse := func(p []byte) error { _, err := parseDesc(p, 200); return err }
	f("desc kind", parse(with(d, descAtKind, 9)), ErrCorrupt)
	f("desc mark", parse(with(d, descAtKind, byte(Mark))), ErrCorrupt)
	f("desc slots for its length", parse(with(d, descAtCount, 4)), ErrCorrupt)
	f("desc chain without end", parse(with(d, descAtNext, 0)), ErrCorrupt)
	f("desc next", parse(with(d, descAtNext+1, 9)), ErrCorrupt)
	f("desc volume", parse(with(d, descAtVolume, 0)), ErrCorrupt)
	f("desc offset", parse(with(d, descAtOff+7, 0x80)), ErrCorrupt)
	f("desc beyond every volume", parse(with(d, descAtOff+7, 1)), ErrCorrupt)
	wide := goldenWelcome
	wide.volumes = []VolumeInfo{{ID: 1, Bytes: record.VolumeLimit + 1}}
	_, err := parseWelcome(wide.bytes())
	f("welcome with a volume beyond all", err, ErrCorrupt)

	ask := func(p []byte) error { _, err := parseRequest(p); return err }
	q := goldenRequest.bytes()
	f("request version", ask(with(q, 4, 9)), ErrVersion)
	f("request kind", ask(with(q, 6, 99)), ErrCorrupt)
	f("request length", ask(append(q, 0)), ErrCorrupt)
	f("request range", ask(with(q, 47, 0x80)), ErrCorrupt)
}

func FuzzRequest(f *testing.F) {
	f.Add(goldenRequest.bytes())
	f.Add(request{ask: askMirror, off: 9, text: mirrorJoin{source: "a"}.text()}.bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		if q, err := parseRequest(p); err == nil && !bytes.Equal(q.bytes(), p) {
			t.Fatalf("%x parses to %+v", p, q)
		}
		if q, err := parseRequest(p); err == nil {
			_, _ = parseJoin(q)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(goldenReply.bytes())
	f.Add(reply{body: goldenWelcome.bytes()}.bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := parseReply(p)
		if err != nil {
			return
		}
		if !bytes.Equal(r.bytes(), p) {
			t.Fatalf("%x parses to %+v", p, r)
		}
		if w, err := parseWelcome(r.body); err == nil && !bytes.Equal(w.bytes(), r.body) {
			t.Fatalf("%x parses to %+v", r.body, w)
		}
		_, _ = parsePairs(r.body)
	})
}

// FuzzShared decodes what another process may write at any time.
func FuzzShared(f *testing.F) {
	d := make([]byte, descBytes)
	goldenDesc.put(d)
	f.Add(d)
	f.Add(newMarksHead(goldenMarks))
	f.Add(newPage(0xa1a2, goldenBoot, 1))
	f.Fuzz(func(t *testing.T, p []byte) {
		_, _ = checkPage(p, 0xa1a2)
		_ = checkMarks(p, int64(len(p)), goldenMarks)
		_ = checkPoolHeader(p, descMagic, shapeOf(200, 1, 1))
		if len(p) >= descBytes {
			if d, err := parseDesc(p[:descBytes], 200); err == nil && (d.n <= 0 || d.slots > 200 || d.off+d.n < 0) {
				t.Fatalf("%+v", d)
			}
		}
	})
}
