package vhostuser

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// TestLongRequests: what is longer than a buffer is read in pieces, which come where they belong.
func TestLongRequests(t *testing.T) {
	for _, scatter := range []int{0, 100 * 512} {
		d := memdisk.NewSpy(8 * mib)
		g := newGuest(t, guest.Options{Slots: 2, SlotBytes: 4 * mib, Scatter: scatter})
		connect(t, g, serve(t, d))
		want := noise(3*mib+512, 9)
		if err := g.Write(0, want, mib-512); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := g.Read(0, got, mib-512); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("pieces of %d: what was read is not what was written", scatter)
		}
	}
}

// TestLongWritesTakeTurns: the buffers of few long writes are there at a time; short ones go on.
func TestLongWritesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memdisk.NewSpy(8 * mib)
		q := &running{dev: d, big: make(chan struct{}, maxBigWrites)}
		for range maxBigWrites {
			q.big <- struct{}{}
		}
		write := func(n int64) {
			r := request{kind: blkWrite, n: n, out: [][]byte{make([]byte, n)}}
			if err := q.do(&task{request: r}); err != nil {
				t.Error(err)
			}
		}
		go write(pooledBytes + 512)
		synctest.Wait()
		write(pooledBytes)
		if calls := d.Taken(); len(calls) != 1 {
			t.Errorf("beside %d long writes came %q", maxBigWrites, calls)
		}
		<-q.big
		synctest.Wait()
		if calls := d.Taken(); len(calls) != 1 || len(q.big) != maxBigWrites-1 {
			t.Errorf("behind a long write came %q; %d under way", calls, len(q.big))
		}
	})
}

// TestMemoryThatIsVast: a table that would leave this process no addresses is refused, as one in
// flight is that lies askew.
func TestMemoryThatIsVast(t *testing.T) {
	for bytes, fits := range map[uint64]bool{1 << 40: true, 4 << 40: true, 4<<40 + 4096: false, 1 << 46: false, 1 << 47: false} {
		m := message{body: words(2, 0, bytes, 0, 0, 1<<50, bytes, 1<<50, 0), fds: []int{-1, -1}}
		if _, err := m.regions(); (err == nil) != fits || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("twice %d bytes: %v", bytes, err)
		}
	}
	for _, offset := range []uint64{1, 4, 8} {
		if _, err := openFlightFile(inflightInfo{1 << 12, offset, 1, 4}, -1); !errors.Is(err, ErrProtocol) {
			t.Errorf("table in flight at byte %d: %v", offset, err)
		}
	}
}
