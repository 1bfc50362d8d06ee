package capture

import (
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// TestGoOn: of what another tap gave, three writes, that below from is freed, what can no longer be put in order is freed and
// said to be lost, and the rest is given.
func TestGoOn(t *testing.T) {
	for _, row := range []struct{ from, order, lost int }{
		{0, 0, 0},
		{1, 1, 0},
		{1, 2, 1},
		{3, 3, 0},
	} {
		r := newRig(t, 512, mib, mib, 1).open()
		tap, v := r.covered(), r.vol(0)
		for block := range int64(3) {
			write(t, v, block*BlockBytes, fill(512, byte(block+1)))
		}
		before := next(t, tap, 3)
		if err := tap.Close(); err != nil { // and it freed none
			t.Fatal(err)
		}
		r.stopRun() // so that the next one has no filter yet
		tap, err := OpenTap(TapConfig{RunDir: r.dir, Group: testGroup, Filters: []string{r.cfg.PoolSocket}, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		r.tap = tap
		lost, first := tap.Lost(), before[0].Ticket
		tap.GoOn(first+record.Ticket(row.from), first+record.Ticket(row.order))
		write(t, v, 3*BlockBytes, fill(512, 4))
		r.run()
		ws := next(t, tap, 4-row.order)
		for i, w := range ws {
			if want := int64(row.order+i) * BlockBytes; w.Off != want {
				t.Errorf("%+v: %d is given in the place of %d", row, w.Off, want)
			}
		}
		if got := tap.Lost() - lost; got != uint64(row.lost) {
			t.Errorf("%+v: %d are lost", row, got)
		}
		within(t, "the filter has folded", func() bool { return !tap.Passed() })
		v.mu.Lock()
		if dirty := v.mu.marks.file.dirty.all(1, 2); dirty != (row.lost > 0) {
			t.Errorf("%+v: the block of the second write is dirty: %v", row, dirty)
		}
		v.mu.Unlock()
		none(t, tap)
		tap.Free(ws)
		within(t, "all slots are home", r.filter.pool.allHome)
	}
}
