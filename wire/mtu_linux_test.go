package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// blackHole makes three network namespaces, source - router - target, of which all
// interfaces have an MTU of 1500. After open, packets of more than 1400 bytes vanish at
// the router in both directions, and nobody is told: it can send nothing of its own.
func blackHole(t *testing.T) (source, target string, open func()) {
	t.Helper()
	if testing.Short() || raceBuild {
		t.Skip("takes seconds; it runs in full without -short and the race detector")
	}
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces are made by ip, of the package iproute2, which is not installed")
	}
	id := fmt.Sprintf("hf%d%s", os.Getpid(), strings.ToLower(t.Name()[len("TestBlackHole"):][:1]))
	source, router, target := id+"-s", id+"-r", id+"-t"
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			if strings.HasPrefix(args, "netns add") {
				t.Skipf("no network namespaces here: ip %s: %v: %s", args, err, out)
			}
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	for _, ns := range []string{source, router, target} {
		ip("netns add " + ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		ip("-n " + ns + " link set lo up")
	}
	wire := func(ns, own, way string) {
		ip(fmt.Sprintf("link add eth netns %s type veth peer name %s netns %s", ns, way, router))
		ip(fmt.Sprintf("-n %s address add %s.2/24 dev eth", ns, own))
		ip(fmt.Sprintf("-n %s address add %s.1/24 dev %s", router, own, way))
		ip(fmt.Sprintf("-n %s link set eth up", ns))
		ip(fmt.Sprintf("-n %s link set %s up", router, way))
		ip(fmt.Sprintf("-n %s route add default via %s.1", ns, own))
	}
	wire(source, "10.77.1", "tosource")
	wire(target, "10.77.2", "totarget")
	ip("netns exec " + router + " sysctl -q -w net.ipv4.ip_forward=1")
	ip("-n " + router + " rule add pref 1 iif lo blackhole") // what it forwards comes from elsewhere
	return source, target, func() { ip("-n " + router + " link set totarget mtu 1400") }
}

// in runs do with the sockets that its goroutine makes in a network namespace; it ends
// with the test.
func in(t *testing.T, namespace string, do func() error) (wait func()) {
	t.Helper()
	setns, ok := map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]
	if !ok {
		t.Skip("the number of setns is not known for " + runtime.GOARCH)
	}
	var running sync.WaitGroup
	running.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := os.Open("/run/netns/" + namespace)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if _, _, errno := syscall.Syscall(setns, f.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
			t.Error("setns: ", errno)
			return
		}
		if err := do(); err != nil {
			t.Error(err)
		}
	})
	return running.Wait
}

// holeWorld is a target behind what becomes a black hole by open.
func holeWorld(t *testing.T) (source string, h *handler, open func()) {
	source, target, open := blackHole(t)
	var server *Server
	in(t, target, func() (err error) {
		server, err = Listen(ServerConfig{
			ListenControl: "10.77.2.2:4007", ListenData: "10.77.2.2:4008",
			Credentials: Credentials{Certificate: sites().target, Pins: []Pin{sites().east.pin()}},
		})
		return err
	})()
	h = newHandler(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return source, h, open
}

func holeClient() ClientConfig {
	return ClientConfig{Control: "10.77.2.2:4007", Data: "10.77.2.2:4008", Credentials: sourceCredentials()}
}

// A path that becomes a black hole under a session ends it; the next one comes up
// through the hole and moves 100 MB.
func TestBlackHoleUnderSessions(t *testing.T) {
	t.Parallel()
	source, target, open := holeWorld(t)
	const count = 100
	all := make(chan struct{})
	rec, came := large(1, 1_000_000), 0
	target.onRecord = func(s *Session, r *Received) error {
		r.Release()
		if came++; came == 1 {
			open()
		}
		if came == 1+2*count {
			close(all)
		}
		return nil
	}
	h := newHandler(t)
	var senders sync.WaitGroup
	h.onOpened = func(s *Session) error {
		senders.Go(func() {
			for s.SendRecord(context.Background(), rec) == nil {
			}
		})
		return nil
	}
	var failures []error
	ctx, cancel := context.WithCancel(context.Background())
	wait := in(t, source, func() error {
		c := holeClient()
		c.Failed = func(err error, _ time.Duration) { failures = append(failures, err) }
		return Connect(ctx, c, h)
	})
	select {
	case <-all:
	case <-time.After(2 * time.Minute):
		t.Error("the records do not come")
	}
	cancel()
	wait()
	senders.Wait()
	if len(failures) == 0 || !errors.Is(failures[0], ErrBlackHole) {
		t.Errorf("ended for %v", failures)
	}
}

// A link test names the path MTU of a black hole, and says what the path carries in
// packets that fit it.
func TestBlackHoleIsNamedByLinkTest(t *testing.T) {
	t.Parallel()
	source, _, open := holeWorld(t)
	open()
	in(t, source, func() error {
		r, err := RunLinkTest(context.Background(), holeClient(), LinkTest{Lasts: time.Second, Bytes: 8 << 20})
		if err != nil {
			return err
		}
		if !r.MTU.Lost || r.MTU.Path != 1400 || r.Up == nil || r.Down == nil || r.Up.Bytes < 8<<20 {
			t.Errorf("%+v", r)
		}
		return nil
	})()
}
