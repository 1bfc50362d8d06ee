package datapath

import (
	"math"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/spill"
)

// look is what is seen of a link at a moment: what was acknowledged or has arrived in all, and
// after how many reports.
type look struct {
	at      time.Duration
	payload int64
	reports uint64
	idle    bool
}

// TestCarriedGoesByReports: what arrives is judged from report to report, however many
// acknowledgements come or do not come between them.
func TestCarriedGoesByReports(t *testing.T) {
	f := func(name string, want float64, looks ...look) {
		t.Helper()
		var c carried
		began := time.Unix(1000, 0)
		for _, l := range looks {
			c.look(began.Add(l.at), l.payload, l.reports, !l.idle)
		}
		if got := c.rate.Rate(); math.Abs(got-want) > want/10 {
			t.Errorf("%s: %.0f bytes a second arrive, want about %.0f", name, got, want)
		}
	}
	const s = time.Second
	f("nothing is concluded between reports", 100,
		look{0, 5000, 1, false}, look{s, 5100, 2, false}, look{3 * s / 2, 5100, 2, false}, look{2 * s, 5200, 3, false}, look{29 * s / 10, 5200, 3, false})
	f("an acknowledgement is no report", 100,
		look{0, 0, 1, false}, look{s / 2, 400, 1, false}, look{4 * s, 400, 2, false})
	f("silence is: nothing arrives", 16.5,
		look{0, 0, 1, false}, look{s, 100, 2, false}, look{4 * s, 100, 2, false})
	f("idle time says nothing", 100,
		look{0, 0, 1, false}, look{s, 100, 2, false}, look{60 * s, 100, 60, true}, look{61 * s, 200, 61, false})
	f("a line that was lost takes nothing back", 50,
		look{0, 0, 1, false}, look{s, 100, 2, false}, look{2 * s, 60, 3, false})
	f("who never reports is judged by acknowledgements", 100,
		look{0, 0, 0, false}, look{s / 2, 0, 0, false}, look{s, 100, 0, false})

	var c carried
	c.look(time.Unix(1, 0), 1<<40, 1, true)
	if c.reset(); c.rate.Rate() != 0 || c.seen != 0 {
		t.Errorf("after another link came, %v is known", c)
	}
}

func TestArrivedIsOfTheWindow(t *testing.T) {
	f := func(bytes, raw, sent, transit, want int64) {
		t.Helper()
		if got := arrivedOf(spill.Stats{Bytes: bytes, Raw: raw}, sent, transit); got != want {
			t.Errorf("of %d bytes, %d of payload, %d sent and %d of them in transit: %d arrived, want %d", bytes, raw, sent, transit, got, want)
		}
	}
	f(1000, 2000, 600, 100, 1000)
	f(1000, 2000, 600, 0, 1200)
	f(1000, 2000, 600, 700, 0) // of another group's
	f(1000, 2000, 1100, 50, 2000)
	f(0, 0, 0, 0, 0)
	f(0, 0, 10, 0, 0)
}
