//go:build e2e

package scenario_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// TestEndToEndPreseed carries copies of two disks to the target, a file and, where one can be made, a block device, and begins with
// them: what goes over the wire is what differs. The guest writes on beside it, both vra are killed on the way, and the checkpoint
// that comes of it holds what the guest has.
func TestEndToEndPreseed(t *testing.T) {
	t.Parallel()
	const size, filled, differ = 128 << 20, 96 << 20, 200
	p := newPair(t, size, "vol1", "vol2")
	p.sites[0].config.Source.Groups[0].Paused = true
	p.write(p.sites[0].file, p.sites[0].config)
	rng := rand.New(rand.NewPCG(9, 9))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	images := map[string][]byte{}
	args := []string{"group", "preseed", pairGroup}
	for _, v := range []string{"vol1", "vol2"} {
		image := append(random(filled), make([]byte, size-filled)...)
		images[v] = image
		p.must(os.WriteFile(filepath.Join(p.dir, "east", "disks", v+".raw"), image, 0o600))
		carried := bytes.Clone(image)
		for _, b := range rng.Perm(filled / 4096)[:differ] {
			copy(carried[b*4096:], random(4096))
		}
		file := filepath.Join(p.dir, "west", "disks", v+".raw")
		p.must(os.WriteFile(file, carried, 0o600))
		if v == "vol2" {
			if out, err := exec.Command("losetup", "--find", "--show", file).Output(); err == nil {
				device := strings.TrimSpace(string(out))
				t.Cleanup(func() {
					p.end()
					if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
						t.Errorf("losetup: %v: %s", err, out)
					}
				})
				file = device
			} else {
				t.Log("no block device can be made here: a file stands in for it")
			}
		}
		args = append(args, "--disk", v+"="+file)
	}
	p.startVRA(0)
	p.startVRA(1)
	p.start("east-filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml"))
	p.state(0, api.StatePaused)
	p.await("the filter", func() bool {
		res, err := p.sites[0].client.Groups.GetMembers(t.Context(), &holdfastv1.GroupsServiceGetMembersRequest{})
		return err == nil && res.Members.Volumes[1].Bytes > 0
	})
	short := filepath.Join(p.dir, "west", "disks", "short.raw")
	p.must(errors.Join(os.WriteFile(short, nil, 0o600), os.Truncate(short, size-4096)))
	if err := p.holdfast(nil, "group", "preseed", pairGroup, "--disk", "vol1="+short); err == nil || !strings.Contains(err.Error(), "bytes, and the volume") {
		t.Errorf("a disk of another size: %v", err)
	}
	guest := p.disk(uri("vol1", filepath.Join(p.dir, "east", "vol1.sock")))
	p.put(guest, images["vol1"], 0, 1<<20, 0x41)
	var m struct{ Paused bool }
	p.must(p.holdfast(&m, args...))
	if m.Paused {
		t.Error("it is paused still")
	}
	g := p.state(0, api.StateProtected)
	const changed = 2*differ*4096 + 1<<20
	t.Logf("%d bytes sent for at most %d that differ, of %d", g.WireBytesTotal, changed, 2*size)
	if most := int64(2*changed + 2*size/4096*16); g.WireBytesTotal > most {
		t.Errorf("%d bytes were sent for at most %d that differ, want at most %d", g.WireBytesTotal, changed, most)
	}
	p.put(guest, images["vol1"], 8<<20, 1<<20, 0x42)
	p.kill("east")
	p.kill("west")
	p.startVRA(1)
	p.startVRA(0)
	p.state(0, api.StateProtected)
	last := p.checkpoint(0, "last")
	res, err := p.sites[1].client.Views.Open(t.Context(), &holdfastv1.ViewsServiceOpenRequest{Group: pairGroup, Checkpoint: last})
	p.must(err)
	for _, v := range res.View.Volumes {
		p.shows(p.disk(v.Nbd), images[v.Name])
	}
	if err := p.holdfast(nil, args...); err == nil || !strings.Contains(err.Error(), "is not paused") {
		t.Errorf("again, of a group that is sent: %v", err)
	}
}
