package index

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// Every operation of opening a table fails once: one that is begun, one beside which files
// lie that it does not name, and one whose current file is damaged. It does not open, or
// every answer is right; and so it is in the next life.
func TestTableOpenErrors(t *testing.T) {
	disk := faultdisk.New(512)
	l := &tableLife{d: rand.New(rand.NewPCG(2, 4)), cfg: testTable(disk), told: &told{}, forgiving: true}
	must(t, l.open())
	for range 25 {
		must(t, l.step())
	}
	must(t, errors.Join(l.flush(), l.t.Close()))
	put := func(d *faultdisk.Disk, name string) {
		f, err := d.Open(l.cfg.Dir+"/"+name, ioengine.Create)
		must(t, errors.Join(err, f.Truncate(4096), f.Sync(), f.Close(), d.SyncDir(l.cfg.Dir)))
	}
	littered := disk.Kill()
	put(littered, runName(1<<20))
	put(littered, "current.new")
	damaged := littered.Kill()
	must(t, damaged.Rot(l.cfg.Dir+"/"+currentName, 9, 1))
	fresh := faultdisk.New(512)
	for what, base := range map[string]*faultdisk.Disk{"fresh": fresh, "littered": littered, "damaged": damaged} {
		for at := 1; ; at++ {
			d, seen := base.Kill(), 0
			d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(string) bool { seen++; return true }})
			n := &tableLife{d: rand.New(rand.NewPCG(uint64(at), 9)), cfg: testTable(d), told: l.told.clone(), pending: l.pending, forgiving: true}
			err := n.open()
			fired := seen >= at
			d.Heal()
			if err != nil && (!fired || !errors.Is(err, syscall.EIO)) {
				t.Fatalf("%s, error at %d: %v", what, at, err)
			}
			if err == nil {
				err = errors.Join(n.refold(), n.check(2), n.t.Close())
			}
			if err != nil && !errors.Is(err, syscall.EIO) {
				t.Fatalf("%s, error at %d: %v", what, at, err)
			}
			for _, after := range []*faultdisk.Disk{d.Crash(rand.New(rand.NewPCG(1, 1)), faultdisk.KeepNone), d.Kill()} {
				if err := l.recovered(after, at); err != nil {
					t.Fatalf("%s, error at %d, then none: %v", what, at, err)
				}
			}
			if !fired {
				break
			}
		}
	}
}
