package wire

import (
	"context"
	"runtime"
	"strings"
	"testing"
)

// madeHere is how many objects the code of this package has allocated so far, by the function.
func madeHere() map[string]int64 {
	runtime.GC() // what a profile shows is as of the last
	runtime.GC()
	records := make([]runtime.MemProfileRecord, 1<<14)
	n, _ := runtime.MemProfile(records, true)
	made := make(map[string]int64)
	for _, r := range records[:n] {
		frames := runtime.CallersFrames(r.Stack())
		for more := true; more; {
			var f runtime.Frame
			f, more = frames.Next()
			if strings.HasPrefix(f.Function, "runtime.") || strings.HasPrefix(f.Function, "sync.") {
				continue // who asked them is the next
			}
			if strings.Contains(f.File, "/wire/") && !strings.HasSuffix(f.File, "_test.go") {
				made[f.Function] += r.AllocObjects
			}
			break
		}
	}
	return made
}

// TestAllocationsPerRecord: from being sent until its memory is given back a record costs no
// allocation of ours. (crypto/tls makes some 32 bytes each time that it reads the socket.)
func TestAllocationsPerRecord(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate = rate }()
	target, source := newHandler(t), newHandler(t)
	taken := make(chan struct{}, 1)
	target.onRecord = func(_ *Session, r *Received) error {
		r.Release()
		taken <- struct{}{}
		return nil
	}
	_, c := overRelay(t, 0, target)
	connected(t, c, source)
	s := <-source.opened
	rec := large(1, 64<<10)
	rounds := func(n int) {
		for range n {
			if err := s.SendRecord(context.Background(), rec); err != nil {
				t.Fatal(err)
			}
			<-taken
		}
	}
	rounds(20)
	before := madeHere()
	const count = 300
	rounds(count)
	for name, n := range madeHere() {
		if n -= before[name]; n >= count/3 { // what a heartbeat or two took is no record's
			t.Errorf("%s: %.2f allocations a record", name, float64(n)/count)
		}
	}
}
