package recovery

import (
	"testing"
	"time"
)

func TestSchedule(t *testing.T) {
	zurich, err := time.LoadLocation("Europe/Zurich")
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) time.Time {
		t.Helper()
		if s == "" {
			return time.Time{}
		}
		when, err := time.ParseInLocation("2006-01-02 15:04", s, zurich)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	f := func(every, clock time.Duration, last, now, want string, missed int) {
		t.Helper()
		s := Schedule{every, clock}
		due := s.Due(at(last), at(now), zurich)
		if !due.Equal(at(want)) || s.Missed(due, at(now)) != missed {
			t.Errorf("every %s at %s, last %q, now %s: due %s, missed %d; want %s, %d", every, clock, last, now, due, s.Missed(due, at(now)), want, missed)
		}
	}
	const whenever = -1
	f(24*time.Hour, whenever, "", "2026-05-01 10:00", "2026-05-01 10:00", 0)
	f(24*time.Hour, whenever, "2026-05-01 09:00", "2026-05-01 10:00", "2026-05-02 09:00", 0)
	f(6*time.Hour, whenever, "2026-05-01 09:00", "2026-05-01 16:00", "2026-05-01 15:00", 0)
	f(6*time.Hour, whenever, "2026-05-01 09:00", "2026-05-02 16:00", "2026-05-01 15:00", 4)
	f(Day, 2*time.Hour, "", "2026-05-01 01:00", "2026-05-01 02:00", 0)
	f(Day, 2*time.Hour, "", "2026-05-01 03:00", "2026-05-02 02:00", 0)
	f(Day, 2*time.Hour, "2026-05-01 02:00", "2026-05-01 02:20", "2026-05-02 02:00", 0)
	f(Day, 2*time.Hour, "2026-05-01 17:00", "2026-05-01 18:00", "2026-05-02 02:00", 0) // it was late
	f(Day, 23*time.Hour, "2026-05-02 01:00", "2026-05-02 02:00", "2026-05-02 23:00", 0)
	f(7*Day, 2*time.Hour, "2026-05-01 02:00", "2026-05-20 02:00", "2026-05-08 02:00", 1)
	f(Day, 2*time.Hour+30*time.Minute, "2026-03-28 02:30", "2026-03-28 12:00", "2026-03-29 03:30", 0) // summer begins
	f(Day, 3*time.Hour, "2026-10-24 03:00", "2026-10-24 12:00", "2026-10-25 03:00", 0)
}
