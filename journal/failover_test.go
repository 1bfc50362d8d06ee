package journal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func failoverTo(checkpoint uint64) FailoverRequest {
	return FailoverRequest{ID: "a", Checkpoint: checkpoint, Note: "the site burns", Timer: time.Hour, Then: failover.Rollback}
}

// numbers are the checkpoints that are listed.
func (t *target) numbers() (numbers []uint64) {
	cps, _ := t.group.Checkpoints(0, 1000)
	for _, cp := range cps {
		numbers = append(numbers, cp.Number)
	}
	return numbers
}

// goesOn is a source that was granted an epoch and resyncs, with a checkpoint at the end.
func (s *source) goesOn(epoch record.Epoch, next record.Seq) {
	s.id.Epoch, s.id.Seq = epoch, next-1
	s.newLife()
	s.open(false)
	s.write(5)
	s.close()
	s.write(3)
	s.checkpoint()
}

// While a failover lasts nobody appends and nothing of the history goes; a rollback leaves no trace
// of it but the epoch.
func TestFailoverHoldsHistory(t *testing.T) {
	s, disk := viewWorld(t)
	cfg := config(disk)
	cfg.lookedAfter = true
	w, err := openWith(cfg)
	ok(t, err)
	g, all := w.group, w.numbers()
	at, last := all[1], all[len(all)-1]
	if _, err := g.BeginFailover(FailoverRequest{Checkpoint: at}); err == nil {
		t.Error("a failover without a name began")
	}
	if _, err := g.BeginFailover(failoverTo(last + 9)); !errors.Is(err, ErrNotFound) || g.Failover().State != failover.None {
		t.Errorf("a checkpoint that is none: %v", err)
	}
	if _, err := g.CommitFailover(""); !errors.Is(err, failover.ErrNone) {
		t.Errorf("commit of none: %v", err)
	}
	if epoch, may := g.Grant(); may {
		t.Errorf("a source may come with a lower epoch than %d", epoch)
	}
	i, err := g.BeginFailover(failoverTo(at))
	ok(t, err)
	if i.State != failover.Recovering || i.Epoch != 2 || i.View.View == nil || i.View.Checkpoint != at || !i.View.Options.Live || i.Err != nil || i.Remains > time.Hour {
		t.Fatalf("begun: %+v", i)
	}
	if again, err := g.BeginFailover(failoverTo(at)); err != nil || again.View.Number != i.View.Number || again.Failover != i.Failover {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	other := failoverTo(at)
	other.ID = "b"
	if _, err := g.BeginFailover(other); !errors.Is(err, failover.ErrOther) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := g.Admit(testStream, 1, s.id.Incarnation+1); !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "live failover") {
		t.Errorf("the source is let in: %v", err)
	}
	stray := s.clone()
	stray.write(1)
	if err := w.send(stray.records[len(stray.records)-1:], 1); !errors.Is(err, ErrFenced) && !errors.Is(err, ErrAdmit) {
		t.Errorf("the source appends: %v", err)
	}
	if err := g.promote(last, noPace); !errors.Is(err, ErrInUse) {
		t.Errorf("promotion: %v", err)
	}
	if n, err := g.thin([]retain.Pair{{From: all[0], To: all[2]}}); n != 0 || err != nil {
		t.Errorf("%d are thinned out, %v", n, err)
	}
	if err := g.CloseView(i.View.Number); !errors.Is(err, ErrInUse) {
		t.Errorf("its view is closed: %v", err)
	}
	if n, err := g.YieldViews("tight"); n != 0 || err != nil {
		t.Errorf("%d views give way, %v", n, err)
	}
	ok(t, g.SetRetention(retain.Policy{History: retain.MinHistory, WarnPercent: 75}))
	g.store.retainer.look(1000 * time.Hour)
	if now := w.numbers(); !slices.Equal(now, all) {
		t.Errorf("in a failover %v are left of %v", now, all)
	}
	if i, err = g.RollBackFailover("a"); err != nil || i.State != failover.RolledBack || i.View.Number != 0 {
		t.Fatalf("rolled back: %+v, %v", i, err)
	}
	if _, err := g.CommitFailover("a"); !errors.Is(err, failover.ErrRolledBack) {
		t.Errorf("commit after that: %v", err)
	}
	if _, err := g.Admit(testStream, 1, s.id.Incarnation+1); !errors.Is(err, ErrFenced) {
		t.Errorf("the source is let in with its old epoch: %v", err)
	}
	epoch, may := g.Grant()
	if epoch != 3 || !may {
		t.Fatalf("granted %d, %v", epoch, may)
	}
	s.goesOn(epoch, g.Durable(testStream)+1)
	ok(t, w.feed(s, 2))
	numbers, err := w.check(s)
	if err != nil || len(numbers) != len(all)+1 {
		t.Errorf("%v are listed after %v, %v", numbers, all, err)
	}
	ok(t, g.promote(last, noPace)) // history goes again
	if i, err = g.BeginFailover(other); !errors.Is(err, ErrNotFound) {
		t.Errorf("a failover to a checkpoint that went: %+v, %v", i, err)
	}
	other.Checkpoint = last
	if i, err = g.BeginFailover(other); err != nil || i.Epoch != 4 {
		t.Errorf("another failover: %+v, %v", i, err)
	}
	ok(t, w.store.Close())
}

