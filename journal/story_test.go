package journal

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestStory(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(1)
	s.script()
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 3))
	numbers, err := w.check(s)
	ok(t, err)
	if len(numbers) != len(s.images) {
		t.Fatalf("listed %v, want %d", numbers, len(s.images))
	}
	if _, ok := w.group.index.Sum(testStream, 1); ok {
		t.Error("the initial sync is in the log; it belongs into the replica")
	}
	ok(t, w.store.Close())
	w, err = openTarget(disk)
	ok(t, err)
	numbers, err = w.check(s)
	ok(t, err)
	if len(numbers) != len(s.images) {
		t.Fatalf("after opening again: listed %v, want %d", numbers, len(s.images))
	}
	ok(t, w.store.Close())
}

// What a source meets that comes late, twice, or with another history.
func TestRefused(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(2)
	s.script()
	w, err := openTarget(disk)
	ok(t, err)
	refused := func(what string, want error, r record.Record) {
		t.Helper()
		err := w.group.Append(r, func(error) { t.Errorf("%s: done was called", what) })
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	first := s.records[0]
	refused("nobody was admitted", ErrAdmit, first)
	if st, err := w.group.Admit(testStream, 1, 1); err != nil || st != (Standing{Epoch: 1, NeedOpen: true}) {
		t.Fatalf("standing of a new stream: %+v, %v", st, err)
	}
	refused("second record first", ErrGap, s.records[1])
	ok(t, w.send(s.records[:3], 1))
	refused("a gap", ErrGap, s.records[4])
	ok(t, w.send(s.records[:3], 3)) // again: no news

	other := newSource(99)
	other.open(true)
	other.write(2)
	refused("same identity, other bytes", ErrCorrupt, other.records[1])

	damaged := bytes.Clone(s.records[3].Bytes())
	damaged[len(damaged)-1] ^= 1
	r, err := record.Parse(damaged)
	ok(t, err)
	refused("damaged payload", ErrCorrupt, r)

	b := record.NewBatch(record.Limits{})
	b.Add(record.Piece{Volume: 1, Off: volumeBytes - 512, Len: 1024, Ticket: 99})
	r, err = record.Parse(b.Seal(nil, record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: 4}, 1, record.NewCompressor()))
	ok(t, err)
	refused("beyond the volume's end", ErrVolume, r)
	b.Reset()
	b.Add(record.Piece{Volume: 3, Len: 512, Ticket: 99})
	r, err = record.Parse(b.Seal(nil, record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: 4}, 1, record.NewCompressor()))
	ok(t, err)
	refused("unknown volume", ErrVolume, r)

	if _, err := w.store.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage + 1}); !errors.Is(err, ErrLineage) {
		t.Errorf("another lineage: %v", err)
	}
	st, err := w.group.Admit(testStream, 2, 2)
	if want := (Standing{Durable: 3, Epoch: 2, Incarnation: 1, NeedOpen: true}); err != nil || st != want {
		t.Errorf("standing %+v, %v; want %+v", st, err, want)
	}
	refused("the life before", ErrFenced, s.records[3])
	ok(t, w.store.Close())

	// All of it outlives the process.
	w, err = openTarget(disk.Crash(seeded(1), faultdisk.KeepNone))
	ok(t, err)
	for _, l := range []life{{1, 1}, {1, 9}, {2, 1}} {
		if _, err := w.group.Admit(testStream, l.epoch, l.inc); !errors.Is(err, ErrFenced) {
			t.Errorf("after a restart, %s: %v", l, err)
		}
	}
	st, err = w.group.Admit(testStream, 2, 2)
	if want := (Standing{Durable: 3, Epoch: 2, Incarnation: 1, NeedOpen: true}); err != nil || st != want {
		t.Errorf("after a restart, standing %+v, %v; want %+v", st, err, want)
	}
	ok(t, w.store.Close())
}

