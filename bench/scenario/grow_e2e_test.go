//go:build e2e

package scenario_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// view compares a checkpoint, as the target shows it, with what its disk held.
func (p *pair) view(id string, image []byte) {
	p.t.Helper()
	views := p.sites[1].client.Views
	res, err := views.Open(p.t.Context(), &holdfastv1.ViewsServiceOpenRequest{Group: pairGroup, Checkpoint: id})
	p.must(err)
	c := p.disk(res.View.Volumes[0].Nbd)
	if c.Size() != int64(len(image)) {
		p.t.Errorf("checkpoint %s shows %d bytes, want %d", id, c.Size(), len(image))
	} else {
		p.shows(c, image)
	}
	p.must(c.Close())
	_, err = views.Close(p.t.Context(), &holdfastv1.ViewsServiceCloseRequest{Id: res.View.Id})
	p.must(err)
}

// TestEndToEndGrows makes a protected disk larger while its guest writes, three times: with all well, with the filter
// killed before it can say anything of it, and with the source's vra dead. Each checkpoint shows the disk as it was.
func TestEndToEndGrows(t *testing.T) {
	const size = 32 << 20
	p := newPair(t, size, "vol1")
	disk, socket := filepath.Join(p.dir, "east", "disks", "vol1.raw"), filepath.Join(p.dir, "east", "vol1.sock")
	startFilter := func() { p.start("filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml")) }
	startFilter()
	p.startVRA(1)
	p.startVRA(0)
	type held struct {
		id    string
		image []byte
	}
	var all []held
	image := make([]byte, size)
	keeps := func(tag string) {
		t.Helper()
		p.await("the size to be told", func() bool {
			return p.state(0, api.StateProtected).Volumes[0].Bytes == int64(len(image))
		})
		all = append(all, held{p.checkpoint(0, tag), append([]byte(nil), image...)})
		for _, h := range all {
			p.view(h.id, h.image)
		}
	}
	c := p.disk(uri("vol1", socket))
	p.put(c, image, 3<<20, 5<<20, 1)
	keeps("before")

	// under writes to what there was, until stop is called
	under := func() (stop func()) {
		end, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for b := byte(7); ; b++ {
				select {
				case <-end:
					return
				default:
				}
				part := make([]byte, 64<<10)
				for i := range part {
					part[i] = b
				}
				off := int64(b) * 64 << 10
				if _, err := c.WriteAt(part, off); err != nil {
					t.Error(err)
					return
				}
				copy(image[off:], part)
			}
		}()
		return func() { close(end); <-done }
	}
	enlarge := func(by int64) {
		t.Helper()
		p.must(os.Truncate(disk, int64(len(image))+by))
		p.must(p.procs["filter"].cmd.Process.Signal(syscall.SIGHUP))
	}
	grown := func(by int64, b byte) {
		t.Helper()
		image = append(image, make([]byte, by)...)
		p.await("the new size", func() bool { c = p.disk(uri("vol1", socket)); return c.Size() == int64(len(image)) })
		p.put(c, image, int64(len(image))-1<<20, 1<<20, b) // the end of it
	}

	stop := under()
	p.checkpoint(0, "busy before")
	enlarge(8 << 20)
	p.await("the size to be told", func() bool {
		return p.state(0, api.StateProtected, api.StateResync, api.StateBehind).Volumes[0].Bytes == size+8<<20
	})
	p.checkpoint(0, "busy after")
	stop()
	grown(8<<20, 2)
	keeps("grown")

	enlarge(4 << 20)
	p.kill("filter")
	startFilter()
	grown(4<<20, 3)
	keeps("the filter was killed")

	p.kill("east")
	stop = under()
	enlarge(4 << 20)
	stop()
	grown(4<<20, 4)
	p.startVRA(0)
	keeps("the source was killed")

	p.kill("west")
	p.startVRA(1)
	keeps("the target was killed")
}
