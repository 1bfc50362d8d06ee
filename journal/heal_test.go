package journal

import (
	"io"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/stripe"
)

// localParity is a Protector of one folder.
type localParity struct {
	stripe.Local
	told chan error
}

func (p *localParity) id(f segment.FileInfo) stripe.Identity {
	return stripe.Identity{Group: uint64(f.Group), Number: f.Number, Life: f.Life}
}

func (p *localParity) Protects(f segment.FileInfo) (bool, error) {
	return p.Local.Protects(f.Name, p.id(f))
}

func (p *localParity) Sealed(f segment.FileInfo) error {
	err := p.Seal(f.Name, p.id(f))
	select {
	case p.told <- err:
	default:
	}
	return err
}

func (p *localParity) Verify(f segment.FileInfo, pace func(int) error) (bool, error) {
	return p.Local.Verify(f.Name, p.id(f), pace)
}

func (p *localParity) Dropped(f segment.FileInfo) { p.Local.Dropped(f.Name) }

func (p *localParity) Repair(f segment.FileInfo, _ []Extent, w io.Writer) error {
	return p.Local.Repair(f.Name, p.id(f), w)
}

// A sealed segment rots after it was verified: whoever meets the damage has it repaired from
// the parity beside it, into a new file, and no checkpoint is lost and no read fails.
func TestDamageIsRepairedFromLocalParity(t *testing.T) {
	src := newSource(5)
	src.script()
	disk := faultdisk.New(512)
	p := &localParity{stripe.Local{FS: disk}, make(chan error, 1)}
	catalogue := new(index.Memory)
	open := func() *target {
		cfg := config(disk)
		cfg.SegmentBytes, cfg.Protector = 16<<10, p
		cfg.OpenCatalogue = func() (index.Map, error) { return catalogue, nil }
		tgt, err := openWith(cfg)
		ok(t, err)
		return tgt
	}
	tgt := open()
	ok(t, tgt.feed(src, 3))
	ok(t, <-p.told)
	listed, err := tgt.check(src)
	ok(t, err)
	ok(t, tgt.store.Close())
	dir := "/store/groups/" + testGroup.String() + "/log/"
	names, err := disk.List(dir)
	ok(t, err)
	rotted := 0
	for _, n := range names {
		seg, found := strings.CutSuffix(n, ".par")
		if !found {
			continue
		}
		f, err := disk.Open(dir+seg+".seg", ioengine.ReadOnly)
		ok(t, err)
		size, err := f.Size()
		ok(t, err)
		ok(t, f.Close())
		ok(t, disk.Rot(dir+seg+".seg", 4096, size/2)) // its header stays whole, so that the log opens
		rotted++
	}
	if rotted == 0 {
		t.Fatalf("no parity among %v", names)
	}
	tgt = open()                 // nothing of it is in memory
	again, err := tgt.check(src) // meets the damage, and no reader notices
	if err != nil || len(again) != len(listed) {
		t.Errorf("after the repair %v of %v can be opened: %v", again, listed, err)
	}
	if st := tgt.group.State(); st.Err != nil {
		t.Errorf("after the repair: %v", st.Err)
	}
	ok(t, tgt.store.Close())
}