// A log that fails goes on in another segment, with the same records, and nobody
// hears of it; a source hears of a disk that is full, and goes on when it is not.
func TestFailedSyncAndFullDisk(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(4)
	s.script()
	w, err := openTarget(disk)
	ok(t, err)
	log := func(name string) bool { return strings.Contains(name, "/log/") }
	var failed error
	for i, r := range s.records {
		if i == 8 || i == 12 {
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Only: log, Err: syscall.EIO})
		}
		ok(t, w.group.admitFor(r))
		if i == 14 {
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Only: log, Err: syscall.ENOSPC, Ever: true})
			failed = w.send([]record.Record{r}, 1)
			if err := w.group.State().Err; failed == nil || err == nil {
				t.Fatalf("the disk is full: %v, state %v", failed, err)
			}
			disk.Heal()
		}
		ok(t, w.send([]record.Record{r}, 1))
	}
	ok(t, w.settle(life{1, 2}))
	if err := w.group.State().Err; err != nil {
		t.Errorf("all is well again, state %v", err)
	}
	if n := len(w.group.manifest.now().abandoned); n < 3 {
		t.Errorf("%d abandoned segments are stated, want 3", n)
	}
	numbers, err := w.check(s)
	if err != nil || len(numbers) != len(s.images) {
		t.Errorf("listed %v: %v", numbers, err)
	}
	ok(t, w.store.Close())
	ok(t, survives(s, disk.Crash(seeded(1), faultdisk.KeepNone), w.acked, numbers))
}

// admitFor lets the life of a record in.
func (g *Group) admitFor(r record.Record) error {
	_, err := g.Admit(r.Stream, r.Epoch, r.Incarnation)
	return err
}

// Damage anywhere in what was acknowledged is found, at open or when it is read; the
// checkpoint is then bad, now and after a restart, and the others are still good.
func TestDamageIsNeverBytes(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(6)
	s.script()
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 2))
	ok(t, w.store.Close())
	root := "/store/groups/" + testGroup.String()
	for _, dir := range []string{root, root + "/log", root + "/replica", "/store"} {
		names, err := disk.List(dir)
		ok(t, err)
		for _, name := range names {
			name = dir + "/" + name
			f, err := disk.Open(name, ioengine.ReadOnly)
			if err != nil {
				continue // a folder
			}
			size, err := f.Size()
			ok(t, err)
			ok(t, f.Close())
			if path.Base(name) == reserveName {
				size = 1 // it holds nothing, and a lot of it
			}
			for off := int64(0); off < size; off += int64(509 * stride(9)) {
				damaged := disk.Kill()
				ok(t, damaged.Rot(name, off, 1))
				ok(t, neverWrong(damaged, s, name, off))
			}
		}
	}
}

// neverWrong opens a damaged disk: what it gives is right, or an error.
func neverWrong(disk *faultdisk.Disk, s *source, name string, off int64) error {
	w, err := openTarget(disk)
	if err != nil {
		return nil // said openly
	}
	defer w.store.Close()
	bad, unlisted := 0, 0
	for n, image := range s.images {
		err := w.compare(n, image)
		if errors.Is(err, errDiffers) {
			return fmt.Errorf("%s damaged at %d: %w", name, off, err)
		}
		if errors.Is(err, ErrNotFound) { // its cut is lost, or lies beyond where the log can be followed
			if !isDamage(w.group.State().Damage) {
				return fmt.Errorf("%s damaged at %d: checkpoint %d is gone without a word", name, off, n)
			}
			unlisted++
			continue
		}
		if err != nil {
			bad++
			cp, err := w.group.Checkpoint(n)
			if err != nil || cp.State != index.Bad || cp.Reason == "" {
				return fmt.Errorf("%s damaged at %d: checkpoint %d cannot be read and is %q: %w", name, off, n, cp.State, err)
			}
		}
	}
	if cp, err := w.group.Latest(); err == nil && cp.State != index.Good {
		return fmt.Errorf("%s damaged at %d: latest is %d, which is bad", name, off, cp.Number)
	} else if err != nil && bad+unlisted < len(s.images) {
		return fmt.Errorf("%s damaged at %d: no latest, %d bad, %d not listed: %w", name, off, bad, unlisted, err)
	}
	if bad == 0 {
		return nil
	}
	if err := w.store.Close(); err != nil {
		return err
	}
	again, err := openTarget(disk)
	if err != nil {
		return nil
	}
	defer again.store.Close()
	cps, err := again.group.Checkpoints(0, 100)
	still := 0
	for _, cp := range cps {
		if cp.State == index.Bad {
			still++
		}
	}
	if still != bad || err != nil {
		return fmt.Errorf("%s damaged at %d: %d were bad, after a restart %d: %w", name, off, bad, still, err)
	}
	return nil
}

