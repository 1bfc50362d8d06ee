package config

import (
	"log/slog"
	"slices"
	"testing"
	"time"
)

// TestChanged: each difference is named by its key, and only some keys change while a process runs.
func TestChanged(t *testing.T) {
	base := func() *VRA {
		c := &VRA{Site: "west", LogLevel: "warn", Target: &Target{Store: "/s", Stores: []string{"/a", "/b"}, Retention: Retention{History: Span(time.Hour)}}, Source: &Source{Groups: []SourceGroup{
			{Name: "a", Filters: []string{"/p"}}, {Name: "b", Volumes: []SourceVolume{{Name: "v", ID: 1}}},
		}}}
		return c
	}
	f := func(live bool, change func(*VRA), want ...string) {
		t.Helper()
		next := base()
		change(next)
		got := Changed(base(), next)
		if !slices.Equal(got, want) {
			t.Errorf("changed %q, want %q", got, want)
		}
		for _, key := range got {
			if next.Live(key) != live {
				t.Errorf("%s: live %v", key, !live)
			}
		}
	}
	f(true, func(*VRA) {})
	f(true, func(c *VRA) { c.LogLevel = "debug" }, "log_level")
	f(true, func(c *VRA) { c.Source.Shaping = Shaping{Cap: "5Mbit", Windows: []string{"daily none"}, Zone: "UTC"} }, "source.shaping.cap", "source.shaping.windows", "source.shaping.zone")
	f(true, func(c *VRA) { c.Source.Groups[1].Priority = "high" }, "source.groups[1].priority")
	f(true, func(c *VRA) {
		c.Target.Retention = Retention{History: 2, Limit: 3, WarnPercent: 4, Minimum: 5, Thin: "none"}
	}, "target.retention.history", "target.retention.limit", "target.retention.warn_percent", "target.retention.minimum", "target.retention.thin")
	f(false, func(c *VRA) { c.Site, c.TLS.Key = "east", "/k" }, "site", "tls.key")
	f(false, func(c *VRA) { c.Source = nil }, "source")
	f(false, func(c *VRA) { c.Source.Groups = c.Source.Groups[:1] }, "source.groups")
	f(false, func(c *VRA) { c.Source.Groups[0].Filters[0] = "/q" }, "source.groups[0].filters[0]")
	f(false, func(c *VRA) { c.Source.Groups[1].Volumes[0].ID = 2 }, "source.groups[1].volumes[0].id")
	f(false, func(c *VRA) { c.Target.Stores[1] = "/c" }, "target.stores[1]")
	f(false, func(c *VRA) { c.Target.Parity = Parity{K: 2, M: 1} }, "target.parity")
	old, now := &Filter{Volumes: []FilterVolume{{Name: "v"}}}, &Filter{Volumes: []FilterVolume{{Name: "v", NBD: "/n"}}, LogLevel: "error"}
	if got := Changed(old, now); !slices.Equal(got, []string{"volumes[0].nbd", "log_level"}) || old.Live(got[0]) || !old.Live(got[1]) {
		t.Errorf("a filter: %q", got)
	}
}

func TestLogLevel(t *testing.T) {
	for text, want := range map[LogLevel]slog.Level{"": slog.LevelInfo, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		var m mistakes
		if text.validate(&m); len(m) > 0 || text.Level() != want {
			t.Errorf("%q: %v, %v", text, text.Level(), m)
		}
	}
	var m mistakes
	if LogLevel("loud").validate(&m); len(m) != 1 || m[0].Error() != `log_level: "loud": want debug, info, warn or error` {
		t.Errorf("%v", m)
	}
}
