package shape

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"pgregory.net/rapid"
)

func TestWindowsByTheLocalClock(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Zurich")
	if err != nil {
		t.Fatal(err)
	}
	f := func(windows, at string, want Rate) {
		t.Helper()
		p := Policy{Cap: 1e6}
		for text := range strings.SplitSeq(windows, ";") {
			w, err := ParseWindow(text)
			if err != nil {
				t.Fatal(err)
			}
			p.Windows = append(p.Windows, w)
		}
		now, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := New(now, p, zone).Cap(now); got != want {
			t.Errorf("%q at %s (%s): %s, want %s", windows, at, now.In(zone), got, want)
		}
	}
	const office = "mon-fri 08:00-18:00 5Mbit"
	f(office, "2026-03-04T06:59:59Z", 1e6) // a Wednesday, winter: UTC+1
	f(office, "2026-03-04T07:00:00Z", 5e6)
	f(office, "2026-03-04T16:59:59Z", 5e6)
	f(office, "2026-03-04T17:00:00Z", 1e6)
	f(office, "2026-03-07T10:00:00Z", 1e6) // Saturday
	f(office, "2026-07-01T06:00:00Z", 5e6) // summer: UTC+2
	f(office, "2026-07-01T16:00:00Z", 1e6)
	f(office+";daily 00:00-24:00 20Mbit", "2026-03-04T10:00:00Z", 5e6) // the first counts
	f("daily none;"+office, "2026-03-04T10:00:00Z", 0)
	// Over midnight, the day is that of the beginning.
	const night = "fri 22:00-06:00 none"
	f(night, "2026-03-06T20:59:59Z", 1e6)
	f(night, "2026-03-06T21:00:00Z", 0)
	f(night, "2026-03-07T04:59:59Z", 0) // Saturday morning
	f(night, "2026-03-07T05:00:00Z", 1e6)
	f(night, "2026-03-06T04:00:00Z", 1e6) // Friday morning
	f("sat 22:00-06:00 none", "2026-03-08T04:00:00Z", 0)
	f("sun 18:00-24:00 none", "2026-03-08T22:59:59Z", 0)
	f("sun 18:00-24:00 none", "2026-03-08T23:00:00Z", 1e6)
	// 2026-03-29: 02:00 becomes 03:00; the hour between never comes.
	const early = "sun 02:00-03:00 none"
	f(early, "2026-03-29T00:59:59Z", 1e6)
	f(early, "2026-03-29T01:00:00Z", 1e6)
	f("sun 01:00-04:00 none", "2026-03-29T01:30:00Z", 0)
	f("sun 01:00-04:00 none", "2026-03-29T02:00:00Z", 1e6) // two hours long
	// 2026-10-25: 03:00 becomes 02:00; the hour comes twice.
	f(early, "2026-10-25T00:00:00Z", 0)
	f(early, "2026-10-25T01:30:00Z", 0)
	f(early, "2026-10-25T02:00:00Z", 1e6)
}

// The shaper follows the clock of its zone over a change of it without being told.
func TestShaperFollowsSummerTime(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Zurich")
	if err != nil {
		t.Fatal(err)
	}
	w, _ := ParseWindow("daily 01:30-03:30 20Mbit")
	now := time.Date(2026, 3, 29, 0, 0, 0, 0, time.UTC) // 01:00
	s := New(now, Policy{Cap: 5e6, Windows: []Window{w}}, zone)
	minutes := 0
	for range 6 * 60 {
		if c, _ := s.Cap(now); c == 20e6 {
			minutes++
		}
		now = now.Add(time.Minute)
	}
	if minutes != 60 {
		t.Errorf("the window lasted %d minutes on the short night", minutes)
	}
}

func TestParse(t *testing.T) {
	rate := func(s string, want Rate, printed string) {
		t.Helper()
		r, err := ParseRate(s)
		if err != nil || r != want || r.String() != printed {
			t.Errorf("ParseRate(%q) = %d %q, %v", s, r, r, err)
		}
	}
	rate("5Mbps", 5e6, "5Mbit")
	rate("5Mbit", 5e6, "5Mbit")
	rate("1.5Gbps", 15e8, "1.5Gbit")
	rate("800kbit", 8e5, "800kbit")
	rate("none", 0, "none")
	for _, s := range []string{"", "5", "0Mbit", "-5Mbit", "5MBps", "1e3Mbit", "400kbit", "2000Gbit", "Mbit", "5 Mbit", "0x5Mbit"} {
		if _, err := ParseRate(s); !errors.Is(err, ErrPolicy) {
			t.Errorf("ParseRate(%q): %v", s, err)
		}
	}
	window := func(s, printed string) {
		t.Helper()
		w, err := ParseWindow(s)
		if err != nil || w.String() != printed {
			t.Errorf("ParseWindow(%q) = %q, %v", s, w, err)
		}
	}
	window("mon-fri 08:00-18:00 5Mbps", "mon-fri 08:00-18:00 5Mbit")
	window("sat,sun none", "sat,sun none")
	window("fri-mon 22:00-06:00 1Gbit", "mon,fri-sun 22:00-06:00 1Gbit")
	window("mon,wed,tue 5Mbit", "mon-wed 5Mbit")
	window("sun-sat 00:00-24:00 none", "daily none")
	for _, s := range []string{"", "mon", "mon 5", "mon 8:00-18:00 5Mbit", "mon 08:00-08:00 5Mbit", "day 5Mbit", "mon 18:00 5Mbit",
		"mon 24:00-06:00 5Mbit", "mon 06:00-00:00 5Mbit", "mon 06:60-07:00 5Mbit", "mon 06:00-24:01 5Mbit", "mon- 5Mbit", "mon 08:00-18:00 5Mbit x", "mon 0", "mon +8:00-18:00 none"} {
		if _, err := ParseWindow(s); !errors.Is(err, ErrPolicy) {
			t.Errorf("ParseWindow(%q): %v", s, err)
		}
	}
	if _, err := ParsePriority("urgent"); !errors.Is(err, ErrPolicy) {
		t.Errorf("ParsePriority: %v", err)
	}
}

