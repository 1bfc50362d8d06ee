package scenario

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are taken below the kernel's own range for outgoing connections (from 32768),
// so that no such connection can sit on one while its daemon restarts.
const (
	lowPort  = 20000
	highPort = 32000
)

// freePorts finds n ports on the loopback address that nobody listens on. listen is
// net.Listen; all are held open until the last is found, so that they differ.
func freePorts(n int, listen func(network, address string) (net.Listener, error), pick func(n int) int) ([]int, error) {
	var ports []int
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	var last error
	for range 100 * n {
		port := lowPort + pick(highPort-lowPort)
		l, err := listen("tcp", loopback(port))
		if err != nil {
			last = err
			continue
		}
		held = append(held, l)
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("no free port between %d and %d", lowPort, highPort), last)
}

// takePorts takes free ports for the lab.
func (m *manifest) takePorts() error {
	names := []string{portLinkControl, portLinkData, portTargetControl, portTargetData}
	for _, site := range []string{sourceSite, targetSite} {
		names = append(names, sidecarPort(site, "commands"), sidecarPort(site, "checkpoints"), sidecarPort(site, "logs"))
	}
	ports, err := freePorts(len(names), net.Listen, randomPort)
	if err != nil {
		return err
	}
	m.Ports = make(map[string]int)
	for i, name := range names {
		m.Ports[name] = ports[i]
	}
	return nil
}

func randomPort(n int) int { return rand.IntN(n) }

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
