package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// When a round begins: at once when nothing is gained by waiting, else within the delay.
func TestPace(t *testing.T) {
	const ms = time.Millisecond
	start := time.Unix(1000, 0)
	f := func(what string, delay, idle time.Duration, lastRecords int, w waiting, waited, want time.Duration) {
		t.Helper()
		now := start.Add(idle)
		w.since = now.Add(-waited)
		p := pace{delay: delay, began: start, records: lastRecords}
		if got := p.wait(w, now); got != want {
			t.Errorf("%s: waits %v, want %v", what, got, want)
		}
	}
	one := waiting{records: 1, bytes: 4096}
	f("idle", 20*ms, 20*ms, 10, one, 0, 0)
	f("busy", 20*ms, 5*ms, 10, one, 0, 20*ms)
	f("has waited", 20*ms, 5*ms, 10, one, 15*ms, 5*ms)
	f("has waited long enough", 20*ms, 15*ms, 10, one, 21*ms, 0)
	f("alone", 20*ms, 1*ms, 1, one, 0, 0)
	f("all have come", 20*ms, 1*ms, 10, waiting{records: 10, bytes: 4096}, 0, 0)
	f("a buffer is full", 20*ms, 1*ms, 10, waiting{records: 2, bytes: stageBytes}, 0, 0)
	f("urgent", 20*ms, 1*ms, 10, waiting{records: 1, urgent: true}, 0, 0)
	f("no delay", -1, 1*ms, 10, one, 0, 0)
}

// The rounds are woken by the first that is queued, by as many as the last round had, by each
// buffer that is full, and by what is urgent; by nothing in between.
func TestWaking(t *testing.T) {
	f := func(what string, w waiting, sizes []int, want string) {
		t.Helper()
		got := ""
		for _, bytes := range sizes {
			if w.add(bytes) {
				got += "!"
			} else {
				got += "."
			}
		}
		if got != want {
			t.Errorf("%s: woken at %s, want %s", what, got, want)
		}
	}
	f("after a round of three", waiting{enough: 3}, []int{1, 1, 1, 1, 1}, "!.!..")
	f("at the first round", waiting{}, []int{1, 1, 1}, "!..")
	f("full buffers", waiting{enough: 100}, []int{1, stageBytes, 1, stageBytes - 2, 1, 3 * stageBytes}, "!!.!.!")
	f("urgent", waiting{enough: 100}, []int{1, 1, urgent, 1}, "!.!!")
}

// several is one store with several groups, and what each was promised.
type several struct {
	store   *Store
	targets []*target
}

func openSeveral(disk *faultdisk.Disk, n int) (*several, error) {
	cfg := config(disk)
	cfg.stageBytes = 4 << 10 // so that rounds overlap
	store, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	w := &several{store: store}
	for i := range n {
		t := &target{store: store}
		t.group, err = store.OpenGroup(GroupInfo{ID: testGroup + record.GroupID(i), Name: fmt.Sprint("group ", i), Lineage: testLineage})
		if err == nil {
			err = t.group.SetVolumes(testVolumes)
		}
		if err != nil {
			return nil, errors.Join(err, store.Close())
		}
		t.group.OnListed(func(cp Checkpoint) {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.listed = append(t.listed, cp.Number)
		})
		w.targets = append(w.targets, t)
	}
	return w, nil
}

// stream sends what the target lacks with up to window records in flight at any time,
// as a source does, and once more from what is durable when something was refused.
func (t *target) stream(s *source, window int) (err error) {
	for range 3 {
		if err = t.streamOnce(s, window); err == nil {
			return t.settle(life{s.id.Epoch, s.id.Incarnation})
		}
	}
	return err
}

func (t *target) streamOnce(s *source, window int) error {
	var last life
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, window)
	drain := func() error {
		for range window {
			slots <- struct{}{}
		}
		for range window {
			<-slots
		}
		mu.Lock()
		defer mu.Unlock()
		return failed
	}
	for _, r := range s.records[t.group.Durable(testStream):] {
		if l := (life{r.Epoch, r.Incarnation}); l != last {
			if err := drain(); err != nil {
				return err
			}
			if _, err := t.group.Admit(testStream, l.epoch, l.inc); err != nil {
				return err
			}
			last = l
		}
		slots <- struct{}{}
		err := t.group.Append(r, func(err error) {
			if err == nil {
				t.mu.Lock()
				t.acked = max(t.acked, r.Seq)
				t.mu.Unlock()
			}
			mu.Lock()
			failed = errors.Join(failed, err)
			mu.Unlock()
			<-slots
		})
		if err != nil {
			<-slots
			return errors.Join(err, drain())
		}
	}
	return drain()
}

