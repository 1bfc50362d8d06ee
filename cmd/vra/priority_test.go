package main

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

// TestGiveWay: every thread is as nice, those that begin later too, and what is nicer stays so.
func TestGiveWay(t *testing.T) {
	for _, nice := range []int{3, 2} {
		if err := giveWay(nice); err != nil {
			t.Fatal(err)
		}
		later := make(chan int)
		go func() {
			runtime.LockOSThread()
			n, err := niceOf(syscall.Gettid())
			if err != nil {
				t.Error(err)
			}
			later <- n
		}()
		if n := <-later; n < 3 {
			t.Errorf("a thread that began later is nice %d", n)
		}
		list, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			id, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			if n, err := niceOf(id); err == nil && n < 3 {
				t.Errorf("thread %d is nice %d", id, n)
			}
		}
	}
}
