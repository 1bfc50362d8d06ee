package config

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Retention says how much history a target keeps of a group.
type Retention struct {
	History     Span   `yaml:"history,omitempty"`      // 1h to 30d, by default 24h
	Limit       Size   `yaml:"limit,omitempty"`        // of log, index and scratch; 0, the default: what the disk has
	WarnPercent int    `yaml:"warn_percent,omitempty"` // of the limit, by default 75
	Minimum     Span   `yaml:"minimum,omitempty"`      // kept even when intake must stop for it; 0, the default: the newest good checkpoint
	Thin        string `yaml:"thin,omitempty"`         // as in "all for 1h, minute for 1d, hour for 30d"; by default none
}

// Defaults and bounds of retention.
const (
	DefaultHistory     = Span(24 * time.Hour)
	MinHistory         = Span(time.Hour)
	MaxHistory         = Span(30 * 24 * time.Hour)
	DefaultWarnPercent = 75
	MinRetentionLimit  = Size(1 << 30)
)

func (r *Retention) validate(m *mistakes, at string) {
	if r.History == 0 {
		r.History = DefaultHistory
	}
	if r.WarnPercent == 0 {
		r.WarnPercent = DefaultWarnPercent
	}
	within(m, at+".history", r.History, MinHistory, MaxHistory)
	if r.Limit != 0 && r.Limit < MinRetentionLimit {
		m.add(at+".limit", "%s: want at least %s, or 0 for none but the disk's", r.Limit, MinRetentionLimit)
	}
	if r.WarnPercent < 1 || r.WarnPercent > 100 {
		m.add(at+".warn_percent", "%d: want 1 to 100", r.WarnPercent)
	}
	if r.Minimum > r.History {
		m.add(at+".minimum", "%s: want at most the history, %s", r.Minimum, r.History)
	}
}

// Span is a long duration in whole seconds: it may have days.
type Span time.Duration

// ParseSpan reads days, hours, minutes and seconds, whole numbers in that order, each at
// most once: 30d, 24h, 1d12h, 90m.
func ParseSpan(s string) (Span, error) {
	days, rest := time.Duration(0), s
	if text, after, ok := strings.Cut(s, "d"); ok {
		d, err := time.ParseDuration(text + "h")
		if err != nil || d < 0 || d > time.Duration(MaxHistory)*366/24 || strings.ContainsAny(text, ".hms+") || text == "" {
			return 0, badSpan(s)
		}
		days, rest = 24*d, after
	}
	if rest == "" && days > 0 {
		return Span(days), nil
	}
	d, err := ParseDuration(rest)
	if err != nil || time.Duration(d)%time.Second != 0 || strings.ContainsAny(rest, ".+") || time.Duration(d) > 10*366*24*time.Hour {
		return 0, badSpan(s)
	}
	return Span(days + time.Duration(d)), nil
}

func badSpan(s string) error {
	return fmt.Errorf("duration %q: want whole days, hours, minutes or seconds, as in 30d, 24h or 90m", s)
}

// D is the span as Go's own type.
func (s Span) D() time.Duration { return time.Duration(s) }

// String writes s as ParseSpan reads it: in days when it is some.
func (s Span) String() string {
	const day = Span(24 * time.Hour)
	if s >= day && s%day == 0 && s != day {
		return fmt.Sprintf("%dd", s/day)
	}
	return Duration(s).String()
}

// UnmarshalYAML reads a span.
func (s *Span) UnmarshalYAML(n *yaml.Node) error { return scalar(n, s, ParseSpan) }

// MarshalYAML writes the span as ParseSpan reads it.
func (s Span) MarshalYAML() (any, error) { return s.String(), nil }
