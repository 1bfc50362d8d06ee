package journal

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// small has the index written all the time, in many runs.
func small(disk *faultdisk.Disk) Config {
	cfg := config(disk)
	cfg.SegmentBytes, cfg.IndexMemory, cfg.CacheBytes = 32<<10, 8<<10, 1<<20
	return cfg
}

// scarred is a store with history, a block of a replica that rots, tags and pins, and
// an index in several runs: its source, its disk at half and at the end, its catalogues.
func scarred(t *testing.T) (s *source, half, end *faultdisk.Disk, halfList, endList *index.Memory) {
	t.Helper()
	s = newSource(61)
	s.script()
	for i := range 6 {
		s.write(5)
		if i == 3 {
			s.cover(1, 0, 4096) // from here on nothing needs what rots
		}
		s.checkpoint()
	}
	disk, kept := faultdisk.New(512), new(index.Memory)
	cfg := small(disk)
	cfg.OpenCatalogue = func() (index.Map, error) { return kept, nil }
	w, err := openWith(cfg)
	ok(t, err)
	for i, r := range s.records {
		ok(t, w.group.admitFor(r))
		ok(t, w.send([]record.Record{r}, 1))
		if i == len(s.records)/2 {
			ok(t, w.settle(life{s.id.Epoch, r.Incarnation}))
			ok(t, w.store.Close())
			half, halfList = disk.Kill(), clone(kept)
			ok(t, disk.Rot(replicaFile(1), 100, 1))
			w, err = openWith(cfg)
			ok(t, err)
		}
	}
	ok(t, w.settle(life{s.id.Epoch, s.id.Incarnation}))
	for n, image := range s.images {
		_ = w.compare(n, image) // who meets the damage makes it known
	}
	oldest, newest := slices.Min(slices.Collect(maps.Keys(s.images))), slices.Max(slices.Collect(maps.Keys(s.images)))
	_, err = w.group.Pin(oldest, "kept")
	ok(t, err)
	_, err = w.group.Tag(newest, "mine")
	ok(t, err)
	_, err = w.group.Pin(newest, "for a while")
	ok(t, err)
	_, err = w.group.Unpin(newest)
	ok(t, err)
	ok(t, w.store.Close())
	return s, half, disk, halfList, kept
}

// cover writes one place of a volume.
func (s *source) cover(vol record.VolumeID, off, n int64) {
	s.ticket++
	b, data := record.NewBatch(record.Limits{}), bytes.Repeat([]byte{byte(s.ticket)}, int(n))
	b.Add(record.Piece{Volume: vol, Off: off, Len: n, Ticket: s.ticket, Data: data})
	copy(s.volumes[vol][off:], data)
	id, now := s.next()
	s.add(b.Seal(nil, id, now, record.NewCompressor()))
}

func replicaFile(vol int) string {
	return fmt.Sprintf("/store/groups/%s/replica/%08x.raw", testGroup, vol)
}

// told compares what a store lists with what it should, whole.
func (t *target) tells() (string, error) {
	cps, err := t.group.Checkpoints(0, 1000)
	var b strings.Builder
	for _, cp := range cps {
		fmt.Fprintf(&b, "%+v\n", cp)
	}
	counts, countErr := t.group.Counts()
	st := t.group.State()
	fmt.Fprintf(&b, "%+v %v %d %d %d %v %v", counts, countErr, st.Count, st.Oldest, st.Newest, st.Err, t.group.Durable(testStream))
	return b.String(), err
}

