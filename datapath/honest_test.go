package datapath

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// put writes n bytes of a volume, in writes of 64 KiB.
func (w *world) put(volume string, off, n int64) {
	w.t.Helper()
	d, rng := w.f.Device(volume), rand.New(rand.NewPCG(uint64(off), 9))
	for end := off + n; off < end; off += 64 << 10 {
		wr, err := d.BeginWrite(off, int(min(64<<10, end-off)))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range wr.Buffers() {
			fill(rng, p)
		}
		if err := wr.Commit(false); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestBehindIsNeverTooLittle restarts the source while the link is down: what it had not
// sent is lost with it, and what is written since goes nowhere. bytes_behind is unknown or
// no less than all of that, whenever it is asked.
func TestBehindIsNeverTooLittle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size, w.pool = 16<<20, 4<<20 })
	w.start()
	w.awaitState(api.StateProtected)
	w.await("everything sent", func() bool { b := w.status().BytesBehind; return b != nil && *b == 0 })
	w.link.Down()
	w.awaitState(api.StateDisconnected)

	written := int64(0)
	behind := func() (known bool) {
		t.Helper()
		b := w.status().BytesBehind
		if b != nil && *b < written {
			t.Fatalf("%d bytes are behind, says the status, and %d were written: %v", *b, written, w.status())
		}
		return b != nil
	}
	write := func(n int64) {
		t.Helper()
		for end := written + n; written < end; written += 1 << 20 {
			w.put("vol1", written, 1<<20)
			behind()
		}
	}
	write(6 << 20)
	w.killSource()
	captured := written
	w.put("vol1", written, 2<<20) // nobody is there to capture it
	written += 2 << 20
	w.startSource()
	for !behind() { // until it is known again, it says so
		w.await("a word of the filters", behind)
	}
	if b := *w.status().BytesBehind; b < written || b > w.size+w.pool {
		t.Errorf("%d bytes are behind after %d and %d", b, captured, written-captured)
	}
	write(8 << 20) // more than the pool holds
	if s := w.status(); s.State != api.StateDisconnected || s.EtaSeconds != nil || s.LagSeconds != nil {
		t.Errorf("disconnected, the source says %v", s)
	}
	w.link.Up()
	w.awaitState(api.StateProtected)
	w.await("everything sent", func() bool { b := w.status().BytesBehind; return b != nil && *b == 0 })
	w.verify("after")
}

// TestLagOfAResync: what was read again and is on its way counts in the lag, until the target has
// it: nothing is written meanwhile, so that all that is behind is older than the cut.
func TestLagOfAResync(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 16 << 20 })
	w.start()
	w.awaitState(api.StateProtected)
	w.link.Down()
	w.awaitState(api.StateDisconnected)
	w.put("vol1", 0, 6<<20)
	written := time.Now()
	w.killSource()
	if err := w.link.SetRate(16 << 20); err != nil {
		t.Fatal(err)
	}
	w.link.Up()
	w.startSource()
	var lag, least float64 // seconds, of the status before
	seen := 0
	w.await("everything sent", func() bool {
		before := time.Since(written).Seconds()
		g := w.status()
		if b := g.BytesBehind; b == nil || *b == 0 {
			return b != nil && g.State == api.StateProtected
		}
		if seen > 0 && lag < least { // what is behind now was so then
			t.Fatalf("the lag was %f s with writes behind that are %f s old: %v", lag, least, g)
		}
		if lag, least = before, before; g.LagSeconds != nil { // else it says that it does not know
			lag = *g.LagSeconds
		}
		seen++
		return false
	})
	if seen < 2 {
		t.Errorf("the source was behind at %d looks", seen)
	}
}

