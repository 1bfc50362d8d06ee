package retain

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Tier says that of the checkpoints no older than For, and older than the tier before
// reaches, one in each span of Every is kept; Every 0: all. Beyond the last tier its
// Every holds on.
type Tier struct{ Every, For time.Duration }

// maxTiers bounds the tiers of a policy.
const maxTiers = 8

// validateTiers wants tiers that reach further and keep less from one to the next, each
// span made of whole spans of the one before: what a tier keeps, those before kept too.
func validateTiers(ts []Tier) error {
	if len(ts) > maxTiers {
		return fmt.Errorf("%d tiers, the most is %d: %w", len(ts), maxTiers, ErrPolicy)
	}
	var all []error
	for i, t := range ts {
		bad := func(why string) { all = append(all, fmt.Errorf("tier %q: %s: %w", t, why, ErrPolicy)) }
		if t.Every < 0 || t.Every%time.Second != 0 || t.For%time.Second != 0 || t.For <= 0 || t.For > MaxHistory {
			bad("want whole seconds, for at most " + FormatDuration(MaxHistory))
		}
		if t.Every > t.For {
			bad("keeps one for a longer time than it lasts")
		}
		if i == 0 {
			continue
		}
		if before := ts[i-1]; t.For <= before.For {
			bad("does not reach beyond the one before")
		} else if t.Every <= before.Every || before.Every > 0 && t.Every%before.Every != 0 {
			bad("does not keep one of several of the one before")
		}
	}
	return errors.Join(all...)
}

var spans = []struct {
	name  string
	every time.Duration
}{{"all", 0}, {"minute", time.Minute}, {"hour", time.Hour}, {"day", day}, {"week", week}}

func (t Tier) String() string {
	every := FormatDuration(t.Every)
	for _, s := range spans {
		if s.every == t.Every {
			every = s.name
		}
	}
	return every + " for " + FormatDuration(t.For)
}

// FormatTiers writes tiers as ParseTiers reads them.
func FormatTiers(ts []Tier) string {
	if len(ts) == 0 {
		return "none"
	}
	parts := make([]string, len(ts))
	for i, t := range ts {
		parts[i] = t.String()
	}
	return strings.Join(parts, ", ")
}

// ParseTiers reads "all for 1h, minute for 24h, hour for 30d"; also "5m for 2h". "none"
// and the empty text are no tiers.
func ParseTiers(text string) (ts []Tier, err error) {
	if text = strings.TrimSpace(text); text == "" || text == "none" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		every, reach, ok := strings.Cut(strings.TrimSpace(part), " for ")
		if !ok {
			return nil, fmt.Errorf("tier %q: want as in \"minute for 24h\": %w", strings.TrimSpace(part), ErrPolicy)
		}
		var t Tier
		if t.Every, err = parseSpan(strings.TrimSpace(every)); err != nil {
			return nil, err
		}
		if t.For, err = ParseDuration(strings.TrimSpace(reach)); err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, validateTiers(ts)
}

func parseSpan(text string) (time.Duration, error) {
	for _, s := range spans {
		if s.name == text {
			return s.every, nil
		}
	}
	d, err := ParseDuration(text)
	if err == nil && d <= 0 {
		err = fmt.Errorf("%q: want all, minute, hour, day, week or a duration: %w", text, ErrPolicy)
	}
	return d, err
}

var units = []struct {
	name byte
	d    time.Duration
}{{'d', day}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

// ParseDuration reads whole days, hours, minutes and seconds, each at most once and in
// that order: 30d, 24h, 1d12h, 90m.
func ParseDuration(text string) (time.Duration, error) {
	var sum time.Duration
	rest := text
	for _, u := range units {
		i := strings.IndexByte(rest, u.name)
		if i < 0 {
			continue
		}
		n, err := strconv.ParseUint(rest[:i], 10, 31)
		if err != nil || rest[0] == '+' || time.Duration(n) > MaxHistory*366/u.d {
			return 0, badDuration(text)
		}
		sum += time.Duration(n) * u.d
		rest = rest[i+1:]
	}
	if rest != "" || text == "" {
		return 0, badDuration(text)
	}
	return sum, nil
}

func badDuration(text string) error {
	return fmt.Errorf("%q: want a duration as in 30d, 24h or 90m: %w", text, ErrPolicy)
}

// FormatDuration writes d, to the second, as ParseDuration reads it.
func FormatDuration(d time.Duration) string {
	if d < 0 {
		return "-" + FormatDuration(-d)
	}
	text := ""
	for _, u := range units {
		if n := d / u.d; n > 0 && !(u.d == day && d%day != 0 && d < 3*day) { // 36h, and not 1d12h
			text += strconv.FormatInt(int64(n), 10) + string(u.name)
			d -= n * u.d
		}
	}
	if text == "" {
		return "0s"
	}
	return text
}
