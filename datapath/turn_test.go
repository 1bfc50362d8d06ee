package datapath

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// goldenTurn is kept for ever.
func goldenTurn() *turn {
	return &turn{Version: 1, Name: "shop", Part: partSource, Old: testGroup, ID: 8, Stream: 9, Lineage: 7,
		Disks:  []turnDisk{{ID: 1, Name: "vol1", Bytes: 4096, Path: "/store/vol1.raw"}},
		Source: &turnSource{Control: "192.0.2.1:4007", Data: "192.0.2.1:4008", Pool: "/run/pool", NBD: "/run/views/v1", Interval: 5 * time.Second}}
}

func TestTurnFile(t *testing.T) {
	dir := t.TempDir()
	if have, err := readTurn(dir, "shop"); have != nil || err != nil {
		t.Errorf("none: %v, %v", have, err)
	}
	if err := goldenTurn().write(dir); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "turn-1")
	text, err := os.ReadFile(turnFile(dir, "shop"))
	if *update {
		err = errors.Join(err, os.WriteFile(golden, text, 0o644))
	}
	want, gerr := os.ReadFile(golden)
	if err != nil || gerr != nil || !bytes.Equal(text, want) {
		t.Errorf("the bytes of version 1 changed: %v, %v\n%s", err, gerr, text)
	}
	all, err := readTurns(dir)
	if err != nil || len(all) != 1 || !reflect.DeepEqual(all["shop"], goldenTurn()) {
		t.Errorf("read back: %v, %+v", err, all["shop"])
	}
	for _, change := range []func(*turn){
		func(t *turn) { t.Version = 2 }, func(t *turn) { t.Name = "" }, func(t *turn) { t.ID = 0 }, func(t *turn) { t.Stream = 0 }, func(t *turn) { t.Lineage = 0 },
		func(t *turn) { t.Part = "both" }, func(t *turn) { t.Disks = nil }, func(t *turn) { t.Disks[0].Path = "vol1.raw" }, func(t *turn) { t.Disks[0].ID = 0 },
		func(t *turn) { t.Source = nil }, func(t *turn) { t.Old = 0 }, func(t *turn) { t.Source.Pool = "" },
	} {
		bad := goldenTurn()
		change(bad)
		text, err := json.Marshal(bad)
		if err != nil {
			t.Fatal(err)
		}
		if have, err := parseTurn(text); err == nil {
			t.Errorf("read %+v", have)
		}
	}
	if err := os.Rename(turnFile(dir, "shop"), turnFile(dir, "shed")); err != nil {
		t.Fatal(err)
	}
	if _, err := readTurns(dir); err == nil { // a vra that does not know its part does not start
		t.Error("that of another group is read")
	}
}

func FuzzTurn(f *testing.F) {
	text, err := json.Marshal(goldenTurn())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, p []byte) {
		have, err := parseTurn(p) // never panics
		if err != nil {
			return
		}
		again, err := json.Marshal(have)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseTurn(again); err != nil || !reflect.DeepEqual(back, have) {
			t.Fatalf("%+v is read back as %+v, %v", have, back, err)
		}
	})
}

