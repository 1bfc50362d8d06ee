package sidecar

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// How often the vra is asked while somebody watches, and how many may.
const (
	lookEvery   = 500 * time.Millisecond
	lookWait    = 5 * time.Second // for the vra, which hangs if it takes longer
	minProgress = time.Second
	maxWatchers = 64
)

// picture is how things stood at a moment. It is not changed once it is made.
type picture struct {
	time        time.Time
	groups      []*holdfastv1.Group
	unreachable string // then groups is empty
}

// watch tells any number of callers what changed. The vra is asked once for all, and only while there are any.
// Each caller is told the difference between what it was told last and how things stand now: one that is slow
// misses what was in between, and takes no memory for it.
type watch struct {
	ask   func(context.Context) ([]*holdfastv1.Group, error) // within a bounded time
	count *counters

	mu struct {
		sync.Mutex
		watchers int
		stop     context.CancelFunc // ends the asking, while there are watchers: nothing is published from then on
		done     chan struct{}      // closed when it has ended
		now      *picture           // nil: not asked yet
		next     chan struct{}      // closed when now is another
	}
}

func newWatch(ask func(context.Context) ([]*holdfastv1.Group, error), count *counters) *watch {
	w := &watch{ask: ask, count: count}
	w.mu.next = make(chan struct{})
	return w
}

// Watch implements api.WatchHandler.
func (w *watch) Watch(ctx context.Context, r *holdfastv1.WatchServiceWatchRequest, tell func(*holdfastv1.WatchServiceWatchResponse) error) error {
	progress := time.Duration(0)
	if r.Progress != nil {
		if progress = r.Progress.AsDuration(); progress < minProgress {
			return api.Errorf(api.InvalidArgument, "ask for 1s or more, or leave it out", "progress every %v", progress)
		}
	}
	leave, err := w.join()
	if err != nil {
		return err
	}
	defer leave()
	var told told
	var progressed time.Time
	for {
		w.mu.Lock()
		now, next := w.mu.now, w.mu.next
		w.mu.Unlock()
		if now != nil {
			all := progress > 0 && now.time.Sub(progressed) >= progress
			if all {
				progressed = now.time
			}
			if m := told.step(now, r.Group, all); m != nil {
				if err := tell(m); err != nil {
					return err
				}
			}
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// join begins to ask the vra for the first watcher; leave ends it after the last.
func (w *watch) join() (leave func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.watchers >= maxWatchers {
		return nil, api.Errorf(api.Exhausted, "end one of them, or ask for the status now and then", "%d callers watch already", maxWatchers)
	}
	w.mu.watchers++
	w.count.watchers.Add(1)
	if w.mu.watchers == 1 {
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); w.look(ctx) }()
		w.mu.stop, w.mu.done = stop, done
	}
	return func() {
		w.count.watchers.Add(-1)
		w.mu.Lock()
		w.mu.watchers--
		if w.mu.watchers > 0 {
			w.mu.Unlock()
			return
		}
		w.mu.stop() // under the lock: what is asked for now is for nobody
		w.mu.now = nil
		done := w.mu.done
		w.mu.Unlock()
		<-done
	}, nil
}

// look asks the vra until ctx ends.
func (w *watch) look(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		p := &picture{}
		groups, err := w.ask(ctx)
		if p.time, p.groups = time.Now(), groups; err != nil {
			p.groups, p.unreachable = nil, err.Error()
		}
		w.mu.Lock()
		// A look of before the last watcher left is not for the next one.
		if ctx.Err() == nil {
			w.mu.now = p
			close(w.mu.next)
			w.mu.next = make(chan struct{})
		}
		w.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// told is what a watcher knows.
type told struct {
	any         bool
	unreachable string
	groups      map[string]*holdfastv1.Group // by role and name, as they were told
}

// step is the message after which a watcher knows how things stand; nil when it does already. all counts
// progress as a change. Only group counts, unless it is empty.
func (t *told) step(now *picture, group string, all bool) *holdfastv1.WatchServiceWatchResponse {
	m := &holdfastv1.WatchServiceWatchResponse{Time: api.Timestamp(now.time)}
	if now.unreachable != "" {
		if t.any && t.unreachable == now.unreachable {
			return nil
		}
		*t = told{any: true, unreachable: now.unreachable}
		m.Unreachable = now.unreachable
		return m
	}
	m.Complete = !t.any || t.unreachable != ""
	if m.Complete {
		t.groups = make(map[string]*holdfastv1.Group)
	}
	t.any, t.unreachable = true, ""
	present := make(map[string]bool)
	for _, g := range now.groups {
		if group != "" && g.GetName() != group {
			continue
		}
		key := g.GetRole() + "/" + g.GetName()
		present[key] = true
		if before, ok := t.groups[key]; !ok || !api.SameGroup(before, g, all) {
			t.groups[key] = g
			m.Groups = append(m.Groups, g)
		}
	}
	for key, g := range t.groups {
		if !present[key] && !invariant.Planted("control/sidecar/never-gone") {
			delete(t.groups, key)
			m.Gone = append(m.Gone, g.GetName())
		}
	}
	slices.Sort(m.Gone)
	if !m.Complete && len(m.Groups) == 0 && len(m.Gone) == 0 {
		return nil
	}
	return m
}
