package segment

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// golden3 is a log whose headers are of version 3: in a sealed segment and in an open one zeros
// stand before records that begin a sector.
const golden3 = "testdata/v3"

var golden3Files = []string{fileName(1), fileName(2)}

func writeGolden3(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, disk.Mkdir("store"))
	o := testOptions()
	life := uint64(0x3123456789abcdef)
	o.SegmentBytes, o.Life = 5*pageBytes, func() uint64 { life++; return life }
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	for seq := record.Seq(1); len(l.Segments()) < 2 || seq%3 != 1; seq++ {
		_, err := l.Append(sealed(seq, []int{600, 9000, 5000}[seq%3], seeded(1)))
		ok(t, err)
		if seq%3 == 0 {
			ok(t, l.Commit())
		}
	}
	ok(t, os.MkdirAll(golden3, 0o755))
	for _, name := range golden3Files {
		ok(t, os.WriteFile(filepath.Join(golden3, name), fileBytes(t, disk, path.Join(testDir, name)), 0o644))
	}
}

func TestGoldenV3(t *testing.T) {
	if *update {
		writeGolden3(t)
	}
	saysAsEver(t, golden3, golden3Files, func(_ int, h header) bool { return h.Padded && !h.Recycled && !h.folded() })
}

// A header of version 3 says what no older version can.
func TestHeaderV3Refuses(t *testing.T) {
	p, err := os.ReadFile(filepath.Join(golden3, fileName(1)))
	ok(t, err)
	for what, flags := range map[string]uint32{"no flags": 0, "only older flags": flagRecycled, "an unknown flag": 2*flagPadded | flagPadded} {
		le.PutUint32(p[atFlags:], flags)
		fixCRC(p[:pageBytes], atHeaderCRC)
		if _, err := parseHeader(p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
}
