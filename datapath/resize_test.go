package datapath

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
)

// grow makes the file of a disk larger, with content in what is new that no guest wrote.
func (w *world) grow(volume string, bytes int64) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, volume+".img"), os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 5000)
	fill(rand.New(rand.NewPCG(uint64(bytes), 1)), p)
	if _, err := f.WriteAt(p, bytes-int64(len(p))); err != nil {
		w.t.Fatal(err)
	}
}

// TestDiskGrows makes a disk larger under load: the source is told of it, is dead meanwhile, or the filter is. A
// checkpoint has the size that its disk had.
func TestDiskGrows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.volumes, w.activity = []string{"vol1", "vol2"}, ".activity" })
	w.start()
	w.awaitState(api.StateProtected)
	type held struct {
		id   string
		want map[string][]byte
	}
	var all []held
	verify := func(tag string, bytes int64) {
		t.Helper()
		w.awaitState(api.StateProtected)
		h := held{want: map[string][]byte{"vol1": w.image("vol1"), "vol2": w.image("vol2")}}
		h.id = w.checkpoint(tag)
		if n := int64(len(h.want["vol1"])); n != bytes {
			t.Fatalf("%s: the disk has %d bytes, want %d", tag, n, bytes)
		}
		all = append(all, h)
		for _, h := range all {
			w.compare(h.id, h.want)
		}
		w.await("the size to be told", func() bool { return w.status().Volumes[0].Bytes == bytes })
	}
	verify("as it was", w.size)

	const odd = 3 * 512
	size := w.size + 4<<20 + odd
	g := w.write(w.size, time.Millisecond)
	w.grow("vol1", size)
	if grown, err := w.f.Grow(func(string) {}); err != nil || !slices.Equal(grown, []string{"vol1"}) {
		t.Fatalf("grown: %v, %v", grown, err)
	}
	if grown, err := w.f.Grow(func(string) {}); err != nil || len(grown) > 0 {
		t.Errorf("grown again: %v, %v", grown, err)
	}
	more := &guest{t: t, stop: make(chan struct{})}
	more.wg.Go(func() { more.run(w.f.Device("vol1"), rand.New(rand.NewPCG(8, 5)), size, slower*time.Millisecond) })
	w.checkpoint("under load")
	g.endPrompt()
	more.end()
	verify("grown", size)
	if n := w.s.flows[0].count.refusals.Load(); n > 0 {
		t.Errorf("the target refused %d times what it should have been told the size for", n)
	}

	w.killSource()
	size += 3 << 20
	w.grow("vol1", size)
	if _, err := w.f.Grow(func(string) {}); err != nil {
		t.Fatal(err)
	}
	g = w.write(w.size, time.Millisecond)
	w.await("some writes", func() bool { return g.count() > 50 })
	w.startSource()
	w.checkpoint("the source is back")
	g.end()
	verify("grown without a source", size)

	w.filter.end(t)
	size += 1 << 20
	w.grow("vol1", size)
	w.startFilter()
	w.await("the size to be told", func() bool { return w.status().Volumes[0].Bytes == size })
	verify("grown without a filter", size)

	w.killSource()
	w.stopTarget()
	w.startTarget()
	w.startSource()
	verify("everything again", size)
}
