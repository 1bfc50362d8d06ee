package segment

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var update = flag.Bool("update", false, "write the golden files of the newest version")

// golden is a log of version 1: a sealed segment and an open one, committed whole.
// list.txt says what must be found.
const golden = "testdata/v1"

// goldenFiles are the files of the log, by where they lie on the disk.
var goldenFiles = map[string]string{
	"0000000000000001.seg": testDir + "/0000000000000001.seg",
	"0000000000000002.seg": testDir + "/0000000000000002.seg",
	"watermarks":           "store/" + testMarks,
}

func fileBytes(t *testing.T, fs ioengine.FS, name string) []byte {
	t.Helper()
	file, err := fs.Open(name, ioengine.ReadOnly)
	ok(t, err)
	p := make([]byte, sizeOf(t, fs, name))
	_, err = file.ReadAt(p, 0)
	ok(t, errors.Join(err, file.Close()))
	return p
}

// loadGolden puts the golden log onto a disk.
func loadGolden(t testing.TB) *faultdisk.Disk {
	disk := faultdisk.New(512)
	err := errors.Join(disk.Mkdir("store"), disk.Mkdir(testDir))
	for name, at := range goldenFiles {
		p, rerr := os.ReadFile(filepath.Join(golden, name))
		err = errors.Join(err, rerr, writeFile(disk, at, p))
	}
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func writeFile(fs ioengine.FS, name string, p []byte) error {
	file, err := fs.Open(name, ioengine.Create)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(p, 0)
	return errors.Join(err, file.Close())
}

// Logs of every version open for ever, and say what they always said.
func TestGolden(t *testing.T) {
	disk := loadGolden(t)
	sizes := map[Pos]int{}
	var list strings.Builder
	m, err := OpenWatermarks(disk, "store", testMarks)
	ok(t, err)
	w := m.Get(testGroup)
	l, err := Open(disk, testDir, testGroup, w, testOptions(), func(pos Pos, r record.Record) error {
		sizes[pos] = r.Size
		fmt.Fprintf(&list, "%s %s %s %d bytes %08x\n", pos, r.Kind, r.Identity, r.Size, r.Checksum)
		return nil
	})
	ok(t, err)
	fmt.Fprintf(&list, "durable %s, watermark %s\n", l.Durable(), w.Durable)
	name := filepath.Join(golden, "list.txt")
	want, err := os.ReadFile(name)
	ok(t, err)
	if list.String() != string(want) {
		t.Errorf("found\n%swant\n%s", &list, want)
	}
	for pos, size := range sizes {
		p := make([]byte, size)
		ok(t, l.ReadAt(p, pos))
		r, err := record.Parse(p)
		if err == nil {
			err = r.VerifyPayload()
		}
		if err != nil {
			t.Errorf("record at %s: %v", pos, err)
		}
	}
	if s := l.Segments()[0].State; s != StateVerified {
		t.Errorf("the sealed segment is %s", s)
	}
}

// What is read from the golden files is written as the same bytes.
func TestGoldenBytes(t *testing.T) {
	read := func(name string) []byte {
		p, err := os.ReadFile(filepath.Join(golden, name))
		ok(t, err)
		return p
	}
	same := func(what string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s is written as other bytes than version 1 has", what)
		}
	}
	p := read("0000000000000001.seg")
	h, err := parseHeader(p)
	ok(t, err)
	page := make([]byte, pageBytes)
	h.put(page)
	same("the header", page, p[:pageBytes])

	commits := 0
	for at := 2 * pageBytes; at <= len(p); at += pageBytes {
		if c, err := parseCommit(p[at-commitBytes : at]); err == nil {
			commits++
			got := make([]byte, commitBytes)
			c.put(got)
			same("a commit", got, p[at-commitBytes:at])
		}
	}
	if commits != 2 {
		t.Errorf("%d commits, want 2", commits)
	}

	f, err := parseFooter(p[len(p)-pageBytes:])
	ok(t, err)
	got := make([]byte, footerBytes(len(f.Entries)))
	f.put(got)
	same("the footer", got, p[len(p)-pageBytes:])

	slots := read("watermarks")
	for slot := range 2 {
		q := slots[slot*slotBytes : (slot+1)*slotBytes]
		generation, m, err := parseSlot(q)
		ok(t, err)
		got := make([]byte, slotBytes)
		putSlot(got, generation, m)
		same("a slot of the watermarks", got, q)
	}
}

// A version to come is its own error, everywhere: never a torn tail.
func TestNewerVersion(t *testing.T) {
	stamp := func(p []byte, atCRC int) {
		le.PutUint16(p[atVersion:], headerVersion+1)
		fixCRC(p, atCRC)
	}
	f := func(what, name string, change func(p []byte)) {
		t.Helper()
		disk := loadGolden(t)
		p := fileBytes(t, disk, name)
		change(p)
		ok(t, writeFile(disk, name, p))
		if _, _, _, err := openStore(disk); !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v, want ErrVersion", what, err)
		}
	}
	second := testDir + "/" + fileName(2)
	f("header", second, func(p []byte) { stamp(p[:pageBytes], atHeaderCRC) })
	f("commit", second, func(p []byte) {
		for at := 2 * pageBytes; at <= len(p); at += pageBytes {
			if _, err := parseCommit(p[at-commitBytes : at]); err == nil {
				stamp(p[at-commitBytes:at], atCommitCRC)
				return
			}
		}
	})
	f("kind of a record", second, func(p []byte) { setKind(p[pageBytes:], 7) })
	f("footer", testDir+"/"+fileName(1), func(p []byte) { stamp(p[len(p)-trailerBytes:], atTrailerCRC) })
	f("watermarks", "store/"+testMarks, func(p []byte) {
		for _, q := range [][]byte{p[:slotBytes], p[slotBytes:]} {
			le.PutUint16(q[atVersion:], version+1)
			le.PutUint32(q[atSlotCRC:], slotSum(q, slotHeaderBytes+markBytes*int(le.Uint32(q[atMarks:]))))
		}
	})
}

// writeAt changes a part of a file that is there.
func writeAt(fs ioengine.FS, name string, p []byte, off int64) error {
	f, err := fs.Open(name, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, off)
	return errors.Join(err, f.Sync(), f.Close())
}
