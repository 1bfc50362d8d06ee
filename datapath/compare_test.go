package datapath

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// hostCrash ends source and filter and takes away all that does not outlive a host.
func (w *world) hostCrash() {
	w.t.Helper()
	w.killSource()
	w.filter.end(w.t)
	w.filter = nil
	if err := os.RemoveAll(w.dir + "/run"); err != nil {
		w.t.Fatal(err)
	}
}

// writePast changes so many 4 KiB blocks of the volume's disk, which no filter serves, to data.
func (w *world) writePast(volume string, blocks int, rng *rand.Rand) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, volume+".img"), os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 4096)
	for _, b := range rng.Perm(int(w.size / 4096))[:blocks] {
		fill(rng, p)
		if _, err := f.WriteAt(p, int64(b)*4096); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestHostCrash changes a disk while nothing knows what was changed: what differs is sent,
// block by block, and the bytes on the wire are held to twice that and 16 bytes for each block.
func TestHostCrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.volumes, w.size = []string{"vol1", "vol2"}, 34<<20+64<<10 })
	w.start()
	w.awaitState(api.StateProtected)
	rng := rand.New(rand.NewPCG(4, 4))
	for _, blocks := range []int{0, 1, 150} {
		w.hostCrash()
		w.writePast("vol1", blocks, rng)
		w.startFilter()
		w.startSource()
		w.awaitState(api.StateProtected)
		f, c := w.s.flows[0], &w.s.peers[0].counters
		wire := c.DataSent.Load() + c.DataReceived.Load() + c.ControlSent.Load() + c.ControlReceived.Load()
		// A read that a filter is too slow to publish, on a machine that stands still, is dropped: then it is known well what is dirty, and that is sent.
		revoked := uint64(f.tap.Stats().Revoked)
		dropped := revoked * (128 << 10) // of data; a hole may be all of a region
		changed, compared, differ, sent := uint64(blocks*4096), f.count.compared.Load(), f.count.differ.Load(), f.count.raw.Load()
		if all := uint64(w.size * 2); compared > all || compared+revoked*delta.RegionBytes < all || differ > changed || differ+dropped < changed || sent < changed || sent > changed+dropped {
			t.Errorf("%d bytes compared of %d, %d found to differ and %d sent of %d, %d reads were dropped", compared, all, differ, sent, changed, revoked)
		}
		if most := 2*(changed+dropped) + compared/4096*16; wire > most {
			t.Errorf("%d bytes on the wire for %d changed, at most %d", wire, changed, most)
		}
		w.verify("after")
	}
}

// TestNothingIsTheSame rewrites a disk: regions are tried ever more seldom, and nothing is sent twice.
func TestNothingIsTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 12 * delta.RegionBytes }) // after eight that differ every other one is tried
	w.start()
	w.awaitState(api.StateProtected)
	w.hostCrash()
	w.writePast("vol1", int(w.size/4096), rand.New(rand.NewPCG(4, 4)))
	w.startFilter()
	w.startSource()
	w.awaitState(api.StateProtected)
	f := w.s.flows[0]
	if n := f.count.compared.Load(); n == 0 || n > uint64(w.size)*10/12 || f.count.raw.Load() != uint64(w.size) {
		t.Errorf("%d bytes compared and %d sent of %d", n, f.count.raw.Load(), w.size)
	}
	w.verify("after")
}

// TestCompareUnderFaults compares, again and again, beside guests that write, while the source is
// killed and the link cut at any moment.
func TestCompareUnderFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) {
		w.size, w.pool = 5*delta.RegionBytes, 8<<20
		if testing.Short() {
			w.size = 3 * delta.RegionBytes
		}
	})
	w.start()
	w.awaitState(api.StateProtected)
	rng := rand.New(rand.NewPCG(9, 9))
	for range times(5) {
		w.hostCrash()
		w.writePast("vol1", 300, rng)
		w.startFilter()
		w.startSource()
		g := w.write(w.size, 3*time.Millisecond)
		for range rng.IntN(4) {
			n := w.s.flows[0].count.compared.Load()
			w.await("something compared, or all in sync", func() bool {
				return w.s.flows[0].count.compared.Load() > n || w.status().State == api.StateProtected
			})
			if rng.IntN(2) == 0 {
				w.killSource()
				w.startSource()
			} else {
				w.link.Down()
				w.link.Up()
			}
		}
		w.awaitState(api.StateProtected)
		g.endPrompt()
		w.verify("after")
	}
}

// TestComparedStaysMarked: what feed has taken and nobody has decided is not called durable, however
// much is acknowledged after it.
func TestComparedStaysMarked(t *testing.T) {
	c := newComparison(1, 5, false)
	if !c.starts() || !c.begin(delta.Key{Volume: 1}, delta.RegionBytes, 100) || !c.begin(delta.Key{Volume: 1, Number: 1}, 2*delta.RegionBytes, 120) {
		t.Fatal("nothing begins")
	}
	f := func(asked, want record.Ticket) {
		t.Helper()
		if got := c.durable(asked); got != want {
			t.Errorf("up to %d: %d is durable, want %d", asked, got, want)
		}
	}
	f(90, 90)
	f(200, 100)
	c.settled(delta.Key{Volume: 1})
	f(200, 120)
	c.settled(delta.Key{Volume: 1, Number: 1})
	f(200, 200)
}

// TestCarriedIsNotCompared: of a sync read goes on what a record carries since the resync
// opened, and what is no whole block.
func TestCarriedIsNotCompared(t *testing.T) {
	const size = 40960 + 100
	c := newComparison(1, 5, false)
	c.starts()
	c.begin(delta.Key{Volume: 1}, size, 1)
	c.carries(1, 8192+512, 512)
	c.carries(2, 0, 40960)
	p := bytes.Repeat([]byte("data"), size/4+1)[:size]
	f := func(w capture.Write, want ...delta.Range) {
		t.Helper()
		got := c.take(&w, size)
		if len(got) != len(want) {
			t.Fatalf("of %d bytes at %d %v go on, want %v", w.Len, w.Off, got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("of %d bytes at %d %v go on, want %v", w.Len, w.Off, got, want)
			}
		}
	}
	f(capture.Write{Volume: 1, Kind: capture.SyncData, Len: 16384, Data: [][]byte{p[:5000], p[5000:16384]}}, delta.Range{Off: 8192, Len: 4096})
	f(capture.Write{Volume: 1, Kind: capture.SyncData, Off: 16384 + 512, Len: 8192, Data: [][]byte{p[:8192]}},
		delta.Range{Off: 16896, Len: 3584}, delta.Range{Off: 24576, Len: 512})
	f(capture.Write{Volume: 1, Kind: capture.SyncZero, Off: 32768, Len: size - 32768})
	c.read(delta.Key{Volume: 1})
	f(capture.Write{Volume: 1, Kind: capture.SyncZero, Off: 28672, Len: 4096}, delta.Range{Off: 28672, Len: 4096}) // it came too late
	var differ []delta.Range
	c.mu.pass.GiveUp()
	if d, ok := c.mu.pass.Found(); ok {
		differ = d.Differ
	}
	want := []delta.Range{{Off: 0, Len: 8192}, {Off: 12288, Len: 4096}, {Off: 20480, Len: 4096}, {Off: 32768, Len: 12288}}
	if len(differ) != len(want) {
		t.Fatalf("compared are %v, want %v", differ, want)
	}
	for i := range want {
		if differ[i] != want[i] {
			t.Errorf("compared are %v, want %v", differ, want)
		}
	}
}
