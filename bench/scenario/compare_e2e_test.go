//go:build e2e

package scenario_test

import (
	"math/rand/v2"
	"os"
	"testing"
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
