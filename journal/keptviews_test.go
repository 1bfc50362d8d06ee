package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// withBoot is the store's configuration in a boot of the machine.
func withBoot(disk *faultdisk.Disk, boot byte) Config {
	cfg := config(disk)
	cfg.Boot = [16]byte{boot}
	return cfg
}

// viewWorld is a store with some checkpoints.
func viewWorld(t *testing.T) (*source, *faultdisk.Disk) {
	t.Helper()
	s := newSource(11)
	s.script()
	disk := faultdisk.New(512)
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 2))
	ok(t, w.store.Close())
	return s, disk
}

func scratchOptions(limit int64) ViewOptions {
	return ViewOptions{Options: view.Options{Scratch: true, ScratchLimit: limit}, Name: "trial", Opened: time.Unix(1, 2)}
}

func viewBytes(i ViewInfo) ([]byte, error) {
	if i.View == nil {
		return nil, fmt.Errorf("view %d is %s: %s", i.Number, i.State, i.Reason)
	}
	d, _ := i.View.Device(1)
	p := make([]byte, volumeBytes)
	return p, d.ReadAt(p, 0)
}

// TestRefusedWritesAreTold: a write that the limit refused is told of, also while there is room for others.
func TestRefusedWritesAreTold(t *testing.T) {
	_, disk := viewWorld(t)
	w, err := openWith(withBoot(disk, 1))
	ok(t, err)
	defer w.store.Close()
	f := func(limit, more int64, state ViewState, want string) {
		t.Helper()
		v, err := w.group.KeepView(w.group.State().Newest, scratchOptions(limit))
		ok(t, err)
		d, _ := v.View.Device(1)
		p := make([]byte, 3*4096)
		for i := range p {
			p[i] = 1
		}
		for i := range 2 {
			if err := d.WriteAt(p, int64(i*len(p))); want != "" && i == 1 && !errors.Is(err, view.ErrNoSpace) || want == "" && err != nil {
				t.Errorf("limit %d: write %d: %v", limit, i, err)
			}
		}
		w.group.views.kept[v.Number].rec.limit += more // as if there were so much more room: the volume is too small to try
		infos := w.group.Views()
		if i := infos[len(infos)-1]; i.State != state || !strings.Contains(i.Reason, want) || want == "" && i.Reason != "" {
			t.Errorf("limit %d: %s: %q, want %s: %q", limit, i.State, i.Reason, state, want)
		}
	}
	f(0, 0, ViewGood, "")
	f(5*4096, 0, ViewFull, "1 writes failed: scratch holds")
	f(5*4096, 8<<20, ViewGood, "1 of its writes failed since")
}

// Views are there again after the process was killed, with all that was written; after
// a loss of power with all that was flushed; and their numbers are never drawn again.
func TestViewsAreKept(t *testing.T) {
	s, disk := viewWorld(t)
	w, err := openWith(withBoot(disk, 1))
	ok(t, err)
	cps, err := w.group.Checkpoints(0, 10)
	ok(t, err)
	first, last := cps[0].Number, cps[len(cps)-1].Number
	a, err := w.group.KeepView(last, scratchOptions(0))
	ok(t, err)
	b, err := w.group.KeepView(first, ViewOptions{Live: true})
	ok(t, err)
	c, err := w.group.KeepView(last, scratchOptions(8192))
	ok(t, err)
	passing, err := w.group.OpenView(first, scratchOptions(0))
	ok(t, err)
	if n, held := w.group.ViewsHold(); !held || n != first {
		t.Errorf("views hold %d, %v", n, held)
	}
	write := func(v *view.View, off int64, text string) error {
		d, _ := v.Device(1)
		return d.WriteAt([]byte(text), off)
	}
	ok(t, write(passing, 0, "passing"))
	ok(t, write(a.View, 5000, "flushed"))
	d, _ := a.View.Device(1)
	ok(t, d.Flush())
	ok(t, write(a.View, 20000, "answered"))
	ok(t, write(c.View, 0, "x"))
	ok(t, write(c.View, 8192, "x"))
	if err := write(c.View, 40000, "x"); !errors.Is(err, view.ErrNoSpace) {
		t.Errorf("beyond the limit: %v", err)
	}
	ok(t, w.group.CloseView(c.Number))

	f := func(what string, disk *faultdisk.Disk, boot byte, want map[int]string) {
		t.Helper()
		w, err := openWith(withBoot(disk, boot))
		ok(t, err)
		defer w.store.Close()
		infos := w.group.Views()
		if len(infos) != 2 || infos[0].Number != a.Number || infos[1].Number != b.Number || infos[0].Options != a.Options ||
			infos[1].Options.Live != true || infos[0].State != ViewGood || infos[1].Checkpoint != first {
			t.Fatalf("%s: views %+v", what, infos)
		}
		img := bytes.Clone(s.images[last][1])
		for off, text := range want {
			copy(img[off:], text)
		}
		got, err := viewBytes(infos[0])
		ok(t, err)
		if !bytes.Equal(got, img) {
			t.Errorf("%s: the view differs", what)
		}
		if got, err = viewBytes(infos[1]); err != nil || !bytes.Equal(got, s.images[first][1]) {
			t.Errorf("%s: the other view differs: %v", what, err)
		}
		names, err := disk.List("/store/groups/" + testGroup.String() + "/scratch")
		ok(t, err)
		for _, n := range names {
			if !strings.HasPrefix(n, fmt.Sprint(a.Number, "-")) {
				t.Errorf("%s: scratch left: %s", what, n)
			}
		}
		d, err := w.group.KeepView(first, ViewOptions{})
		ok(t, err)
		if d.Number <= c.Number {
			t.Errorf("%s: number %d is drawn again", what, d.Number)
		}
	}
	f("killed", disk.Kill(), 1, map[int]string{5000: "flushed", 20000: "answered"})
	f("power lost", disk.Crash(seeded(1), faultdisk.KeepNone), 2, map[int]string{5000: "flushed"})
	ok(t, w.store.Close())
	if err := write(a.View, 0, "x"); !errors.Is(err, view.ErrClosed) {
		t.Errorf("after the store was closed: %v", err)
	}
	f("closed", disk.Kill(), 1, map[int]string{5000: "flushed", 20000: "answered"})
}

