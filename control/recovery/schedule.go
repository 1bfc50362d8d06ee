package recovery

import "time"

// Schedule says how often checkpoints of a group are proved.
type Schedule struct {
	Every time.Duration
	// Clock is when in a day, for an Every of whole days: since midnight of the zone; negative: whenever it is due.
	Clock time.Duration
}

// Day is what an Every with a Clock is made of.
const Day = 24 * time.Hour

// Due is when the next proof is to begin, after one that began at last; the zero time: none did, up to now.
func (s Schedule) Due(last, now time.Time, zone *time.Location) time.Time {
	if s.Clock < 0 {
		if last.IsZero() {
			return now
		}
		return last.Add(s.Every)
	}
	if last.IsZero() {
		if due := s.on(now.In(zone), 0); !due.Before(now) {
			return due
		}
		return s.on(now.In(zone), 1)
	}
	// Of the day for which it was: one that was late, past midnight too, does not move the next.
	day := last.In(zone)
	if of := s.on(day, 0); of.After(last) {
		day = day.AddDate(0, 0, -1)
	}
	return s.on(day, int(s.Every/Day))
}

// on is the clock's time so many days after a day. A day on which there is no such time has it an hour later.
func (s Schedule) on(day time.Time, days int) time.Time {
	y, m, d := day.Date()
	return time.Date(y, m, d+days, 0, int(s.Clock/time.Minute), 0, 0, day.Location())
}

// Missed is how many proofs should have begun, and did not, by the time that is now; the one that was due last can be made up for still,
// and is not counted unless it is later than Every.
func (s Schedule) Missed(due, now time.Time) int {
	if !now.After(due) {
		return 0
	}
	return int(now.Sub(due) / s.Every)
}
