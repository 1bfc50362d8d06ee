package shape

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Window gives the cap of some hours of some days, by the local clock.
type Window struct {
	Days     Days
	From, To int // minutes of the day; To at or below From ends on the next day
	Cap      Rate
}

// Days is a set of days of the week: bit n is time.Weekday n.
type Days uint8

const allDays Days = 1<<7 - 1

func (d Days) has(w time.Weekday) bool { return d&(1<<w) != 0 }

const dayMinutes = 24 * 60

// holds says whether the local time t is inside. A day is that on which the window begins.
func (w Window) holds(t time.Time) bool {
	day, minute := t.Weekday(), t.Hour()*60+t.Minute()
	if w.From < w.To {
		return w.Days.has(day) && w.From <= minute && minute < w.To
	}
	if invariant.Planted("shape/midnight") {
		return w.Days.has(day) && (minute >= w.From || minute < w.To)
	}
	return w.Days.has(day) && minute >= w.From || w.Days.has((day+6)%7) && minute < w.To
}

// ParseWindow reads days, hours and a cap: "mon-fri 08:00-18:00 5Mbit", "sat,sun none",
// "daily 22:00-06:00 none". Without hours it is the whole day.
func ParseWindow(s string) (w Window, err error) {
	bad := func(why string) (Window, error) {
		return Window{}, fmt.Errorf("window %q: %s; write it as in \"mon-fri 08:00-18:00 5Mbit\" or \"sat,sun none\": %w", s, why, ErrPolicy)
	}
	words := strings.Fields(s)
	if len(words) < 2 || len(words) > 3 {
		return bad("want days, hours and a cap")
	}
	if w.Days, err = parseDays(words[0]); err != nil {
		return bad(err.Error())
	}
	w.To = dayMinutes
	if len(words) == 3 {
		if w.From, w.To, err = parseHours(words[1]); err != nil {
			return bad(err.Error())
		}
	}
	if w.Cap, err = ParseRate(words[len(words)-1]); err != nil {
		return Window{}, fmt.Errorf("window %q: %w", s, err)
	}
	return w, nil
}

var dayNames = [7]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func parseDays(s string) (days Days, err error) {
	if s == "daily" {
		return allDays, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := parseDay(first)
		if err != nil {
			return 0, err
		}
		b := a
		if isRange {
			if b, err = parseDay(last); err != nil {
				return 0, err
			}
		}
		for d := a; ; d = (d + 1) % 7 {
			days |= 1 << d
			if d == b {
				break
			}
		}
	}
	return days, nil
}

func parseDay(s string) (int, error) {
	for i, name := range dayNames {
		if s == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%q is no day: want sun, mon, tue, wed, thu, fri, sat, or daily", s)
}

func parseHours(s string) (from, to int, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q are no hours", s)
	}
	if from, err = parseMinute(a); err != nil {
		return 0, 0, err
	}
	if to, err = parseMinute(b); err != nil {
		return 0, 0, err
	}
	if from == dayMinutes || to == 0 {
		return 0, 0, fmt.Errorf("%q: a day begins at 00:00 and ends at 24:00", s)
	}
	if from == to {
		return 0, 0, fmt.Errorf("%q is no time at all", s)
	}
	return from, to, nil
}

func parseMinute(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	hour, err1 := strconv.ParseUint(h, 10, 8)
	minute, err2 := strconv.ParseUint(m, 10, 8)
	t := int(hour)*60 + int(minute)
	if !ok || len(h) != 2 || len(m) != 2 || err1 != nil || err2 != nil || minute > 59 || t > dayMinutes {
		return 0, fmt.Errorf("%q is no time of day", s)
	}
	return t, nil
}

// String writes w as ParseWindow reads it.
func (w Window) String() string {
	if w.From == 0 && w.To == dayMinutes {
		return w.Days.String() + " " + w.Cap.String()
	}
	return fmt.Sprintf("%s %02d:%02d-%02d:%02d %s", w.Days, w.From/60, w.From%60, w.To/60, w.To%60, w.Cap)
}

// String writes the days from Monday on, three and more in a row as a range.
func (d Days) String() string {
	if d == allDays {
		return "daily"
	}
	var parts []string
	for i := 1; i <= 7; i++ {
		if !d.has(time.Weekday(i % 7)) {
			continue
		}
		last := i
		for last < 7 && d.has(time.Weekday((last+1)%7)) {
			last++
		}
		part := dayNames[i%7]
		switch last - i {
		case 0:
		case 1:
			part += "," + dayNames[last%7]
		default:
			part += "-" + dayNames[last%7]
		}
		parts = append(parts, part)
		i = last
	}
	return strings.Join(parts, ",")
}
