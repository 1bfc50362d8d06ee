//go:build e2e

package scenario_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// otherHost makes a second source VRA of the first site, with a filter, on another host as far as processes can tell: its own name,
// folders and boot. The group, its stream and the disk are the same. It returns the environment of its daemons, and where the guest
// finds the disk there.
func (p *pair) otherHost() (other site, filter string, env, guest string) {
	p.t.Helper()
	at := func(parts ...string) string { return filepath.Join(append([]string{p.dir, "east2"}, parts...)...) }
	p.must(os.MkdirAll(at(), 0o700))
	first := p.sites[0].config
	ca, err := pairing.LoadCA(first.TLS.CA, filepath.Join(p.dir, "east", "ca-key.pem"))
	p.must(err)
	leaf, err := ca.Issue(pairing.Identity{Role: "vra", ID: "east-2"}, time.Now(), 24*time.Hour)
	p.must(err)
	p.must(leaf.Save(at("cert.pem"), at("key.pem")))
	c := *first
	c.ID, c.DataDir, c.RunDir, c.Socket, c.Target = "east-2", at("data"), at("run"), at("vra.sock"), nil
	c.TLS.Cert, c.TLS.Key = at("cert.pem"), at("key.pem")
	g := first.Source.Groups[0]
	g.Filters = []string{at("pool.sock")}
	c.Source = &config.Source{Groups: []config.SourceGroup{g}}
	other = site{name: "east2", config: &c, file: at("vra.yaml"), client: api.DialUnix(c.Socket)}
	p.t.Cleanup(other.client.Close)
	p.write(other.file, &c)
	f, err := config.LoadFilter(filepath.Join(p.dir, "east", "filter.yaml"))
	p.must(err)
	f.RunDir, f.PoolSocket = c.RunDir, g.Filters[0]
	f.Volumes[0].NBD = at("vol1.sock")
	filter = at("filter.yaml")
	p.write(filter, f)
	env, err = drive.BootFile(at("boot"))
	p.must(err)
	return other, filter, env, uri("vol1", f.Volumes[0].NBD)
}

var comparedBytes = regexp.MustCompile(`compared with what the target holds".* bytes=(\d+)`)

// TestEndToEndChangesHost has a machine's disk go on at another host, whose filter and VRA take over the group with what the first
// VRA kept of it: what was marked and the regions in use are compared, and what differs is sent. Two never send: the second is refused
// while the first has the group, the first once it comes back, beside the second and after it, and says why.
func TestEndToEndChangesHost(t *testing.T) {
	t.Parallel()
	const size = 256 << 20
	p := newPair(t, size, "vol1")
	other, filter, env, there := p.otherHost()
	image := make([]byte, size)
	p.startVRA(1)
	p.startVRA(0)
	p.start("east-filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml"))
	guest := p.disk(uri("vol1", filepath.Join(p.dir, "east", "vol1.sock")))
	p.put(guest, image, 0, 64<<20, 0x11)
	p.state(0, api.StateProtected)
	p.checkpoint(0, "first")
	p.must(guest.Close())
	p.stop("east-filter") // by which everything leaves its activity log, the first synchronisation too
	p.start("east-filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml"))
	guest = p.disk(uri("vol1", filepath.Join(p.dir, "east", "vol1.sock")))
	p.put(guest, image, 4<<20, 1<<20, 0x12)
	p.state(0, api.StateProtected)
	p.checkpoint(0, "second")
	kept := filepath.Join(p.sites[0].config.DataDir, "kept-0000000000002222")
	p.await("the source to keep what it knows", func() bool {
		text, err := os.ReadFile(kept)
		return err == nil && strings.Contains(string(text), `"logged":[1]`)
	})

	// The second does not get the group while the first lives, whatever it has of it.
	p.start("east2", "vra", other.file, env)
	says := func(s site, why string) {
		t.Helper()
		p.await(s.name+" to say "+why, func() bool {
			res, err := s.client.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{Group: pairGroup})
			return err == nil && len(res.Groups) == 1 && strings.Contains(res.Groups[0].Reason, why)
		})
	}
	says(other, "filters of the group do not answer")
	p.stop("east2")
	p.must(p.holdfast(nil, "group", "pause", pairGroup))
	p.put(guest, image, 20<<20, 1<<20, 0x22) // marked, and not sent
	p.must(guest.Close())
	p.kill("east-filter")
	p.kill("east")
	for _, name := range []string{"kept-0000000000002222", "incarnation-0000000000002222"} {
		text, err := os.ReadFile(filepath.Join(p.sites[0].config.DataDir, name))
		p.must(err)
		p.must(os.WriteFile(filepath.Join(other.config.DataDir, name), text, 0o600))
	}

	p.start("east2", "vra", other.file, env)
	p.start("east2-filter", "vra-filter", filter, env)
	guest = p.disk(there)
	p.put(guest, image, 40<<20, 1<<20, 0x33)
	first := p.sites[0]
	p.sites[0] = other
	g := p.state(0, api.StateProtected)
	log, err := os.ReadFile(filepath.Join(p.dir, "east2.log"))
	p.must(err)
	compared := int64(0)
	for _, found := range comparedBytes.FindAllSubmatch(log, -1) {
		n, _ := strconv.ParseInt(string(found[1]), 10, 64)
		compared += n
	}
	t.Logf("%d bytes sent for %d written meanwhile, of %d; %d compared", g.WireBytesTotal, 2<<20, size, compared)
	if most := int64(2*(2<<20) + 64<<20/4096*16); compared > 64<<20 || g.WireBytesTotal > most {
		t.Errorf("%d bytes were compared, and %d sent, want at most %d", compared, g.WireBytesTotal, most)
	}
	p.holds(p.checkpoint(0, "moved"), image)

	// The first comes back: beside the second, and when that is gone for a while.
	// Its filter serves an old copy there: the disk itself the second one's has.
	p.sites[0] = first
	f, err := config.LoadFilter(filepath.Join(p.dir, "east", "filter.yaml"))
	p.must(err)
	f.Volumes[0].Path = filepath.Join(p.dir, "east", "disks", "copy.raw")
	p.must(os.WriteFile(f.Volumes[0].Path, image, 0o600))
	p.write(filepath.Join(p.dir, "east", "filter.yaml"), f)
	p.start("east-filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml"))
	p.startVRA(0)
	p.await("the first to be resumed", func() bool {
		_, err := first.client.Groups.Resume(t.Context(), &holdfastv1.GroupsServiceResumeRequest{Group: pairGroup})
		return err == nil
	})
	says(first, "alive sends this stream")
	p.put(guest, image, 50<<20, 1<<20, 0x44)
	p.sites[0] = other
	p.state(0, api.StateProtected)
	p.holds(p.checkpoint(0, "beside"), image)
	p.kill("east2")
	says(first, "another VRA has sent this group")
	p.stop("east")
	p.start("east2", "vra", other.file, env)
	p.put(guest, image, 60<<20, 1<<20, 0x55)
	p.state(0, api.StateProtected)
	p.holds(p.checkpoint(0, "after"), image)
}
