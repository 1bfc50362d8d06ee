//go:build e2e

package scenario_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm/kvmtest"
)

// TestEndToEndLibvirt has machines of a libvirt at both sites: the file of the machines is made of what libvirt has,
// and a test, a failover that is rolled back and one that is committed stop and start them through it. A command is killed while
// libvirt starts a machine, and another carries on.
func TestEndToEndLibvirt(t *testing.T) {
	t.Parallel()
	where := kvmtest.Libvirtd(t)
	image := filepath.Join(t.TempDir(), "boot.raw")
	if err := os.WriteFile(image, slices.Concat(kvmtest.BootSector, make([]byte, 1<<20-len(kvmtest.BootSector))), 0o600); err != nil {
		t.Fatal(err)
	}
	l := up(t, "", nil, "--image", image, "--interval", "1s", "--link", "none")
	l.protected()
	serial := filepath.Join(t.TempDir(), "serial")
	source := kvmtest.Domain(t, where, `<domain type='qemu'><name>web1</name><memory>32768</memory><vcpu>1</vcpu><os><type>hvm</type><boot dev='hd'/></os><features><acpi/></features><devices>
		<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='`+l.Volumes[0].Name+`'><host transport='unix' socket='`+socketOf(l.Volumes[0].NBD)+`'/></source><target dev='vda' bus='virtio'/></disk>
		<serial type='file'><source path='`+serial+`'/></serial></devices></domain>`)
	hears := func(name string) {
		t.Helper()
		await(t, 30*time.Second, name+" says that its guest is up", func() bool {
			said, _ := os.ReadFile(name)
			return strings.HasSuffix(string(said), "HELLO\n")
		})
	}
	hears(serial)

	file := filepath.Join(t.TempDir(), "machines.yaml")
	var written []struct{ Volumes []string }
	l.must(l.JSON(t.Context(), &written, "machines", "write", "web1", "--libvirt", where.String(), "--on", where.String(), "--out", file))
	if len(written) != 1 || !slices.Equal(written[0].Volumes, []string{l.Volumes[0].Name}) {
		t.Errorf("written: %+v", written)
	}
	c, err := config.LoadMachines(file)
	l.must(err)
	c.Machines[0].Wait = config.Wait{Kind: config.WaitSerial, What: "HELLO"}
	text, err := config.Marshal(c)
	l.must(err)
	l.must(os.WriteFile(file, text, 0o600))
	type domain struct{ Name, State string }
	ours := func() (states []string) {
		t.Helper()
		var all []domain
		l.must(l.JSON(t.Context(), &all, "machines", "list", "--libvirt", where.String()))
		for _, d := range all {
			if strings.HasPrefix(d.Name, "web1-") {
				states = append(states, d.State)
			}
		}
		return states
	}

	var r report
	l.killedAt("r1", `"do":"start"`, "failover", "test", "--machines", file)
	l.must(l.JSON(t.Context(), &r, "failover", "resume", "r1"))
	if got := ours(); r.State != "running" || !slices.Equal(got, []string{"running"}) || !source() {
		t.Errorf("under test: %+v, domains %v", r, got)
	}
	l.must(l.JSON(t.Context(), &r, "failover", "test", "--stop", "r1"))
	if got := ours(); len(got) > 0 {
		t.Errorf("the test was stopped, and there are %v", got)
	}

	l.must(l.JSON(t.Context(), &r, "failover", "live", "--machines", file))
	if got := ours(); r.State != "running" || !slices.Equal(got, []string{"running"}) || source() {
		t.Errorf("failed over: %+v, domains %v, the source runs: %v", r, got, source())
	}
	l.must(l.JSON(t.Context(), &r, "failover", "rollback", r.ID))
	if got := ours(); *r.Verdict != "rolled-back" || len(got) > 0 {
		t.Errorf("rolled back: %+v, domains %v", r, got)
	}
	l.protected()
	l.must(l.JSON(t.Context(), &r, "move", "--machines", file)) // what is off by its own libvirt's word is off
	l.must(l.JSON(t.Context(), &r, "failover", "commit", r.ID))
	if got := ours(); *r.Verdict != "committed" || !slices.Equal(got, []string{"running"}) {
		t.Errorf("committed: %+v, domains %v", r, got)
	}
	hears(filepath.Join(l.Dir, "jobs", r.ID, "machines", "web1", "serial"))
}
