package faultdisk

import (
	"runtime"
	"sync"
)

// OncePerSite has a fault fall on each place in the code from which a disk is called, once:
// a test runs the same work with the same OncePerSite until a run of it finds no new place.
// How operations fall in time does not matter then, as it does where they are numbered.
// It may be used by many goroutines.
type OncePerSite struct {
	Folder string // only of call sites in the folder of this base name; empty: of all

	mu   sync.Mutex
	seen map[siteKey]bool
}

// Found returns how many places were found so far.
func (o *OncePerSite) Found() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.seen)
}

// Each has run called with a fault on this disk interface for every place that run comes to:
// again and again, until it finds no new one. It returns how many there were.
func (o *OncePerSite) Each(f Fault, run func(Fault)) int {
	for f.Once = o; ; {
		found := o.Found()
		if run(f); o.Found() == found {
			return found
		}
	}
}

// first says whether the caller of the disk is here for the first time.
func (o *OncePerSite) first() bool {
	var pcs [wrapped]uintptr
	at, _, found := callerOf(pcs[:runtime.Callers(2, pcs[:])])
	if !found || o.Folder != "" && at.folder != o.Folder {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen == nil {
		o.seen = map[siteKey]bool{}
	}
	new := !o.seen[at]
	o.seen[at] = true
	return new
}
