package datapath

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// carry copies a volume's disk, as it is now, to the target's host, and changes so many blocks of it there.
func (w *world) carry(volume string, blocks int) (path string) {
	w.t.Helper()
	p := w.image(volume)
	rng := rand.New(rand.NewPCG(5, 5))
	for _, b := range rng.Perm(len(p) / 4096)[:blocks] {
		fill(rng, p[b*4096:(b+1)*4096])
	}
	path = filepath.Join(w.dir, "carried-"+volume+".raw")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// ofdSetLock is F_OFD_SETLK.
const ofdSetLock = 37

// qemuLock takes a lock as QEMU's on a disk that it writes to, until the file is closed.
func qemuLock(t *testing.T, f *os.File) {
	t.Helper()
	if err := syscall.FcntlFlock(f.Fd(), ofdSetLock, &syscall.Flock_t{Type: syscall.F_RDLCK, Start: 101, Len: 1}); err != nil {
		t.Error(err)
	}
}

// TestPreseed: a group begins with disks that were carried to the target, a guest writes meanwhile, and what differs is sent; of
// a volume without one all is. Whoever has the disk, or one of another size, is refused, and so is a group that was sent.
func TestPreseed(t *testing.T) {
	t.Parallel()
	const differ = 150
	w := newWorld(t, func(w *world) { w.volumes, w.size, w.paused = []string{"vol1", "vol2"}, 34<<20+64<<10, true })
	w.start()
	ctx := t.Context()
	disk := w.carry("vol1", differ)
	w.awaitState(api.StatePaused)
	if n := len(w.tg.store.Groups()); n > 0 {
		t.Fatalf("the target has %d groups of a source that begins paused", n)
	}
	var m *holdfastv1.GroupMembers
	w.await("the filter", func() bool {
		res, err := w.groups().GetMembers(ctx, &holdfastv1.GroupsServiceGetMembersRequest{Group: "shop"})
		m = res.GetMembers()
		return err == nil && m.Volumes[0].Bytes > 0
	})
	adopt := func(bytes int64) (bool, error) {
		res, err := Handlers(Identity{}, nil, w.tg).Recovery.Adopt(ctx, &holdfastv1.RecoveryServiceAdoptRequest{Group: "shop", Id: m.Id, Stream: m.Stream, Lineage: m.Lineage,
			Disks: []*holdfastv1.Disk{{Volume: "vol1", Id: 1, Bytes: uint64(bytes), Path: disk}}})
		return res.GetAdopted(), err
	}
	refused := func(why string, err error) {
		t.Helper()
		if f := api.AsFailure(err); f == nil || f.Code != api.Precondition || f.Next == "" {
			t.Errorf("%s: %v", why, err)
		}
	}
	qemu, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	qemuLock(t, qemu)
	_, err = adopt(w.size)
	refused("QEMU writes to it", err)
	qemu.Close()
	w.await("another size to be refused", func() bool {
		_, err = adopt(w.size - 4096)
		return err != nil
	})
	refused("another size", err)
	w.await("the disk to be adopted", func() bool {
		done, err := adopt(w.size)
		if err != nil {
			t.Fatal(err)
		}
		return done
	})
	g := w.write(1<<20, 5*time.Millisecond)
	if _, err := w.groups().Resume(ctx, &holdfastv1.GroupsServiceResumeRequest{Group: "shop", Preseeded: true}); err != nil {
		t.Fatal(err)
	}
	w.awaitState(api.StateProtected)
	g.endPrompt()
	f := w.s.flows[0]
	if n := f.count.differ.Load(); n < differ*4096 || n > differ*4096+uint64(w.size)+2<<20 {
		t.Errorf("%d bytes differ, of %d", n, differ*4096)
	}
	// Of vol2 the target has nothing, and holes of it are not sent.
	if sent, most := f.count.syncRead.Load(), uint64(2*w.size+w.size+8<<20); sent > most {
		t.Errorf("%d bytes were read to be compared and sent, at most %d", sent, most)
	}
	w.verify("first")
	if _, err := w.groups().Pause(ctx, &holdfastv1.GroupsServicePauseRequest{Group: "shop"}); err != nil {
		t.Fatal(err)
	}
	_, err = w.groups().Resume(ctx, &holdfastv1.GroupsServiceResumeRequest{Group: "shop", Preseeded: true})
	refused("it was sent before", err)
	w.killSource()
	w.startSource() // what its file says counts at the beginning alone
	if _, err := w.groups().Resume(ctx, &holdfastv1.GroupsServiceResumeRequest{Group: "shop"}); err != nil {
		t.Fatal(err)
	}
	w.killSource()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("again")
}

// TestPreseedBytes: of disks that differ in a few blocks little more than these goes over the wire.
func TestPreseedBytes(t *testing.T) {
	t.Parallel()
	const differ = 150
	w := newWorld(t, func(w *world) { w.size, w.paused = 34<<20+64<<10, true })
	w.start()
	ctx := t.Context()
	disk := w.carry("vol1", differ)
	w.await("the disk to be adopted", func() bool {
		res, err := Handlers(Identity{}, nil, w.tg).Recovery.Adopt(ctx, &holdfastv1.RecoveryServiceAdoptRequest{Group: "shop", Id: w.s.flows[0].cfg.ID.String(),
			Stream: w.s.flows[0].cfg.Stream.String(), Lineage: "0000000000000007", Disks: []*holdfastv1.Disk{{Volume: "vol1", Id: 1, Bytes: uint64(w.size), Path: disk}}})
		if err != nil {
			t.Fatal(err)
		}
		return res.Adopted
	})
	w.await("the filter", func() bool { return len(w.s.flows[0].sent()) == 1 })
	if _, err := w.groups().Resume(ctx, &holdfastv1.GroupsServiceResumeRequest{Group: "shop", Preseeded: true}); err != nil {
		t.Fatal(err)
	}
	w.awaitState(api.StateProtected)
	f, c := w.s.flows[0], &w.s.peers[0].counters
	wire := c.DataSent.Load() + c.DataReceived.Load() + c.ControlSent.Load() + c.ControlReceived.Load()
	const changed = differ * 4096
	if f.count.compared.Load() != uint64(w.size) || f.count.differ.Load() != changed || f.count.raw.Load() > changed { // zeros are no bytes
		t.Errorf("%d bytes compared of %d, %d found to differ and %d sent of %d", f.count.compared.Load(), w.size, f.count.differ.Load(), f.count.raw.Load(), changed)
	}
	if most := 2*changed + uint64(w.size)/4096*16; wire > most {
		t.Errorf("%d bytes on the wire for %d that differ, at most %d", wire, changed, most)
	}
	w.verify("first")
}

// readFS has something done when a disk is first read.
type readFS struct {
	ioengine.FS
	path string
	do   atomic.Pointer[func()]
}

type readFile struct {
	ioengine.File
	fs *readFS
}

func (f *readFS) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	file, err := f.FS.Open(name, flags)
	if err == nil && name == f.path && f.do.Load() != nil {
		file = readFile{file, f}
	}
	return file, err
}

