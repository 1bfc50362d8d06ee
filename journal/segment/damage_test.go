package segment

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// written returns a disk with a log of several segments, all of it committed and
// below the watermark, none of it damaged, and everything durable.
func written(t *testing.T, steps int) (*faultdisk.Disk, *life) {
	t.Helper()
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(11), 1)
	ok(t, err)
	ok(t, f.run(steps, 0))
	ok(t, f.commit())
	ok(t, f.raise(0))
	return disk.Crash(seeded(0), faultdisk.KeepNone), f
}

// segmentFiles are the files of the segments that were begun.
func segmentFiles(t *testing.T, fs ioengine.FS) (names []string) {
	t.Helper()
	list, err := fs.List(testDir)
	ok(t, err)
	for _, name := range list {
		if _, is := fileNumber(name); is && !headerOf(t, fs, path.Join(testDir, name)).unbegun() {
			names = append(names, path.Join(testDir, name))
		}
	}
	return names
}

// headerOf is the header of a segment's file; zero where it is damaged.
func headerOf(t *testing.T, fs ioengine.FS, name string) header {
	t.Helper()
	file, err := fs.Open(name, ioengine.ReadOnly)
	ok(t, err)
	page := make([]byte, pageBytes)
	_, err = file.ReadAt(page, 0)
	ok(t, errors.Join(err, file.Close()))
	h, _ := parseHeader(page)
	return h
}

func sizeOf(t *testing.T, fs ioengine.FS, name string) int64 {
	t.Helper()
	file, err := fs.Open(name, ioengine.ReadOnly)
	ok(t, err)
	size, err := file.Size()
	ok(t, errors.Join(err, file.Close()))
	return size
}

// One byte rots, anywhere. Then either the log does not open and says ErrCorrupt, or
// every record is there, and whatever is read verifies or is refused.
func TestRotIsNeverServed(t *testing.T) {
	disk, f := written(t, 14)
	refused, marked, harmless := 0, 0, 0
	for _, name := range segmentFiles(t, disk) {
		for off := int64(0); off < sizeOf(t, disk, name); off += 37 * sample {
			d := disk.Kill()
			ok(t, d.Rot(name, off, 1))
			l, _, found, err := openStore(d)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s rots at %d: %v, want ErrCorrupt", name, off, err)
				}
				refused++
				continue
			}
			bad, err := rotten(l, f.acked, found)
			if err != nil {
				t.Fatalf("%s rots at %d: %v", name, off, err)
			}
			if bad == 0 {
				harmless++
				continue
			}
			marked++
		}
	}
	t.Logf("refused %d, found when read %d, harmless %d", refused, marked, harmless)
	if marked == 0 || refused == 0 && sample == 1 { // few flips are beyond repair
		t.Error("the test has lost its reach")
	}
}

// rotten counts the records that read back as other bytes, each of which must not verify,
// or as damage.
func rotten(l *Log, want, found []placed) (bad int, err error) {
	if len(found) != len(want) {
		return 0, fmt.Errorf("%d records of %d", len(found), len(want))
	}
	for i, w := range want {
		if found[i].pos != w.pos || !bytes.Equal(found[i].rec, w.rec[:len(found[i].rec)]) {
			return 0, fmt.Errorf("record %d: other tables", i)
		}
		got := make([]byte, len(w.rec))
		if err := l.ReadAt(got, w.pos); errors.Is(err, ErrCorrupt) {
			bad++
			continue
		} else if err != nil {
			return 0, err
		}
		if bytes.Equal(got, w.rec) {
			continue
		}
		bad++
		if r, err := record.Parse(got); err == nil && r.VerifyPayload() == nil {
			return 0, fmt.Errorf("record %d: other bytes, and they verify", i)
		}
	}
	return bad, nil
}

// What is amiss with whole files is corruption, whatever else is whole.
func TestFilesGoneOrOutOfPlace(t *testing.T) {
	disk, _ := written(t, 20)
	names := segmentFiles(t, disk)
	if len(names) < 4 {
		t.Fatalf("only %d segments", len(names))
	}
	// The oldest number comes last in each: nothing here depends on order.
	f := func(what string, do func(d *faultdisk.Disk) error) {
		t.Helper()
		d := disk.Kill()
		ok(t, do(d))
		if _, _, _, err := openStore(d); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	for i, name := range names {
		f(fmt.Sprintf("segment %d of %d is gone", i+1, len(names)), func(d *faultdisk.Disk) error { return d.Remove(name) })
		f(fmt.Sprintf("segment %d of %d is empty", i+1, len(names)), func(d *faultdisk.Disk) error { return truncate(d, name, 0) })
		f(fmt.Sprintf("segment %d of %d is cut", i+1, len(names)), func(d *faultdisk.Disk) error { return truncate(d, name, 8192) })
	}
	f("all segments are gone", func(d *faultdisk.Disk) error {
		var err error
		for _, name := range names {
			err = errors.Join(err, d.Remove(name))
		}
		return err
	})
	f("two segments have changed names", func(d *faultdisk.Disk) error {
		return errors.Join(d.Rename(names[1], "store/x"), d.Rename(names[2], names[1]), d.Rename("store/x", names[2]))
	})
	f("a segment is that of another log", func(d *faultdisk.Disk) error {
		other, _ := written(t, 18)
		return copyFile(other, d, names[1])
	})
	f("the last segment is from before", func(d *faultdisk.Disk) error {
		before, _ := written(t, 3)
		last := segmentFiles(t, before)
		return errors.Join(copyFile(before, d, last[len(last)-1]), d.Rename(last[len(last)-1], names[len(names)-1]))
	})
}

func truncate(fs ioengine.FS, name string, size int64) error {
	file, err := fs.Open(name, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(size), file.Close())
}

func copyFile(from, to ioengine.FS, name string) error {
	src, err := from.Open(name, ioengine.ReadOnly)
	if err != nil {
		return err
	}
	size, err := src.Size()
	if err != nil {
		return err
	}
	p := make([]byte, size)
	if _, err := src.ReadAt(p, 0); err != nil {
		return err
	}
	dst, err := to.Open(name, ioengine.Create)
	if err != nil {
		return err
	}
	_, err = dst.WriteAt(p, 0)
	return errors.Join(err, dst.Truncate(size), dst.Close(), src.Close())
}

// small returns a log of one segment with n rounds of one record each, and no watermark.
func small(t *testing.T, n int) (*faultdisk.Disk, *life) {
	t.Helper()
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(1), 1)
	ok(t, err)
	for i := range n {
		ok(t, f.append(sealed(record.Seq(i+1), 600, f.rng)))
		ok(t, f.commit())
	}
	return disk.Kill(), f
}

