package bars

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Stall is a time in which a disk finished nothing, though requests waited for it: nobody who
// uses it can be faster.
type Stall struct{ From, To time.Time }

const (
	// stallLook is how often a disk is looked at.
	stallLook = 10 * time.Millisecond
	// stallLeast is from when on it is one.
	stallLeast = 100 * time.Millisecond
)

// WatchDisk looks at the disk under a folder until stop, which returns its stalls. Of what
// is no disk of the kernel's own there are none.
func WatchDisk(dir string) (stop func() []Stall) {
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) != nil {
		return func() []Stall { return nil }
	}
	var (
		found stalls
		ended = make(chan struct{})
		wg    sync.WaitGroup
	)
	wg.Go(func() {
		tick := time.NewTicker(stallLook)
		defer tick.Stop()
		for {
			p, err := os.ReadFile("/proc/diskstats")
			finished, waiting, ok := diskOf(string(p), majorOf(st.Dev), minorOf(st.Dev))
			if err != nil || !ok {
				return
			}
			found.look(time.Now(), finished, waiting)
			select {
			case <-ended:
				return
			case <-tick.C:
			}
		}
	})
	return func() []Stall {
		close(ended)
		wg.Wait()
		return found.all
	}
}

// majorOf and minorOf take the number of a device apart, as Linux puts it together.
func majorOf(dev uint64) uint32 { return uint32(dev>>8&0xfff | dev>>32&^0xfff) }
func minorOf(dev uint64) uint32 { return uint32(dev&0xff | dev>>12&^0xff) }

// diskOf reads /proc/diskstats: how many requests the disk has finished, flushes and what it
// was told to forget included, and how many wait.
func diskOf(stats string, major, minor uint32) (finished, waiting int64, ok bool) {
	const reads, writes, inFlight, discards, flushes = 3, 7, 11, 14, 18 // fields of its line
	id := fmt.Sprint(major, " ", minor)
	for line := range strings.Lines(stats) {
		f := strings.Fields(line)
		if len(f) <= inFlight || f[0]+" "+f[1] != id {
			continue
		}
		n := make([]int64, len(f))
		for i := reads; i < len(f); i++ {
			n[i], _ = strconv.ParseInt(f[i], 10, 64) // numbers all of them
		}
		for _, at := range []int{reads, writes, discards, flushes} {
			if at < len(n) {
				finished += n[at]
			}
		}
		return finished, n[inFlight], true
	}
	return 0, 0, false
}

// stalls finds stalls in what is seen of a disk now and then.
type stalls struct {
	all   []Stall
	moved time.Time // when it was last seen to have finished something, or to have nothing to do
	last  int64
}

func (s *stalls) look(now time.Time, finished, waiting int64) {
	if finished == s.last && waiting > 0 && !s.moved.IsZero() {
		return
	}
	if !s.moved.IsZero() && finished != s.last && now.Sub(s.moved) >= stallLeast {
		s.all = append(s.all, Stall{s.moved, now})
	}
	s.last, s.moved = finished, now
}
