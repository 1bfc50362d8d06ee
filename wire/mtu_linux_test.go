package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// road is the addresses of a path: a prefix of the source's side and one of the target's.
type road struct {
	family, source, target string // ip -4 or -6; the prefixes, up to the host's number
	bits                   int
	forward                string // what lets the router pass packets on
}

var roads = map[string]road{
	"IPv4": {"-4", "10.77.1.", "10.77.2.", 24, "net.ipv4.ip_forward=1"},
	"IPv6": {"-6", "fd77:1::", "fd77:2::", 64, "net.ipv6.conf.all.forwarding=1"},
}

// at is where the target listens.
func (r road) at(port string) string { return net.JoinHostPort(r.target+"2", port) }

// over runs a test over both families.
func over(t *testing.T, test func(t *testing.T, r road)) {
	for name, r := range roads {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, r)
		})
	}
}

// blackHole makes three network namespaces, source - router - target, of which all
// interfaces have an MTU of 1500. After open, packets of more than 1400 bytes vanish at
// the router in both directions, and nobody is told: it can send nothing of its own.
func blackHole(t *testing.T, r road) (source, target string, open func()) {
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
	id := fmt.Sprintf("hf%d%s%s", os.Getpid(), strings.ToLower(t.Name()[len("TestBlackHole"):][:1]), r.family)
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
		address := "%s -n %s address add %s%d/%d dev %s"
		if r.family == "-6" {
			address += " nodad" // else it is of no use for a second
		}
		ip(fmt.Sprintf(address, r.family, ns, own, 2, r.bits, "eth"))
		ip(fmt.Sprintf(address, r.family, router, own, 1, r.bits, way))
		ip(fmt.Sprintf("-n %s link set eth up", ns))
		ip(fmt.Sprintf("-n %s link set %s up", router, way))
		ip(fmt.Sprintf("%s -n %s route add default via %s1", r.family, ns, own))
	}
	wire(source, r.source, "tosource")
	wire(target, r.target, "totarget")
	ip("netns exec " + router + " sysctl -q -w " + r.forward)
	ip(r.family + " -n " + router + " rule add pref 1 iif lo blackhole") // what it forwards comes from elsewhere
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
func holeWorld(t *testing.T, r road) (source string, h *handler, open func()) {
	source, target, open := blackHole(t, r)
	var server *Server
	in(t, target, func() (err error) {
		server, err = Listen(ServerConfig{
			ListenControl: r.at("4007"), ListenData: r.at("4008"),
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

func holeClient(r road) ClientConfig {
	return ClientConfig{Control: r.at("4007"), Data: r.at("4008"), Credentials: sourceCredentials()}
}

// A path that becomes a black hole under a session ends it; the next one comes up
// through the hole and moves 100 MB.
func TestBlackHoleUnderSessions(t *testing.T) { over(t, holeUnderSessions) }

func holeUnderSessions(t *testing.T, r road) {
	source, target, open := holeWorld(t, r)
	const count = 100
	all := make(chan struct{})
	rec, came := large(1, 1_000_000), 0
	target.onRecord = func(_ *Session, rec *Received) error {
		rec.Release()
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
		c := holeClient(r)
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
func TestBlackHoleIsNamedByLinkTest(t *testing.T) { over(t, holeNamedByLinkTest) }

func holeNamedByLinkTest(t *testing.T, road road) {
	source, _, open := holeWorld(t, road)
	open()
	in(t, source, func() error {
		r, err := RunLinkTest(context.Background(), holeClient(road), LinkTest{Lasts: time.Second, Bytes: 8 << 20})
		if err != nil {
			return err
		}
		if !r.MTU.Lost || r.MTU.Path != 1400 || r.Up == nil || r.Down == nil || r.Up.Bytes < 8<<20 {
			t.Errorf("%+v", r)
		}
		return nil
	})()
}
