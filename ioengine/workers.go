package ioengine

import "sync"

// workers runs calls that block in the system on a few goroutines, in the order in
// which they came. The goroutines end when there is nothing left to do, so that a file
// system needs no Close. The zero value is ready.
type workers struct {
	mu      sync.Mutex
	queue   []func()
	running int
}

// maxWorkers is how many calls are in the system at once: enough that flushes of many
// files meet in the block layer, and few enough threads.
const maxWorkers = 16

// run has call run, soon.
func (w *workers) run(call func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, call)
	if w.running < maxWorkers {
		w.running++
		go w.work()
	}
}

func (w *workers) work() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 {
		call := w.queue[0]
		w.queue[0] = nil
		w.queue = w.queue[1:]
		w.mu.Unlock()
		call()
		w.mu.Lock()
	}
	w.running--
}