// The catalogue is a cache: deleted, or as it was long ago, it is put right.
func TestCatalogueIsRebuilt(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(7)
	s.script()
	cfg := config(disk)
	kept := new(index.Memory)
	cfg.OpenCatalogue = func() (index.Map, error) { return kept, nil }
	w, err := openWith(cfg)
	ok(t, err)
	half := s.records[:len(s.records)-4]
	for _, r := range half {
		ok(t, w.group.admitFor(r))
		ok(t, w.send([]record.Record{r}, 1))
	}
	ok(t, w.store.Close())
	old := new(index.Memory) // as a backup would have it, with a line nobody wrote
	ok(t, kept.Scan(nil, []byte{0xff}, func(k, v []byte) bool {
		ok(t, old.Update([]index.Pair{{Key: k, Value: v}}, nil))
		return true
	}))
	ok(t, index.NewCatalogue(old).Put(testGroup, Checkpoint{Number: 99, State: index.Good, Tag: "never"}))
	w, err = openWith(cfg)
	ok(t, err)
	ok(t, w.feed(s, 1))
	ok(t, w.store.Close())
	for name, m := range map[string]*index.Memory{"deleted": new(index.Memory), "rolled back": old} {
		cfg.OpenCatalogue = func() (index.Map, error) { return m, nil }
		w, err = openWith(cfg)
		ok(t, err)
		numbers, err := w.check(s)
		if err != nil || len(numbers) != len(s.images) {
			t.Errorf("%s: listed %v, %v", name, numbers, err)
		}
		infos, err := w.store.catalogue.Segments(testGroup)
		if err != nil || len(infos) != len(w.group.segments.Segments()) {
			t.Errorf("%s: segments %v, %v", name, infos, err)
		}
		ok(t, w.store.Close())
	}
}

// A folder that is not ours, of a newer release, or in use, is left alone.
func TestFormat(t *testing.T) {
	f := func(name, text string, want error) {
		t.Helper()
		disk := faultdisk.New(512)
		ok(t, disk.Mkdir("/store"))
		file, err := disk.Open("/store/"+name, ioengine.Create)
		ok(t, err)
		_, err = file.WriteAt([]byte(text), 0)
		ok(t, err)
		if _, err := Open(config(disk)); !errors.Is(err, want) {
			t.Errorf("%s %q: %v, want %v", name, text, err, want)
		}
	}
	f("format", "holdfast journal 2\n", ErrFormat)
	f("format", "", ErrFormat)
	f("photo.jpg", "", ErrFormat)
	f("format", formatText, ErrCorrupt) // and no watermarks

	disk := faultdisk.New(512)
	s, err := Open(config(disk))
	ok(t, err)
	if _, err := Open(config(disk)); err == nil {
		t.Error("opened twice")
	}
	ok(t, s.Close())
	s, err = Open(config(disk))
	ok(t, err)
	ok(t, s.Close())
}

// After Close nothing is taken, nothing hangs, and views have ended.
func TestClosed(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(8)
	s.script()
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 2))
	cp, err := w.group.Latest()
	ok(t, err)
	v, err := w.group.OpenView(cp.Number, ViewOptions{Options: view.Options{Scratch: true}})
	ok(t, err)
	d, _ := v.Device(1)
	ok(t, d.WriteAt(make([]byte, 9000), 100))
	ok(t, w.store.Close())
	if err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, view.ErrClosed) {
		t.Errorf("read of a view: %v", err)
	}
	if _, err := w.group.Admit(testStream, 1, 2); !errors.Is(err, ErrClosed) {
		t.Errorf("admit: %v", err)
	}
	if err := w.group.Append(s.records[0], nil); !errors.Is(err, ErrClosed) {
		t.Errorf("append: %v", err)
	}
	if _, err := w.store.OpenGroup(GroupInfo{ID: 9, Name: "other", Lineage: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("open group: %v", err)
	}
	if _, err := w.group.OpenView(cp.Number, ViewOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("open view: %v", err)
	}
	names, err := disk.List("/store/groups/" + testGroup.String() + "/scratch")
	if err != nil || len(names) != 0 {
		t.Errorf("scratch left: %v, %v", names, err)
	}
}

