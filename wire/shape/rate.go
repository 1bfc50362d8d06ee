package shape

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// ErrPolicy is in every refusal of a policy or a part of one.
var ErrPolicy = errors.New("no valid shaping")

// Rate is a number of bits per second as the interface counts them; 0 is no cap.
type Rate int64

// Bounds of a cap. A frame of 1514 bytes is 3 % of a second at MinCap and a little less
// above it: below it, no cap could be kept to the percent.
const (
	MinCap = Rate(500e3)
	MaxCap = Rate(1e12)
)

const (
	quantumTime = 20 * time.Millisecond
	sliceParts  = 4         // of a quantum in one grant
	maxSlice    = 256 << 10 // bytes in one grant
)

// BytesPerSecond is the rate in bytes.
func (r Rate) BytesPerSecond() float64 { return float64(r) / 8 }

// Quantum is the longest burst under the cap r, in bytes on the interface.
func (r Rate) Quantum() int64 {
	return max(int64(r.BytesPerSecond()*quantumTime.Seconds()), frameBytes)
}

// slice is how much one grant gives at most: whole frames, a part of a quantum.
func (r Rate) slice() int64 {
	s := min(r.Quantum()/sliceParts, maxSlice)
	return max(s/frameBytes, 1) * frameBytes
}

var rateUnits = []struct {
	name  string
	other string
	bits  float64
}{{"kbit", "kbps", 1e3}, {"Mbit", "Mbps", 1e6}, {"Gbit", "Gbps", 1e9}}

// plainNumber keeps out what ParseFloat takes beside it: signs, exponents, names.
var plainNumber = regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,6})?$`)

// ParseRate reads a number with kbit, Mbit or Gbit (or kbps, Mbps, Gbps), or none.
func ParseRate(s string) (Rate, error) {
	if s == "none" {
		return 0, nil
	}
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			number, ok = strings.CutSuffix(s, u.other)
		}
		if !ok || !plainNumber.MatchString(number) {
			continue
		}
		f, err := strconv.ParseFloat(number, 64)
		if err != nil {
			break
		}
		r := Rate(math.Round(f * u.bits))
		return r, checkRate(s, r)
	}
	return 0, fmt.Errorf("cap %q: want a number with kbit, Mbit or Gbit, as in 5Mbit, or none: %w", s, ErrPolicy)
}

func checkRate(s string, r Rate) error {
	if r < MinCap || r > MaxCap {
		return fmt.Errorf("cap %q: want %s to %s, or none for no cap: %w", s, MinCap, MaxCap, ErrPolicy)
	}
	return nil
}

// String writes r as ParseRate reads it, with the largest unit that keeps it at least 1.
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