// A target hands the disks of a settled failover over, and is their source when it is opened again; what was the source adopts
// its own disks and sends no more. Each asked again says the same.
func TestTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 2 << 20 })
	w.start()
	ctx := t.Context()
	asked := func() api.RecoveryHandler { return Handlers(Identity{}, nil, w.tg).Recovery }
	w.awaitState(api.StateProtected)
	w.checkpoint("first")
	before := w.image("vol1")
	begun, err := asked().Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Checkpoint: api.Latest, Id: "one"})
	if err != nil {
		t.Fatal(err)
	}
	over := &holdfastv1.RecoveryServiceHandOverRequest{Group: "shop", Id: "00000000000000aa", Stream: "00000000000000bb", Control: "127.0.0.1:1", Data: "127.0.0.1:2", Interval: api.Span(2 * time.Second)}
	refused := func(why string, want api.Code, err error) {
		t.Helper()
		if f := api.AsFailure(err); f == nil || f.Code != want || f.Next == "" {
			t.Errorf("%s: %v, want %s and what to do", why, err, want)
		}
	}
	_, err = asked().HandOver(ctx, over)
	refused("not committed", api.Precondition, err)
	if _, err = asked().Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{}); err != nil {
		t.Fatal(err)
	}
	onView(t, begun.Failover, func(c *nbd.Client) {
		if _, err := c.WriteAt([]byte("recovered"), 4000); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	})
	copy(before[4000:], "recovered")
	for _, change := range []func(*holdfastv1.RecoveryServiceHandOverRequest){
		func(r *holdfastv1.RecoveryServiceHandOverRequest) { r.Id = "aa" }, func(r *holdfastv1.RecoveryServiceHandOverRequest) { r.Stream = "" },
		func(r *holdfastv1.RecoveryServiceHandOverRequest) { r.Control = "nowhere" }, func(r *holdfastv1.RecoveryServiceHandOverRequest) { r.Data = "" },
		func(r *holdfastv1.RecoveryServiceHandOverRequest) { r.Interval = api.Span(time.Hour) },
		func(r *holdfastv1.RecoveryServiceHandOverRequest) { r.Id = record.GroupID(testGroup).String() },
	} {
		r := &holdfastv1.RecoveryServiceHandOverRequest{Group: "shop", Id: over.Id, Stream: over.Stream, Control: over.Control, Data: over.Data}
		change(r)
		_, err := asked().HandOver(ctx, r)
		refused(r.String(), api.InvalidArgument, err)
	}
	_, err = Handlers(Identity{}, w.s, nil).Recovery.HandOver(ctx, over)
	refused("at a source", api.Precondition, err)
	another := &Source{flows: []*flow{{cfg: GroupConfig{Name: "shop", Lineage: 8}}}}
	_, err = Handlers(Identity{}, another, w.tg).Recovery.HandOver(ctx, over)
	refused("this vra sends another group of that name", api.Precondition, err)
	if have, err := readTurn(w.tg.cfg.DataDir, "shop"); have != nil || err != nil {
		t.Errorf("what is refused is written down: %+v, %v", have, err)
	}
	groups := func() []GroupConfig {
		t.Helper()
		gs, err := SourceGroups(w.tg.cfg.DataDir, []GroupConfig{{Name: "other"}}, w.tg)
		if err != nil {
			t.Fatal(err)
		}
		return gs
	}
	if err := goldenTurn().write(w.tg.cfg.DataDir); err != nil { // as one that was killed leaves it
		t.Fatal(err)
	}
	if gs := groups(); len(gs) != 1 {
		t.Errorf("before it was given away: %+v", gs)
	}
	var h *holdfastv1.RecoveryServiceHandOverResponse
	w.await("the disks to be handed over", func() bool { // it settles first
		h, err = asked().HandOver(ctx, over)
		return err == nil
	})
	if h.Source || len(h.Disks) != 1 || h.Disks[0].Volume != "vol1" || h.Disks[0].VhostUser != begun.Failover.View.Volumes[0].VhostUser || h.Disks[0].VhostUser == "" || h.Nbd == "" || h.Pool == "" {
		t.Errorf("handed over: %v", h)
	}
	if err := w.tg.Turned(ctx); !errors.Is(err, ErrTurned) {
		t.Errorf("it is not opened anew: %v", err)
	}
	if _, err := nbd.Dial(ctx, begun.Failover.View.Volumes[0].Nbd); err == nil {
		t.Error("the view is served beside a filter")
	}
	if n := len(w.tg.groups()); n != 0 {
		t.Errorf("%d groups are shown", n)
	}
	w.stopTarget()
	w.startTarget()
	got, err := os.ReadFile(h.Disks[0].Path)
	if err != nil || firstDiff(got, before) >= 0 {
		t.Errorf("the disk: %v, differs at %d", err, firstDiff(got, before))
	}
	gs := groups()
	if len(gs) != 2 || gs[1].Name != "shop" || gs[1].ID != 0xaa || gs[1].Interval != 2*time.Second || gs[1].Control != over.Control || gs[1].Filters[0] != h.Pool {
		t.Errorf("it is the source of %+v", gs)
	}
	if d, err := openIncarnations(w.tg.cfg.DataDir, 0xbb).get(); err != nil || !d.own(journal.AdoptedIncarnation) {
		t.Errorf("what was adopted is another's: %+v, %v", d, err)
	}
	if again, err := asked().HandOver(ctx, over); err != nil || again.Nbd != h.Nbd {
		t.Errorf("again: %v, %v", again, err)
	}
	w.await("the old source to hear of it", func() bool { return strings.Contains(w.status().Reason, "given away") })
	w.adopts(over)
}

// A target whose machines are on its disks themselves hands these over too, opened anew since or not: they stay as they are.
func TestTurnOfPlainDisks(t *testing.T) {
	t.Parallel()
	for _, anew := range []bool{false, true} {
		w := newWorld(t, func(w *world) { w.size = 2 << 20 })
		w.start()
		ctx := t.Context()
		asked := func() api.RecoveryHandler { return Handlers(Identity{}, nil, w.tg).Recovery }
		w.awaitState(api.StateProtected)
		w.checkpoint("first")
		if _, err := asked().Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Checkpoint: api.Latest, Id: "one"}); err != nil {
			t.Fatal(err)
		}
		if _, err := asked().Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{}); err != nil {
			t.Fatal(err)
		}
		var f *holdfastv1.Failover
		w.await("the disk holds all", func() bool {
			res, err := asked().Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
			f = res.GetFailover()
			return err == nil && f.OnDisksAlone
		})
		image := w.movesToDisks(f)
		if anew {
			w.stopTarget()
			w.startTarget()
		}
		over := &holdfastv1.RecoveryServiceHandOverRequest{Group: "shop", Failover: "one", Id: "00000000000000aa", Stream: "00000000000000bb", Control: "127.0.0.1:1", Data: "127.0.0.1:2"}
		h, err := asked().HandOver(ctx, over)
		if err != nil || len(h.Disks) != 1 || h.Disks[0].Path != f.Disks[0].Path || h.Nbd == "" {
			t.Fatalf("handed over: %v, %v", h, err)
		}
		if err := w.tg.Turned(ctx); !errors.Is(err, ErrTurned) {
			t.Errorf("it is not opened anew: %v", err)
		}
		w.stopTarget()
		w.startTarget()
		if got, err := os.ReadFile(h.Disks[0].Path); err != nil || !bytes.Equal(got, image) {
			t.Errorf("the disk: %v, differs at %d", err, firstDiff(got, image))
		}
		gs, err := SourceGroups(w.tg.cfg.DataDir, nil, w.tg)
		if err != nil || len(gs) != 1 || gs[0].ID != 0xaa || gs[0].Filters[0] != h.Pool {
			t.Errorf("it is the source of %+v, %v", gs, err)
		}
		if again, err := asked().HandOver(ctx, over); err != nil || again.Nbd != h.Nbd {
			t.Errorf("again: %v, %v", again, err)
		}
	}
}