var golden = Policy{
	Cap: 20e6, Zone: "Europe/Zurich",
	Windows:    []Window{{Days: 0b0111110, From: 480, To: 1080, Cap: 5e6}, {Days: 0b1000001, To: 1440}},
	Priorities: map[string]Priority{"erp": High, "archive": Low},
}

func TestPolicyGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/policy-1")
	if err != nil {
		t.Fatal(err)
	}
	if got := golden.AppendTo(nil); !bytes.Equal(got, want) {
		t.Errorf("wrote\n%swant\n%s", got, want)
	}
	if p, err := ParsePolicy(want); err != nil || !reflect.DeepEqual(p, golden) {
		t.Errorf("read %+v, %v", p, err)
	}
	if _, err := ParsePolicy([]byte("holdfast shaping 2\nx")); !errors.Is(err, ErrVersion) {
		t.Errorf("a newer one: %v", err)
	}
	for i := range want {
		bad := bytes.Clone(want)
		bad[i] ^= 1
		if _, err := ParsePolicy(bad); err == nil {
			t.Fatalf("byte %d turned, and nobody saw it", i)
		}
	}
	for i := range want {
		if _, err := ParsePolicy(want[:i]); err == nil {
			t.Fatalf("%d bytes of %d were enough", i, len(want))
		}
	}
}

func TestPolicyTellsEveryMistake(t *testing.T) {
	p := Policy{Cap: 1, Zone: "a b", Windows: []Window{{Days: 1, To: 0, Cap: 5e6}, {Days: 0, To: 5}}, Priorities: map[string]Priority{"x y": High, "z": 9}}
	err := p.Validate()
	if n := strings.Count(err.Error(), "\n") + 1; !errors.Is(err, ErrPolicy) || n != 6 {
		t.Errorf("%d mistakes: %v", n, err)
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add(golden.AppendTo(nil))
	f.Add(Policy{}.AppendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy(b)
		if err != nil {
			return
		}
		again, err := ParsePolicy(p.AppendTo(nil))
		if err != nil || !reflect.DeepEqual(p, again) {
			t.Fatalf("%+v became %+v, %v", p, again, err)
		}
	})
}

func FuzzParseWindow(f *testing.F) {
	f.Add("mon-fri 08:00-18:00 5Mbps")
	f.Add("sat,sun none")
	f.Fuzz(func(t *testing.T, s string) {
		w, err := ParseWindow(s)
		if err != nil {
			return
		}
		if again, err := ParseWindow(w.String()); err != nil || again != w {
			t.Fatalf("%q became %q, %v", s, again, err)
		}
	})
}

func TestFraming(t *testing.T) {
	f := func(n, want int64) {
		t.Helper()
		if got := Usual.Wire(n); got != want {
			t.Errorf("Wire(%d) = %d, want %d", n, got, want)
		}
	}
	f(0, 0)
	f(1, 67)
	f(1448, 1514)
	f(1449, 1449+2*66)
	if got := Sealed(16<<10 + 1); got != 16<<10+1+44 {
		t.Errorf("Sealed: %d", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		f := Framing{Segment: rapid.IntRange(500, 65483).Draw(t, "segment"), Headers: rapid.IntRange(54, 98).Draw(t, "headers")}
		wire := rapid.Int64Range(200, 1<<24).Draw(t, "wire")
		n := f.Fit(wire)
		if got := f.Wire(Sealed(n)); got > wire {
			t.Fatalf("%d bytes become %d on the wire, of %d", n, got, wire)
		}
		if got := f.Wire(Sealed(n + TLSOverhead + int64(f.Headers) + 2)); got < wire {
			t.Fatalf("%d bytes become %d on the wire, of %d", n+TLSOverhead, got, wire)
		}
	})
}
