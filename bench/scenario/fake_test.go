package scenario

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

// AfterTests removes what all tests share.
var AfterTests = func() {}

// TestMain lets the test program stand in for the lab's programs: by its name it is
// the supervisor (the real one), or a daemon that only answers.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	switch filepath.Base(os.Args[0]) {
	case "holdfast":
		err = Supervise(ctx, os.Args[len(os.Args)-1], slog.New(slog.NewTextHandler(os.Stderr, nil)))
	case "vra":
		err = fakeVRA(ctx, os.Args[len(os.Args)-1])
	case "vra-sidecar":
		_, err = config.LoadSidecar(os.Args[len(os.Args)-1])
		<-ctx.Done()
	case "vra-filter":
		_, err = config.LoadFilter(os.Args[len(os.Args)-1])
		fmt.Fprintln(os.Stderr, "filter is up")
		<-ctx.Done()
	default:
		stop()
		code := m.Run()
		AfterTests()
		os.Exit(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// fakeMode tells the fake VRAs how to behave: "" well; port: the target's port is
// taken; late: the group is in error at first; syncing: the first checkpoint never comes; broken: the group is in error.
const fakeMode = "HOLDFAST_FAKE_VRA"

type fakeGroup struct {
	asked atomic.Int64
	then  func(asked int64) *holdfastv1.Group
}

func (g *fakeGroup) Get(context.Context, *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	return &holdfastv1.StatusServiceGetResponse{Groups: []*holdfastv1.Group{g.then(g.asked.Add(1))}}, nil
}

var errorGroup = &holdfastv1.Group{Name: GroupName, State: api.StateError, Reason: "write: no space left on device\nread: the disk is on fire"}

func fakeVRA(ctx context.Context, file string) error {
	c, err := config.LoadVRA(file)
	if err != nil {
		return err
	}
	mode := os.Getenv(fakeMode)
	one, late := int64(1), int64(0)
	g := &holdfastv1.Group{Name: GroupName, State: api.StateProtected, Checkpoints: &one}
	switch {
	case mode == "port" && c.Target != nil:
		return errors.New("vra: listen tcp " + c.Target.ListenControl + ": bind: address already in use")
	case mode == "syncing":
		g.State, g.Checkpoints = api.StateInitialSync, nil
		g.Sync = &holdfastv1.Sync{DoneBytes: 1 << 20, TotalBytes: 2 << 20}
	case mode == "broken":
		g = errorGroup
	case mode == "late":
		late = 3
	}
	os.Remove(c.Socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Socket, Net: "unix"})
	if err != nil {
		return err
	}
	return api.Serve(ctx, l, api.Handlers{Status: &fakeGroup{then: func(asked int64) *holdfastv1.Group {
		if asked <= late {
			return errorGroup
		}
		if g.Checkpoints != nil {
			return &holdfastv1.Group{Name: g.Name, State: g.State, Checkpoints: g.Checkpoints, Newest: &holdfastv1.Checkpoint{Time: api.Timestamp(time.Now())}}
		}
		return g
	}}}, []int{os.Getuid()}, slog.New(slog.DiscardHandler))
}

// fakeBinaries makes a folder with the lab's programs.
func fakeBinaries(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"holdfast", "vra", "vra-filter", "vra-sidecar"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// until waits for something that is about to be.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-deadline.C:
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func (*fakeGroup) About(context.Context, *holdfastv1.StatusServiceAboutRequest) (*holdfastv1.StatusServiceAboutResponse, error) {
	return &holdfastv1.StatusServiceAboutResponse{ApiMajor: api.Major, ApiMinor: api.Minor}, nil
}
