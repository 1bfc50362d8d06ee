package datapath

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A live failover from end to end, over restarts of both sides: the source stands by and its guests
// go on, machines write to the view, a rollback lets the source go on in a new epoch, a commit does not.
func TestFailover(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 2 << 20 })
	w.start()
	ctx := t.Context()
	recovery := func() api.RecoveryHandler { return Handlers(Identity{}, nil, w.tg).Recovery }
	code := func(want api.Code, err error) {
		t.Helper()
		if f := api.AsFailure(err); f == nil || f.Code != want || f.Next == "" {
			t.Errorf("%v, want %s and what to do", err, want)
		}
	}
	get := func() *holdfastv1.Failover {
		t.Helper()
		res, err := recovery().Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res.Failover
	}
	w.awaitState(api.StateProtected)
	before := w.image("vol1")
	first := w.checkpoint("first")
	w.put("vol1", 0, 256<<10)
	w.checkpoint("second")

	if f := get(); f.State != api.FailoverNone || f.View != nil {
		t.Errorf("before any: %v", f)
	}
	_, err := recovery().Rollback(ctx, &holdfastv1.RecoveryServiceRollbackRequest{})
	code(api.Precondition, err)
	_, err = Handlers(Identity{}, w.s, nil).Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
	code(api.Precondition, err)
	begin := &holdfastv1.RecoveryServiceBeginRequest{Checkpoint: first, Id: "one", Note: "a drill", Timer: api.Span(time.Hour)}
	for want, change := range map[api.Code]func(*holdfastv1.RecoveryServiceBeginRequest){
		api.NotFound:        func(r *holdfastv1.RecoveryServiceBeginRequest) { r.Checkpoint = "999999" },
		api.InvalidArgument: func(r *holdfastv1.RecoveryServiceBeginRequest) { r.Id = "" },
	} {
		r := &holdfastv1.RecoveryServiceBeginRequest{Checkpoint: first, Id: "one"}
		change(r)
		_, err = recovery().Begin(ctx, r)
		code(want, err)
	}
	for _, r := range []*holdfastv1.RecoveryServiceBeginRequest{
		{Checkpoint: first, Id: "one", Then: "maybe"}, {Checkpoint: first, Id: "one", Note: strings.Repeat("x", api.MaxFailoverNote+1)},
		{Checkpoint: first, Id: "one", Timer: api.Span(-1)},
	} {
		_, err = recovery().Begin(ctx, r)
		code(api.InvalidArgument, err)
	}

	res, err := recovery().Begin(ctx, begin)
	if err != nil {
		t.Fatal(err)
	}
	f := res.Failover
	if f.State != api.FailoverRecovering || f.Checkpoint != first || f.Epoch != 2 || f.View == nil || len(f.View.Volumes) != 1 || !f.View.Live || f.Left.AsDuration() > time.Hour ||
		f.Then != api.ThenRollback || f.Note != "a drill" || f.Reason != "" {
		t.Fatalf("begun: %v", f)
	}
	if res, err = recovery().Begin(ctx, begin); err != nil || res.Failover.View.Id != f.View.Id {
		t.Errorf("the same again: %v, %v", res, err)
	}
	_, err = recovery().Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Checkpoint: api.Latest, Id: "two"})
	code(api.Precondition, err)
	_, err = Handlers(Identity{}, nil, w.tg).Views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: f.View.Id})
	code(api.Precondition, err)

	w.awaitState(api.StateStandby)
	if s := w.status(); !strings.Contains(s.Reason, "live failover") {
		t.Errorf("the source says %q", s.Reason)
	}
	w.put("vol1", 512<<10, 256<<10) // its guests go on
	onView(t, f, func(c *nbd.Client) {
		if got := readView(t, c); firstDiff(got, before) >= 0 {
			t.Errorf("the view differs at %d", firstDiff(got, before))
		}
		if _, err := c.WriteAt([]byte("recovered"), 4000); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	})
	status := func() *holdfastv1.Group {
		t.Helper()
		res, err := Handlers(Identity{}, nil, w.tg).Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res.Groups[0]
	}
	if s := status(); s.State != api.StateRecovering || !strings.Contains(s.Reason, "rollback by itself in") || !strings.Contains(s.Reason, "a drill") {
		t.Errorf("the target says %s: %s", s.State, s.Reason)
	}

	w.killSource()
	w.stopTarget()
	w.startTarget()
	w.startSource()
	w.awaitState(api.StateStandby)
	if again := get(); again.State != api.FailoverRecovering || again.View.Id != f.View.Id || again.View.Volumes[0].Nbd != f.View.Volumes[0].Nbd || again.Reason != "" {
		t.Fatalf("after a restart: %v", again)
	}
	onView(t, f, func(c *nbd.Client) {
		p := make([]byte, 9)
		if _, err := c.ReadAt(p, 4000); err != nil || string(p) != "recovered" {
			t.Errorf("after a restart the view has %q, %v", p, err)
		}
	})

	back, err := recovery().Rollback(ctx, &holdfastv1.RecoveryServiceRollbackRequest{Id: "one"})
	if err != nil || back.Failover.State != api.FailoverRolledBack || back.Failover.View != nil {
		t.Fatalf("%v, %v", back, err)
	}
	w.awaitState(api.StateProtected)
	w.compare(first, map[string][]byte{"vol1": before})
	w.verify("after")
	if epoch, err := w.s.flows[0].epochs.get(); epoch != 3 || err != nil {
		t.Errorf("the source keeps epoch %d, %v", epoch, err)
	}
	w.killSource()
	w.startSource()
	w.awaitState(api.StateProtected)

	if res, err = recovery().Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Checkpoint: api.Latest, Id: "two", Timer: api.Span(0)}); err != nil || res.Failover.Left != nil {
		t.Fatal(res, err)
	}
	done, err := recovery().Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{})
	if err != nil || done.Failover.State != api.FailoverCommitted || done.Failover.View == nil || done.Failover.OnDisksAlone {
		t.Fatal(done, err)
	}
	_, err = recovery().Rollback(ctx, &holdfastv1.RecoveryServiceRollbackRequest{Id: "two"})
	code(api.Precondition, err)
	_, err = Handlers(Identity{}, nil, w.tg).Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: done.Failover.Checkpoint})
	code(api.Precondition, err)
	w.awaitState(api.StateStandby)
	onView(t, done.Failover, func(c *nbd.Client) {
		if _, err := c.WriteAt([]byte("committed"), 70000); err != nil {
			t.Fatal(err)
		}
		w.await("the replica holds it", func() bool {
			f := get()
			return f.State == api.FailoverPassing && f.OnDisksAlone && f.View.ScratchBytes == 0 && f.Reason == ""
		})
		if p := readView(t, c); string(p[70000:70009]) != "committed" {
			t.Errorf("once it is settled the view has %q", p[70000:70009])
		}
	})
	if s := status(); s.State != api.StateRecovering || !strings.Contains(s.Reason, "passes to plain disks") {
		t.Errorf("the target says %s: %s", s.State, s.Reason)
	}

	image := w.movesToDisks(get())
	w.stopTarget()
	w.startTarget()
	w.awaitState(api.StateStandby)
	now := get()
	if now.State != api.FailoverOnDisks || !now.OnDisksAlone || len(now.Disks) != 1 || now.View != nil || now.Reason != "" {
		t.Fatalf("after a restart it is %v", now)
	}
	if got, err := os.ReadFile(now.Disks[0].Path); err != nil || !bytes.Equal(got, image) {
		t.Errorf("after a restart the disk has %d bytes, want %d, and differs: %v", len(got), len(image), err)
	}
	if s := status(); s.State != api.StateRecovering || !strings.HasSuffix(s.Reason, "holdfast reverse protects it the other way round") || !strings.Contains(s.Reason, "NOT protected now") {
		t.Errorf("the target says %s: %s", s.State, s.Reason)
	}
	holdMetrics(t, Handlers(Identity{}, nil, w.tg).Metrics, `holdfast_failover_state{group="shop",state="on-disks"} 1`, `holdfast_failover_state{group="shop",state="passing"} 0`)
	if _, err := w.tg.store.OpenGroup(journal.GroupInfo{ID: testGroup + 1, Name: "shop", Lineage: 8}); err != nil {
		t.Fatal(err)
	}
	if g := w.tg.group("shop"); g == nil || g.Info().ID != testGroup+1 {
		t.Error("a new group of its name is not found")
	}
	w.tg.views.mu.Lock()
	w.tg.views.mu.now = func() time.Time { return time.Now().Add(returnWait) } // no machine is on its way back any more
	w.tg.views.mu.Unlock()
	gone, err := Handlers(Identity{}, nil, w.tg).Groups.Remove(ctx, &holdfastv1.GroupsServiceRemoveRequest{Group: record.GroupID(testGroup).String()})
	if err != nil || len(gone.Disks) != 1 || gone.Disks[0].Path != now.Disks[0].Path || w.tg.group("shop") == nil {
		t.Fatalf("removed: %v, %v", gone, err)
	}
	if got, err := os.ReadFile(now.Disks[0].Path); err != nil || !bytes.Equal(got, image) {
		t.Errorf("once it is removed the disk has %d bytes, want %d, and differs: %v", len(got), len(image), err)
	}
}

