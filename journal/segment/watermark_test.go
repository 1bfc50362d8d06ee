package segment

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

type marks = map[record.GroupID]Watermark

func TestWatermarksOnlyRise(t *testing.T) {
	disk := faultdisk.New(4096)
	m, err := OpenWatermarks(disk, "/", testMarks)
	ok(t, err)
	if w := m.Get(1); w != (Watermark{}) {
		t.Errorf("a new file has %+v", w)
	}
	ok(t, m.Raise(marks{1: {Durable: 8192}, 2: {First: 4096, Durable: 4096}}))
	ok(t, m.Raise(marks{1: {Durable: 4096}, 2: {First: 8192}}))
	check := func(m *Watermarks) {
		t.Helper()
		if a, b := m.Get(1), m.Get(2); a != (Watermark{Durable: 8192}) || b != (Watermark{8192, 4096}) {
			t.Errorf("watermarks are %+v and %+v", a, b)
		}
	}
	check(m)
	before := disk.Ops()
	ok(t, m.Raise(marks{1: {Durable: 8192}}))
	if disk.Ops() != before {
		t.Error("raising nothing costs something")
	}
	ok(t, m.Close())
	again, err := OpenWatermarks(disk.Crash(seeded(1), faultdisk.KeepNone), "/", testMarks)
	ok(t, err)
	check(again)
}

// Power fails at every operation: every group's watermark is at least what Raise
// returned for, and nothing that was not asked for.
func TestWatermarksCrash(t *testing.T) {
	disk := faultdisk.New(512)
	rng := seeded(1)
	var sure, asked Pos
	disk.OnOp(func(op faultdisk.Op, name string) {
		for _, keep := range keeps {
			m, err := OpenWatermarks(disk.Crash(rng, keep), "/", testMarks)
			if err != nil {
				t.Fatalf("operation %d (%#x), keep %d: %v", disk.Ops(), op, keep, err)
			}
			for g := record.GroupID(1); g <= 300; g++ {
				if w := m.Get(g); w.Durable < sure || w.Durable > asked {
					t.Fatalf("operation %d (%#x), keep %d: group %s at %s; asked %s, sure %s", disk.Ops(), op, keep, g, w.Durable, asked, sure)
				}
			}
		}
	})
	m, err := OpenWatermarks(disk, "/", testMarks)
	ok(t, err)
	for i := range Pos(8) {
		asked = (i + 1) * pageBytes
		all := marks{}
		for g := record.GroupID(1); g <= 300; g++ { // two pages
			all[g] = Watermark{Durable: asked}
		}
		ok(t, m.Raise(all))
		sure = asked
	}
}

func TestWatermarksError(t *testing.T) {
	for at := 1; at < 60; at++ {
		disk := faultdisk.New(512)
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Short: true})
		m, err := OpenWatermarks(disk, "/", testMarks)
		if err != nil {
			m, err = OpenWatermarks(disk, "/", testMarks)
		}
		ok(t, err)
		for i := range Pos(8) {
			w := marks{1: {Durable: (i + 1) * pageBytes}}
			err := m.Raise(w)
			if err != nil {
				err = m.Raise(w)
			}
			ok(t, err)
			for _, keep := range keeps {
				crashed := disk.Crash(seeded(at), keep)
				again, err := OpenWatermarks(crashed, "/", testMarks)
				if err != nil || again.Get(1) != w[1] {
					t.Fatalf("error at %d, crash after %s: %v", at, w[1].Durable, err)
				}
			}
		}
	}
}

func TestWatermarksDamage(t *testing.T) {
	disk := faultdisk.New(512)
	m, err := OpenWatermarks(disk, "/", testMarks)
	ok(t, err)
	for i := range Pos(3) {
		ok(t, m.Raise(marks{1: {Durable: (i + 1) * pageBytes}}))
	}
	newest := int64(m.generation%2) * slotBytes
	for _, off := range []int64{0, 9, 17, 30, 40} {
		d := disk.Kill()
		ok(t, d.Rot(testMarks, newest+off, 1))
		one, err := OpenWatermarks(d, "/", testMarks)
		if err != nil || one.Get(1).Durable != 2*pageBytes {
			t.Errorf("the newer slot rots at %d: %v", off, err)
		}
		d = disk.Kill()
		ok(t, errors.Join(d.Rot(testMarks, off, 1), d.Rot(testMarks, slotBytes+off, 1)))
		if _, err := OpenWatermarks(d, "/", testMarks); !errors.Is(err, ErrCorrupt) {
			t.Errorf("both slots rot at %d: %v, want ErrCorrupt", off, err)
		}
	}
	d := disk.Kill()
	ok(t, truncate(d, testMarks, 0))
	if _, err := OpenWatermarks(d, "/", testMarks); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an empty file: %v, want ErrCorrupt", err)
	}
}

func TestWatermarksAreBounded(t *testing.T) {
	m, err := OpenWatermarks(faultdisk.New(512), "/", testMarks)
	ok(t, err)
	all := marks{}
	for g := range record.GroupID(MaxGroups) {
		all[g+1] = Watermark{Durable: Start}
	}
	ok(t, m.Raise(all))
	if err := m.Raise(marks{MaxGroups + 1: {Durable: Start}}); err == nil {
		t.Error("a store takes more groups than its file")
	}
	ok(t, m.Raise(marks{1: {Durable: 2 * Start}}))
}

func TestWatermarksOnThisMachine(t *testing.T) {
	dir := t.TempDir()
	for i := range Pos(3) {
		m, err := OpenWatermarks(ioengine.OS(), dir, testMarks)
		ok(t, err)
		if w := m.Get(7); w.Durable != i*pageBytes {
			t.Error(fmt.Errorf("life %d finds %+v", i, w))
		}
		ok(t, m.Raise(marks{7: {Durable: (i + 1) * pageBytes}}))
		ok(t, m.Close())
	}
}