// Test views give way, live ones do not; the reason stays until the view is closed.
func TestViewsGiveWay(t *testing.T) {
	_, disk := viewWorld(t)
	w, err := openWith(withBoot(disk, 1))
	ok(t, err)
	latest, err := w.group.Latest()
	ok(t, err)
	test, err := w.group.KeepView(latest.Number, scratchOptions(0))
	ok(t, err)
	live, err := w.group.KeepView(latest.Number, ViewOptions{Options: view.Options{Scratch: true}, Live: true})
	ok(t, err)
	passing, err := w.group.OpenView(latest.Number, ViewOptions{})
	ok(t, err)
	d, _ := test.View.Device(1)
	ok(t, d.WriteAt([]byte("x"), 0))
	n, err := w.group.YieldViews("the journal is full")
	ok(t, err)
	if n != 2 {
		t.Errorf("%d views gave way", n)
	}
	<-test.View.Ended()
	<-passing.Ended()
	for range 2 {
		infos := w.group.Views()
		if len(infos) != 2 || infos[0].Number != test.Number || infos[0].State != ViewClosed || infos[0].Reason != "the journal is full" || infos[0].View != nil ||
			infos[1].Number != live.Number || infos[1].State != ViewGood {
			t.Fatalf("views %+v", infos)
		}
		if _, err := viewBytes(infos[1]); err != nil {
			t.Error(err)
		}
		names, err := disk.List("/store/groups/" + testGroup.String() + "/scratch")
		if ok(t, err); len(names) != 0 {
			t.Errorf("scratch left: %v", names)
		}
		ok(t, w.store.Close())
		w, err = openWith(withBoot(disk, 1))
		ok(t, err)
	}
	ok(t, w.group.CloseView(test.Number))
	if infos := w.group.Views(); len(infos) != 1 {
		t.Errorf("views %+v", infos)
	}
	if err := w.group.CloseView(test.Number); !errors.Is(err, ErrNoView) {
		t.Errorf("closed twice: %v", err)
	}
	ok(t, w.store.Close())
}

