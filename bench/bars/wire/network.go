package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// Addresses and ports in the namespaces, and the interface in each.
const (
	controlPort   = "4007"
	dataPort      = "4008"
	sourceAddress = "10.98.0.1"
	targetAddress = "10.98.0.2"
	device        = "eth"
)

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
		leaf, err := ca.Issue(pairing.Identity{Role: "vra", ID: "bars"}, time.Now(), 24*time.Hour)
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

// credentials are those of one site in dir, which knows the other.
func credentials(dir, site, peer string) (wire.Credentials, error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	return wire.LoadCredentials(at(site+"-cert"), at(site+"-key"), at(peer+"-ca"))
}

// transmitted is what this namespace's interface has sent, in bytes.
func transmitted() (int64, error) {
	b, err := os.ReadFile("/sys/class/net/" + device + "/statistics/tx_bytes")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
