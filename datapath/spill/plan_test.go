package spill

import "testing"

// TestPlan is the table of what goes to disk and what comes back, in MiB, of a window of 160.
func TestPlan(t *testing.T) {
	const m = 1 << 20
	f := func(wantEvict, wantFetch int64, s stand) {
		t.Helper()
		s.limit, s.memory, s.room = 160*m, s.memory*m, s.room*m
		evict, fetch := s.evicts(), s.fetches()
		if evict/m != wantEvict || fetch/m != wantFetch {
			t.Errorf("%+v: %d MiB go and %d come back, want %d and %d", s, evict/m, fetch/m, wantEvict, wantFetch)
		}
	}
	// Nothing is on disk: up to three quarters it stays so.
	f(0, 0, stand{memory: 0, room: 100})
	f(0, 0, stand{memory: 120, room: 100})
	f(5, 0, stand{memory: 121, room: 100})
	f(44, 0, stand{memory: 160, room: 100})
	// Something is: half of the memory is for what is sent next.
	f(0, 80, stand{memory: 0, room: 100, onDisk: 1})
	f(0, 1, stand{memory: 79, room: 100, onDisk: 1})
	f(0, 0, stand{memory: 84, room: 100, onDisk: 1})
	f(5, 0, stand{memory: 85, room: 100, onDisk: 1})
	// What is wanted comes, whatever memory holds.
	f(80, 1, stand{memory: 160, room: 100, onDisk: 1, wanted: true})
	f(0, 80, stand{memory: 0, room: 100, onDisk: 1, wanted: true})
	f(0, 0, stand{memory: 0, room: 100, wanted: true})
	// A disk that is full, fails or hangs is as none; what is there comes back unless it hangs or is lost.
	f(0, 0, stand{memory: 160, room: 0})
	f(0, 0, stand{memory: 160, room: 100, rests: true})
	f(0, 80, stand{memory: 0, onDisk: 1, rests: true})
	f(0, 0, stand{memory: 160, room: 100, broken: true})
	f(0, 0, stand{memory: 0, room: 100, onDisk: 1, wanted: true, broken: true})
	if s := (stand{limit: 160 * m, memory: 130 * m}); !s.full() {
		t.Error("what is due has no room, and it is not said")
	}
	if s := (stand{limit: 160 * m, memory: 110 * m}); s.full() {
		t.Error("nothing is due, and the disk is called full")
	}
}

// TestPlanSettles: however much comes and goes, nothing goes to disk only to come back while nothing is sent.
func TestPlanSettles(t *testing.T) {
	const m = 1 << 20
	s := stand{limit: 160 * m, room: 1 << 40}
	var fetched int64
	for range 10000 {
		s.memory += m // a record
		if n := s.evicts(); n > 0 {
			s.memory -= n
			s.onDisk += int(n / m)
		}
		if n := s.fetches(); n > 0 {
			fetched += n
		}
	}
	if fetched > 0 || s.memory > 120*m {
		t.Errorf("%d MiB came back, %d MiB stand in memory", fetched/m, s.memory/m)
	}
}