// What was begun half, by a view that does not open, is gone on with or rolled back.
func TestFailoverHalfBegun(t *testing.T) {
	_, disk := viewWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	at := w.numbers()[0]
	for _, end := range []failover.State{failover.RolledBack, failover.Recovering} {
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.EIO, Ever: true, At: 1, Only: func(name string) bool { return strings.HasSuffix(name, ".view.new") }})
		r := failoverTo(at)
		r.ID = end.String()
		i, err := w.group.BeginFailover(r)
		if !errors.Is(err, syscall.EIO) || i.State != failover.Raised || i.View.Number != 0 || i.Err == nil {
			t.Fatalf("the view's file is not written: %+v, %v", i, err)
		}
		if w.group.heldByFailover() == nil {
			t.Error("history may go")
		}
		disk.Heal()
		if end == failover.RolledBack {
			i, err = w.group.RollBackFailover("")
		} else {
			err = w.group.PassFailover(0)
			i = w.group.Failover()
		}
		if err != nil || i.State != end || i.Err != nil {
			t.Fatalf("%s: %+v, %v", end, i, err)
		}
	}
	ok(t, w.store.Close())
}

// A word that comes late fences nobody: the id of a failover that is over, or whose end was asked for
// before it began, begins none, also over restarts.
func TestLateBegin(t *testing.T) {
	_, disk := viewWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	at := w.numbers()[0]
	begin := func(id string) error {
		r := failoverTo(at)
		r.ID = id
		_, err := w.group.BeginFailover(r)
		return err
	}
	rollBack := func(id string) error {
		_, err := w.group.RollBackFailover(id)
		return err
	}
	if err := rollBack("never"); !errors.Is(err, failover.ErrNone) {
		t.Errorf("rolled back: %v", err)
	}
	if err := rollBack(""); !errors.Is(err, failover.ErrNone) {
		t.Errorf("rolled back: %v", err)
	}
	ok(t, begin("a"))
	if err := rollBack("other"); !errors.Is(err, failover.ErrOther) {
		t.Errorf("rolled back: %v", err)
	}
	ok(t, rollBack("a"))
	ok(t, begin("b"))
	ok(t, rollBack("b"))
	for range 2 {
		ok(t, begin("b")) // told what became of it
		for _, id := range []string{"never", "other", "a"} {
			if err := begin(id); !errors.Is(err, failover.ErrEnded) || w.group.Failover().ID != "b" || w.group.Failover().State != failover.RolledBack {
				t.Errorf("%s began: %v; %+v", id, err, w.group.Failover())
			}
		}
		ok(t, w.store.Close())
		w, err = openTarget(disk)
		ok(t, err)
	}
	if over := w.group.Failover().Over; over.By != failover.ByWord || over.ID != "b" {
		t.Errorf("it was ended: %+v", over)
	}
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.EIO, Ever: true, At: 1})
	if err := rollBack("unkept"); !errors.Is(err, failover.ErrOther) || !errors.Is(err, syscall.EIO) {
		t.Errorf("it is not remembered, and nobody is told: %v", err)
	}
	disk.Heal()
	ok(t, w.store.Close())
}

