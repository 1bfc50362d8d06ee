//go:build e2e

package scenario_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/several"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// shared is a group of several source VRAs whose every failure ends the test.
type shared struct {
	*several.Group
	t     *testing.T
	hosts int
}

// upShared starts one; it is taken down when the test ends.
func upShared(t *testing.T, hosts int) *shared {
	t.Helper()
	bin := built(t, "")
	run, err := os.MkdirTemp("/dev/shm", "hf-")
	if err != nil {
		t.Fatal(err)
	}
	g, err := several.Up(several.Config{Binaries: bin, Dir: t.TempDir(), RunDir: run, Hosts: hosts, Volumes: 1, Bytes: 4 << 20, Interval: time.Second})
	t.Cleanup(func() {
		if err := g.Down(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, name := range []string{several.Target, several.Source(0), several.Source(1)} {
				if text, err := os.ReadFile(g.Log(name)); err == nil {
					t.Logf("%s said:\n%s", name, text)
				}
			}
		}
		os.RemoveAll(run)
	})
	if err != nil {
		t.Fatal(err)
	}
	return &shared{g, t, hosts}
}

// await polls until ok says so, and fails after half a minute.
func (s *shared) await(what string, ok func() bool) {
	s.t.Helper()
	await(s.t, 30*time.Second, what, ok)
}

// state is the group's at a source, and why.
func (s *shared) state(host int) (state, reason string) {
	res, err := s.Client(several.Source(host)).Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil || len(res.Groups) != 1 {
		return "", fmt.Sprint(err)
	}
	return res.Groups[0].State, res.Groups[0].Reason
}

func (s *shared) awaitProtected() {
	s.t.Helper()
	for h := range s.hosts {
		s.await(fmt.Sprintf("host %d to be protected", h), func() bool { state, _ := s.state(h); return state == api.StateProtected })
	}
}

// listed are the checkpoints at the target, but those before the one with the id.
func (s *shared) listed(after string) (ids []string) {
	s.t.Helper()
	res, err := s.Client(several.Target).Checkpoints.List(context.Background(), &holdfastv1.CheckpointsServiceListRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range res.Checkpoints {
		if ids = append(ids, c.Id); c.Id == after {
			ids = nil
		}
	}
	return ids
}

// numbers are what the hosts' first volumes hold at a checkpoint.
func (s *shared) numbers(id string) []uint64 {
	s.t.Helper()
	views := s.Client(several.Target).Views
	res, err := views.Open(context.Background(), &holdfastv1.ViewsServiceOpenRequest{Checkpoint: id, ReadOnly: true})
	if err != nil {
		s.t.Fatal(err)
	}
	ns := make([]uint64, s.hosts)
	for h := range ns {
		for _, v := range res.View.Volumes {
			if v.Name != s.Volume(h, 0) {
				continue
			}
			c, err := nbd.Dial(context.Background(), v.Nbd)
			if err != nil {
				s.t.Fatal(err)
			}
			p := make([]byte, 8)
			if _, err := c.ReadAt(p, 0); err != nil {
				s.t.Fatal(err)
			}
			c.Close()
			ns[h] = binary.LittleEndian.Uint64(p)
		}
	}
	if _, err := views.Close(context.Background(), &holdfastv1.ViewsServiceCloseRequest{Id: res.View.Id}); err != nil {
		s.t.Fatal(err)
	}
	return ns
}

// TestEndToEndSeveralSources has a writer on one host wait for the other while both hosts' VRAs take
// checkpoints together: each holds what a write in it had seen. The leader is killed, and comes back.
func TestEndToEndSeveralSources(t *testing.T) {
	s := upShared(t, 2)
	s.awaitProtected()
	ctx, stop := context.WithCancel(context.Background())
	type end struct {
		n   uint64
		err error
	}
	ended := make(chan end, 1)
	go func() {
		n, err := s.Causes(ctx)
		ended <- end{n, err}
	}()
	defer stop()
	check := func(want int) (last string) {
		t.Helper()
		first := s.listed("")
		last = first[len(first)-1]
		s.await("checkpoints", func() bool { return len(s.listed(last)) >= want })
		for _, id := range s.listed(last) {
			if ns := s.numbers(id); !several.Caused(ns) || ns[0] == 0 {
				t.Errorf("checkpoint %s holds %v", id, ns)
			}
			last = id
		}
		return last
	}
	check(2)
	res, err := s.Client(several.Source(1)).Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Tag: "asked of the second"})
	if err != nil {
		t.Fatal(err)
	}
	if ns := s.numbers(res.Checkpoint.Id); !several.Caused(ns) {
		t.Errorf("the checkpoint that was asked for holds %v", ns)
	}

	if err := s.Kill(several.Source(0)); err != nil {
		t.Fatal(err)
	}
	s.await("the second to say that nobody leads", func() bool {
		state, reason := s.state(1)
		return state == api.StateBehind && strings.Contains(reason, "no checkpoint")
	})
	if err := s.Start(several.Source(0)); err != nil {
		t.Fatal(err)
	}
	s.awaitProtected()
	check(2)
	stop()
	if e := <-ended; e.err != nil || e.n < 100 {
		t.Errorf("the guests wrote %d numbers: %v", e.n, e.err)
	}
	removesShared(s)
}

// removesShared has a group's protection ended by one of its sources and the target; the other source is told, and lets go when it
// is asked.
func removesShared(s *shared) {
	s.t.Helper()
	ctx := context.Background()
	status, err := s.Client(several.Source(0)).Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
	if err != nil || len(status.Groups) != 1 {
		s.t.Fatalf("%v, %v", status, err)
	}
	name := status.Groups[0].Name
	letGo := func(host int) {
		s.t.Helper()
		if _, err := s.Client(several.Source(host)).Groups.Unprotect(ctx, &holdfastv1.GroupsServiceUnprotectRequest{Group: name}); err != nil {
			s.t.Fatal(err)
		}
		s.await(fmt.Sprintf("host %d to let go", host), func() bool { state, _ := s.state(host); return state == api.StateRemoved })
	}
	letGo(0)
	res, err := s.Client(several.Target).Groups.Remove(ctx, &holdfastv1.GroupsServiceRemoveRequest{Group: name, KeepReplica: true})
	if err != nil || len(res.Disks) != s.hosts || res.Left != "" {
		s.t.Fatalf("%v, %v", res, err)
	}
	s.await("the other source to say why it does not go on", func() bool { _, reason := s.state(1); return strings.Contains(reason, "was removed here") })
	letGo(1)
}