// A volume grows in the order of the writes; older checkpoints keep their size.
func TestResize(t *testing.T) {
	disk := faultdisk.New(512)
	s := newSource(9)
	s.script()
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 2))
	const larger = volumeBytes + 10000
	id, now := s.next()
	s.add(record.AppendResize(nil, id, now, s.ticket, record.VolumeSize{ID: 2, Bytes: larger}))
	b := record.NewBatch(record.Limits{})
	data := bytes.Repeat([]byte("new"), 100)
	s.ticket++
	b.Add(record.Piece{Volume: 2, Off: larger - 300, Len: 300, Ticket: s.ticket, Data: data})
	id, now = s.next()
	s.add(b.Seal(nil, id, now, record.NewCompressor()))
	id, now = s.next()
	s.add(record.AppendCut(nil, id, now, s.ticket, record.Cut{Checkpoint: 100, Wall: 1, Solo: true, Volumes: []record.VolumeSize{{ID: 1, Bytes: volumeBytes}, {ID: 2, Bytes: larger}}}))
	ok(t, w.feed(s, 3))
	ok(t, w.store.Close())
	w, err = openTarget(disk.Crash(seeded(1), faultdisk.KeepNone))
	ok(t, err)
	v, err := w.group.OpenView(100, ViewOptions{})
	ok(t, err)
	d, _ := v.Device(2)
	want := append(append(slices.Clone(s.volumes[2]), make([]byte, 10000-300)...), data...)
	got := make([]byte, d.Size())
	ok(t, d.ReadAt(got, 0))
	if !bytes.Equal(got, want) {
		t.Errorf("differs at %d of %d", firstDifference(got, want), larger)
	}
	for n, image := range s.images {
		ok(t, w.compare(n, image))
	}
	ok(t, w.store.Close())
}

// Two sources share a group: a checkpoint needs the cut and its confirm in both
// streams, and is found again by recovery.
func TestTwoSources(t *testing.T) {
	disk := faultdisk.New(512)
	w, err := openTarget(disk)
	ok(t, err)
	var ticket record.Ticket
	ids := map[record.StreamID]*record.Identity{}
	want := map[record.VolumeID][]byte{}
	for i, stream := range []record.StreamID{70, 71} {
		ids[stream] = &record.Identity{Stream: stream, Epoch: 1, Incarnation: 1}
		want[record.VolumeID(i+1)] = make([]byte, volumeBytes)
		_, err := w.group.Admit(stream, 1, 1)
		ok(t, err)
	}
	send := func(stream record.StreamID, seal func(record.Identity, record.Ticket) []byte) {
		t.Helper()
		ids[stream].Seq++
		ticket++
		r, err := record.Parse(seal(*ids[stream], ticket))
		ok(t, err)
		ok(t, w.send([]record.Record{r}, 1))
	}
	write := func(stream record.StreamID, vol record.VolumeID, off int64, b byte) {
		t.Helper()
		data := bytes.Repeat([]byte{b}, 5000)
		copy(want[vol][off:], data)
		send(stream, func(id record.Identity, ticket record.Ticket) []byte {
			batch := record.NewBatch(record.Limits{})
			batch.Add(record.Piece{Volume: vol, Off: off, Len: 5000, Ticket: ticket, Data: data})
			return batch.Seal(nil, id, 1, record.NewCompressor())
		})
	}
	cut := func(stream record.StreamID, number uint64, volume record.VolumeID) {
		t.Helper()
		send(stream, func(id record.Identity, ticket record.Ticket) []byte {
			return record.AppendCut(nil, id, 1, ticket, record.Cut{Checkpoint: number, Wall: 1, Volumes: []record.VolumeSize{{ID: volume, Bytes: volumeBytes}}})
		})
	}
	confirm := func(stream record.StreamID, number uint64) {
		t.Helper()
		send(stream, func(id record.Identity, ticket record.Ticket) []byte {
			return record.AppendConfirm(nil, id, 1, ticket, number)
		})
	}
	for i, stream := range []record.StreamID{70, 71} {
		send(stream, func(id record.Identity, ticket record.Ticket) []byte {
			return record.AppendResyncOpen(nil, id, 1, ticket, record.Resync{Initial: true})
		})
		write(stream, record.VolumeID(i+1), 512, byte(i+1))
		send(stream, func(id record.Identity, ticket record.Ticket) []byte {
			return record.AppendResyncClose(nil, id, 1, ticket, record.Resync{Initial: true})
		})
	}
	write(70, 1, 4000, 3)
	cut(70, 1, 1)
	image := map[record.VolumeID][]byte{1: bytes.Clone(want[1])}
	write(70, 1, 0, 4) // after the cut
	write(71, 2, 4000, 5)
	cut(71, 1, 2)
	image[2] = bytes.Clone(want[2])
	write(71, 2, 0, 6)
	confirm(70, 1)
	ok(t, w.settle(life{1, 1}))
	if n := w.group.State().Count; n != 0 {
		t.Fatalf("%d checkpoints are listed before the last confirm", n)
	}
	confirm(71, 1)
	ok(t, w.settle(life{1, 1}))
	ok(t, w.compare(1, image))
	ok(t, w.store.Close())
	w, err = openTarget(disk.Crash(seeded(1), faultdisk.KeepNone))
	ok(t, err)
	ok(t, w.compare(1, image))
	ok(t, w.store.Close())
}