// A view whose file or scratch is damaged, whose checkpoint is bad, or whose scratch has
// failed says so, and the others do not mind.
func TestViewsSayWhatAilsThem(t *testing.T) {
	_, disk := viewWorld(t)
	w, err := openWith(withBoot(disk, 1))
	ok(t, err)
	latest, err := w.group.Latest()
	ok(t, err)
	var kept []ViewInfo
	for range 6 {
		v, err := w.group.KeepView(latest.Number, scratchOptions(0))
		ok(t, err)
		d, _ := v.View.Device(1)
		ok(t, errors.Join(d.WriteAt([]byte("x"), 0), d.Flush()))
		ok(t, errors.Join(d.WriteAt([]byte("x"), 9000), d.Flush()))
		kept = append(kept, v)
	}
	ok(t, w.store.Close())
	dir := "/store/groups/" + testGroup.String()
	ok(t, disk.Rot(fmt.Sprintf("%s/views/%d.view", dir, kept[0].Number), 30, 1))
	ok(t, disk.Rot(fmt.Sprintf("%s/scratch/%d-00000001.map", dir, kept[1].Number), 4096+3, 1))
	ok(t, disk.Rot(fmt.Sprintf("%s/scratch/%d-00000001.data", dir, kept[4].Number), 2*4096+99, 1)) // the second block
	cut, err := disk.Open(fmt.Sprintf("%s/scratch/%d-00000001.map", dir, kept[5].Number), 0)
	ok(t, err)
	ok(t, errors.Join(cut.Truncate(4096), cut.Close()))
	w, err = openWith(withBoot(disk, 1))
	ok(t, err)
	d, _ := w.group.Views()[2].View.Device(1)
	ok(t, d.WriteAt([]byte("y"), 0))
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO, Only: func(name string) bool { return strings.HasSuffix(name, ".data") }})
	if err := d.Flush(); !errors.Is(err, view.ErrFailed) {
		t.Errorf("flush: %v", err)
	}
	disk.Heal()
	readRotten := func() {
		t.Helper()
		d, _ := w.group.Views()[4].View.Device(1)
		ok(t, d.ReadAt(make([]byte, 4096), 0))
		if err := d.ReadAt(make([]byte, 10), 9000); !errors.Is(err, view.ErrCorrupt) {
			t.Errorf("a block of scratch that is not what was written: %v", err)
		}
	}
	check := func(want ...ViewState) {
		t.Helper()
		for i, v := range w.group.Views() {
			if v.State != want[i] || v.State != ViewGood && v.Reason == "" || (v.View == nil) != (v.State == ViewBroken) {
				t.Errorf("view %d is %s (%s)", v.Number, v.State, v.Reason)
			}
		}
	}
	check(ViewBroken, ViewBroken, ViewFailed, ViewGood, ViewGood, ViewBroken)
	readRotten()
	check(ViewBroken, ViewBroken, ViewFailed, ViewGood, ViewDamaged, ViewBroken)
	if reason := w.group.Views()[5].Reason; !strings.Contains(reason, "was durable") {
		t.Errorf("a view whose map was cut: %s", reason)
	}
	ok(t, w.store.Close())
	w, err = openWith(withBoot(disk, 1))
	ok(t, err)
	readRotten()
	check(ViewBroken, ViewBroken, ViewFailed, ViewGood, ViewDamaged, ViewBroken)
	d, _ = w.group.Views()[2].View.Device(1)
	if err := d.WriteAt([]byte("z"), 0); !errors.Is(err, view.ErrReadOnly) {
		t.Errorf("write to a failed view: %v", err)
	}
	ok(t, d.ReadAt(make([]byte, 10), 9000))
	for _, i := range []int{0, 1, 2, 4, 5} {
		ok(t, w.group.CloseView(kept[i].Number))
	}
	check(ViewGood)
	names, err := disk.List(dir + "/scratch")
	if ok(t, err); len(names) != 2 {
		t.Errorf("scratch left: %v", names)
	}
	ok(t, w.store.Close())
}

// A view whose file does not read keeps the whole history, and that is said, with what to do
// about it, until it is closed.
func TestUnreadViewIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, disk := viewWorld(t)
		w, err := openWith(withBoot(disk, 1))
		ok(t, err)
		latest, err := w.group.Latest()
		ok(t, err)
		v, err := w.group.KeepView(latest.Number, scratchOptions(0))
		ok(t, err)
		oldest := w.oldest()
		ok(t, w.store.Close())
		ok(t, disk.Rot(fmt.Sprintf("/store/groups/%s/views/%d.view", testGroup, v.Number), 30, 1))
		w, err = openWith(withBoot(disk, 1))
		ok(t, err)
		time.Sleep(time.Minute)
		synctest.Wait()
		hint := fmt.Sprintf("holdfast view close v%d", v.Number)
		r, st := w.group.Retention(), w.group.State()
		if r.Level != retain.Warning || !strings.Contains(r.Reason, hint) || !strings.Contains(st.UnreadView, hint) || r.Oldest != oldest {
			t.Errorf("%s: %q; state %+v; the oldest is %d of %d", r.Level, r.Reason, st, r.Oldest, oldest)
		}
		if i := w.group.Views()[0]; i.State != ViewBroken || i.Checkpoint != 0 || !i.Options.Opened.IsZero() || !strings.Contains(i.Reason, hint) {
			t.Errorf("view %+v", i)
		}
		ok(t, w.group.CloseView(v.Number))
		time.Sleep(time.Minute)
		synctest.Wait()
		if r, st := w.group.Retention(), w.group.State(); r.Level != retain.Plenty || st.UnreadView != "" {
			t.Errorf("after it was closed: %+v, %+v", r, st)
		}
		ok(t, w.store.Close())
	})
}

