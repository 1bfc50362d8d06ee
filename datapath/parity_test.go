package datapath

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/journal/index"
)

// TestStoresAreLost takes a store away under a running target, has another in its place, and
// takes away one more: writes go on, the status says so, and every byte is there.
func TestStoresAreLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.catalogue = func() (index.Map, error) { return new(index.Memory), nil }
	w.parity = Parity{K: 2, M: 1, DataDir: w.dir}
	for i := range 4 {
		name := fmt.Sprintf("s%d", i)
		w.mkdir(name)
		if i < 3 {
			w.parity.Stores = append(w.parity.Stores, filepath.Join(w.dir, name))
		}
	}
	w.start()
	w.awaitState(api.StateProtected)
	g := w.writeGently(w.size/4, time.Millisecond) // many small pieces in a part of it
	before := w.status().PackRawBytesTotal
	w.await("sealed segments", func() bool { return w.status().PackRawBytesTotal > before+6<<20 })
	if err := os.Rename(w.parity.Stores[1], w.dir+"/gone"); err != nil { // at once: what is removed file by file is written to meanwhile
		t.Fatal(err)
	}
	if err := w.tg.protection.set.Probe(); err != nil {
		t.Fatal(err)
	}
	handlers := Handlers(Identity{}, nil, w.tg)
	list := func() *holdfastv1.StoresServiceListResponse {
		res, err := handlers.Stores.List(context.Background(), &holdfastv1.StoresServiceListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if res := list(); res.GetSpare() != 0 || !strings.Contains(res.GetReason(), w.parity.Stores[1]) {
		t.Errorf("with a store gone: %v", res)
	}
	holdMetrics(t, handlers.Metrics, `holdfast_stores{state="out"} 1`, `holdfast_stores{state="in"} 2`, "holdfast_stores_spare 0")
	st, err := handlers.Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil || !strings.Contains(st.Groups[0].Reason, "degraded") {
		t.Errorf("status with a store gone: %v, %v", st, err)
	}
	if _, err := handlers.Stores.Add(context.Background(), &holdfastv1.StoresServiceAddRequest{Folder: filepath.Join(w.dir, "s3")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(list())
			t.Logf("%+v", w.tg.protection.set.State())
		}
	})
	w.await("the stores to be mended", func() bool { return list().GetReason() == "" && list().GetSpare() == 1 })
	g.end()
	w.verify("after a store was replaced")
	w.stopTarget()
	w.parity.Stores[1] = filepath.Join(w.dir, "s3")
	if err := os.RemoveAll(w.parity.Stores[0]); err != nil {
		t.Fatal(err)
	}
	w.startTarget()
	w.awaitState(api.StateProtected)
	w.verify("with another store gone")

	get := w.commits() // machines stay on the view, and the target says so
	w.await("the replicas hold the checkpoint", func() bool { return get().State == api.FailoverSettled })
	if f := get(); !strings.Contains(f.NeverPlain, "several stores") || f.OnDisksAlone || f.Reason != "" {
		t.Errorf("over several stores: %v", f)
	}
	handlers = Handlers(Identity{}, nil, w.tg)
	if st, err = handlers.Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{}); err != nil || !strings.Contains(st.Groups[0].Reason, "stay on the view: the target keeps its disks over several stores") {
		t.Errorf("status over several stores: %v, %v", st, err)
	}
	if _, err := handlers.Recovery.MoveOn(context.Background(), &holdfastv1.RecoveryServiceMoveOnRequest{}); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Precondition {
		t.Errorf("machines move on: %v", err)
	}
}

// committedWorld is a world with 1 MiB written before a checkpoint, and a failover to that one, which is committed.
func committedWorld(t *testing.T, change func(*world)) (*world, func() *holdfastv1.Failover) {
	t.Helper()
	w := newWorld(t, change)
	w.start()
	w.awaitState(api.StateProtected)
	w.put("vol1", 0, 1<<20)
	w.checkpoint("first")
	return w, w.commits()
}

// commits has a failover to the newest checkpoint that is committed, and returns what tells of it.
func (w *world) commits() func() *holdfastv1.Failover {
	w.t.Helper()
	ctx, recovery := context.Background(), Handlers(Identity{}, nil, w.tg).Recovery
	_, err := recovery.Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Checkpoint: api.Latest, Id: "a"})
	if err == nil {
		_, err = recovery.Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{Id: "a"})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return func() *holdfastv1.Failover {
		w.t.Helper()
		res, err := recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
		if err != nil {
			w.t.Fatal(err)
		}
		return res.Failover
	}
}

// TestLocalParity damages a sealed segment that has parity beside it.
func TestLocalParity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.catalogue = func() (index.Map, error) { return new(index.Memory), nil }
	w.parity = Parity{Local: true}
	w.start()
	w.awaitState(api.StateProtected)
	g := w.writeGently(w.size, time.Millisecond)
	var found []string
	w.await("parity of a segment", func() bool {
		found, _ = filepath.Glob(filepath.Join(w.store, "groups", "*", "log", "*.par"))
		return len(found) > 0
	})
	g.end()
	w.verify("with local parity")
	get := w.commits() // the disks are files as any, which machines may move onto
	w.await("the disks are plain", func() bool { return get().OnDisksAlone })
}
