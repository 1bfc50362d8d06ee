package datapath

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/journal/index"
)

// TestDamageIsSentAgain has the newest version of some blocks rot at the target, where
// nothing brings them back. A scrub finds them, the source is told, exactly these blocks
// are read and sent again, and checkpoints after that are whole; those before are bad.
func TestDamageIsSentAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.catalogue = func() (index.Map, error) { return new(index.Memory), nil }
	w.start()
	w.awaitState(api.StateProtected)
	before := w.checkpoint("before")
	synced := w.s.flows[0].count.syncRead.Load()
	name := filepath.Join(w.store, "groups", "*", "replica", fmt.Sprintf("%08x.raw", uint32(volumeID(0))))
	found, err := filepath.Glob(name)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	raw, err := os.OpenFile(found[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	blocks := []int64{3, 4, 100, w.size/4096 - 1}
	for _, b := range blocks {
		one := make([]byte, 1)
		if _, err := raw.ReadAt(one, b*4096+77); err != nil {
			t.Fatal(err)
		}
		one[0] ^= 0x20
		if _, err := raw.WriteAt(one, b*4096+77); err != nil {
			t.Fatal(err)
		}
	}
	g := w.tg.group("")
	if err := g.Verify(); err != nil {
		t.Fatal(err)
	}
	w.await("all to be read", func() bool { return !g.Verification().Asked }) // what is found first may be mended before the last is
	w.await("the damage", func() bool { return g.State().Damage != nil })
	w.await("what is lost to be sent again", func() bool {
		lacks, _ := g.Lacks()
		return !lacks && !g.State().Resync && w.s.flows[0].count.syncRead.Load() > synced
	})
	w.awaitState(api.StateProtected)
	w.verify("after")
	if n := w.s.flows[0].count.syncRead.Load() - synced; n != uint64(len(blocks))*4096 {
		t.Errorf("%d bytes were read again, want %d blocks", n, len(blocks))
	}
	if cp, err := g.Checkpoint(number(t, before)); err != nil || cp.State != index.Bad || cp.Reason == "" {
		t.Errorf("before: %+v, %v", cp, err)
	}
	if st := g.State(); st.Err != nil || st.Bad == 0 || st.Damage == nil {
		t.Errorf("state %+v", st)
	}
	if m := w.tg.status(g); m.State != api.StateProtected || m.Reason == "" {
		t.Errorf("the target says %s %q", m.State, m.Reason)
	}
	inc := w.s.flows[0].mu.inc
	w.stopTarget() // it does not ask for what it has got
	w.startTarget()
	w.awaitState(api.StateProtected)
	w.verify("after a restart")
	if n := w.s.flows[0].count.syncRead.Load() - synced; n != uint64(len(blocks))*4096 || w.s.flows[0].mu.inc != inc {
		t.Errorf("after a restart %d bytes were read again", n)
	}
}
