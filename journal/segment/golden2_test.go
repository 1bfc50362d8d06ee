package segment

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// golden2 is a log whose headers are of version 2: a folded segment that stands for 1 and
// 2, a recycled one that is sealed and one that is open, and the watermark's places in list.txt.
const golden2 = "testdata/v2"

var golden2Files = []string{fileName(1), fileName(3), fileName(4)}

// loadFiles puts golden segments onto a disk.
func loadFiles(t *testing.T, dir string, names []string) *faultdisk.Disk {
	disk := faultdisk.New(512)
	ok(t, errors.Join(disk.Mkdir("store"), disk.Mkdir(testDir)))
	for _, name := range names {
		p, err := os.ReadFile(filepath.Join(dir, name))
		ok(t, errors.Join(err, writeFile(disk, path.Join(testDir, name), p)))
	}
	return disk
}

// saysAsEver opens the golden segments of a folder and holds what they say against its list.txt.
func saysAsEver(t *testing.T, dir string, names []string, headers func(i int, h header) bool) {
	t.Helper()
	var list strings.Builder
	var found []placed
	l, err := Open(loadFiles(t, dir, names), testDir, testGroup, Watermark{}, testOptions(), func(pos Pos, r record.Record) error {
		found = append(found, placed{pos, make([]byte, r.Size)})
		fmt.Fprintf(&list, "%s %s %s %d bytes %08x\n", pos, r.Kind, r.Identity, r.Size, r.Checksum)
		return nil
	})
	ok(t, err)
	for _, s := range l.Segments() {
		fmt.Fprintf(&list, "segments %d to %d: %s to %s, end %s, %d records, %s\n", s.Number, s.Last, s.First, s.To, s.End, s.Records, s.State)
	}
	for _, p := range found {
		ok(t, l.ReadAt(p.rec, p.pos))
		r, err := record.Parse(p.rec)
		ok(t, err)
		ok(t, r.VerifyPayload())
	}
	name := filepath.Join(dir, "list.txt")
	if *update && dir == golden4 {
		ok(t, os.WriteFile(name, []byte(list.String()), 0o644))
	}
	want, err := os.ReadFile(name)
	ok(t, err)
	if list.String() != string(want) {
		t.Errorf("found\n%swant\n%s", &list, want)
	}
	for i, name := range names {
		p, err := os.ReadFile(filepath.Join(dir, name))
		ok(t, err)
		h, err := parseHeader(p)
		ok(t, err)
		if !headers(i, h) {
			t.Errorf("%s: %+v", name, h)
		}
		page := make([]byte, pageBytes)
		if h.put(page); !bytes.Equal(page, p[:pageBytes]) {
			t.Errorf("%s: the header is written as other bytes", name)
		}
	}
}

// Logs with headers of version 2 open for ever, and say what they always said.
func TestGoldenV2(t *testing.T) {
	saysAsEver(t, golden2, golden2Files, func(i int, h header) bool {
		return h.folded() == (i == 0) && h.Recycled == (i > 0) && !h.Padded
	})
}

// One field of a version 2 header after the other is made senseless: it is refused.
func TestHeaderV2Refuses(t *testing.T) {
	p, err := os.ReadFile(filepath.Join(golden2, fileName(1)))
	ok(t, err)
	f := func(what string, at int, v uint64, n int) {
		t.Helper()
		q := bytes.Clone(p[:pageBytes])
		copy(q[at:at+n], le.AppendUint64(nil, v)[:n])
		fixCRC(q, atHeaderCRC)
		if _, err := parseHeader(q); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	f("no flags", atFlags, 0, 4)
	f("a flag of version 3", atFlags, flagPadded|flagFolded, 4)
	f("an unknown flag", atFlags, 2*flagPrepared|flagFolded, 4)
	f("folded fields without the flag", atFlags, flagRecycled, 4)
	f("version 1 with flags", atVersion, 1, 2)
	f("it ends where it begins", atFoldTo, uint64(Start), 8)
	f("it ends within a page", atFoldTo, uint64(Start)+4097, 8)
	f("records behind its end", atFoldEnd, 1<<40, 8)
	f("it ends before its number", atFoldLast, 0, 8)
	f("no first life", atFoldFirst, 0, 8)
	f("no last life", atFoldLastLife, 0, 8)
	f("reserved bytes", atHeaderZero, 1, 1)
}
