package shape

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Priority says how much a group matters beside others.
type Priority uint8

// The priorities.
const (
	Low Priority = iota + 1
	Medium
	High
)

var priorityNames = map[Priority]string{Low: "low", Medium: "medium", High: "high"}

func (p Priority) String() string { return priorityNames[p] }

// ParsePriority reads high, medium or low.
func ParsePriority(s string) (Priority, error) {
	for p, name := range priorityNames {
		if s == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("priority %q: want high, medium or low: %w", s, ErrPolicy)
}

// Policy is what a user asks for. Its zero value is no cap, and all groups alike.
type Policy struct {
	Cap        Rate                // of all that leaves the VRA, where no window says otherwise
	Windows    []Window            // the first that holds the time gives the cap
	Zone       string              // of the windows' clock, as in Europe/Zurich; empty is the machine's
	Priorities map[string]Priority // by the group's name; medium where absent
}

// Bounds of a policy.
const (
	maxWindows    = 64
	maxPriorities = 4096
	maxWord       = 128 // bytes of a name
)

// Validate tells every mistake.
func (p Policy) Validate() error {
	var all []error
	bad := func(format string, args ...any) {
		all = append(all, fmt.Errorf(format+": %w", append(args, ErrPolicy)...))
	}
	if len(p.Windows) > maxWindows {
		bad("%d windows, the most is %d", len(p.Windows), maxWindows)
	}
	if len(p.Priorities) > maxPriorities {
		bad("%d priorities, the most is %d", len(p.Priorities), maxPriorities)
	}
	caps := []Rate{p.Cap}
	for _, w := range p.Windows {
		caps = append(caps, w.Cap)
		if w.Days == 0 || w.Days > allDays || w.From < 0 || w.From >= dayMinutes || w.To <= 0 || w.To > dayMinutes || w.From == w.To {
			bad("window %q is no time", w)
		}
	}
	for _, c := range caps {
		if c != 0 {
			all = append(all, checkRate(c.String(), c))
		}
	}
	if p.Zone != "" && !plainWord(p.Zone) {
		bad("time zone %q", p.Zone)
	}
	for name, pr := range p.Priorities {
		if !plainWord(name) || priorityNames[pr] == "" {
			bad("priority %d of group %q", pr, name)
		}
	}
	return errors.Join(all...)
}

func plainWord(s string) bool {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) || r == unicode.ReplacementChar }
	return s != "" && len(s) <= maxWord && !strings.ContainsFunc(s, odd)
}

// CapAt is the cap at a time of the policy's zone, and the window that gives it, if one does.
func (p Policy) CapAt(local time.Time) (Rate, *Window) {
	for i := range p.Windows {
		if p.Windows[i].holds(local) {
			return p.Windows[i].Cap, &p.Windows[i]
		}
	}
	return p.Cap, nil
}

// of is the priority of a group.
func (p Policy) of(group string) Priority {
	if pr, ok := p.Priorities[group]; ok {
		return pr
	}
	return Medium
}

// Of is the priority of a group.
func (p Policy) Of(group string) Priority { return p.of(group) }

// Clone is a copy that shares nothing.
func (p Policy) Clone() Policy {
	p.Windows, p.Priorities = slices.Clone(p.Windows), maps.Clone(p.Priorities)
	return p
}

// A policy is kept as text, a line each: the version, the cap, the zone, windows in
// order, priorities by name, and the CRC32C of all before it.
const policyVersion = "holdfast shaping 1"

// maxPolicy is the longest such text, in bytes.
const maxPolicy = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendTo writes p as ParsePolicy reads it.
func (p Policy) AppendTo(b []byte) []byte {
	from := len(b)
	b = fmt.Appendf(b, "%s\ncap %s\n", policyVersion, p.Cap)
	if p.Zone != "" {
		b = fmt.Appendf(b, "zone %s\n", p.Zone)
	}
	for _, w := range p.Windows {
		b = fmt.Appendf(b, "window %s\n", w)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Priorities)) {
		b = fmt.Appendf(b, "priority %s %s\n", name, p.Priorities[name])
	}
	return fmt.Appendf(b, "crc %08x\n", crc32.Checksum(b[from:], castagnoli))
}

// ErrVersion says that a newer release wrote a policy.
var ErrVersion = errors.New("a newer release wrote this shaping")

// ParsePolicy takes what AppendTo wrote.
func ParsePolicy(b []byte) (p Policy, err error) {
	first, _, _ := bytes.Cut(b, []byte("\n"))
	if !bytes.HasPrefix(first, []byte("holdfast shaping ")) || len(b) > maxPolicy {
		return p, fmt.Errorf("not a shaping policy: %w", ErrPolicy)
	}
	if string(first) != policyVersion {
		return p, ErrVersion
	}
	end := bytes.LastIndex(b, []byte("crc "))
	if end < 0 || string(b[end:]) != fmt.Sprintf("crc %08x\n", crc32.Checksum(b[:end], castagnoli)) {
		return p, fmt.Errorf("a damaged shaping policy: %w", ErrPolicy)
	}
	for line := range strings.Lines(string(b[len(first)+1 : end])) {
		word, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if err := p.line(word, rest); err != nil {
			return Policy{}, err
		}
	}
	return p, p.Validate()
}

func (p *Policy) line(word, rest string) (err error) {
	switch word {
	case "cap":
		p.Cap, err = ParseRate(rest)
	case "zone":
		p.Zone = rest
	case "window":
		var w Window
		w, err = ParseWindow(rest)
		p.Windows = append(p.Windows, w)
	case "priority":
		name, pr, _ := strings.Cut(rest, " ")
		if p.Priorities == nil {
			p.Priorities = make(map[string]Priority)
		}
		p.Priorities[name], err = ParsePriority(pr)
	default:
		err = fmt.Errorf("%q is no word of a shaping policy: %w", word, ErrPolicy)
	}
	return err
}