// Damage in the last round is a torn tail if nothing outside says that the round
// was durable, and corruption if the watermark does.
func TestWatermarkTellsTornFromCorrupt(t *testing.T) {
	for _, what := range []string{"header", "payload", "commit", "never written"} {
		for _, above := range []bool{true, false} {
			disk, f := small(t, 3)
			last := f.acked[2]
			off := map[string]int64{
				"header":  offset(Start, last.pos) + 30,
				"payload": offset(Start, last.pos) + int64(len(last.rec)) - 9,
				"commit":  offset(Start, f.l.Durable()) - 30,
			}[what]
			if what == "never written" { // as on a disk that loses what it said it has
				ok(t, writeAt(disk, path.Join(testDir, fileName(1)), make([]byte, f.l.Durable()-last.pos), offset(Start, last.pos)))
			} else {
				ok(t, disk.Rot(path.Join(testDir, fileName(1)), off, 1))
			}
			if !above {
				marks, err := OpenWatermarks(disk, "store", testMarks)
				ok(t, err)
				ok(t, marks.Raise(map[record.GroupID]Watermark{testGroup: {Durable: f.l.Durable()}}))
			}
			l, _, found, err := openStore(disk)
			switch {
			case above && err != nil:
				t.Errorf("%s torn above the watermark: %v", what, err)
			case above && (len(found) != 2 || l.Durable() != last.pos):
				t.Errorf("%s torn above the watermark: %d records, durable up to %s; want 2, %s", what, len(found), l.Durable(), last.pos)
			case !above && what == "commit": // of the records nothing is missing
				if err != nil || len(found) != 3 {
					t.Errorf("commit damaged below the watermark: %d records, %v", len(found), err)
				}
			case !above && what == "payload": // durable, so it is not read; but it is read back
				if err != nil || l.Segments()[0].State != StateBad {
					t.Errorf("payload damaged below the watermark: %v, %+v", err, l.Segments()[0])
				}
			case !above && !errors.Is(err, ErrCorrupt):
				t.Errorf("%s damaged below the watermark: %v, want ErrCorrupt", what, err)
			}
		}
	}
}

// Damage before a round that was written later is no torn tail: that round's commit
// says so, even without a watermark.
func TestLaterCommitVouches(t *testing.T) {
	for i := range 2 {
		disk, f := small(t, 3)
		ok(t, disk.Rot(path.Join(testDir, fileName(1)), offset(Start, f.acked[i].pos)+30, 1))
		if _, _, _, err := openStore(disk); !errors.Is(err, ErrCorrupt) {
			t.Errorf("round %d of 3 is damaged: %v, want ErrCorrupt", i+1, err)
		}
	}
}

// A guest may write whatever it likes, the commits of an older segment of this very
// log too: they vouch for nothing.
func TestGuestCannotForgeACommit(t *testing.T) {
	disk, f := small(t, 1)
	forged := make([]byte, 4*pageBytes)
	for at := pageBytes; at <= len(forged); at += pageBytes {
		end := f.l.End() + Pos(at) + 2*pageBytes
		c := commit{Life: f.l.cur.Life - 1, Durable: end - pageBytes, Records: end - commitBytes, End: end, Count: 1}
		c.put(forged[at-commitBytes:])
	}
	file, err := disk.Open(path.Join(testDir, fileName(1)), 0)
	ok(t, err)
	_, err = file.WriteAt(forged, offset(Start, f.l.End())+2*pageBytes)
	ok(t, errors.Join(err, file.Close()))
	if _, _, found, err := openStore(disk); err != nil || len(found) != 1 {
		t.Errorf("after a forged commit: %d records, %v", len(found), err)
	}
}

// Rounds that an earlier life left beyond its torn tail never come back, even when
// the next life's records end exactly where they begin.
func TestLeftoversStayDead(t *testing.T) {
	disk, f := small(t, 2)
	name := path.Join(testDir, fileName(1))
	ok(t, disk.Rot(name, offset(Start, f.acked[1].pos)+30, 1)) // the second round is torn
	l, _, found, err := openStore(disk)
	ok(t, err)
	if len(found) != 1 {
		t.Fatalf("%d records, want 1", len(found))
	}
	pos, err := l.Append(f.acked[1].rec)
	ok(t, err)
	if pos != f.acked[1].pos {
		t.Fatalf("the next record is at %s, want %s", pos, f.acked[1].pos)
	}
	if _, _, found, err := openStore(disk.Crash(seeded(1), faultdisk.KeepNone)); err != nil || len(found) != 1 {
		t.Errorf("a record that was never committed came back: %d records, %v", len(found), err)
	}
}
