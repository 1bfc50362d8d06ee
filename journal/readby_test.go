package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// looped reads a device by a loop, as the lane of a front does.
type looped struct {
	d     *view.Device
	loop  *ioengine.Loop
	begun int
}

// newLooped makes the loop of the calling goroutine. The test is skipped where there is none.
func newLooped(t *testing.T, d *view.Device) *looped {
	t.Helper()
	loop, err := d.Loop(16)
	if errors.Is(err, ioengine.ErrNoLoop) && ioengine.Engine(ioengine.OS()) != "io_uring" {
		t.Skip("this system offers no io_uring: ", err)
	}
	ok(t, err)
	return &looped{d: d, loop: loop}
}

// loopRead is what one read asks for.
type loopRead struct {
	off int64
	p   []byte
	err error
}

// read reads all at once, and waits until they have ended.
func (l *looped) read(all []*loopRead) error {
	ended := make(chan *loopRead, len(all))
	under := 0
	for _, s := range all {
		if l.d.ReadBy(l.loop, s.p, s.off, func(err error) {
			s.err = err
			ended <- s
			l.loop.Wake()
		}) {
			l.begun++
			under++
		} else {
			s.err = l.d.ReadAt(s.p, s.off)
		}
	}
	for under > 0 {
		select {
		case <-ended:
			under--
			continue
		default:
		}
		if err := l.loop.Wait(); err != nil {
			return err
		}
		if _, err := l.loop.Step(); err != nil {
			return err
		}
	}
	return nil
}

// holds compares reads at random places with an image, many at once. An error of one is returned, and is no difference.
func (l *looped) holds(image []byte, seed int) (failed, err error) {
	rng := seeded(seed)
	for range 40 {
		var all []*loopRead
		for range 1 + rng.IntN(16) {
			n := 4096 * (1 + rng.IntN(3))
			s := &loopRead{off: 4096 * rng.Int64N(int64((len(image)-n)/4096+1)), p: make([]byte, n)}
			if rng.IntN(4) == 0 { // of any alignment
				s.off += rng.Int64N(int64(len(image)-n)-s.off+1) % 4096
			}
			all = append(all, s)
		}
		if err := l.read(all); err != nil {
			return failed, err
		}
		for _, s := range all {
			if s.err != nil {
				failed = s.err
			} else if want := image[s.off:][:len(s.p)]; !bytes.Equal(s.p, want) {
				return failed, fmt.Errorf("%d bytes at %d: %w at %d", len(s.p), s.off, errDiffers, firstDifference(s.p, want))
			}
		}
	}
	return failed, nil
}

// What is read by a loop is what ReadAt gives, from the log, the replica and scratch; what is damaged is an error.
func TestReadBy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := newSource(11)
	s.script()
	w, err := openWith(machineConfig(dir))
	ok(t, err)
	for _, r := range s.records {
		ok(t, w.group.admitFor(r))
		ok(t, w.send([]record.Record{r}, 1))
	}
	numbers := w.numbers()
	read := func(number uint64, change func(*view.View, map[record.VolumeID][]byte)) (begun int, failed error) {
		t.Helper()
		v, err := w.group.OpenView(number, scratchOptions(0))
		ok(t, err)
		defer func() { ok(t, v.Close()) }()
		images := map[record.VolumeID][]byte{}
		for id, image := range s.images[number] {
			images[id] = bytes.Clone(image)
		}
		change(v, images)
		for id, image := range images {
			d, _ := v.Device(id)
			l := newLooped(t, d)
			f, err := l.holds(image, int(id))
			l.loop.Close()
			if err != nil {
				t.Errorf("checkpoint %d: volume %d: %v", number, id, err)
			}
			if f != nil {
				failed = f
			}
			begun += l.begun
		}
		return begun, failed
	}
	same := func(*view.View, map[record.VolumeID][]byte) {}
	good := func(what string, number uint64, change func(*view.View, map[record.VolumeID][]byte)) {
		t.Helper()
		if begun, failed := read(number, change); failed != nil || begun == 0 {
			t.Errorf("%s: %d reads by the loop, %v", what, begun, failed)
		}
	}
	last := numbers[len(numbers)-1]
	good("log", last, same)
	good("scratch", last, func(v *view.View, images map[record.VolumeID][]byte) { ok(t, scribble(v, images, 1)) })
	ok(t, w.group.promote(numbers[len(numbers)-2], noPace))
	good("replica", last, same)
	good("replica alone", numbers[len(numbers)-2], func(v *view.View, _ map[record.VolumeID][]byte) { v.Rebase() })

	if _, failed := read(last, func(v *view.View, images map[record.VolumeID][]byte) {
		ok(t, scribble(v, images, 2))
		harm(t, dir, "*.data")
	}); !errors.Is(failed, view.ErrCorrupt) {
		t.Errorf("scratch that is damaged: %v", failed)
	}
	harm(t, dir, "*.raw")
	harm(t, dir, "*.seg")
	if _, failed := read(last, same); failed == nil {
		t.Error("log and replica are damaged, and nothing of it is found")
	}
	w.store.Close() // may fail, as what it closes is damaged
}

// harm flips bits all over the files of that name.
func harm(t *testing.T, dir, pattern string) {
	t.Helper()
	harmed := 0
	ok(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if found, _ := filepath.Match(pattern, filepath.Base(path)); err != nil || !found {
			return err
		}
		p, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for off := 4096 + 700; off < len(p); off += 2500 {
			p[off] ^= 0x40
		}
		harmed++
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(p, 0)
		return errors.Join(err, f.Close())
	}))
	if harmed == 0 {
		t.Fatalf("no file is called %s", pattern)
	}
}
