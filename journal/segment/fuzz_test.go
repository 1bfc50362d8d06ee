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
	for dir, names := range map[string][]string{golden2: golden2Files, golden3: golden3Files, golden4: append(golden4Files, golden4Ready)} {
		for _, name := range names {
			p, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(p[:pageBytes])
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= pageBytes {
			if le.Uint16(p[atVersion:]) == versionOf(flagPrepared) {
				fixCRC(p[:pageBytes], atSectorCRC)
			}
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

// FuzzArrange puts files together whose headers say anything. What it takes for the log
// is a row without gap or overlap that begins at or below the place asked for.
func FuzzArrange(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, uint16(1))
	f.Add([]byte{0, 0, 1, 0x21, 0, 2, 0x13, 0, 1, 9, 9}, uint16(3))
	f.Fuzz(func(t *testing.T, p []byte, first uint16) {
		var found []surveyed
		place, life := Start, uint64(1)
		for i := 0; i+1 < len(p); i += 2 { // mostly a log, with files gone, doubled, folded and unreadable
			number := uint64(i/2 + 1)
			h := header{Group: testGroup, Number: number, Life: life + 1, First: place, Pred: life}
			place, life = place+Pos(p[i]%4)*pageBytes, life+1
			switch p[i+1] % 8 {
			case 0:
				continue
			case 1:
				h.Fold = fold{To: h.First + Pos(p[i+1])*pageBytes, End: h.First, Last: number + uint64(p[i]%3), LastLife: life + uint64(p[i]%3)}
			case 2:
				found = append(found, surveyed{number: number, err: errBadLog})
				continue
			case 3:
				h.First -= min(pageBytes, h.First-Start)
			}
			found = append(found, surveyed{number: number, header: h})
		}
		if len(found) == 0 {
			return
		}
		want := Start + Pos(first%64)*pageBytes
		segs, leftover, err := arrange(testGroup, found, want)
		if err != nil {
			return
		}
		if len(segs)+len(leftover) != len(found) || segs[0].First > want {
			t.Fatalf("%d files: %d segments from %s, want %s, %d leftover", len(found), len(segs), segs[0].First, want, len(leftover))
		}
		for i, s := range segs[1:] {
			number, last := segs[i].last()
			if s.First != segs[i].limit() || s.Number != number+1 || s.Pred != last || segs[i].limit() < segs[i].end {
				t.Fatalf("segment %d does not follow %d", s.Number, number)
			}
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
