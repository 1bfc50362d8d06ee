package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/daemon"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// The test binary is the filter, or a VRA's tap, when it is started with this variable set.
const childVar = "HOLDFAST_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childVar) {
	case "filter":
		main()
		os.Exit(0)
	case "tap":
		fmt.Fprintln(os.Stderr, tapChild(os.Args[1], os.Args[2]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// tapChild takes writes and frees them for ever; it prints a line once it has the filter.
func tapChild(dir, socket string) error {
	tap, err := openTap(dir, socket)
	if err != nil {
		return err
	}
	for said := false; ; {
		ws, err := tap.Next(context.Background(), 100, 10*time.Millisecond)
		if err != nil {
			return err
		}
		tap.Free(ws)
		if _, ok := tap.Volumes(); ok && !said {
			said = true
			fmt.Println("ready")
		}
	}
}

func openTap(dir, socket string) (*capture.Tap, error) {
	return capture.OpenTap(capture.TapConfig{
		RunDir: dir, Group: 0xabc, Filters: []string{socket}, Log: slog.New(slog.DiscardHandler),
	})
}

// host is a disk, and a filter process that serves it.
type host struct {
	t                             *testing.T
	dir, disk, config, pool, sock string
	filter                        *exec.Cmd
	log                           *bytes.Buffer
}

const diskBytes = 8 << 20

func newHost(t *testing.T) *host {
	dir, err := os.MkdirTemp("", "hf") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := func(name string) string { return filepath.Join(dir, name) }
	h := &host{t: t, dir: dir, disk: at("disk"), config: at("c.yaml"), pool: at("pool"), sock: at("nbd")}
	if err := os.WriteFile(h.disk, bytes.Repeat([]byte("0123456789abcdef"), diskBytes/16), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("run_dir: %s\ngroup: {name: g, id: \"0000000000000abc\"}\npool: 1MiB\npool_socket: %s\nvolumes:\n- {name: vol1, id: 1, path: %s, nbd: %s}\n",
		dir, h.pool, h.disk, h.sock)
	if err := os.WriteFile(h.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.filter != nil {
			h.kill()
		}
		if t.Failed() && h.log != nil {
			t.Logf("the filter said:\n%s", h.log)
		}
	})
	return h
}

func (h *host) child(kind string, args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), childVar+"="+kind)
	return c
}

func (h *host) start() {
	h.t.Helper()
	if h.log == nil {
		h.log = &bytes.Buffer{}
	}
	h.filter = h.child("filter", "--config", h.config)
	h.filter.Stderr = h.log
	if err := h.filter.Start(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) kill() {
	_ = h.filter.Process.Kill() // it may have ended by itself
	_ = h.filter.Wait()
	h.filter = nil
}

// dial connects as a guest does, and waits for the server.
func (h *host) dial() *nbd.Client {
	h.t.Helper()
	uri := "nbd+unix:///vol1?socket=" + url.QueryEscape(h.sock)
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		var c *nbd.Client
		c, err = nbd.Dial(ctx, uri)
		stop()
		if err == nil {
			return c
		}
		<-time.After(5 * time.Millisecond)
	}
	h.t.Fatalf("dial: %v\n%s", err, h.log)
	return nil
}

func TestArguments(t *testing.T) {
	f := func(want error, args ...string) {
		t.Helper()
		var out, err bytes.Buffer
		if got := run(t.Context(), args, &out, &err); !errors.Is(got, want) {
			t.Errorf("%q: %v, want %v", args, got, want)
		}
	}
	f(daemon.ErrUsage)
	f(daemon.ErrUsage, "--nonsense")
	f(daemon.ErrUsage, "--config", "x", "y")
	f(os.ErrNotExist, "--config", "no/such/file")
	h := newHost(t)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--config", h.config, "--check-config"}, &out, &out); err != nil || out.String() != "config ok\n" {
		t.Errorf("a good configuration: %q, %v", out.String(), err)
	}
	out.Reset()
	if err := run(t.Context(), []string{"--version"}, &out, &out); err != nil || !strings.HasPrefix(out.String(), "vra-filter devel (commit ") {
		t.Errorf("--version: %q, %v", out.String(), err)
	}
	if err := os.Truncate(h.disk, diskBytes-1); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"--config", h.config, "--check-config"}, &out, &out); err == nil || !strings.Contains(err.Error(), "multiple of 512") {
		t.Errorf("a disk of odd size: %v", err)
	}
	// One error, told by main alone.
	out.Reset()
	if err := run(t.Context(), []string{"--config"}, &out, &out); !errors.Is(err, daemon.ErrUsage) || out.Len() != 0 {
		t.Errorf("--config without a value: %v, and %q", err, out.String())
	}
	if err := os.WriteFile(h.config, []byte("run_dir: /r\npool: 1KiB\nbogus: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"--config", h.config, "--check-config"}, &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
		t.Error("a bad configuration passed")
	}
}

