package failover

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// TestCheckHost: what a job goes on without, or a script of its own may make, is a warning; the rest keeps it from beginning.
func TestCheckHost(t *testing.T) {
	libvirt := config.Hypervisor{URI: "qemu:///system", Socket: "/run/libvirt/libvirt-sock"}
	f := func(kind recovery.Kind, where config.Hypervisor, stat error, change func(*recovery.Machine), warning, refusal string) {
		t.Helper()
		p := testPlan(kind)
		p.Hypervisor = where
		for i := range p.Machines {
			p.Machines[i].Before = recovery.Script{}
		}
		change(&p.Machines[1])
		h := checkHost(p, func(name string) (os.FileInfo, error) {
			return nil, &fs.PathError{Op: "stat", Path: name, Err: stat}
		})
		said := strings.Join(h.warnings, "; ")
		if (warning == "") != (said == "") || !strings.Contains(said, warning) || (refusal == "") != (h.err == nil) || h.err != nil && !strings.Contains(h.err.Error(), refusal) {
			t.Errorf("%s: warnings %q, %v; want %q, %q", kind, said, h.err, warning, refusal)
		}
	}
	after := func(m *recovery.Machine) { m.After.Command = []string{"/nope/after"} }
	wait := func(m *recovery.Machine) { m.Wait = config.Wait{Kind: config.WaitScript, What: "/nope/wait"} }
	kernel := func(m *recovery.Machine) { m.Kernel = "/nope/vmlinuz" }
	bridge := func(m *recovery.Machine) { m.Networks = []hypervisor.Network{{Bridge: "br-nope"}} }
	prepared := func(change func(*recovery.Machine)) func(*recovery.Machine) {
		return func(m *recovery.Machine) { change(m); m.Before.Command = []string{"true"} }
	}
	f(recovery.Live, libvirt, fs.ErrNotExist, after, "machine web: after: ", "")
	f(recovery.Move, libvirt, fs.ErrNotExist, wait, "machine web: wait: ", "")
	f(recovery.Test, libvirt, fs.ErrNotExist, after, "", "machine web: after: ")
	f(recovery.Proof, libvirt, fs.ErrNotExist, wait, "", "machine web: wait: ")
	f(recovery.Live, libvirt, fs.ErrNotExist, kernel, "", "kernel: stat /nope/vmlinuz")
	f(recovery.Live, libvirt, fs.ErrNotExist, prepared(kernel), "a before script has to make it", "")
	f(recovery.Live, libvirt, fs.ErrNotExist, bridge, "", "no bridge br-nope")
	f(recovery.Live, libvirt, fs.ErrNotExist, prepared(bridge), "a before script has to make it", "")
	f(recovery.Live, libvirt, fs.ErrPermission, prepared(bridge), "", "bridge br-nope")
	f(recovery.Live, libvirt, fs.ErrPermission, kernel, "", "")
	f(recovery.Live, config.Hypervisor{}, fs.ErrPermission, kernel, "", "kernel: stat /nope/vmlinuz: permission denied")
	f(recovery.Live, libvirt, fs.ErrNotExist, func(m *recovery.Machine) { m.Before.Command = []string{"/nope/before"} }, "", "before: ")
}

// TestPortsAreFree: a port of this host that a machine is to have is free before anything is stopped, and after the look.
func TestPortsAreFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := func(at, want string) {
		t.Helper()
		p := testPlan(recovery.Live)
		p.Hypervisor = config.Hypervisor{URI: "qemu:///system", Socket: "/run/libvirt/libvirt-sock"}
		p.Machines[1].Networks = []hypervisor.Network{{Forward: []string{at + "=10.0.2.15:22"}}}
		for i := range p.Machines {
			p.Machines[i].Before = recovery.Script{}
		}
		if h := checkHost(p, os.Stat); (want == "") != (h.err == nil) || h.err != nil && !strings.Contains(h.err.Error(), want) || len(h.warnings) > 0 {
			t.Errorf("%s: %v, %q; want %q", at, h.err, h.warnings, want)
		}
	}
	at := l.Addr().String()
	f(at, "machine web: somebody listens at "+at)
	f("198.51.100.77:2222", "no address 198.51.100.77:2222")
	l.Close()
	f(at, "")
	f(at, "") // nor do we hold it
}

// TestHostHangs: a file system that does not answer does not keep the others' answers.
func TestHostHangs(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	hangs := make(chan struct{})
	defer close(hangs)
	h := answered(ctx, func() hostFound { stop(); <-hangs; return hostFound{} })
	if h.err == nil || !strings.Contains(h.err.Error(), "did not answer") {
		t.Errorf("%+v", h)
	}
}

// TestSourcesAtOnce: the monitors of protected machines are asked beside each other: one that is slow takes no time from the others.
func TestSourcesAtOnce(t *testing.T) {
	dir := t.TempDir()
	p := testPlan(recovery.Live)
	r := newRunner(t, &site{}, newHost(t))
	came := make(chan struct{}, len(p.Machines))
	all := make(chan struct{})
	for i := range p.Machines {
		m := &p.Machines[i]
		m.Source = recovery.Source{QMP: filepath.Join(dir, m.Name), Time: time.Minute}
		l, err := net.Listen("unix", m.Source.QMP)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			came <- struct{}{}
			<-all
			fmt.Fprintln(c, `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}}`)
			id := 0
			for s := bufio.NewScanner(c); s.Scan(); {
				id++
				fmt.Fprintf(c, `{"return": {"status": "running"}, "id": %d}`+"\n", id)
			}
		}()
	}
	go func() {
		for range p.Machines {
			<-came
		}
		close(all)
	}()
	if _, err := r.Check(t.Context(), p); err == nil || strings.Contains(err.Error(), "source's machine") {
		t.Errorf("with monitors that answer: %v", err)
	}
	for i := range p.Machines {
		p.Machines[i].Source.QMP += "-none"
	}
	_, err := r.Check(t.Context(), p)
	if text := fmt.Sprint(err); err == nil || !strings.Contains(text, "machine web: whether") || strings.Index(text, "machine db: whether") < strings.Index(text, "machine web: whether") {
		t.Errorf("without: %v", err)
	}
}

// TestPlainNotChecked: what machines that run already need is no concern of their start.
func TestPlainNotChecked(t *testing.T) {
	p := testPlan(recovery.Plain)
	p.Machines[0].Kernel = "/nope/vmlinuz"
	if w, err := newRunner(t, &site{}, newHost(t)).Check(t.Context(), p); err != nil || len(w) > 0 {
		t.Errorf("%q, %v", w, err)
	}
}
