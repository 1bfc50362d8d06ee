package segment

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// golden3 is a log whose headers are of version 3: in a sealed segment and in an open one zeros
// stand before records that begin a sector.
const golden3 = "testdata/v3"

var golden3Files = []string{fileName(1), fileName(2)}

func TestGoldenV3(t *testing.T) {
	saysAsEver(t, golden3, golden3Files, func(_ int, h header) bool { return h.Padded && !h.Recycled && !h.folded() })
}

// A header of version 3 says what no older version can.
func TestHeaderV3Refuses(t *testing.T) {
	p, err := os.ReadFile(filepath.Join(golden3, fileName(1)))
	ok(t, err)
	for what, flags := range map[string]uint32{"no flags": 0, "only older flags": flagRecycled, "a flag of version 4": flagPrepared | flagPadded, "an unknown flag": 2*flagPrepared | flagPadded} {
		le.PutUint32(p[atFlags:], flags)
		fixCRC(p[:pageBytes], atHeaderCRC)
		if _, err := parseHeader(p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
}
