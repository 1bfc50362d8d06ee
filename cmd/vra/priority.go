package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// giveWay makes all threads of this process at least that nice, so that guests and their filters go first where
// processors are few. Threads that begin later are as nice as those that begin them.
func giveWay(nice int) error {
	for changed := true; changed; {
		changed = false
		list, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("nice: %w", err)
		}
		for _, e := range list {
			id, err := strconv.Atoi(e.Name())
			if err != nil {
				return fmt.Errorf("nice: thread %q: %w", e.Name(), err)
			}
			switch now, err := niceOf(id); {
			case errors.Is(err, syscall.ESRCH): // it has ended
				continue
			case err != nil:
				return fmt.Errorf("nice: %w", err)
			case now >= nice:
				continue
			}
			if err := syscall.Setpriority(syscall.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("nice: %w", err)
			}
			changed = true // look again: it may have begun others before
		}
	}
	return nil
}

// niceOf is how nice a thread is; the system call tells of 20 less that.
func niceOf(thread int) (int, error) {
	n, err := syscall.Getpriority(syscall.PRIO_PROCESS, thread)
	return 20 - n, err
}
