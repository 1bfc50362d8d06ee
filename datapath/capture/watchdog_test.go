package capture

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestBeat(t *testing.T) {
	f := func(what string, want bool, looks ...uint64) {
		t.Helper()
		var b beat
		got := false
		for i := range hangBeats + 1 {
			got = b.see(looks[min(i, len(looks)-1)], false)
		}
		if got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	f("a loop that stands", true, 4)
	f("a loop that waits in the kernel", false, 5)
	f("a loop that turned once", false, 4, 4, 6)
	var b beat
	for i := range 5 * hangBeats {
		if b.see(4, i%hangBeats == hangBeats-1) {
			t.Fatal("a loop that waits for the disk now and then")
		}
	}
}

// TestHangIsSeen: a loop that neither waits nor steps hangs, unless the disk holds it up, or what another loop has there.
func TestHangIsSeen(t *testing.T) {
	r := laneRig(t, mib, 8*mib)
	v := r.vol(0)
	made, done, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		lane, err := v.Lane(4)
		if err != nil {
			t.Error(err)
		}
		close(made)
		<-done
		lane.Close()
	}()
	<-made
	looks := func() (seen bool) {
		for range hangBeats {
			seen = v.hang()
		}
		return seen
	}
	v.disk.busy.Add(1)
	for range 2 {
		if looks() {
			t.Error("a loop that waits for the disk hangs")
		}
	}
	v.disk.busy.Add(-1)
	if !looks() {
		t.Error("a loop that hangs is not seen")
	}
	aborted := make(chan string, 1)
	if err := r.filter.Guard(context.Background(), func(volume string) { aborted <- volume }); err != nil || <-aborted != "vol1" {
		t.Error(err)
	}
	close(done)
	<-ended
	if looks() {
		t.Error("a loop that is closed hangs")
	}
	ctx, stop := context.WithTimeout(t.Context(), 3*beatEvery)
	defer stop()
	if err := r.filter.Guard(ctx, func(string) { t.Error("aborted") }); err != nil {
		t.Error(err)
	}
}

// TestLastResort has a child whose watchdog gets no time: the kernel ends it.
func TestLastResort(t *testing.T) {
	if os.Getenv("HOLDFAST_TEST_HANGS") != "" {
		last, err := newLastResort()
		if err != nil || last.put(20*time.Millisecond) != nil {
			os.Exit(3)
		}
		<-time.After(patience)
	}
	child := exec.Command(os.Args[0], "-test.run", "^TestLastResort$")
	child.Env = append(os.Environ(), "HOLDFAST_TEST_HANGS=1")
	err := child.Run()
	if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || status.Signal() != syscall.SIGKILL {
		t.Errorf("the child ended by %v", child.ProcessState)
	}
}

// TestNoLaneHangs: a queue that is served for a while is let be.
func TestNoLaneHangs(t *testing.T) {
	r := laneRig(t, mib, 8*mib)
	v := r.vol(0)
	if err := os.WriteFile(v.path+".hang", nil, 0o600); err != nil { // for the planted bug
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		defer stop()
		lane, err := v.Lane(8)
		if err != nil {
			t.Error(err)
			return
		}
		defer lane.Close()
		rng := rand.New(rand.NewPCG(1, 5))
		for i := range 20 {
			if err := laneRound(v, lane, rng, 8, mib, byte(i)); err != nil {
				t.Error(err)
			}
		}
	}()
	if err := r.filter.Guard(ctx, func(string) { t.Error("a queue that is served is said to hang") }); err != nil {
		t.Error(err)
	}
}
