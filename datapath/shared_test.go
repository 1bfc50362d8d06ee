package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/internal/testtrust"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// shop is a group that several source VRAs share: a world's target, and hosts of its own.
type shop struct {
	*world
	hosts   []*shopHost
	members []Member
}

// shopHost is a host with a filter, a volume and a VRA.
type shopHost struct {
	dir            string
	volume         string
	f              *capture.Filter
	s              *Source
	filter, source *part
}

func newShop(t *testing.T, hosts int) *shop {
	w := newWorld(t, func(w *world) { w.volumes = nil })
	w.startTarget()
	s := &shop{world: w}
	for i := range hosts {
		h := &shopHost{dir: fmt.Sprintf("%s/h%d", w.dir, i), volume: fmt.Sprintf("vol%d", i+1)}
		if err := os.MkdirAll(h.dir+"/run", 0o700); err != nil {
			t.Fatal(err)
		}
		disk, err := os.Create(h.dir + "/disk")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(disk.Truncate(1<<20), disk.Close()); err != nil {
			t.Fatal(err)
		}
		s.hosts = append(s.hosts, h)
		s.members = append(s.members, Member{VRA: fmt.Sprintf("v%d", i+1), Stream: record.StreamID(0x70 + i), Address: freeAddress(t)})
		t.Cleanup(func() { // before the world's
			h.source.end(t)
			h.filter.end(t)
			*h = shopHost{}
		})
	}
	for i := range hosts {
		s.startHostFilter(i)
		s.startHostSource(i)
	}
	return s
}

