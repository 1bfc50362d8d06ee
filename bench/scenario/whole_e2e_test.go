//go:build e2e

package scenario_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/guest"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
)

// TestWholeStoryOfAGuest has a guest of two disks, a file and, where one can be made, a block device, lose its site whole while it writes; it comes back at the
// other one, is committed, writes more, is protected from there to its old disks, moves back by its power button, and is
// protected the first way round again. At each site it reads each file that it knew to be safe.
func TestWholeStoryOfAGuest(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	vm, p, disks := guestPair(t, size)
	disks[1] = loop(t, disks[1])
	p.onDevice("data", disks[1])
	first := p.bootProtected(vm)
	for _, who := range []string{"east-filter", p.sites[0].name} { // the site burns
		p.kill(who)
	}
	first.kill()

	// Over to the west, at the newest checkpoint.
	there := p.machines(vm, guestFiles, "more=10", "")
	var r report
	p.must(p.holdfast(&r, "failover", "live", "--machines", there, "--override-reason", "the site burnt"))
	west := filepath.Join(p.dir, "jobs", r.ID, "machines", "web1")
	p.heard(west, fmt.Sprintf("READ %d BAD 0", guestFiles))
	p.must(p.holdfast(&r, "failover", "commit", r.ID))
	p.heard(west, fmt.Sprintf("SAFE %d", guestFiles+9))

	// The old site is there again, without its filter, and becomes the target.
	p.startVRA(0)
	to := p.sites[0].config.Target
	p.must(p.holdfast(&r, "reverse", "--to", to.ListenControl+","+to.ListenData, "--disk", "system="+disks[0], "--disk", "data="+disks[1], "--interval", "1s"))
	if r.Verdict == nil || *r.Verdict != "passed" {
		t.Errorf("reversed: %+v", r)
	}
	p.state(1, api.StateProtected)

	// And back, by its power button.
	p.context(1)
	back := p.machines(vm, guestFiles+10, "more=5", filepath.Join(west, "qmp"))
	p.must(p.holdfast(&r, "move", "--machines", back))
	east := filepath.Join(p.dir, "jobs", r.ID, "machines", "web1")
	p.heard(west, "BYE")
	p.heard(east, "ORDERLY")
	p.heard(east, fmt.Sprintf("READ %d BAD 0", guestFiles+10))
	p.must(p.holdfast(&r, "failover", "commit", r.ID))
	p.heard(east, fmt.Sprintf("SAFE %d", guestFiles+14))
	p.state(1, api.StateStandby)

	// The first way round again: what the west had are its replicas.
	p.endFilters()
	to = p.sites[1].config.Target
	p.must(p.holdfast(&r, "reverse", "--to", to.ListenControl+","+to.ListenData, "--interval", "1s"))
	p.state(0, api.StateProtected)
	p.context(0)
	var proof report
	p.must(p.holdfast(&proof, "verify", "--machines", p.machines(vm, guestFiles+15, "", ""), "--wait", fmt.Sprintf("serial:READ %d BAD 0", guestFiles+15)))
	if *proof.Verdict != "passed" {
		t.Errorf("%+v", proof)
	}
	for _, site := range []string{west, east} {
		if said, err := os.ReadFile(filepath.Join(site, "serial")); err != nil || regexp.MustCompile(`(?i)i/o error|remount|NO SECOND`).Match(said) {
			t.Errorf("the guest saw an error (%v):\n%s", err, said)
		}
	}
}

// loop makes a block device of a file, until the test ends. Where none can be made it is the file.
func loop(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", file).Output()
	if err != nil {
		t.Logf("no block device can be made of a file, so both are files: %v: %s", err, stderrOf(err))
		return file
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}

// onDevice has the east's filter serve a volume from another disk.
func (p *pair) onDevice(volume, device string) {
	p.t.Helper()
	name := filepath.Join(p.dir, "east", "filter.yaml")
	f, err := config.LoadFilter(name)
	p.must(err)
	for i := range f.Volumes {
		if f.Volumes[i].Name == volume {
			f.Volumes[i].Path = device
		}
	}
	p.write(name, f)
}

// guestDisks are QEMU's options for the disks of a guest, as a site's filter serves them.
func (p *pair) guestDisks(site string) (args []string) {
	for _, v := range []string{"system", "data"} {
		args = append(args, "-blockdev", "driver=nbd,node-name="+v+",server.type=unix,server.path="+filepath.Join(p.dir, site, v+".sock")+",export="+v+",reconnect-delay=30",
			"-device", "virtio-blk-pci,drive="+v)
	}
	return args
}

// machines writes the file of a group whose machine reads so many files from its second disk, and does more then.
func (p *pair) machines(vm *host, files int, more, monitor string) string {
	p.t.Helper()
	return vm.machine(config.Machine{Disks: []string{"system", "data"}, Front: p.front, Cmdline: guest.Cmdline(guest.Stay, files, "disks=2 pause=0.2 "+more),
		Wait: config.Wait{Kind: config.WaitSerial, What: fmt.Sprintf("READ %d BAD", files)}, Source: config.MachineSource{QMP: monitor}})
}

// heard waits until a machine has said a text.
func (p *pair) heard(machine, want string) {
	p.t.Helper()
	await(p.t, 2*time.Minute, fmt.Sprintf("%s says %q", machine, want), func() bool {
		said, _ := os.ReadFile(filepath.Join(machine, "serial"))
		return strings.Contains(string(said), want)
	})
}
