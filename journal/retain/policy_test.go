package retain

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestTiers(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		ts, err := ParseTiers(text)
		got := FormatTiers(ts)
		if err != nil {
			if !errors.Is(err, ErrPolicy) {
				t.Errorf("%q: %v", text, err)
			}
			got = "error"
		}
		if got != want {
			t.Errorf("%q reads as %q, want %q (%v)", text, got, want, err)
		}
	}
	f("", "none")
	f("none", "none")
	f("all for 1h, minute for 24h, hour for 30d", "all for 1h, minute for 1d, hour for 30d")
	f(" all for 90m ,5m for 36h", "all for 1h30m, 5m for 36h")
	f("day for 30d", "day for 30d")
	f("all", "error")
	f("all for", "error")
	f("second for 1h", "error")
	f("minute for 24h, all for 48h", "error")
	f("minute for 24h, hour for 12h", "error")
	f("7m for 24h, 1h for 30d", "error")
	f("hour for 31d", "error")
	f("hour for 30m", "error")
	f("all for 1h,", "error")
	f("0s for 1h", "error")
	f(strings.Repeat("all for 1h,", 9), "error")
}

func TestDuration(t *testing.T) {
	f := func(text string, want time.Duration) {
		t.Helper()
		got, err := ParseDuration(text)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q is %s, %v", text, got, err)
		}
	}
	f("30d", 30*day)
	f("1d12h", 36*time.Hour)
	f("90m", 90*time.Minute)
	f("0s", 0)
	for _, bad := range []string{"", "5", "h", "-1h", "+1h", "1h1h", "1m1h", "1.5h", "1h ", "99999999999d", "2147483647d", "1w"} {
		f(bad, -1)
	}
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(40*day/time.Second)).Draw(t, "seconds")) * time.Second
		if got, err := ParseDuration(FormatDuration(d)); err != nil || got != d {
			t.Fatalf("%d is written %q and read as %d (%v)", d, FormatDuration(d), got, err)
		}
	})
}

func TestPolicyGolden(t *testing.T) {
	p := Policy{History: 30 * day, Limit: 200 << 30, WarnPercent: 75, Minimum: 4 * time.Hour,
		Tiers: []Tier{{0, time.Hour}, {time.Minute, day}, {time.Hour, 30 * day}}}
	golden(t, "testdata/v1.policy", p.AppendTo(nil))
	got, err := ParsePolicy(p.AppendTo(nil))
	if err != nil || !got.Equal(p) || got.Equal(Default()) {
		t.Errorf("read as %+v: %v", got, err)
	}
	newer := p.AppendTo(nil)
	newer[0]++
	if _, err := ParsePolicy(newer); !errors.Is(err, ErrVersion) {
		t.Errorf("a newer version: %v", err)
	}
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
	if err := (Policy{History: time.Minute, Limit: -1, Minimum: day}).Validate(); err == nil || len(strings.Split(err.Error(), "\n")) != 4 {
		t.Errorf("all mistakes: %v", err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s changed: %x (%v)", name, got, err)
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add(Default().AppendTo(nil))
	f.Add(Policy{History: day, WarnPercent: 50, Tiers: []Tier{{0, time.Hour}, {time.Minute, day}}}.AppendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParsePolicy(b); err == nil && !bytes.Equal(p.AppendTo(nil), b) {
			t.Fatalf("%x is read as %+v", b, p)
		}
	})
}

func FuzzTiers(f *testing.F) {
	f.Add("all for 1h, minute for 24h, hour for 30d")
	f.Fuzz(func(t *testing.T, text string) {
		ts, err := ParseTiers(text)
		if err != nil {
			return
		}
		again, err := ParseTiers(FormatTiers(ts))
		if err != nil || FormatTiers(again) != FormatTiers(ts) {
			t.Fatalf("%q is written %q: %v", text, FormatTiers(ts), err)
		}
	})
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1: "1 B", 100 << 20: "100 MiB", 3 << 29: "1.5 GiB", 10 << 10: "10 KiB"} {
		if got := FormatSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