// TestSocketGroup: the guests' sockets are the filter's own user's, and of the group that the file names.
func TestSocketGroup(t *testing.T) {
	mine, err := user.LookupGroupId(strconv.Itoa(os.Getgid()))
	if err != nil {
		t.Skipf("a group without a name: %v", err)
	}
	f := func(line string, want os.FileMode) {
		t.Helper()
		h := newHost(t)
		text, err := os.ReadFile(h.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.config, append(text, line...), 0o600); err != nil {
			t.Fatal(err)
		}
		h.start()
		h.dial().Close()
		for path, want := range map[string]os.FileMode{h.sock: want, h.pool: 0o600} {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%q: %s has mode %v, %v; want %v", line, path, info.Mode(), err, want)
			} else if gid := info.Sys().(*syscall.Stat_t).Gid; int(gid) != os.Getgid() {
				t.Errorf("%q: %s is of group %d", line, path, gid)
			}
		}
	}
	f("", 0o600)
	f("socket_group: "+mine.Name+"\n", 0o660)
}

// TestStopSettles: a filter that is asked to end writes out what the page cache has while it still serves its guests.
func TestStopSettles(t *testing.T) {
	h := newHost(t)
	text, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("nbd: "+h.sock), []byte("nbd: "+h.sock+", cache: writeback"), 1)
	if err := os.WriteFile(h.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	c := h.dial()
	defer c.Close()
	if _, err := c.WriteAt([]byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	if err := h.filter.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.filter.Wait(); err != nil {
		t.Fatal(err)
	}
	h.filter = nil
	said := h.log.String()
	if there, gone := strings.Index(said, "what the page cache had is on the disk"), strings.Index(said, "nbd client gone"); there < 0 || gone < there {
		t.Errorf("it said %s", said)
	}
}

// target replays what a tap gives.
type target struct {
	data []byte
	seen int64
}

func (g *target) apply(ws []capture.Write) {
	for _, w := range ws {
		switch w.Kind {
		case capture.Data, capture.SyncData:
			at := w.Off
			for _, p := range w.Data {
				at += int64(copy(g.data[at:], p))
			}
		case capture.Zero, capture.SyncZero:
			clear(g.data[w.Off : w.Off+w.Len])
		}
		if w.Kind != capture.Mark {
			g.seen += w.Len
		}
	}
}

// replicate follows the tap, and makes up for what is lost, until stop is closed and all is in sync.
func replicate(t *testing.T, tap *capture.Tap, g *target, stop <-chan struct{}) {
	ctx, end := context.WithTimeout(context.Background(), 60*time.Second)
	defer end()
	synced := make(chan struct{})
	go func() {
		defer close(synced)
		for ctx.Err() == nil {
			lost := tap.Lost()
			if lost == tap.LostCovered() {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				continue
			}
			ex, err := tap.DirtyExtents(ctx, 1, 0, 1000)
			for _, e := range ex {
				err = errors.Join(err, tap.SyncRead(ctx, 1, e.Off, e.Len))
			}
			if err != nil && !errors.Is(err, capture.ErrFilterGone) {
				t.Errorf("resync: %v", err)
			}
			if dirty, err := tap.Dirty(ctx); err == nil && dirty[1].Blocks == 0 && tap.Lost() == lost {
				tap.SetLostCovered(lost)
			}
		}
	}()
	for idle := 0; idle < 5; {
		ws, err := tap.Next(ctx, 100, 10*time.Millisecond)
		if err != nil {
			t.Errorf("next: %v", err)
			return
		}
		g.apply(ws)
		tap.Free(ws)
		tap.PublishDurable(tap.LastTicket()) // too early at times, were we to die: we do not
		select {
		case <-synced:
			if idle++; len(ws) > 0 {
				idle = 0
			}
		default:
		}
	}
}

// TestKilledUnderLoad kills the filter process again and again under a guest that
// connects anew and repeats what was not answered; at the end the target is the disk.
func TestKilledUnderLoad(t *testing.T) {
	h := newHost(t)
	h.start()
	tap, err := openTap(h.dir, h.pool)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	tap.RaiseIncarnation(0)
	g := &target{data: make([]byte, diskBytes)}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); replicate(t, tap, g, stop) }()

	guest := make(chan struct{})
	kills := make(chan struct{})
	go func() {
		defer close(guest)
		rng := rand.New(rand.NewPCG(1, 2))
		c := h.dial()
		defer func() { c.Close() }()
		for i := range 1500 {
			n := 512 * (1 + rng.IntN(40))
			off := rng.Int64N((diskBytes-int64(n))/512) * 512
			p := bytes.Repeat([]byte{byte(i)}, n)
			for {
				if _, err := c.WriteAt(p, off); err == nil {
					break
				}
				c.Close()
				c = h.dial()
			}
			if i%300 == 299 {
				kills <- struct{}{}
			}
		}
	}()
	for range 5 {
		<-kills
		h.kill()
		h.start()
	}
	<-guest
	close(stop)
	<-done
	disk, err := os.ReadFile(h.disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk, g.data) {
		t.Error("the target is not the disk")
	}

	// And a clean end.
	if err := h.filter.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.filter.Wait(); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, h.log)
	}
	h.filter = nil
	lost := tap.Lost()
	h.start()
	h.dial().Close()
	if tap.Lost() != lost {
		t.Errorf("a clean restart lost something:\n%s", h.log)
	}
}