// The timer counts what has passed, over restarts, and no clock that is set.
func TestFailoverTimer(t *testing.T) {
	_, disk := viewWorld(t)
	now := retain.Instant{Boot: [16]byte{1}, Mono: time.Hour, Wall: int64(time.Hour)}
	open := func() *target {
		cfg := config(disk)
		cfg.Clock = func() retain.Instant { return now }
		w, err := openWith(cfg)
		ok(t, err)
		return w
	}
	w := open()
	_, err := w.group.BeginFailover(failoverTo(w.numbers()[0]))
	ok(t, err)
	pass := func(mono, wall time.Duration, want failover.State, left time.Duration) {
		t.Helper()
		now.Mono += mono
		now.Wall += int64(wall)
		ok(t, w.group.PassFailover(0))
		if i := w.group.Failover(); i.State != want || i.Remains != left {
			t.Errorf("%s with %s left, want %s with %s", i.State, i.Remains, want, left)
		}
	}
	pass(10*time.Minute, 10*time.Minute, failover.Recovering, 50*time.Minute)
	pass(0, 1000*time.Hour, failover.Recovering, 50*time.Minute)
	ok(t, w.store.Close())
	w = open()
	pass(20*time.Minute, -2000*time.Hour, failover.Recovering, 30*time.Minute)
	ok(t, w.store.Close())
	now.Boot, now.Mono = [16]byte{2}, 0
	w = open()
	pass(29*time.Minute, 29*time.Minute, failover.Recovering, time.Minute)
	now.Mono += time.Minute
	ok(t, w.group.PassFailover(3))
	pass(0, 0, failover.RolledBack, 0)
	if over := w.group.Failover().Over; over.By != failover.ByTimer || over.Machines != 3 || over.Wall != now.Wall {
		t.Errorf("it was ended: %+v", over)
	}
	if views := w.group.Views(); len(views) != 0 {
		t.Errorf("its view is there: %+v", views)
	}
	ok(t, w.store.Close())
}

// tale is a failover up to its end, and what was promised in it so far.
type tale struct {
	checkpoint uint64
	commit     bool
	faulty     bool // a sync may fail, which a view does not get over
	all        []uint64
	view       atomic.Uint64
	stage      atomic.Int32
}

// The stages of a tale: each says that the call before has returned.
const (
	taleBegins = iota
	taleBegun
	taleFlushed
	taleEnds
	taleEnded
)

const (
	taleText = "written in the failover"
	taleOff  = 5000
)

func (a *tale) run(w *target) error {
	i, err := w.group.BeginFailover(failoverTo(a.checkpoint))
	if err != nil {
		return err
	}
	if i.State != failover.Recovering || i.View.View == nil {
		return fmt.Errorf("it began, and is %+v", i)
	}
	a.view.Store(i.View.Number)
	a.stage.Store(taleBegun)
	d, _ := i.View.View.Device(1)
	if err := d.WriteAt([]byte(taleText), taleOff); err != nil {
		return err
	}
	if err := d.Flush(); err != nil {
		return err
	}
	a.stage.Store(taleFlushed)
	return a.end(w)
}

func (a *tale) end(w *target) (err error) {
	a.stage.Store(taleEnds)
	if a.commit {
		_, err = w.group.CommitFailover("a")
	} else {
		_, err = w.group.RollBackFailover("a")
	}
	if err == nil {
		a.stage.Store(taleEnded)
	}
	return err
}