// movesToDisks has the machine of a failover whose view passes write to its disk itself, and returns what that holds then.
func (w *world) movesToDisks(f *holdfastv1.Failover) (image []byte) {
	w.t.Helper()
	ctx, disk := context.Background(), f.Disks[0]
	recovery := Handlers(Identity{}, nil, w.tg).Recovery
	letGo := func(id string) (*holdfastv1.Failover, error) {
		res, err := recovery.LetGo(ctx, &holdfastv1.RecoveryServiceLetGoRequest{Id: id})
		return res.GetFailover(), err
	}
	onView(w.t, f, func(c *nbd.Client) {
		if _, err := c.WriteAt([]byte("by the view"), 80000); err != nil {
			w.t.Fatal(err)
		}
		image = readView(w.t, c)
		if got, err := os.ReadFile(disk.Path); err != nil || !bytes.Equal(got[:len(image)], image) {
			w.t.Errorf("the disk is not what the view shows: %v", err)
		}
		if _, err := letGo(f.Id); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Unavailable {
			w.t.Errorf("let go of a disk that somebody is connected to: %v", err)
		}
		if res, err := recovery.MoveOn(ctx, &holdfastv1.RecoveryServiceMoveOnRequest{Id: f.Id}); err != nil || res.Failover.State != api.FailoverMoving || !res.Failover.OnDisksAlone {
			w.t.Errorf("the machine is about to move: %v, %v", res, err)
		}
		_, err := recovery.HandOver(ctx, &holdfastv1.RecoveryServiceHandOverRequest{Id: "00000000000000aa", Stream: "00000000000000bb", Control: "127.0.0.1:1", Data: "127.0.0.1:1"})
		if api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Precondition || !strings.Contains(err.Error(), "begun to move") {
			w.t.Errorf("its disk is handed over: %v", err)
		}
		if _, err := c.WriteAt([]byte("still"), 90000); err != nil {
			w.t.Fatal(err)
		}
		copy(image[90000:], "still")
	})
	if _, err := letGo("another"); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Precondition {
		w.t.Errorf("let go of another's: %v", err)
	}
	onView(w.t, f, func(*nbd.Client) {}) // it is served as before
	var now *holdfastv1.Failover
	w.await("nobody is connected any more", func() (gone bool) {
		var err error
		now, err = letGo(f.Id)
		return err == nil
	})
	if now.State != api.FailoverOnDisks || now.View != nil {
		w.t.Errorf("let go: %v", now)
	}
	if c, err := nbd.Dial(ctx, f.View.Volumes[0].Nbd); err == nil {
		c.Close()
		w.t.Error("the view is served beside the machine")
	}
	d, err := os.OpenFile(disk.Path, os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("by itself"), 100000); err != nil {
		w.t.Fatal(err)
	}
	copy(image[100000:], "by itself")
	if err := d.Close(); err != nil {
		w.t.Fatal(err)
	}
	return image
}

func onView(t *testing.T, f *holdfastv1.Failover, do func(*nbd.Client)) {
	t.Helper()
	c, err := nbd.Dial(context.Background(), f.View.Volumes[0].Nbd)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	do(c)
}

func readView(t *testing.T, c *nbd.Client) []byte {
	t.Helper()
	p := make([]byte, c.Size())
	for off := 0; off < len(p); off += 1 << 20 {
		if _, err := c.ReadAt(p[off:min(len(p), off+1<<20)], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// An epoch that does not read is no epoch.
func TestEpochs(t *testing.T) {
	e := openEpochs(t.TempDir(), 5)
	if n, err := e.get(); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := e.put(7); err != nil {
		t.Fatal(err)
	}
	if n, err := e.get(); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := writeDurably(e.name, []byte("holdfast epoch x\n")); err != nil {
		t.Fatal(err)
	}
	if n, err := e.get(); err == nil {
		t.Errorf("%d of nonsense", n)
	}
	if err := e.put(record.Epoch(9)); err != nil {
		t.Fatal(err)
	}
}