// TestSecondFilterSaysWhy: it tells whom it waits for, gives up, and leaves the first alone.
func TestSecondFilterSaysWhy(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.dial()
	defer c.Close()
	cfg, err := config.LoadFilter(h.config)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	want := fmt.Sprintf("process %d serves vol1", h.filter.Process.Pid)
	if _, err := openFilter(t.Context(), cfg, 300*time.Millisecond, log); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a second filter: %v, want %q", err, want)
	}
	if strings.Count(said.String(), "waiting for another filter") != 1 {
		t.Errorf("it said %q", said.String())
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := openFilter(ctx, cfg, time.Hour, log); !errors.Is(err, context.Canceled) {
		t.Errorf("asked to stop: %v", err)
	}
	if _, err := c.WriteAt(make([]byte, 512), 0); err != nil {
		t.Errorf("the first: %v", err)
	}
}

// TestStoppedVRA: a VRA that is stopped, and then killed, costs the guest nothing but marks.
func TestStoppedVRA(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.dial()
	defer c.Close()
	vra := h.child("tap", h.dir, h.pool)
	out, err := vra.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := vra.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 5)
	if _, err := out.Read(ready); err != nil || !strings.HasPrefix(string(ready), "ready") {
		t.Fatalf("the VRA said %q, %v", ready, err)
	}
	if err := vra.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	p := bytes.Repeat([]byte{7}, 16<<10)
	for off := int64(0); off+int64(len(p)) <= diskBytes; off += int64(len(p)) { // eight pools
		from := time.Now()
		if _, err := c.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(from))
	}
	slices.Sort(took)
	t.Logf("the longest write with a stopped VRA took %v", took[len(took)-1])
	if d := took[len(took)/2]; d > 2*time.Second { // half of them and more find no slot; a single one the machine may delay
		t.Errorf("writes took %v and more", d)
	}
	if err := vra.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = vra.Wait() // killed
	if _, err := c.WriteAt(p, 0); err != nil {
		t.Errorf("after the VRA's death: %v", err)
	}
	// The next one has all it needs.
	tap, err := openTap(h.dir, h.pool)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	ctx, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	if _, err := tap.Restart(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if tap.Lost() == tap.LostCovered() {
		t.Error("lost does not tell of it")
	}
	stop := make(chan struct{})
	close(stop)
	g := &target{data: bytes.Repeat([]byte("0123456789abcdef"), diskBytes/16)}
	replicate(t, tap, g, stop)
	disk, err := os.ReadFile(h.disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk, g.data) {
		t.Error("the target is not the disk")
	}
}
