//go:build e2e

package scenario_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/bench/drive"
)

// TestWrittenPast has a disk detached, written past its filter and attached again: what changed is
// sent, and little beside it.
func TestWrittenPast(t *testing.T) {
	t.Parallel()
	const size, changed = 256 << 20, 200
	l := up(t, "", nil, "--size", "256MiB", "--interval", "1s", "--link", "none")
	l.protected()
	disk, volume := l.diskPath(), l.Volumes[0].Name
	var r struct{ State string }
	l.must(l.JSON(t.Context(), &r, "detach", "--no-guest", "--volume", volume))
	l.past("the guest is detached")
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	l.must(err)
	rng, p := rand.New(rand.NewPCG(1, 1)), make([]byte, 4096)
	for _, b := range rng.Perm(size / 4096)[:changed] {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		_, err := f.WriteAt(p, int64(b)*4096)
		l.must(err)
	}
	l.must(f.Close())
	before := l.sent()
	l.must(l.JSON(t.Context(), &r, "attach", "--no-guest", "--volume", volume))
	l.protected()
	sent := l.sent() - before
	if most := int64(2*changed*4096 + size/4096*16); sent > most || sent < changed*4096 {
		t.Errorf("%d bytes were sent for %d blocks that changed, at most %d", sent, changed, most)
	}
	t.Logf("%d bytes sent for %d changed", sent, changed*4096)
}

// TestHostCrashes has the source's host crash, as far as its processes can tell: only the regions in use are compared.
func TestHostCrashes(t *testing.T) {
	t.Parallel()
	boot := filepath.Join(t.TempDir(), "boot")
	env, err := drive.BootFile(boot)
	if err != nil {
		t.Fatal(err)
	}
	l := up(t, "", []string{env}, "--size", "256MiB", "--interval", "1s", "--link", "none")
	l.protected()
	c, err := l.CrashHost(t.Context(), boot, 200)
	l.must(err)
	t.Logf("%+v, allowed %d", c, c.Allowed())
	if c.Compared > 64<<20 {
		t.Errorf("%d bytes were compared, of 64 MiB in use", c.Compared)
	}
	if c.Sent > c.Allowed() || c.Sent < c.Changed {
		t.Errorf("%d bytes were sent for %d that changed, at most %d", c.Sent, c.Changed, c.Allowed())
	}
}
