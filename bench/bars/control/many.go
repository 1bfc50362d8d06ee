package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// many is a vra of many groups, and its sidecar.
type many struct {
	dir, binaries string
	ctx           context.Context
	vra           *config.VRA
	addresses     api.Addresses
	trust         *pairing.Trust
	processes     []*exec.Cmd
}

// start makes certificates and files, and runs both.
func (m *many) start(groups int) error {
	at := func(name string) string { return filepath.Join(m.dir, name) }
	ca, err := pairing.NewCA("many", time.Now())
	if err != nil {
		return err
	}
	other, err := pairing.NewCA("other", time.Now())
	if err != nil {
		return err
	}
	if err := errors.Join(ca.Save(at("ca.pem"), at("ca-key.pem")), pairing.SavePEM(at("other.pem"), other.CertPEM())); err != nil {
		return err
	}
	for role, name := range map[string]string{api.RoleVRA: "vra", api.RoleSidecar: "sidecar"} {
		leaf, err := ca.Issue(pairing.Identity{Role: role, ID: "one"}, time.Now(), time.Hour)
		if err == nil {
			err = leaf.Save(at(name+".pem"), at(name+"-key.pem"))
		}
		if err != nil {
			return err
		}
	}
	leaf, err := ca.Issue(pairing.Identity{Role: api.RoleMonitor, ID: "bars"}, time.Now(), time.Hour)
	if err != nil {
		return err
	}
	if m.trust, err = pairing.NewTrust(ca.Certificate(), leaf.TLS(), nil); err != nil {
		return err
	}
	m.vra = &config.VRA{
		Site: "many", ID: "one", DataDir: at("data"), RunDir: at("run"), Socket: at("vra.sock"), Source: &config.Source{},
		TLS: config.TLS{CA: at("ca.pem"), Cert: at("vra.pem"), Key: at("vra-key.pem"), PeerCA: at("other.pem"), PeerSite: "other"},
	}
	for i := range groups {
		id := config.ID(i + 1)
		m.vra.Source.Groups = append(m.vra.Source.Groups, config.SourceGroup{
			Name: fmt.Sprintf("group-%03d", i), ID: id, Stream: id, Lineage: id, Target: config.Endpoint{Control: "127.0.0.1:9", Data: "127.0.0.1:10"},
			Filters: []string{at("none.sock")}, Volumes: []config.SourceVolume{{Name: "vol1", ID: 1}, {Name: "vol2", ID: 2}},
		})
	}
	var ports []string
	var held []net.Listener
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		ports = append(ports, l.Addr().String())
		held = append(held, l)
	}
	for _, l := range held {
		l.Close() // for the sidecar to take
	}
	sidecar := &config.Sidecar{
		ID: "one", VRASocket: m.vra.Socket, Socket: at("sidecar.sock"), DataDir: at("sidecar"),
		TLS:    config.SidecarTLS{CA: at("ca.pem"), Cert: at("sidecar.pem"), Key: at("sidecar-key.pem")},
		Listen: config.SidecarListen{Commands: ports[0], Checkpoints: ports[1], Logs: ports[2]},
		Limits: config.SidecarLimits{Rate: config.MaxLimit},
	}
	m.addresses = api.Addresses{Commands: ports[0], Checkpoints: ports[1], Logs: ports[2]}
	for name, c := range map[string]any{"vra": m.vra, "vra-sidecar": sidecar} {
		text, err := config.Marshal(c)
		if err == nil {
			err = os.WriteFile(at(name+".yaml"), text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return m.run()
}

// run starts both, and returns once the sidecar is answered for the vra.
func (m *many) run() error {
	for _, name := range []string{"vra", "vra-sidecar"} {
		log, err := os.Create(filepath.Join(m.dir, name+".log"))
		if err != nil {
			return err
		}
		defer log.Close()
		cmd := exec.CommandContext(m.ctx, filepath.Join(m.binaries, name), "--config", filepath.Join(m.dir, name+".yaml"))
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			return err
		}
		m.processes = append(m.processes, cmd)
	}
	c := api.DialTLS(m.addresses, m.trust.Client(api.RoleSidecar))
	defer c.Close()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	var err error
	for range 600 {
		if _, err = c.Status.About(m.ctx, &holdfastv1.StatusServiceAboutRequest{}); err == nil {
			return nil
		}
		select {
		case <-look.C:
		case <-m.ctx.Done():
			return m.ctx.Err()
		}
	}
	said, _ := os.ReadFile(filepath.Join(m.dir, "vra-sidecar.log"))
	return fmt.Errorf("the sidecar of many groups does not answer: %w: %s", err, said)
}

// cpu is what both have used so far, in seconds.
func (m *many) cpu() (sum float64, err error) {
	for _, cmd := range m.processes {
		used, err := bars.CPUOfProcess(cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// end stops both.
func (m *many) end() error {
	var errs []error
	for _, cmd := range m.processes {
		errs = append(errs, cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	}
	return errors.Join(errs...)
}
