package segment

import (
	"bytes"
	"errors"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// golden4 is a log whose second segment was made ready before it began, and is sealed; the
// third is open, and the fourth made ready and not begun.
const golden4 = "testdata/v4"

var golden4Files = []string{fileName(1), fileName(2), fileName(3)}

var golden4Ready = fileName(4)

func writeGolden4(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, disk.Mkdir("store"))
	o := testOptions()
	life := uint64(0x4123456789abcdef)
	o.SegmentBytes, o.Life = 5*pageBytes, func() uint64 { life++; return life }
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	for seq := record.Seq(1); len(l.Segments()) < 3 || l.next == nil; seq++ {
		_, err := l.Append(sealed(seq, []int{600, 9000, 5000}[seq%3], seeded(1)))
		ok(t, err)
		if seq%3 == 0 {
			ok(t, l.Commit())
		}
	}
	ok(t, os.MkdirAll(golden4, 0o755))
	for _, name := range append(golden4Files, golden4Ready) {
		p := fileBytes(t, disk, path.Join(testDir, name))
		if name == golden4Ready {
			p = p[:pageBytes]
		}
		ok(t, os.WriteFile(filepath.Join(golden4, name), p, 0o644))
	}
}

func TestGoldenV4(t *testing.T) {
	if *update {
		writeGolden4(t)
	}
	headers := func(i int, h header) bool { return h.Prepared == (i > 0) && !h.unbegun() }
	saysAsEver(t, golden4, golden4Files, headers)
	saysAsEver(t, golden4, append(golden4Files, golden4Ready), func(i int, h header) bool { return headers(i, h) || i == 3 && h.unbegun() })
}

// One field of a version 4 header after the other is made senseless: it is refused.
func TestHeaderV4Refuses(t *testing.T) {
	begun, err := os.ReadFile(filepath.Join(golden4, fileName(2)))
	ok(t, err)
	ready, err := os.ReadFile(filepath.Join(golden4, golden4Ready))
	ok(t, err)
	f := func(what string, p []byte, at int, v uint64, n int) {
		t.Helper()
		q := bytes.Clone(p[:pageBytes])
		copy(q[at:at+n], le.AppendUint64(nil, v)[:n])
		if at != atSectorCRC {
			fixCRC(q, atSectorCRC)
		}
		fixCRC(q, atHeaderCRC)
		if _, err := parseHeader(q); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	for _, p := range [][]byte{begun, ready} {
		f("no flags", p, atFlags, 0, 4)
		f("only older flags", p, atFlags, flagPadded, 4)
		f("an unknown flag", p, atFlags, 2*flagPrepared|flagPrepared, 4)
		f("an older version", p, atVersion, 3, 2)
		f("reserved bytes", p, atHeaderZero, 1, 1)
		f("reserved bytes behind the first sector", p, sectorBytes, 1, 1)
		f("another checksum of the first sector", p, atSectorCRC, 1, 4)
		f("no group", p, atHeaderGroup, 0, 8)
	}
	f("begun at no place", begun, atFirst, 0, 8)
	f("ready, and with a life", ready, atHeaderLife, 1, 8)
	f("ready, and behind another", ready, atPred, 1, 8)
	f("ready, and with a chain", ready, atHeaderChain, 1, 4)
	f("ready to be the first", ready, atNumber, 1, 8)
	f("ready to be folded", ready, atFlags, flagPrepared|flagFolded, 4)
	if !bytes.Equal(begun[sectorBytes:pageBytes], ready[sectorBytes:pageBytes]) {
		t.Error("a header differs from the one that it is written over beyond the first sector")
	}
}
