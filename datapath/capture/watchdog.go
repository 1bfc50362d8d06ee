package capture

import (
	"context"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A queue's loop that does not turn holds its guest up for ever: nobody would notice but the guest. So the process is
// ended, and a supervisor starts it anew; the front end connects again, and what was in flight is done again.
const (
	beatEvery = 100 * time.Millisecond
	hangBeats = 10 // looks at which a loop stood still
	// processWait is how long the watchdog itself may not run: then the kernel ends the process. A machine without
	// time for it for that long is more likely than not worse off.
	processWait = 3 * time.Second
)

// beat is how a loop was seen to turn. Looks are counted, not time: of a machine that stood still nobody is blamed.
type beat struct {
	pulse uint64
	still int
}

// see takes what a loop shows now; excused says that it may be waiting for the guest's disk. It says whether the loop hangs.
func (b *beat) see(pulse uint64, excused bool) bool {
	if pulse != b.pulse || pulse%2 == 1 || excused { // odd: it waits in the kernel, where it is woken
		b.pulse, b.still = pulse, 0
		return false
	}
	b.still++
	return b.still >= hangBeats
}

// lanes are those of a volume that are open.
type lanes struct {
	sync.Mutex
	list map[*lane]struct{}
}

func (s *lanes) add(a *lane) {
	s.Lock()
	defer s.Unlock()
	if s.list == nil {
		s.list = map[*lane]struct{}{}
	}
	s.list[a] = struct{}{}
}

func (s *lanes) remove(a *lane) {
	s.Lock()
	defer s.Unlock()
	delete(s.list, a)
}

// hang says whether one of the volume's loops hangs. A loop may wait for the disk in a call of its own, or for a write that
// overlaps and that another loop has at the disk: that is no hang.
func (v *volume) hang() bool {
	v.lanes.Lock()
	defer v.lanes.Unlock()
	waiting := v.disk.busy.Load() > 0
	for a := range v.lanes.list {
		pulse, flying := a.loop.Pulse()
		waiting = waiting || pulse%2 == 1 && pulse == a.beat.pulse && flying > 0
	}
	hangs := false
	for a := range v.lanes.list {
		pulse, _ := a.loop.Pulse()
		hangs = a.beat.see(pulse, waiting) || hangs
	}
	return hangs
}

// Guard watches the loops of all queues until ctx ends. When one does not turn for a second it calls abort, which is to end
// the process, and returns. If it is not itself given time for some seconds the kernel kills the process. Queues that go by
// threads, without io_uring, it does not see. When a write of a mirror's does not end for a second its connection is given up, no more.
func (f *Filter) Guard(ctx context.Context, abort func(volume string)) error {
	last, err := newLastResort()
	if err != nil {
		return err
	}
	defer last.end()
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		if err := last.put(processWait); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, v := range f.volumes {
			if v.mirror.guard(); v.hang() {
				abort(v.name)
				return nil
			}
		}
	}
}

// lastResort is a timer of the kernel's that kills this process.
type lastResort struct{ id int32 }

// signalEvent is struct sigevent.
type signalEvent struct {
	value  uint64
	signo  int32
	notify int32
	_      [48]byte
}

func newLastResort() (*lastResort, error) {
	e, t := signalEvent{signo: int32(unix.SIGKILL)}, &lastResort{}
	_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&e)), uintptr(unsafe.Pointer(&t.id)))
	if errno != 0 {
		return nil, fmt.Errorf("timer_create: %w", errno)
	}
	return t, nil
}

// put has it act after d from now on, unless it is put again.
func (t *lastResort) put(d time.Duration) error {
	spec := [2]unix.Timespec{{}, unix.NsecToTimespec(int64(d))}
	if _, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(t.id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("timer_settime: %w", errno)
	}
	return nil
}

func (t *lastResort) end() { _, _, _ = unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(t.id), 0, 0) }
