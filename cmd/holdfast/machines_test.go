package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
)

// TestMachinesOf: a domain's disks are found among the volumes, by file and by socket, and what no filter serves is refused.
func TestMachinesOf(t *testing.T) {
	served := []servedVolume{{Volume: kvm.Volume{Name: "root", Path: "/images/root.raw"}}, {Volume: kvm.Volume{Name: "data", Path: "/dev/vg/data", Socket: "/run/data"}},
		{Volume: kvm.Volume{Name: "log", Path: "/dev/vg/log"}, vhostUser: "/run/log"}}
	all := []hypervisor.Found{
		{Name: "web1", MemoryBytes: 512<<20 - 4096, CPUs: 2, Firmware: hypervisor.UEFI, Disks: []hypervisor.FoundDisk{{Name: "vda", Path: "/images/root.raw"},
			{Name: "vdb", Path: "nbd+unix:///data?socket=%2Frun%2Fdata"}, {Name: "vdc", Path: "/run/log"}}, Networks: []hypervisor.FoundNetwork{{MAC: "52:54:00:00:00:01", Kind: "bridge", Name: "br0"}}},
		{Name: "db1", MemoryBytes: 1 << 30, CPUs: 1, Disks: []hypervisor.FoundDisk{{Name: "vda", Path: "nbd+unix:///other?socket=/run/data"}, {Name: "vdb", Path: "/run/data"}}},
	}
	file, written, err := machinesOf(all, []string{"web1"}, served)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Machine{Name: "web1", Memory: 512 << 20, CPUs: 2, Firmware: "uefi", Disks: []string{"root", "data", "log"},
		Networks: []config.MachineNetwork{{MAC: "52:54:00:00:00:01"}}, Source: config.MachineSource{Domain: "web1"}}
	if !reflect.DeepEqual(file.Machines, []config.Machine{want}) || len(written) != 1 || written[0].Domain != "web1" {
		t.Errorf("%+v, %+v", file, written)
	}
	_, _, err = machinesOf(all, []string{"db1", "nobody"}, served)
	for _, w := range []string{"disk vda: no filter serves nbd+unix:///other", "disk vdb: no filter serves /run/data", `no domain "nobody": it has web1, db1`} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%v; want %q", err, w)
		}
	}

	// The file reads as it was meant, and another one is not written over it.
	file.Hypervisor, _ = config.ParseHypervisor("qemu+unix:///system?socket=/run/l")
	file.Machines[0].Source.Libvirt, _ = config.ParseHypervisor("qemu:///system")
	path := filepath.Join(t.TempDir(), "machines.yaml")
	if err := writeMachines(path, file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(text), "wait_time") {
		t.Errorf("%v:\n%s", err, text)
	}
	back, err := config.LoadMachines(path)
	if err != nil || back.Hypervisor != file.Hypervisor || !reflect.DeepEqual(back.Machines, file.Machines) {
		t.Errorf("%v: it reads %+v, want %+v", err, back, file)
	}
	if err := writeMachines(path, file); err == nil || !strings.Contains(err.Error(), "stays as it is") {
		t.Errorf("written over: %v", err)
	}
}

// TestMachinesWords: what the arguments alone show to be wrong, and a libvirt that is not there.
func TestMachinesWords(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	no := func(want int, message string, args ...string) {
		t.Helper()
		if code, _, errs := holdfast(t, both, args...); code != want || !strings.Contains(errs, message) {
			t.Errorf("%q: exit %d, %s; want %d with %q", args, code, errs, want, message)
		}
	}
	no(exitUsage, "plain QEMU does not know", "machines", "list", "--libvirt", "qemu")
	no(exitUsage, "another host", "machines", "list", "--libvirt", "qemu://far/system")
	no(exitFailed, "no such file", "machines", "list", "--libvirt", "qemu+unix:///system?socket=/nowhere")
	no(exitUsage, "want the names of domains", "machines", "write", "--out", "m.yaml")
	no(exitUsage, "--out is missing", "machines", "write", "web1")
	no(exitUsage, "names no filters", "machines", "write", "web1", "--out", "m.yaml")
	file := filepath.Join(t.TempDir(), "machines.yaml")
	if err := os.WriteFile(file, []byte("hypervisor: qemu+unix:///system?socket=/nowhere\n"+machinesText), 0o600); err != nil {
		t.Fatal(err)
	}
	// It is asked before anything is begun.
	no(exitFailed, "does not answer", "failover", "test", "--machines", file)
	if target.opened != nil {
		t.Error("a view was opened for machines that nobody runs")
	}
}
