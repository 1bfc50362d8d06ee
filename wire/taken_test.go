package wire

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

// TestInTransit: what was given to the connections and has not arrived, as the last report says.
func TestInTransit(t *testing.T) {
	s := &Session{}
	for number, sent := range []uint64{100, 50} {
		l := newLine(&link{socket: &socket{}}, uint32(number))
		l.sent.Store(sent)
		s.lines.up = append(s.lines.up, l)
	}
	f := func(want int64, wantReports uint64) {
		t.Helper()
		if n, reports := s.InTransit(); n != want || reports != wantReports {
			t.Errorf("%d bytes are in transit after %d reports, want %d after %d", n, reports, want, wantReports)
		}
	}
	f(150, 0)
	report := func(lines ...takenLine) {
		t.Helper()
		if err := s.heardTaken(taken{lines}); err != nil {
			t.Fatal(err)
		}
	}
	report(takenLine{number: 0, taken: 60}, takenLine{number: 1, taken: 50})
	f(40, 1)
	s.lines.up[1].sent.Add(25)
	f(65, 1)
	report(takenLine{number: 0, taken: 100}, takenLine{number: 1, taken: 60})
	f(15, 2)
	s.lines.up = s.lines.up[:1] // the other was cut: what it had is not in transit any more
	f(0, 2)
	if err := s.heardTaken(taken{[]takenLine{{number: 0, taken: 101}}}); err == nil {
		t.Error("more arrived than was sent")
	}
}

// TestMissedLastConnectionEndsAtOnce: a source whose last connection the target does not have
// ends the session in the moment in which it hears of it, and waits for nothing.
func TestMissedLastConnectionEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, new(faultlink.Net), nil)
		defer w.stop()
		h := newHandler(t)
		defer w.connect(h, func(c *ClientConfig) { c.Connections = 1 })()
		s, heard := <-h.opened, time.Now()
		synctest.Wait() // the reader, whose place this takes, has nothing to read
		for range missedReports {
			if err := s.heardTaken(taken{}); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(heard); s.Context().Err() == nil || took > 0 {
			t.Errorf("after %v the session has not ended, or waited", took)
		}
	})
}
