package bars

import (
	"testing"
	"time"
)

func TestDiskOf(t *testing.T) {
	const stats = "   8       0 sda 9 0 0 0 9 0 0 0 9 0 0 9 0 0 0 9 0\n" +
		" 254       1 vda1 5 1 8 3 70 2 9 4 6 11 12 900 0 0 0 1000 7\n" +
		" 254       0 vda 4 0 0 0 0 0 0 0 0 0 0\n"
	f := func(major, minor uint32, wantFinished, wantWaiting int64, wantOK bool) {
		t.Helper()
		if finished, waiting, ok := diskOf(stats, major, minor); finished != wantFinished || waiting != wantWaiting || ok != wantOK {
			t.Errorf("%d:%d finished %d, waits for %d, %v", major, minor, finished, waiting, ok)
		}
	}
	f(254, 1, 5+70+900+1000, 6, true)
	f(254, 0, 4, 0, true)
	f(25, 4, 0, 0, false)
}

// A disk that finishes nothing stalls only while something waits for it, and for long.
func TestStalls(t *testing.T) {
	began := time.Now()
	f := func(want []time.Duration, finished ...int64) { // every 50 ms; below zero: nothing waits
		t.Helper()
		var s stalls
		for i, n := range finished {
			s.look(began.Add(time.Duration(i)*50*time.Millisecond), max(n, -n), max(0, n))
		}
		if len(s.all) != len(want) {
			t.Fatalf("%v of %v: %v", len(s.all), finished, s.all)
		}
		for i, x := range s.all {
			if x.To.Sub(x.From) != want[i] {
				t.Errorf("stall %d of %v lasts %v", i, finished, x.To.Sub(x.From))
			}
		}
	}
	f(nil, 1, 2, 3, 4)
	f(nil, 1, 1, 1, 1) // not over yet
	f([]time.Duration{150 * time.Millisecond, 100 * time.Millisecond}, 1, 1, 1, 2, 3, 3, 4, 5)
	f(nil, -1, -1, -1, -1, -1, 2)
	f(nil, 1, 1, -1, -1, -1, 2) // it had nothing to do
}

func TestWatchDisk(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/proc", "/no such folder"} {
		for range 2 {
			if found := WatchDisk(dir)(); len(found) > 0 {
				t.Errorf("%s stalls at once: %v", dir, found)
			}
		}
	}
}