// holds looks at what an opened store shows of a tale that had come to a stage between from and to.
// flushed: what was written must be there.
func (a *tale) holds(w *target, s *source, from, to int32, flushed bool) error {
	i := w.group.Failover()
	over := failover.RolledBack
	if a.commit {
		over = failover.Committed
	}
	may := slices.Concat([][]failover.State{taleBegins: {failover.None, failover.Recovering}, taleBegun: {failover.Recovering},
		taleFlushed: {failover.Recovering}, taleEnds: {failover.Recovering, over}, taleEnded: {over}}[from : to+1]...)
	if !slices.Contains(may, i.State) || i.Err != nil && !(a.faulty && i.View.State == ViewFailed) {
		return fmt.Errorf("at stage %d to %d it is %s: %v", from, to, i.State, i.Err)
	}
	_, err := w.group.Admit(testStream, 1, s.id.Incarnation)
	if (i.State == failover.None) != (err == nil) || err != nil && !errors.Is(err, ErrFenced) {
		return fmt.Errorf("it is %s, and the source with its old epoch hears: %w", i.State, err)
	}
	if !slices.Equal(w.numbers(), a.all) {
		return fmt.Errorf("it is %s, and %v are listed of %v", i.State, w.numbers(), a.all)
	}
	if !i.State.Shows() {
		if names, _ := w.store.cfg.FS.List(w.group.scratchDir()); len(names) != 0 || len(w.group.Views()) != 0 {
			return fmt.Errorf("it is %s, and there are still %v, %v", i.State, names, w.group.Views())
		}
		return nil
	}
	if n := a.view.Load(); n != 0 && i.View.Number != n {
		return fmt.Errorf("its view was v%d and is v%d", n, i.View.Number)
	}
	got, err := viewBytes(i.View)
	if err != nil {
		return err
	}
	plain := s.images[a.checkpoint][1]
	with := bytes.Clone(plain)
	copy(with[taleOff:], taleText)
	if !bytes.Equal(got, with) && (flushed || !bytes.Equal(got, plain)) {
		return fmt.Errorf("at stage %d the view differs at %d", from, firstDifference(got, with))
	}
	return nil
}

// survives opens a disk that crashed between two stages, looks, and ends the tale: from wherever it had
// come to. flushed: what was written must be there.
func (a *tale) survives(s *source, disk *faultdisk.Disk, from, to int32, flushed bool) error {
	w, err := openTarget(disk)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer w.store.Close()
	if err := a.holds(w, s, from, to, flushed); err != nil {
		return err
	}
	if i := w.group.Failover(); i.State == failover.Recovering {
		if err := (&tale{commit: a.commit}).end(w); err != nil {
			return err
		}
		if err := a.holds(w, s, taleEnded, taleEnded, flushed); err != nil {
			return err
		}
	}
	epoch, may := w.group.Grant()
	if !may {
		return nil
	}
	next := s.clone()
	next.goesOn(epoch, w.group.Durable(testStream)+1)
	if err := w.feed(next, 4); err != nil {
		return fmt.Errorf("the source goes on: %w", err)
	}
	numbers, err := w.check(next)
	if err == nil && len(numbers) != len(a.all)+1 {
		err = fmt.Errorf("%v are listed after %v", numbers, a.all)
	}
	return err
}

// tales are a failover that is rolled back and one that is committed.
func tales(t *testing.T, f func(s *source, disk *faultdisk.Disk, a *tale)) {
	t.Helper()
	for _, commit := range []bool{false, true} {
		s, disk := viewWorld(t)
		w, err := openTarget(disk)
		ok(t, err)
		a := &tale{commit: commit, all: w.numbers()}
		a.checkpoint = a.all[1]
		ok(t, w.store.Close())
		f(s, disk, a)
	}
}