// TestProgressIsTrue follows an initial sync over a slow link: the total stays, what is
// done rises to it, and neither that nor the rate is more than the link can have carried.
func TestProgressIsTrue(t *testing.T) {
	t.Parallel()
	const (
		link   = 6 << 20 / 8 // bytes a second
		shrink = 2.5         // more than fill compresses by
	)
	w := newWorld(t, nil)
	w.startFilter()
	w.startTarget()
	if err := w.link.SetRate(8 * link); err != nil {
		t.Fatal(err)
	}
	w.startSource()
	holes := int64(bytes.Count(w.image("vol1"), make([]byte, 64<<10))) * 64 << 10
	var guesses guesses
	last, before, began := int64(0), time.Now(), time.Time{}
	w.await("the end", func() bool {
		asked := time.Now()
		g := w.status()
		s := g.Sync
		if s == nil || s.TotalBytes == 0 {
			if g.State == api.StateDisconnected { // else records may flow before a sync is told
				before = asked
			}
			return g.State == api.StateProtected
		}
		if began.IsZero() {
			began = before // it began since
		}
		carried, _ := w.link.Carried()
		const underWay = 1 << 20 // what is being read is neither dirty nor read
		if s.TotalBytes > w.size || s.TotalBytes < w.size-underWay || s.DoneBytes < last || float64(s.DoneBytes-holes) > shrink*float64(carried) || s.BytesPerSecond > shrink*link*1.2 {
			t.Fatalf("%d bytes were done before, %d were carried: %v", last, carried, s)
		}
		last = s.DoneBytes
		guesses.add(g)
		return false
	})
	if last < w.size*3/4 || len(guesses) == 0 { // the last ack and the checkpoint may come together
		t.Errorf("done came to %d of %d, with %d guesses of the time left", last, w.size, len(guesses))
	}
	carried, _ := w.link.Carried()
	guesses.check(t, began, float64(carried)/link)
}

// TestBacklogIsToldTrue: after a link was down, the time left is that of the link as it
// is now, and is not told before that is known.
func TestBacklogIsToldTrue(t *testing.T) {
	t.Parallel()
	for _, connections := range []int{1, 3} {
		t.Run(fmt.Sprintf("connections=%d", connections), func(t *testing.T) {
			t.Parallel()
			backlogIsToldTrue(t, connections)
		})
	}
}

func backlogIsToldTrue(t *testing.T, connections int) {
	w := newWorld(t, func(w *world) { w.connections = connections })
	w.start()
	w.awaitState(api.StateProtected)
	g := w.write(1<<20, 10*time.Millisecond) // a quiet guest: what flows is not what could
	w.checkpoint("before")
	g.end()
	w.link.Down()
	w.awaitState(api.StateDisconnected)
	for off := int64(0); off < 6<<20; off += 1 << 20 {
		w.put("vol1", off, 1<<20)
		w.await("room in the pool", func() bool { s := w.s.flows[0].tap.Stats(); return s.Free == s.Slots })
	}
	if err := w.link.SetRate(8 << 20); err != nil {
		t.Fatal(err)
	}
	w.link.Up()
	w.awaitState(api.StateProtected, api.StateBehind)
	began := time.Now()
	already, _ := w.link.Carried()
	var guesses guesses
	w.await("the end", func() bool {
		s := w.status()
		if s.BytesBehind != nil && *s.BytesBehind == 0 {
			return true
		}
		guesses.add(s)
		return false
	})
	carried, _ := w.link.Carried()
	guesses.check(t, began, float64(carried-already)/(1<<20))
	if len(guesses) == 0 {
		t.Error("no time left was told")
	}
}

// guesses are times left, as a status told them.
type guesses []struct {
	at   time.Time
	left float64
}

func (gs *guesses) add(g *holdfastv1.Group) {
	if g.EtaSeconds != nil && *g.BytesBehind > 0 {
		*gs = append(*gs, struct {
			at   time.Time
			left float64
		}{time.Now(), *g.EtaSeconds})
	}
}

// check holds them against what it took from then until now. A machine so busy that the link
// stood idle for a fourth of the time makes any of them wrong: needed is how many seconds the
// link takes for what it carried.
func (gs guesses) check(t *testing.T, began time.Time, needed float64) {
	t.Helper()
	if took := time.Since(began).Seconds(); took > needed/0.75+1 {
		t.Logf("the link was in use for %.1f of %.1f s: the machine is too busy to judge times by", needed, took)
		return
	}
	for _, g := range gs {
		took := time.Since(g.at).Seconds()
		if g.left > 2*took+3 || took > 2*g.left+3 {
			t.Errorf("after %s, %.1f s were left, it said, and it took %.1f s", g.at.Sub(began), g.left, took)
		}
		if g.at.Sub(began) < time.Second {
			t.Errorf("a time left of %.1f s was told after %s", g.left, g.at.Sub(began))
		}
	}
}
