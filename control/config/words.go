package config

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"go.yaml.in/yaml/v3"
)

// Size is a number of bytes.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	// The longer names first: "1TiB" ends in B too.
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1}, {"", 1},
}

// ParseSize reads an integer with a unit: B, KiB, MiB, GiB, TiB, or K, M, G, T for
// the same. Without one it is bytes.
func ParseSize(s string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil {
			break
		}
		if n > uint64(math.MaxInt64/u.bytes) {
			return 0, fmt.Errorf("size %q is too large", s)
		}
		return Size(int64(n) * u.bytes), nil
	}
	return 0, fmt.Errorf("size %q: want a whole number and a unit, as in 64MiB: units are B, KiB, MiB, GiB and TiB (of 1024)", s)
}

// String writes s with the largest unit that keeps it an integer.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// Text writes s for people, in the form of all output: 256 MiB, 1.5 GiB, 0 B. (String
// writes what ParseSize reads.)
func (s Size) Text() string {
	for _, u := range sizeUnits[:4] {
		switch n := int64(s); {
		case n < u.bytes:
		case n%u.bytes == 0:
			return fmt.Sprintf("%d %s", n/u.bytes, u.name)
		default:
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d B", int64(s))
}

// Rate is a number of bits per second; 0 is no limit.
type Rate int64

var rateUnits = []struct {
	name string
	bits float64
}{{"kbit", 1e3}, {"Mbit", 1e6}, {"Gbit", 1e9}}

// maxRate is far above any link, and keeps sums of rates inside an int64.
const maxRate = 1e15

// ParseRate reads a number with kbit, Mbit or Gbit, or none.
func ParseRate(s string) (Rate, error) {
	if s == "none" {
		return 0, nil
	}
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok || !plainNumber.MatchString(number) {
			continue
		}
		f, err := strconv.ParseFloat(number, 64)
		if err != nil {
			break
		}
		bits := math.Round(f * u.bits)
		if bits < 1 || bits > maxRate {
			return 0, fmt.Errorf("rate %q: want more than zero and at most 1000000Gbit; write none for no limit", s)
		}
		return Rate(bits), nil
	}
	return 0, fmt.Errorf("rate %q: want a number with kbit, Mbit or Gbit, as in 50Mbit, or none", s)
}

// plainNumber keeps out what ParseFloat takes beside it: signs, exponents, hexadecimals, names.
var plainNumber = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

// String writes r with the largest unit that keeps it at least 1.
func (r Rate) String() string {
	if r == 0 {
		return "none"
	}
	u := rateUnits[0]
	for _, larger := range rateUnits[1:] {
		if float64(r) >= larger.bits {
			u = larger
		}
	}
	return strconv.FormatFloat(float64(r)/u.bits, 'f', -1, 64) + u.name
}

// BytesPerSecond is the rate in bytes; 0 is no limit.
func (r Rate) BytesPerSecond() int64 { return (int64(r) + 7) / 8 }

// Duration is a time.Duration written as in Go.
type Duration time.Duration

// ParseDuration reads a duration as Go writes it, not below zero.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		return 0, fmt.Errorf("duration %q: must not be negative", s)
	}
	if err != nil {
		return 0, fmt.Errorf("duration %q: want a number with a unit, as in 5s or 1m30s", s)
	}
	return Duration(d), nil
}

// D is the duration as Go's own type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String writes d without the zeros that Go puts at its end: 1m, not 1m0s.
func (d Duration) String() string {
	text := time.Duration(d).String()
	if short, ok := strings.CutSuffix(text, "m0s"); ok {
		text = short + "m"
	}
	if short, ok := strings.CutSuffix(text, "h0m"); ok {
		text = short + "h"
	}
	return text
}

// ID is an identifier of 64 bits, written as 16 hexadecimal digits; zero is never valid.
type ID uint64

// ParseID reads 16 hexadecimal digits.
func ParseID(s string) (ID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 || n == 0 {
		return 0, fmt.Errorf("id %q: want 16 hexadecimal digits, not all zero", s)
	}
	return ID(n), nil
}

func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// CheckName says what is wrong with the name of a group or volume.
func CheckName(name string) error {
	if !namePattern.MatchString(name) && !(invariant.Planted("config/any-name") && name != "") {
		return fmt.Errorf("name %q: want 1 to 63 of a-z, 0-9, dot, underscore and hyphen, the first a letter or digit", name)
	}
	return nil
}

// UnmarshalYAML reads a size.
func (s *Size) UnmarshalYAML(n *yaml.Node) error { return scalar(n, s, ParseSize) }

// UnmarshalYAML reads a rate.
func (r *Rate) UnmarshalYAML(n *yaml.Node) error { return scalar(n, r, ParseRate) }

// UnmarshalYAML reads an id.
func (id *ID) UnmarshalYAML(n *yaml.Node) error { return scalar(n, id, ParseID) }

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error { return scalar(n, d, ParseDuration) }

// scalar reads one word. A refusal is a TypeError of one text, which lets the decoder
// go on.
func scalar[T any](n *yaml.Node, to *T, parse func(string) (T, error)) error {
	if n.Kind != yaml.ScalarNode {
		return refusal("want one word, not a list or keys")
	}
	v, err := parse(n.Value)
	if err != nil {
		return refusal(err.Error())
	}
	*to = v
	return nil
}

func refusal(text string) error { return &yaml.TypeError{Errors: []string{text}} }

// MarshalYAML writes the size as ParseSize reads it.
func (s Size) MarshalYAML() (any, error) { return s.String(), nil }

// MarshalYAML writes the rate as ParseRate reads it.
func (r Rate) MarshalYAML() (any, error) { return r.String(), nil }

// MarshalYAML writes the duration as in Go.
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// MarshalYAML writes the id in quotes: only some of its texts would stay strings without.
func (id ID) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Tag: "!!str", Value: id.String()}, nil
}