// Power fails, or the process is killed, at every operation of a failover, and at operations of the
// recovery from that: what was promised stands, and the tale comes to one of its two ends.
func TestFailoverCrashAtEveryOperation(t *testing.T) {
	points := 0
	tales(t, func(s *source, disk *faultdisk.Disk, a *tale) {
		rng := seeded(3)
		w, err := openTarget(disk)
		ok(t, err)
		var failed error
		disk.OnOp(func(op faultdisk.Op, name string) {
			if failed != nil {
				return
			}
			from := a.stage.Load() // where the operation is another goroutine's, the tale goes on beside this
			survives := func(crashed *faultdisk.Disk) error {
				return a.survives(s, crashed, from, a.stage.Load(), from >= taleFlushed)
			}
			for _, keep := range keeps {
				points++
				if err := survives(disk.Crash(rng, keep)); err != nil && failed == nil {
					failed = fmt.Errorf("operation %d (%#x of %s), keep %d: %w", disk.Ops(), op, name, keep, err)
				}
			}
			if err := survives(disk.Kill()); err != nil && failed == nil {
				failed = fmt.Errorf("operation %d (%#x of %s), killed: %w", disk.Ops(), op, name, err)
			}
			crashed := disk.Crash(rng, keeps[points%len(keeps)])
			to := a.stage.Load()
			crashed.OnOp(func(op faultdisk.Op, name string) {
				if crashed.Ops()%(7*stride(5)) != 0 || failed != nil {
					return
				}
				points++
				if err := a.survives(s, crashed.Crash(rng, keeps[rng.IntN(len(keeps))]), from, to, from >= taleFlushed); err != nil && failed == nil {
					failed = fmt.Errorf("operation %d, then %d (%#x of %s) of the recovery: %w", disk.Ops(), crashed.Ops(), op, name, err)
				}
			})
			if err := opens(crashed); err != nil && failed == nil {
				failed = err
			}
		})
		ok(t, a.run(w))
		disk.OnOp(nil)
		ok(t, failed)
		ok(t, a.holds(w, s, taleEnded, taleEnded, true))
		ok(t, w.store.Close())
		ok(t, a.survives(s, disk, taleEnded, taleEnded, true))
	})
	t.Logf("%d crashes", points)
}

// Every operation of a failover fails once, or from then on. It is tried again, and ends; and so it
// does after a crash.
func TestFailoverErrorAtEveryOperation(t *testing.T) {
	fired := 0
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.EIO, Ever: true},
		{Ops: faultdisk.OpSync | faultdisk.OpSyncDir, Err: syscall.EIO},
	} {
		tales(t, func(s *source, whole *faultdisk.Disk, a *tale) {
			for at := 1; ; at++ {
				disk := whole.Kill()
				w, err := openTarget(disk)
				ok(t, err)
				var seen atomic.Int64
				fault.At, fault.Only = at, func(string) bool { seen.Add(1); return true }
				b := &tale{checkpoint: a.checkpoint, commit: a.commit, all: a.all, faulty: true}
				disk.Inject(fault)
				err = b.run(w)
				hit := seen.Load() >= int64(at)
				if err == nil && !fault.Ever && b.stage.Load() != taleEnded {
					t.Fatalf("%d: nobody heard of it", at)
				}
				stage := b.stage.Load()
				crashed := disk.Crash(seeded(at), keeps[at%len(keeps)])
				if err := b.survives(s, crashed, stage, stage, stage >= taleFlushed); err != nil {
					t.Fatalf("fault %+v, then a crash: %v", fault, err)
				}
				disk.Heal()
				if stage < taleFlushed && err != nil { // the caller asks again
					i, again := w.group.BeginFailover(failoverTo(a.checkpoint))
					if again != nil || i.State != failover.Recovering {
						t.Fatalf("fault %+v, begun again: %+v, %v", fault, i, again)
					}
				}
				if stage < taleEnded {
					ok(t, b.end(w))
				}
				ok(t, w.store.Close())
				if err := b.survives(s, disk, taleEnded, taleEnded, stage >= taleFlushed); err != nil {
					t.Fatalf("fault %+v, tried again: %v", fault, err)
				}
				if !hit {
					break
				}
				fired++
			}
		})
	}
	t.Logf("%d errors", fired)
}
