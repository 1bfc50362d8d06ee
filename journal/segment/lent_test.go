package segment

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// lentSizes make records that are lent and such that are copied follow each other in all
// ways, their ends at all places of a page.
var lentSizes = []int{9000, 300, 5200, 14000, 100, 700, 20000, 40, 6000, 8000}

// spoil is what becomes of memory that was given back.
func spoil(p []byte) {
	for i := range p {
		p[i] = 0xcc
	}
}

// padsOf returns where zeros stand between two records of a round of each records, and how many.
func padsOf(entries []entry, each int) (pads []Pos, lengths []int) {
	for i, e := range entries[1:] {
		end := entries[i].Pos + Pos(entries[i].Size)
		if e.Pos > end && (i+1)%each != 0 {
			pads, lengths = append(pads, end), append(lengths, int(e.Pos-end))
		}
	}
	return pads, lengths
}

// A record's memory is its owner's again when Write has returned; what was written is what was
// appended, now, after a crash, and once the segments are sealed.
func TestLentRecords(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprintf("sector=%d", sector), func(t *testing.T) { lentRecords(t, sector) })
	}
}

func lentRecords(t *testing.T, sector int) {
	disk := faultdisk.New(sector)
	m := &model{}
	f, err := start(disk, m, seeded(1), 1)
	ok(t, err)
	lent := 0
	for seq := record.Seq(1); seq <= 120; seq++ {
		rec := sealed(seq, lentSizes[int(seq)%len(lentSizes)]+int(seq), seeded(int(seq)))
		pos, err := f.l.Append(rec)
		ok(t, err)
		if len(rec) >= f.l.opt.LendBytes {
			if lent++; int(pos)%sector != 0 {
				t.Fatalf("record %d, which is lent, begins at %s", seq, pos)
			}
		}
		m.pending = append(m.pending, placed{pos, slices.Clone(rec)})
		if seq%4 != 0 {
			defer spoil(rec) // only the round's end is looked at
			continue
		}
		file, err := f.l.Write()
		ok(t, err)
		spoil(rec)
		ok(t, f.l.Synced(file.Sync()))
		m.committed()
	}
	if lent < 50 {
		t.Errorf("%d records were lent", lent)
	}
	ok(t, f.finish(disk.Crash(seeded(2), faultdisk.KeepNone)))
	ok(t, f.finish(disk))
}

// However small the lent records of a large round are, no write has more parts than it may.
func TestManyLentRecords(t *testing.T) {
	disk := faultdisk.New(512) // ends the test when there are more
	ok(t, disk.Mkdir("store"))
	o := testOptions()
	o.SegmentBytes, o.StageBytes = 4<<20, 1<<20
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	var all []placed
	for seq := record.Seq(1); seq <= 150; seq++ {
		rec := sealed(seq, 5200, seeded(int(seq)))
		pos, err := l.Append(rec)
		ok(t, err)
		all = append(all, placed{pos, rec})
	}
	ok(t, l.Commit())
	for _, p := range all {
		got := make([]byte, len(p.rec))
		ok(t, l.ReadAt(got, p.pos))
		if !slices.Equal(got, p.rec) {
			t.Fatalf("the record at %s reads back as other bytes", p.pos)
		}
	}
	ok(t, l.Close())
}

// Of the zeros before a record one word rots: nothing is lost of it, in a segment that is open or
// closed, and in the round that opening copies into the next one.
func TestRotBeforeLentRecords(t *testing.T) {
	disk := faultdisk.New(512)
	o := testOptions()
	o.SegmentBytes = 1 << 20
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	var places []Pos
	for seq := record.Seq(1); seq <= 30; seq++ {
		pos, err := l.Append(sealed(seq, lentSizes[int(seq)%len(lentSizes)], seeded(int(seq))))
		ok(t, err)
		places = append(places, pos)
		if seq%5 == 0 {
			ok(t, l.Commit())
		}
	}
	pads, lengths := padsOf(l.cur.entries, 5)
	durable := l.Durable()
	ok(t, l.Close())
	if len(pads) < 10 {
		t.Fatalf("%d places with zeros", len(pads))
	}
	for i, pad := range pads {
		for _, at := range []int{0, lengths[i] / 2, lengths[i] - 1} {
			for _, mark := range []Pos{durable, 0} { // with 0 the last round is copied
				damaged := disk.Kill()
				ok(t, damaged.Rot(testDir+"/"+fileName(1), offset(Start, pad)+int64(at), 1))
				for range 2 {
					var found []Pos
					l, err := Open(damaged, testDir, testGroup, Watermark{Durable: mark}, o, func(pos Pos, _ record.Record) error { found = append(found, pos); return nil })
					if err != nil || !slices.Equal(found, places) || l.Durable() != durable {
						t.Fatalf("zeros at %s rot at %d of %d: records at %v, not %v: %v", pad, at, lengths[i], found, places, err)
					}
					ok(t, l.Close())
				}
			}
		}
	}
}

// Recall and Close return when the disk has done with what was lent, and not before.
func TestRecallWaits(t *testing.T) {
	for _, how := range []string{"recall", "close", "abandon"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := faultdisk.New(512)
				ok(t, disk.Mkdir("store"))
				l, err := Open(disk, testDir, testGroup, Watermark{}, testOptions(), nil)
				ok(t, err)
				stall, done := make(chan struct{}), make(chan error, 1)
				disk.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite, Stall: stall})
				rec := sealed(1, 40000, seeded(1)) // it is written at once
				_, err = l.Append(rec)
				ok(t, err)
				go func() {
					switch how {
					case "recall":
						l.Recall()
						done <- nil
					case "close":
						done <- l.Close()
					default:
						done <- l.Abandon()
					}
				}()
				synctest.Wait()
				select {
				case <-done:
					t.Error("it returned while the record was being written")
				default:
				}
				close(stall)
				ok(t, <-done)
				spoil(rec)
				if how != "close" {
					ok(t, l.Abandon())
					_, err = l.Append(sealed(1, 40000, seeded(1)))
					ok(t, err)
					ok(t, l.Commit())
					ok(t, l.Close())
				}
			})
		})
	}
}

// A record whose memory is not aligned for the file is copied.
func TestUnalignedIsCopied(t *testing.T) {
	fsys := ioengine.OS()
	dir := t.TempDir()
	l, err := Open(fsys, dir, testGroup, Watermark{}, testOptions(), nil)
	ok(t, err)
	defer l.Close()
	for seq := record.Seq(1); seq <= 9; seq++ {
		rec := sealed(seq, 9000, seeded(int(seq)))
		mem := make([]byte, len(rec)+4096)
		shifted := mem[1+100*seq:][:len(rec)]
		copy(shifted, rec)
		pos, err := l.Append(shifted)
		ok(t, err)
		ok(t, l.Commit())
		got := make([]byte, len(rec))
		ok(t, l.ReadAt(got, pos))
		if !slices.Equal(got, rec) {
			t.Fatalf("record %d reads back as other bytes", seq)
		}
	}
	if a := l.w.file.Align(); a == 1 {
		t.Logf("the file system of %s needs no alignment: nothing was tested but that it works", dir)
	}
}
