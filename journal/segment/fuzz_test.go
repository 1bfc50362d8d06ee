package segment

import (
	"bytes"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The fuzzers mend checksums first: a mutation would never pass them.

func fixCRC(p []byte, atCRC int) {
	le.PutUint32(p[atCRC:], crc32.Checksum(p[:atCRC], castagnoli))
}

func goldenBytes(f *testing.F, name string) []byte {
	p, err := os.ReadFile(filepath.Join(golden, name))
	if err != nil {
		f.Fatal(err)
	}
	return p
}

func FuzzHeader(f *testing.F) {
	f.Add(goldenBytes(f, fileName(1))[:pageBytes])
	f.Add(goldenBytes(f, fileName(2))[:pageBytes])
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= pageBytes {
			fixCRC(p[:pageBytes], atHeaderCRC)
		}
		h, err := parseHeader(p)
		if err != nil {
			return
		}
		again := make([]byte, pageBytes)
		if h.put(again); !bytes.Equal(again, p[:pageBytes]) {
			t.Fatalf("%+v is written as other bytes", h)
		}
	})
}

func FuzzCommit(f *testing.F) {
	p := goldenBytes(f, fileName(1))
	for at := 2 * pageBytes; at <= len(p); at += pageBytes {
		f.Add(p[at-commitBytes : at])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= commitBytes {
			fixCRC(p[:commitBytes], atCommitCRC)
		}
		c, err := parseCommit(p)
		if err != nil {
			return
		}
		again := make([]byte, commitBytes)
		if c.put(again); !bytes.Equal(again, p[:commitBytes]) {
			t.Fatalf("%+v is written as other bytes", c)
		}
	})
}

func FuzzFooter(f *testing.F) {
	p := goldenBytes(f, fileName(1))
	f.Add(p[len(p)-pageBytes:])
	f.Fuzz(func(t *testing.T, p []byte) {
		if n := len(p) - trailerBytes; n >= 0 {
			table := min(int64(le.Uint32(p[n+atTrailerCount:]))*entryBytes, int64(n))
			le.PutUint32(p[n+atTableCRC:], crc32.Checksum(p[:table], castagnoli))
			fixCRC(p[n:], atTrailerCRC)
		}
		x, err := parseFooter(p)
		if err != nil {
			return
		}
		again := make([]byte, footerBytes(len(x.Entries)))
		if x.put(again); !bytes.Equal(again, p) {
			t.Fatalf("%+v is written as other bytes", x)
		}
	})
}

func FuzzWatermarks(f *testing.F) {
	p := goldenBytes(f, "watermarks")
	f.Add(p[:64])
	f.Add(p[slotBytes : slotBytes+64])
	f.Fuzz(func(t *testing.T, p []byte) {
		slot := make([]byte, slotBytes)
		copy(slot, p)
		if n := int64(le.Uint32(slot[atMarks:])); n <= MaxGroups {
			le.PutUint32(slot[atSlotCRC:], slotSum(slot, slotHeaderBytes+markBytes*int(n)))
		}
		generation, m, err := parseSlot(slot)
		if err != nil {
			return
		}
		again := make([]byte, slotBytes)
		end := putSlot(again, generation, m)
		if used := slotHeaderBytes + markBytes*len(m); end < used || !bytes.Equal(again[:used], slot[:used]) {
			t.Fatalf("generation %d, %d groups: written as other bytes", generation, len(m))
		}
	})
}

// FuzzOpen opens a log of one segment that holds anything. What opens, opens again
// and says the same.
func FuzzOpen(f *testing.F) {
	first := goldenBytes(f, fileName(1))
	f.Add(first[pageBytes:])
	f.Add(first[pageBytes : len(first)-2*pageBytes])
	f.Add(first[pageBytes : len(first)-pageBytes-700])
	head := bytes.Clone(first[:pageBytes])
	f.Fuzz(func(t *testing.T, p []byte) {
		disk := faultdisk.New(512)
		err := errors.Join(disk.Mkdir("log"), writeFile(disk, "log/"+fileName(1), append(bytes.Clone(head), p...)))
		if err != nil {
			t.Fatal(err)
		}
		open := func() (found []placed, err error) {
			l, err := Open(disk, "log", testGroup, Watermark{}, testOptions(), func(pos Pos, r record.Record) error {
				found = append(found, placed{pos, bytes.Clone(r.Bytes())})
				return nil
			})
			if err == nil {
				err = l.Close()
			}
			return found, err
		}
		found, err := open()
		if err != nil {
			return
		}
		again, err := open()
		if err != nil || len(again) != len(found) {
			t.Fatalf("%d records, then %d: %v", len(found), len(again), err)
		}
		for i := range found {
			if found[i].pos != again[i].pos || !bytes.Equal(found[i].rec, again[i].rec) {
				t.Fatalf("record %d changed", i)
			}
		}
	})
}
