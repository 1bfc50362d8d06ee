package config

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"
)

// Verify says when holdfast verify --scheduled proves a checkpoint of the group.
type Verify struct {
	Every Duration `yaml:"every"`          // from the begin of one to that of the next
	At    Clock    `yaml:"at,omitempty"`   // of the day, for whole days; by default as soon as one is due
	Keep  int      `yaml:"keep,omitempty"` // reports of such proofs, by default 30
}

// Bounds and defaults of a schedule.
const (
	MinVerify         = Duration(10 * time.Minute)
	MaxVerify         = Duration(92 * 24 * time.Hour)
	DefaultVerifyKeep = 30
	maxVerifyKeep     = 10000
)

// Clock is a time of day, as 02:30; empty is none.
type Clock string

const clockFormat = "15:04"

// ParseClock reads a time of day.
func ParseClock(s string) (Clock, error) {
	if _, err := time.Parse(clockFormat, s); err != nil || len(s) != len(clockFormat) {
		return "", fmt.Errorf("time %q: want hours and minutes in quotes, as in \"02:30\"", s)
	}
	return Clock(s), nil
}

// UnmarshalYAML reads it.
func (c *Clock) UnmarshalYAML(n *yaml.Node) error { return scalar(n, c, ParseClock) }

// SinceMidnight is how long after midnight that is; negative: there is none.
func (c Clock) SinceMidnight() time.Duration {
	at, err := time.Parse(clockFormat, string(c))
	if err != nil {
		return -1
	}
	return time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute
}

func (v *Verify) validate(m *mistakes, at string) {
	if *v == (Verify{}) {
		return
	}
	if v.Keep == 0 {
		v.Keep = DefaultVerifyKeep
	}
	within(m, at+".every", v.Every, MinVerify, MaxVerify)
	within(m, at+".keep", int64(v.Keep), 1, maxVerifyKeep)
	if v.At != "" && v.Every%Duration(24*time.Hour) != 0 {
		m.add(at+".at", "every is %s, and not whole days: leave at away, or say 24h", v.Every)
	}
}
