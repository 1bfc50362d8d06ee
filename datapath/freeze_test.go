package datapath

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// hooks are the two commands of a test: each writes its name and the tag into a file, and the
// first does what the file `do` says.
func (w *world) hooks() (said func() string, do func(script string)) {
	w.t.Helper()
	log, script := filepath.Join(w.dir, "said"), filepath.Join(w.dir, "do")
	do = func(text string) {
		if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(log, nil, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	do("")
	w.freeze = Freeze{
		Before: []string{"/bin/sh", "-c", fmt.Sprintf("echo before $HOLDFAST_TAG >>%s; . %s", log, script)},
		After:  []string{"/bin/sh", "-c", fmt.Sprintf("echo after $HOLDFAST_GROUP $HOLDFAST_TAG >>%s", log)},
	}
	return func() string {
		p, err := os.ReadFile(log)
		if err != nil {
			w.t.Fatal(err)
		}
		return strings.ReplaceAll(strings.TrimSpace(string(p)), "\n", "; ")
	}, do
}

// TestFreeze makes checkpoints with the guests at rest, and such that are not what was asked for:
// each says which it is, for as long as it is listed, and the after-command always runs.
func TestFreeze(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	said, do := w.hooks()
	w.start()
	w.awaitState(api.StateProtected)
	create := func(tag string) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		defer stop()
		return Handlers(Identity{}, w.s, nil).Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Tag: tag, Freeze: true})
	}
	f := func(tag, script, wantWhy, want string, limit time.Duration) {
		t.Helper()
		do(script)
		w.s.flows[0].freezer.limit = limit
		res, err := create(tag)
		if err != nil || (wantWhy == "") != (res.FreezeFailed == "") || !strings.Contains(res.FreezeFailed, wantWhy) || res.Checkpoint.Consistency != want {
			t.Errorf("%s: %v, %v", tag, res, err)
		}
		if got := said(); got != fmt.Sprintf("before %s; after shop %s", tag, tag) {
			t.Errorf("%s: it ran %s", tag, got)
		}
		if _, err := os.Stat(w.s.flows[0].freezer.note); !os.IsNotExist(err) {
			t.Errorf("%s: that the guests may be at rest is still noted: %v", tag, err)
		}
	}
	f("good", "", "", api.ConsistencyApplication, time.Minute)
	f("bad", "echo no database; exit 3", "exit status 3: no database", api.ConsistencyFailed, time.Minute)
	f("slow", "sleep 60 & wait", "did not end within 100ms", api.ConsistencyFailed, 100*time.Millisecond)

	// No cut can be taken: nobody knows yet where the target stands.
	w.link.Down()
	w.killSource()
	w.startSource()
	do("")
	w.s.flows[0].freezer.limit = time.Second
	done := make(chan string, 1)
	go func() {
		res, err := create("late")
		done <- fmt.Sprint(res.GetFreezeFailed(), err)
	}()
	w.await("the after-command", func() bool { return strings.Contains(said(), "after") })
	w.link.Up()
	if why := <-done; !strings.Contains(why, "no checkpoint could be cut within 1s: the group is disconnected") {
		t.Errorf("while the target was away: %s", why)
	}
	w.checkpoint("plain")

	// Killed while the guests were at rest.
	w.killSource()
	do("")
	note := filepath.Join(w.dir, "data", "frozen-"+record.GroupID(testGroup).String())
	if err := os.WriteFile(note, []byte("killed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.startSource()
	w.await("the after-command of a killed process", func() bool { return said() == "after shop killed" })

	listed := func() {
		t.Helper()
		for tag, want := range map[string]string{"good": api.ConsistencyApplication, "bad": api.ConsistencyFailed, "slow": api.ConsistencyFailed,
			"late": api.ConsistencyFailed, "plain": api.ConsistencyCrash} {
			res, err := Handlers(Identity{}, nil, w.tg).Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{Tag: tag})
			if err != nil || len(res.Checkpoints) != 1 || res.Checkpoints[0].Consistency != want {
				t.Errorf("%s is listed as %v, %v; want %s", tag, res, err, want)
			}
		}
	}
	listed()
	w.stopTarget() // the list is made anew from the log
	if err := os.RemoveAll(filepath.Join(w.store, "catalogue")); err != nil {
		t.Fatal(err)
	}
	w.startTarget()
	w.awaitState(api.StateProtected)
	listed()
}

// What an earlier process left is looked for beside what this one does: a freeze that is under way is none of it.
func TestFreezeUnderWayIsNotThawed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	said, do := w.hooks()
	gate := filepath.Join(w.dir, "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.awaitState(api.StateProtected)
	do("read x <" + gate)
	done := make(chan error, 1)
	go func() {
		_, err := Handlers(Identity{}, w.s, nil).Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Tag: "long", Freeze: true})
		done <- err
	}()
	w.await("the before-command", func() bool { return said() != "" })
	gone, stop := context.WithCancel(t.Context())
	stop()
	w.s.flows[0].thawLeft(gone)
	if got := said(); got != "before long" {
		t.Errorf("while the before-command runs it ran %s", got)
	}
	if err := os.WriteFile(gate, []byte("go on\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := said(); got != "before long; after shop long" {
		t.Errorf("it ran %s", got)
	}
}

func TestFreezeNeedsCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	_, err := Handlers(Identity{}, w.s, nil).Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Tag: "x", Freeze: true})
	if f := api.AsFailure(err); f == nil || f.Code != api.Precondition || !strings.Contains(f.Next, "source.groups[].freeze") {
		t.Errorf("%v", err)
	}
}