// streamAll streams to all groups at once.
func (w *several) streamAll(sources []*source, window int) error {
	errs := make([]error, len(sources))
	var wg sync.WaitGroup
	for i, s := range sources {
		wg.Go(func() { errs[i] = w.targets[i].stream(s, window) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// promise is what a group had been told at some moment.
type promise struct {
	acked  record.Seq
	listed []uint64
}

func (w *several) promises() []promise {
	ps := make([]promise, len(w.targets))
	for i, t := range w.targets {
		ps[i].acked, ps[i].listed = t.promised()
	}
	return ps
}

// keptBy opens the disk and says which promise it broke.
func keptBy(disk *faultdisk.Disk, sources []*source, ps []promise) error {
	w, err := openSeveral(disk, len(sources))
	if err != nil {
		return err
	}
	defer w.store.Close()
	for i, t := range w.targets {
		if got := t.group.Durable(testStream); got < ps[i].acked {
			return fmt.Errorf("group %d: seq %d was acknowledged, %d is durable", i, ps[i].acked, got)
		}
		numbers, err := t.check(sources[i])
		if err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
		for _, n := range ps[i].listed {
			found := false
			for _, m := range numbers {
				found = found || m == n
			}
			if !found {
				return fmt.Errorf("group %d: checkpoint %d was listed, %v are", i, n, numbers)
			}
		}
	}
	return nil
}

func newSources(n int) (all []*source) {
	for i := range n {
		s := newSource(40 + i)
		s.script()
		all = append(all, s)
	}
	return all
}

// Power fails at every operation of rounds that several groups share and that overlap:
// what any of them was told is there.
func TestCrashInSharedRounds(t *testing.T) {
	sources := newSources(3)
	disk := faultdisk.New(512)
	var w atomic.Pointer[several]
	var failed atomic.Pointer[error]
	var points atomic.Int64
	disk.OnOp(func(op faultdisk.Op, name string) {
		n := disk.Ops()
		w := w.Load()
		if w == nil || failed.Load() != nil || n%stride(5) != 0 {
			return
		}
		ps := w.promises()
		rng := seeded(n)
		keep := keeps[n%len(keeps)]
		points.Add(1)
		if err := keptBy(disk.Crash(rng, keep), sources, ps); err != nil {
			err = fmt.Errorf("operation %d (%#x of %s), keep %d: %w", n, op, name, keep, err)
			failed.CompareAndSwap(nil, &err)
		}
	})
	opened, err := openSeveral(disk, len(sources))
	ok(t, err)
	w.Store(opened)
	ok(t, opened.streamAll(sources, 5))
	ok(t, opened.store.Close())
	disk.OnOp(nil)
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	t.Logf("%d crashes", points.Load())
}

// Each operation of shared rounds fails once. A failed sync fails for all groups in it
// and is final; all records are written elsewhere, and nobody hears of it.
func TestErrorInSharedRounds(t *testing.T) {
	sources := newSources(3)
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpMutating, Err: syscall.EIO, Short: true},
		{Ops: faultdisk.OpSync, Err: syscall.EIO},
	} {
		at := 1
		for ; ; at += stride(45) {
			fault.At = at
			disk := faultdisk.New(512)
			w, err := openSeveral(disk, len(sources))
			ok(t, err)
			var fired atomic.Int64
			fault.Only = func(string) bool { fired.Add(1); return true }
			disk.Inject(fault)
			if err := w.streamAll(sources, 5); err != nil && fault.Ops == faultdisk.OpSync && !errors.Is(err, ErrFailed) {
				t.Errorf("fault %#x at %d: a source was told %v", fault.Ops, at, err)
			}
			ps := w.promises()
			disk.Heal()
			ok(t, w.store.Close())
			if err := keptBy(disk.Crash(seeded(at), faultdisk.KeepNone), sources, ps); err != nil {
				t.Fatalf("fault %#x at %d: %v", fault.Ops, at, err)
			}
			if fired.Load() < int64(at) {
				break
			}
		}
		t.Logf("operations %#x: errors up to the %d-th", fault.Ops, at-1)
	}
}

// The sync of a round fails, and then each place that calls the disk to write its records
// elsewhere. What was told durable is there.
func TestErrorAfterAFailedRound(t *testing.T) {
	sources := newSources(2)
	nth := 0
	once := faultdisk.OncePerSite{Folder: "journal"}
	n := once.Each(faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.EIO}, func(fault faultdisk.Fault) {
		disk := faultdisk.New(512)
		w, err := openSeveral(disk, len(sources))
		ok(t, err)
		var down atomic.Bool
		fault.Only = func(string) bool { return down.Load() }
		disk.Inject(fault)
		nth = nth%4 + 1
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, At: nth, Err: syscall.EIO, Only: func(name string) bool {
			if strings.Contains(name, "/log/") {
				down.Store(true)
				return true
			}
			return false
		}})
		_ = w.streamAll(sources, 5) // a source is told when both fail
		ps := w.promises()
		disk.Heal()
		ok(t, w.store.Close())
		if err := keptBy(disk.Crash(seeded(once.Found()), faultdisk.KeepNone), sources, ps); err != nil {
			t.Fatalf("place %d: %v", once.Found(), err)
		}
	})
	t.Logf("%d places", n)
}

// Who waits for room in the queue can give up, and has then sent nothing.
func TestAppendGivesUp(t *testing.T) {
	s := newSource(50)
	s.open(false)
	s.write(3)
	disk := faultdisk.New(512)
	w, err := openTarget(disk)
	ok(t, err)
	_, err = w.group.Admit(testStream, 1, 1)
	ok(t, err)
	w.group.mu.Lock()
	w.group.bytes += maxQueued + 1
	w.group.mu.Unlock()
	ctx, giveUp := context.WithCancelCause(context.Background())
	told := errors.New("the session ended")
	done := make(chan error)
	go func() { done <- w.group.AppendContext(ctx, s.records[0], nil) }()
	giveUp(told)
	if err := <-done; !errors.Is(err, told) {
		t.Errorf("Append: %v, want why its context ended", err)
	}
	w.group.mu.Lock()
	w.group.bytes = 0
	w.group.mu.Unlock()
	ok(t, w.send(s.records, 2))
	ok(t, w.store.Close())
}
