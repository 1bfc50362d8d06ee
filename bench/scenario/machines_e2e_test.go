//go:build e2e

package scenario_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/config"
)

// report is what the commands of recovery say of a job.
type report struct {
	ID, Kind, Checkpoint, State string
	Verdict, Reason, View       *string
	Ready                       *float64 `json:"ready_seconds"`
	Files                       []string
}

// machines writes the file of a group whose machine boots from its only disk and reads what the first knew to be safe.
func (h *host) machines(volume string) string {
	h.t.Helper()
	file := config.Machines{Machines: []config.Machine{{Name: "web1", Memory: 192 << 20, Disks: []string{volume}, Kernel: h.kernel, Initrd: h.initrd,
		Cmdline: fmt.Sprintf("console=ttyS0 panic=-1 quiet job=stay files=%d", guestFiles), Wait: config.Wait{Kind: config.WaitSerial, What: fmt.Sprintf("READ %d BAD", guestFiles)}}}}
	text, err := config.Marshal(&file)
	if err != nil {
		h.t.Fatal(err)
	}
	name := filepath.Join(h.dir, "machines.yaml")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		h.t.Fatal(err)
	}
	return name
}

// TestGuestFailsOver has a guest write while its group is brought up beside it at two checkpoints at once:
// the machines at the second site read what the guest knew to be safe then, protection goes on, and
// nothing is left once they are stopped.
func TestGuestFailsOver(t *testing.T) {
	t.Parallel()
	vm := newHost(t)
	image := filepath.Join(t.TempDir(), "guest.raw")
	vm.makeDisk(image)
	l := up(t, "", nil, "--image", image, "--interval", "1s", "--link", "none")
	volume := l.Volumes[0].Name
	first := vm.boot("write", "-chardev", "socket,id=disk,path="+l.Volumes[0].VhostUser+",reconnect=1", "-device", "vhost-user-blk-pci,chardev=disk,num-queues=1")
	defer first.kill()
	first.says(fmt.Sprintf("SAFE %d", guestFiles-1))
	l.protected()
	c := l.checkpoint("written")
	file := vm.machines(volume)

	var r report
	l.must(l.JSON(t.Context(), &r, "failover", "test", "--checkpoint", "written", "--machines", file))
	if r.ID != "r1" || r.State != "running" || r.Checkpoint != c.ID || r.Ready == nil {
		t.Errorf("%+v", r)
	}
	t.Logf("ready after %.2f s", *r.Ready)
	newest := l.newest()
	var proof report
	l.must(l.JSON(t.Context(), &proof, "verify", "--checkpoint", newest, "--machines", file, "--wait", fmt.Sprintf("serial:READ %d BAD 0", guestFiles)))
	if proof.ID != "r2" || proof.State != "over" || *proof.Verdict != "passed" || len(proof.Files) != 1 {
		t.Errorf("%+v", proof)
	}
	if last := l.newest(); last == newest {
		t.Errorf("no checkpoint came after %s while machines were started beside", newest)
	}
	l.protected()
	l.must(l.JSON(t.Context(), &r, "failover", "test", "--stop", "r1", "--note", "all there"))
	if *r.Verdict != "passed" {
		t.Errorf("%+v", r)
	}
	said, err := os.ReadFile(filepath.Join(l.Dir, "jobs", "r1", "web1.serial"))
	if want := fmt.Sprintf("READ %d BAD 0", guestFiles); err != nil || !strings.Contains(string(said), want) {
		t.Errorf("the machine at the second site does not say %q (%v):\n%s", want, err, said)
	}
	var views []struct{ ID string }
	l.must(l.JSON(t.Context(), &views, "view", "list"))
	if left, _ := filepath.Glob(filepath.Join(l.Dir, "jobs", "*", "machines", "*")); len(views) > 0 || len(left) > 0 {
		t.Errorf("%v and %v are left", views, left)
	}
	var proved []struct{ ID, Proved string }
	l.must(l.JSON(t.Context(), &proved, "checkpoint", "list"))
	marked := 0
	for _, c := range proved {
		if c.Proved != "" {
			if marked++; c.ID != newest || c.Proved != "r2" {
				t.Errorf("%+v is marked", c)
			}
		}
	}
	if marked != 1 {
		t.Errorf("%d checkpoints are marked as proved", marked)
	}
}