// viewStory opens, writes, closes and yields views. It returns what is promised at each
// of its steps.
type viewStory struct {
	cps   []Checkpoint
	open  map[uint64]string // by number: what was flushed at 4000; empty: nothing was
	maybe uint64            // is being opened or closed
}

func (v *viewStory) run(g *Group) error {
	keep := func(cp Checkpoint) (uint64, error) {
		v.maybe = g.store.viewing.last + 1
		i, err := g.KeepView(cp.Number, scratchOptions(0))
		if err != nil {
			return 0, err
		}
		v.open[i.Number], v.maybe = "", 0
		return i.Number, nil
	}
	write := func(n uint64, text string) error {
		for _, i := range g.Views() {
			if i.Number != n {
				continue
			}
			d, _ := i.View.Device(1)
			if err := d.WriteAt([]byte(text), 4000); err != nil {
				return err
			}
			v.maybe = n
			if err := d.Flush(); err != nil {
				return err
			}
			v.open[n], v.maybe = text, 0
		}
		return nil
	}
	end := func(n uint64) error {
		v.maybe = n
		if err := g.CloseView(n); err != nil {
			return err
		}
		delete(v.open, n)
		v.maybe = 0
		return nil
	}
	a, err := keep(v.cps[0])
	if err == nil {
		err = write(a, "one of the first")
	}
	var b uint64
	if err == nil {
		b, err = keep(v.cps[1])
	}
	if err == nil {
		err = write(b, "the other")
	}
	if err == nil {
		err = end(a)
	}
	if err == nil {
		a, err = keep(v.cps[0])
	}
	if err == nil {
		err = end(b)
	}
	if err == nil {
		err = end(a)
	}
	return err
}

func (v *viewStory) check(disk *faultdisk.Disk) error {
	w, err := openWith(withBoot(disk, 2))
	if err != nil {
		return err
	}
	defer w.store.Close()
	found := map[uint64]bool{}
	for _, i := range w.group.Views() {
		found[i.Number] = true
		text, known := v.open[i.Number]
		if !known && i.Number != v.maybe {
			return fmt.Errorf("view %d is there again", i.Number)
		}
		p, err := viewBytes(i)
		if err != nil {
			return err
		}
		if i.Number != v.maybe && text != "" && string(p[4000:4000+len(text)]) != text {
			return fmt.Errorf("view %d holds %q", i.Number, p[4000:4000+len(text)])
		}
	}
	for n := range v.open {
		if !found[n] && n != v.maybe {
			return fmt.Errorf("view %d is gone", n)
		}
	}
	names, err := disk.List("/store/groups/" + testGroup.String() + "/scratch")
	for _, n := range names {
		var number uint64
		fmt.Sscan(strings.SplitN(n, "-", 2)[0], &number)
		if !found[number] {
			return fmt.Errorf("scratch is left: %s", n)
		}
	}
	if err != nil {
		return err
	}
	_, err = w.group.KeepView(v.cps[0].Number, scratchOptions(0))
	return err
}