func (f readFile) Hold() error { return f.File.(ioengine.Holder).Hold() }

func (f readFile) ReadAt(p []byte, off int64) (int, error) {
	if do := f.fs.do.Swap(nil); do != nil {
		(*do)()
	}
	return f.File.ReadAt(p, off)
}

// What was adopted, or is being, is not taken for other disks or another history. Whoever comes to a disk while it is read stops
// that. A group of the same name with another lineage is left alone.
func TestAdoptedIsAsAsked(t *testing.T) {
	t.Parallel()
	fs := &readFS{FS: ioengine.OS()}
	w := newWorld(t, func(w *world) { w.size, w.paused, w.fs = 2<<20, true, fs })
	w.start()
	ctx := t.Context()
	fs.path = w.carry("vol1", 0)
	type ask = holdfastv1.RecoveryServiceAdoptRequest
	adopt := func(source *Source, change func(*ask)) (bool, error) {
		r := &ask{Group: "shop", Id: "00000000000000aa", Stream: "00000000000000bb", Lineage: "0000000000000007",
			Disks: []*holdfastv1.Disk{{Volume: "vol1", Id: 1, Bytes: uint64(w.size), Path: fs.path}}}
		change(r)
		res, err := Handlers(Identity{}, source, w.tg).Recovery.Adopt(ctx, r)
		return res.GetAdopted(), err
	}
	same := func(*ask) {}
	another := func(r *ask) { r.Id, r.Lineage = "00000000000000ac", "0000000000000008" }
	other := filepath.Join(w.dir, "other.raw")
	if err := os.WriteFile(other, w.image("vol1"), 0o600); err != nil {
		t.Fatal(err)
	}
	others := map[string]func(*ask){
		"another disk": func(r *ask) { r.Disks[0].Path = other }, "another volume": func(r *ask) { r.Disks[0].Id = 2 }, "another lineage": func(r *ask) { r.Lineage = "0000000000000008" },
		"more disks": func(r *ask) {
			r.Disks = append(r.Disks, &holdfastv1.Disk{Volume: "vol2", Id: 2, Bytes: uint64(w.size), Path: other})
		},
	}
	refused := func(why, says string, done bool, err error) {
		t.Helper()
		if f := api.AsFailure(err); done || f == nil || f.Code != api.Precondition || f.Next == "" || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, %v, want %q", why, done, err, says)
		}
	}
	refuse := func(why, says string, change func(*ask)) {
		t.Helper()
		done, err := adopt(nil, change)
		refused(why, says, done, err)
	}
	done, err := adopt(w.s, another)
	refused("this vra sends another group of that name", "protected from here", done, err)
	qemu, err := os.OpenFile(fs.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	do := func() {
		for why, change := range others {
			refuse(why+", while the disk is read", fs.path, change)
		}
		qemuLock(t, qemu)
	}
	fs.do.Store(&do)
	if done, err = adopt(nil, same); done || err != nil {
		t.Fatalf("%v, %v", done, err)
	}
	w.tg.turns.under.Wait()
	if n := len(w.tg.store.Groups()); n > 0 || fs.do.Load() != nil {
		t.Errorf("%d groups of a disk that somebody has; not read: %v", n, fs.do.Load() != nil)
	}
	qemu.Close()
	done, err = adopt(nil, same)
	refused("QEMU came while it was read", "open", done, err)
	for range 2 { // the second time by what was kept
		w.await("the disk to be adopted", func() bool {
			done, err := adopt(nil, same)
			if err != nil {
				t.Fatal(err)
			}
			return done
		})
		for why, change := range others {
			refuse(why, fs.path, change)
		}
		refuse("another group of the name", "adopted here", another)
		for lineage, n := range map[uint64]int{7: 0, 8: 1} {
			gs, err := SourceGroups(w.tg.cfg.DataDir, []GroupConfig{{Name: "shop", Lineage: lineage}}, w.tg)
			if err != nil || len(gs) != n {
				t.Errorf("lineage %d: it sends %+v, %v", lineage, gs, err)
			}
		}
		w.stopTarget()
		w.startTarget()
	}

	// One that was removed since is not answered by what is remembered of its adoption, and does not come back.
	shed := func(r *ask) {
		r.Group, r.Id, r.Lineage, r.Disks[0].Path = "shed", "00000000000000ad", "0000000000000009", other
	}
	answer := func() (done bool, err error) {
		w.await("an answer", func() bool {
			done, err = adopt(nil, shed)
			return done || err != nil
		})
		return done, err
	}
	if done, err = answer(); !done {
		t.Fatal(err)
	}
	if _, err := Handlers(Identity{}, nil, w.tg).Groups.Remove(ctx, &holdfastv1.GroupsServiceRemoveRequest{Group: "shed"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time by what was kept
		done, err = answer()
		refused("it was removed", "was removed here", done, err)
		if f := api.AsFailure(err); f != nil && f.Next != "draw another id" {
			t.Errorf("what to do: %s", f.Next)
		}
		w.stopTarget()
		w.startTarget()
	}
}