// Index and catalogue are caches: deleted, damaged, put back as they were long ago, or of
// another log, what the store lists and shows is the same to the byte.
func TestCachesAreOnlyThat(t *testing.T) {
	s, half, end, halfList, endList := scarred(t)
	dir := path.Join("/store", groupsName, testGroup.String(), indexName)
	open := func(disk *faultdisk.Disk, kept *index.Memory) (*target, error) {
		cfg := small(disk)
		cfg.OpenCatalogue = func() (index.Map, error) { return kept, nil }
		return openWith(cfg)
	}
	w, err := open(end.Kill(), clone(endList))
	ok(t, err)
	want, err := w.tells()
	ok(t, err)
	if !strings.Contains(want, "State:bad") || !strings.Contains(want, "Pinned:true") || !strings.Contains(want, "Tag:mine") || !strings.Contains(want, "State:good") {
		t.Fatalf("the test has lost its reach: %s", want)
	}
	ok(t, w.store.Close())

	f := func(what string, harm func(d *faultdisk.Disk) (*index.Memory, error)) {
		t.Helper()
		d := end.Kill()
		kept, err := harm(d)
		ok(t, err)
		for life := range 2 {
			w, err := open(d, kept)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			got, err := w.tells()
			if err != nil || got != want {
				t.Fatalf("%s, opened %d times: it tells %v\n%s\nwant\n%s", what, life+1, err, got, want)
			}
			for n, image := range s.images {
				if err := w.compare(n, image); err != nil && !isDamage(err) {
					t.Fatalf("%s: %v", what, err)
				} else if cp, _ := w.group.Checkpoint(n); (err == nil) != (cp.State == index.Good) {
					t.Fatalf("%s: checkpoint %d is %s, and reads %v", what, n, cp.State, err)
				}
			}
			ok(t, w.store.Close())
		}
	}
	same := func() *index.Memory { return clone(endList) }
	f("nothing", func(*faultdisk.Disk) (*index.Memory, error) { return same(), nil })
	f("no index", func(d *faultdisk.Disk) (*index.Memory, error) { return same(), writeDir(d, dir, nil) })
	f("no catalogue", func(*faultdisk.Disk) (*index.Memory, error) { return new(index.Memory), nil })
	f("neither", func(d *faultdisk.Disk) (*index.Memory, error) { return new(index.Memory), writeDir(d, dir, nil) })
	f("older index", func(d *faultdisk.Disk) (*index.Memory, error) { return same(), writeDir(d, dir, readDir(half, dir)) })
	f("older catalogue", func(*faultdisk.Disk) (*index.Memory, error) { return clone(halfList), nil })
	f("both older", func(d *faultdisk.Disk) (*index.Memory, error) {
		return clone(halfList), writeDir(d, dir, readDir(half, dir))
	})
	other, err := otherLog(t)
	ok(t, err)
	f("of another log", func(d *faultdisk.Disk) (*index.Memory, error) { return same(), writeDir(d, dir, readDir(other, dir)) })
	files := readDir(end, dir)
	if len(files) < 3 {
		t.Fatalf("the index has %d files, the test has lost its reach", len(files))
	}
	for name, p := range files {
		for off := int64(0); off < int64(len(p)); off += int64(127 * stride(25)) {
			f(fmt.Sprintf("%s damaged at %d", name, off), func(d *faultdisk.Disk) (*index.Memory, error) {
				return same(), d.Rot(path.Join(dir, name), off, 1)
			})
		}
	}
	for name := range files {
		f(name+" gone", func(d *faultdisk.Disk) (*index.Memory, error) { return same(), d.Remove(path.Join(dir, name)) })
	}
}

// otherLog is a store of the same group with other records.
func otherLog(t *testing.T) (*faultdisk.Disk, error) {
	s := newSource(62)
	s.script()
	for range 6 {
		s.write(5)
		s.checkpoint()
	}
	disk := faultdisk.New(512)
	w, err := openWith(small(disk))
	if err != nil {
		return nil, err
	}
	ok(t, w.feed(s, 1))
	return disk, w.store.Close()
}

// A log that was put back as it was long ago, with the index and the catalogue of now:
// they are ahead of it, and stay of another log when it has grown past them.
func TestLogOlderThanItsCaches(t *testing.T) {
	s, half, end, _, endList := scarred(t)
	dir := path.Join("/store", groupsName, testGroup.String(), indexName)
	for _, grown := range []bool{false, true} {
		d := half.Kill()
		other := newSource(63)
		other.records, other.images = slices.Clone(s.records[:len(s.records)/2+1]), maps.Clone(s.images)
		last := other.records[len(other.records)-1]
		other.id, other.cut, other.ticket, other.clock = last.Identity, s.cut, s.ticket, s.clock
		for n := range other.images {
			delete(other.images, n)
		}
		if grown { // by other records than those that the caches know
			w, err := openWith(small(d))
			ok(t, err)
			other.newLife()
			other.open(false)
			other.read()
			other.read()
			other.close()
			for range 9 {
				other.write(5)
				other.checkpoint()
			}
			ok(t, w.feed(other, 1))
			ok(t, w.store.Close())
		}
		before, err := openWith(small(d.Kill()))
		ok(t, err)
		want, err := before.tells()
		ok(t, err)
		ok(t, before.store.Close())
		ok(t, writeDir(d, dir, readDir(end, dir)))
		cfg := small(d)
		kept := clone(endList)
		cfg.OpenCatalogue = func() (index.Map, error) { return kept, nil }
		w, err := openWith(cfg)
		ok(t, err)
		got, err := w.tells()
		if err != nil || got != want {
			t.Errorf("grown %v: it tells %v\n%s\nwant\n%s", grown, err, got, want)
		}
		for n, image := range other.images {
			ok(t, w.compare(n, image))
		}
		ok(t, w.store.Close())
	}
}