// adopts has what was the source's VRA adopt the disk.
func (w *world) adopts(over *holdfastv1.RecoveryServiceHandOverRequest) {
	w.t.Helper()
	ctx := w.t.Context()
	tg, err := OpenTarget(TargetConfig{FS: w.fs, Store: w.dir + "/east", RunDir: w.dir + "/east-run", DataDir: w.dir + "/data", ListenControl: "127.0.0.1:0", Credentials: w.tg.cfg.Credentials, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	defer tg.Close()
	h := Handlers(Identity{}, w.s, tg).Recovery
	ask := func() *holdfastv1.RecoveryServiceAdoptRequest {
		return &holdfastv1.RecoveryServiceAdoptRequest{Group: "shop", Id: over.Id, Stream: over.Stream, Lineage: "0000000000000007",
			Disks: []*holdfastv1.Disk{{Volume: "vol1", Id: uint32(volumeID(0)), Bytes: uint64(w.size), Path: w.dir + "/vol1.img"}}}
	}
	fails := func(why string, want api.Code, r *holdfastv1.RecoveryServiceAdoptRequest) {
		w.t.Helper()
		var err error
		w.await(why+" to be refused", func() bool { _, err = h.Adopt(ctx, r); return err != nil })
		if f := api.AsFailure(err); f.Code != want || f.Next == "" {
			w.t.Errorf("%s: %v", why, err)
		}
	}
	fails("a disk that is served", api.Precondition, ask())
	for _, change := range []func(*holdfastv1.RecoveryServiceAdoptRequest){
		func(r *holdfastv1.RecoveryServiceAdoptRequest) { r.Disks[0].Path = "vol1.img" }, func(r *holdfastv1.RecoveryServiceAdoptRequest) { r.Disks = nil },
		func(r *holdfastv1.RecoveryServiceAdoptRequest) { r.Disks[0].Path = "" }, func(r *holdfastv1.RecoveryServiceAdoptRequest) { r.Lineage = "7" },
	} {
		r := ask()
		change(r)
		fails(r.String(), api.InvalidArgument, r)
	}
	w.filter.end(w.t)
	w.filter = nil
	w.await("the disk to be adopted", func() bool {
		res, err := h.Adopt(ctx, ask())
		return err == nil && res.Adopted && res.ReadBytes == uint64(w.size)
	})
	if err := tg.Turned(ctx); !errors.Is(err, ErrTurned) {
		w.t.Errorf("it sends on: %v", err)
	}
	if gs, err := SourceGroups(tg.cfg.DataDir, []GroupConfig{{Name: "shop", Lineage: 7}, {Name: "other", Lineage: 7}}, tg); err != nil || len(gs) != 1 || gs[0].Name != "other" {
		w.t.Errorf("it sends %+v, %v", gs, err)
	}
	if g, ok := tg.store.Group(record.GroupID(0xaa)); !ok || g.Info().Name != "shop" {
		w.t.Error("the group is not there")
	}

	// Once it is removed its name may be another's. The disk is nobody's but its owner's.
	res, err := Handlers(Identity{}, w.s, tg).Groups.Remove(ctx, &holdfastv1.GroupsServiceRemoveRequest{Group: "shop"})
	if err != nil || len(res.Disks) > 0 || res.Left != "" {
		w.t.Errorf("%v, %v", res, err)
	}
	if _, err := os.Stat(w.dir + "/vol1.img"); err != nil {
		w.t.Error(err)
	}
	if gs, err := SourceGroups(tg.cfg.DataDir, []GroupConfig{{Name: "shop", Lineage: 7}}, tg); err != nil || len(gs) != 1 {
		w.t.Errorf("once the group is removed it sends %+v, %v", gs, err)
	}
}

// A socket at which somebody answers stays: a filter may serve there what was a view.
func TestLivingSocketsStay(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	vs := &views{dir: dir}
	for _, name := range []string{"v1", "v2"} {
		l := listenAt(t, filepath.Join(dir, name))
		if name == "v2" {
			l.SetUnlinkOnClose(false)
			l.Close() // its process is gone
		}
	}
	if err := vs.removeDead(); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 || names[0].Name() != "v1" {
		t.Errorf("%v, %v", names, err)
	}
}

func listenAt(t *testing.T, name string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