// Power fails at each operation of views that come and go, and of the next opening, and
// each operation fails once.
func TestViewFilesAtEveryOperation(t *testing.T) {
	_, world := viewWorld(t)
	start := func(disk *faultdisk.Disk) (*target, *viewStory) {
		w, err := openWith(withBoot(disk, 1))
		ok(t, err)
		cps, err := w.group.Checkpoints(0, 10)
		ok(t, err)
		return w, &viewStory{cps: cps, open: map[uint64]string{}}
	}
	points := 0
	disk := world.Kill()
	w, story := start(disk)
	rng := rand.New(rand.NewPCG(1, 1))
	disk.OnOp(func(op faultdisk.Op, name string) {
		if disk.Ops()%stride(7) != 0 || !strings.Contains(name, "/views") && !strings.Contains(name, "/scratch") || t.Failed() {
			return
		}
		for _, keep := range keeps {
			points++
			crashed := disk.Crash(rng, keep)
			if points%5 == 0 {
				crashed.OnOp(func(op2 faultdisk.Op, name2 string) {
					if crashed.Ops()%stride(4) == 0 && !t.Failed() {
						points++
						if err := story.check(crashed.Crash(rng, keeps[rng.IntN(len(keeps))])); err != nil {
							t.Errorf("operation %d (%#x of %s), keep %d, then %d (%#x of %s): %v", disk.Ops(), op, name, keep, crashed.Ops(), op2, name2, err)
						}
					}
				})
				ok(t, opens(crashed))
				crashed.OnOp(nil)
			}
			if err := story.check(crashed); err != nil {
				t.Errorf("operation %d (%#x of %s), keep %d: %v", disk.Ops(), op, name, keep, err)
			}
		}
	})
	ok(t, story.run(w.group))
	disk.OnOp(nil)
	ok(t, w.store.Close())
	t.Logf("%d crashes", points)

	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true},
	} {
		run := func(fault faultdisk.Fault) {
			disk := world.Kill()
			w, story := start(disk)
			disk.Inject(fault)
			err := story.run(w.group)
			if err != nil && !errors.Is(err, fault.Err) && !errors.Is(err, view.ErrFailed) {
				t.Fatalf("fault %+v: %v", fault, err)
			}
			disk.Heal()
			if err := story.check(disk.Crash(rng, keeps[fault.At%len(keeps)])); err != nil {
				t.Fatalf("fault %+v (%v): %v", fault, err, err)
			}
			w.store.Close()
		}
		for fault.At = 1; ; fault.At += stride(9) {
			seen := 0
			fault.Only = func(name string) bool {
				if strings.Contains(name, "/views") || strings.Contains(name, "/scratch") {
					seen++
					return true
				}
				return false
			}
			run(fault)
			if seen < fault.At {
				break
			}
		}
		once := faultdisk.OncePerSite{Folder: "journal"} // whatever the names
		fault.At, fault.Only = 1, nil
		t.Logf("%d places", once.Each(fault, run))
	}
}

// A hundred views of a group are open, read and written at once; they take no more
// files than disks that were written to.
func TestManyViews(t *testing.T) {
	s, disk := viewWorld(t)
	w, err := openWith(withBoot(disk, 1))
	ok(t, err)
	cps, err := w.group.Checkpoints(0, 10)
	ok(t, err)
	const many = 100
	var wg sync.WaitGroup
	errs := make([]error, many)
	for i := range many {
		wg.Go(func() {
			cp := cps[i%len(cps)].Number
			v, err := w.group.KeepView(cp, scratchOptions(0))
			if err != nil {
				errs[i] = err
				return
			}
			d, _ := v.View.Device(1)
			img := bytes.Clone(s.images[cp][1])
			for k := range 20 {
				off := int64(k*4096+i) % (volumeBytes - 10)
				errs[i] = errors.Join(errs[i], d.WriteAt([]byte{byte(i), byte(k)}, off))
				copy(img[off:], []byte{byte(i), byte(k)})
				if k%8 == 0 {
					errs[i] = errors.Join(errs[i], d.Flush())
				}
			}
			p, err := viewBytes(v)
			if err == nil && !bytes.Equal(p, img) {
				err = fmt.Errorf("view %d differs", v.Number)
			}
			errs[i] = errors.Join(errs[i], err)
			if i%2 == 0 {
				errs[i] = errors.Join(errs[i], w.group.CloseView(v.Number))
			}
		})
	}
	wg.Wait()
	ok(t, errors.Join(errs...))
	if n := len(w.group.Views()); n != many/2 {
		t.Errorf("%d views", n)
	}
	ok(t, w.store.Close())
}

func TestViewFileGolden(t *testing.T) {
	r := viewRecord{life: viewGave, scratch: true, live: true, group: 0x0102030405060708, number: 12, checkpoint: 345, limit: 1 << 30, opened: 1234567890, name: "trial", reason: "the journal is full"}
	passing := r
	passing.live, passing.passing = false, true
	if got, err := decodeView(passing.encode()); err != nil || got != passing {
		t.Errorf("%+v, %v", got, err)
	}
	const name = "testdata/v1.view"
	if *update {
		ok(t, os.WriteFile(name, r.encode(), 0o666))
	}
	p, err := os.ReadFile(name)
	ok(t, err)
	if !bytes.Equal(r.encode(), p) {
		t.Error("the view file changed")
	}
	if got, err := decodeView(p); err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range p {
		q := bytes.Clone(p)
		q[i] ^= 1
		if _, err := decodeView(q); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
}

func FuzzViewFile(f *testing.F) {
	f.Add(viewRecord{life: viewOpen, number: 1, checkpoint: 2, name: "x"}.encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := decodeView(p); err == nil && !bytes.Equal(r.encode(), p) {
			t.Fatalf("%x is taken", p)
		}
	})
}