// freeAddress is one that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *shop) startHostFilter(i int) {
	s.t.Helper()
	h := s.hosts[i]
	f, err := capture.OpenFilter(capture.FilterConfig{
		RunDir: h.dir + "/run", Group: testGroup, PoolBytes: 4 << 20, PoolSocket: h.dir + "/pool", FS: ioengine.OS(), Log: s.log.With("filter", i),
		Volumes: []capture.FilterVolume{{ID: record.VolumeID(i + 1), Name: h.volume, Path: h.dir + "/disk"}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	h.f = f
	h.filter = run(func(ctx context.Context) error { return errors.Join(f.Run(ctx), f.Close()) })
}

func (s *shop) startHostSource(i int) {
	s.t.Helper()
	h, own := s.hosts[i], testtrust.Sources()[i]
	g := GroupConfig{
		Name: "shop", ID: testGroup, Stream: record.StreamID(0x70 + i), Lineage: 7, Interval: 300 * time.Millisecond, Window: 16 << 20,
		Control: s.control, Data: s.data, Filters: []string{h.dir + "/pool"}, Volumes: []VolumeName{{ID: record.VolumeID(i + 1), Name: h.volume}},
		Members: s.members,
	}
	if err := os.MkdirAll(h.dir+"/data", 0o700); err != nil {
		s.t.Fatal(err)
	}
	source, err := OpenSource(SourceConfig{
		RunDir: h.dir + "/run", DataDir: h.dir + "/data", Credentials: own.Target, Groups: []GroupConfig{g}, Log: s.log.With("source", i),
		ListenCuts: s.members[i].Address, SiteCredentials: own.Site,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	h.s = source
	h.source = run(func(ctx context.Context) error { return errors.Join(source.Run(ctx), source.Close()) })
}

func (s *shop) stopHostSource(i int) {
	s.hosts[i].source.end(s.t)
	s.hosts[i].source = nil
}

// state is the group as a host's VRA tells it.
func (s *shop) state(i int) *holdfastv1.Group {
	s.t.Helper()
	res, err := Handlers(Identity{}, s.hosts[i].s, nil).Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return res.Groups[0]
}

// shopPatience is how long checkpoints of several VRAs may be in coming: all have to be heard within a hold, which is 2 ms,
// and on a machine that is busy with other things few cuts are that lucky.
const shopPatience = 4 * time.Minute

// awaitShop polls until ok, and fails after shopPatience.
func (s *shop) awaitShop(what string, ok func() bool) {
	s.t.Helper()
	deadline, tick := time.NewTimer(shopPatience), time.NewTicker(5*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			s.t.Fatalf("waited in vain for %s: %v and %v", what, s.state(0), s.state(1))
		}
	}
}

func (s *shop) awaitProtected() {
	s.t.Helper()
	s.awaitShop("protected", func() bool {
		for i := range s.hosts {
			if s.state(i).State != api.StateProtected {
				return false
			}
		}
		return true
	})
}

// listed are the checkpoints at the target.
func (s *shop) listed() []*holdfastv1.Checkpoint {
	s.t.Helper()
	res, err := Handlers(Identity{}, nil, s.tg).Checkpoints.List(context.Background(), &holdfastv1.CheckpointsServiceListRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return res.Checkpoints
}

// numbers reads the number that stands in each volume at a checkpoint.
func (s *shop) numbers(checkpoint string) (ns []uint64) {
	s.t.Helper()
	views := Handlers(Identity{}, nil, s.tg).Views
	res, err := views.Open(context.Background(), &holdfastv1.ViewsServiceOpenRequest{Checkpoint: checkpoint})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(res.View.Volumes) != len(s.hosts) {
		s.t.Fatalf("a view of %d volumes", len(res.View.Volumes))
	}
	at := make(map[string]uint64)
	for _, v := range res.View.Volumes {
		c, err := nbd.Dial(context.Background(), v.Nbd)
		if err != nil {
			s.t.Fatal(err)
		}
		p := make([]byte, 4096)
		if _, err := c.ReadAt(p, 0); err != nil {
			s.t.Fatal(err)
		}
		c.Close()
		at[v.Name] = binary.LittleEndian.Uint64(p)
	}
	for _, h := range s.hosts {
		ns = append(ns, at[h.volume])
	}
	if _, err := views.Close(context.Background(), &holdfastv1.ViewsServiceCloseRequest{Id: res.View.Id}); err != nil {
		s.t.Fatal(err)
	}
	return ns
}

// causes writes a number to the first host's volume and, once that is answered, to the next, and so on, then the next number; until it is told to end.
// Where the race detector looks on it pauses, as other guests do.
func (s *shop) causes() (end func() (wrote uint64)) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	n := uint64(0)
	wg.Go(func() {
		for ctx.Err() == nil {
			if slower > 1 {
				<-time.After(slower * time.Millisecond / 2)
			}
			n++
			for _, h := range s.hosts {
				if err := putNumber(h.f.Device(h.volume), n); err != nil {
					s.t.Error(err)
					return
				}
			}
		}
	})
	end = func() uint64 {
		stop()
		wg.Wait()
		return n
	}
	s.t.Cleanup(func() { end() }) // before the filters'
	return end
}

func putNumber(d front.Device, n uint64) error {
	w, err := d.BeginWrite(0, 4096)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(w.Buffers()[0], n)
	return w.Commit(false)
}

// checkCauses opens each checkpoint from a place in the list on: what a volume holds, the volume before it holds too.
func (s *shop) checkCauses(from int) (checked int) {
	s.t.Helper()
	for _, c := range s.listed()[from:] {
		ns := s.numbers(c.Id)
		for i := 1; i < len(ns); i++ {
			if ns[i] > ns[i-1] || ns[i]+1 < ns[i-1] {
				s.t.Errorf("checkpoint %s holds %v", c.Id, ns)
			}
		}
		checked++
	}
	return checked
}

// TestSharedGroup has two VRAs take checkpoints of a group together while a writer on one host waits for the
// other; then one of them dies, and comes back.
func TestSharedGroup(t *testing.T) {
	t.Parallel()
	s := newShop(t, 2)
	s.awaitProtected()
	from := len(s.listed())
	end := s.causes()
	s.awaitShop("checkpoints", func() bool { return len(s.listed()) >= from+6 })
	// Who does not lead each interval leads what is asked of it.
	ctx, stop := context.WithTimeout(context.Background(), shopPatience)
	defer stop()
	for i := range s.hosts {
		tag := fmt.Sprintf("by host %d", i)
		res, err := Handlers(Identity{}, s.hosts[i].s, nil).Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Tag: tag})
		if err != nil {
			t.Fatal(err)
		}
		found, err := Handlers(Identity{}, nil, s.tg).Checkpoints.Get(ctx, &holdfastv1.CheckpointsServiceGetRequest{Id: res.Checkpoint.Id})
		if err != nil || found.Checkpoint.Tag != tag {
			t.Errorf("%v, %v", found, err)
		}
	}
	lead := func(host int, sources ...string) error {
		_, err := Handlers(Identity{}, s.hosts[host].s, nil).Checkpoints.LeadCut(ctx, &holdfastv1.CheckpointsServiceLeadCutRequest{Tag: "by a manager", Sources: sources})
		return err
	}
	if err := lead(1, "v2", "v1"); err != nil {
		t.Error(err)
	}
	for _, sources := range [][]string{nil, {"v1"}, {"v1", "v3"}, {"v1", "v2", "v3"}} {
		if err := lead(1, sources...); err == nil || api.AsFailure(err).Code != api.Precondition {
			t.Errorf("led among %v: %v", sources, err)
		}
	}
	if wrote := end(); s.checkCauses(from) < 8 || wrote < 100 {
		t.Errorf("%d checkpoints, %d writes", len(s.listed())-from, wrote)
	}

	body := holdMetrics(t, Handlers(Identity{}, s.hosts[0].s, nil).Metrics)
	for _, series := range []string{`shared_cuts_total{group="shop",result="confirmed"} `, `shared_intervals_total{group="shop"} `, `shared_intervals_listed_total{group="shop"} `, `hold_seconds_count{group="shop"} `} {
		if series = "holdfast_group_" + series; !strings.Contains(body, series) || strings.Contains(body, series+"0\n") {
			t.Errorf("%s is missing or none", series)
		}
	}
	s.stopHostSource(1)
	before := len(s.listed())
	end = s.causes()
	s.awaitShop("the lack of checkpoints to be said", func() bool {
		g := s.state(0)
		return g.State == api.StateBehind && strings.Contains(g.Reason, "not connected")
	})
	if n := len(s.listed()); n > before+1 { // one may have been on its way
		t.Errorf("%d checkpoints without one of the sources", n-before)
	}
	s.startHostSource(1)
	s.awaitProtected()
	from = len(s.listed())
	s.awaitShop("checkpoints again", func() bool { return len(s.listed()) >= from+4 })
	end()
	s.checkCauses(from)
}
