package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// Addresses in the namespaces, and the interface in each.
const (
	sourceAddress = "10.98.0.1"
	targetAddress = "10.98.0.2"
	device        = "eth"
)

// measured is what a source tells of one measurement; parts are of 1.
type measured struct {
	Over              float64       // by how much the fullest second exceeds the cap
	Use               float64       // of the cap
	High, Medium, Low float64       // of what was sent
	Late              time.Duration // the longest time between two readings, beyond 10 ms
}

// measure sets up a network, has a source send through it under a cap, and takes it down.
func measure(ctx context.Context, r shape.Rate, length time.Duration) (m measured, err error) {
	dir, err := os.MkdirTemp("", "holdfast-bars-")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(dir)
	if err := certificates(dir); err != nil {
		return m, err
	}
	source, target, down, err := network(ctx, 2*r)
	if err != nil {
		return m, err
	}
	defer down()
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	ctx, stop := context.WithTimeout(ctx, length+30*time.Second)
	defer stop()
	child := func(ns string, args ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns, self, "-certs", dir, "-child"}, args...)...)
		c.Stderr = os.Stderr
		return c
	}
	peer := child(target, "shaped-target")
	closed, err := peer.StdinPipe() // the target ends with it
	if err != nil {
		return m, err
	}
	if err := peer.Start(); err != nil {
		return m, err
	}
	out, err := child(source, "shaped-source", "-cap", r.String(), "-length", length.String()).Output()
	closed.Close()
	err = errors.Join(err, peer.Wait())
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	return m, err
}

// network joins two namespaces by a link of this rate, on which the source's interface counts
// each frame.
func network(ctx context.Context, rate shape.Rate) (source, target string, down func(), err error) {
	source, target = fmt.Sprintf("hfbar%ds", os.Getpid()), fmt.Sprintf("hfbar%dt", os.Getpid())
	down = func() {
		for _, ns := range []string{source, target} {
			exec.Command("ip", "netns", "del", ns).Run()
		}
	}
	for _, line := range []string{
		"ip netns add " + source,
		"ip netns add " + target,
		fmt.Sprintf("ip link add %s netns %s type veth peer name %s netns %s", device, source, device, target),
		fmt.Sprintf("ip -n %s address add %s/24 dev %s", source, sourceAddress, device),
		fmt.Sprintf("ip -n %s address add %s/24 dev %s", target, targetAddress, device),
		fmt.Sprintf("ip -n %s link set %s gso_max_segs 1 up", source, device),
		fmt.Sprintf("ip -n %s link set %s up", target, device),
		fmt.Sprintf("ip netns exec %s tc qdisc add dev %s root tbf rate %dbit burst 64kb latency 100ms", source, device, rate),
	} {
		words := strings.Fields(line)
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			down()
			return "", "", nil, fmt.Errorf("%s: %w: %s", line, err, bytes.TrimSpace(out))
		}
	}
	return source, target, down, nil
}

// certificates makes both sites' in dir.
func certificates(dir string) error {
	for _, site := range []string{"source", "target"} {
		ca, err := pairing.NewCA(site, time.Now())
		if err != nil {
			return err
		}
		leaf, err := ca.Issue(pairing.Identity{Role: "vra", ID: "bars"}, time.Now(), time.Hour)
		if err != nil {
			return err
		}
		at := func(name string) string { return filepath.Join(dir, site+name) }
		if err := errors.Join(ca.Save(at("-ca"), at("-cakey")), leaf.Save(at("-cert"), at("-key"))); err != nil {
			return err
		}
	}
	return nil
}
