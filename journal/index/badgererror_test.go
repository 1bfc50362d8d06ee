package index

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// grownCatalogue is a closed catalogue in a folder, with as many tables as are tidied.
func grownCatalogue(t *testing.T) BadgerConfig {
	t.Helper()
	cfg := badgerIn(t)
	for n := uint64(1); n <= tidyTables; n++ {
		m := OpenBadger(cfg)
		c := NewCatalogue(m)
		must(t, c.Put(7, Checkpoint{Number: n, State: Good}))
		must(t, c.SetCovers(7, Marker{Pos: 1}))
		must(t, m.Close())
	}
	return cfg
}

// useCatalogue opens the catalogue, changes it, tidies and closes it, twice. What was put
// reads at once, whatever fails; and what is said to be covered is there.
func useCatalogue(t *testing.T, cfg BadgerConfig, from, to Marker) (failed error) {
	t.Helper()
	for n := uint64(100); n < 102; n++ {
		m := OpenBadger(cfg)
		c := NewCatalogue(m)
		covers, ok := c.Covers(7)
		if ok && covers != from && covers != to {
			t.Fatalf("covers %+v", covers)
		}
		for _, old := range []uint64{1, tidyTables, n - 1} {
			_, have, err := c.Checkpoint(7, old)
			if want := old <= tidyTables || covers == to; err == nil && ok && want && !have {
				t.Fatalf("%d is covered, and not there", old)
			}
		}
		if !ok { // the journal tells all again
			for old := uint64(1); old < n; old++ {
				if old <= tidyTables || old >= 100 {
					must(t, c.Put(7, Checkpoint{Number: old, State: Good}))
				}
			}
		}
		must(t, c.Put(7, Checkpoint{Number: n, State: Good}))
		if _, have, err := c.Checkpoint(7, n); err == nil && !have {
			t.Fatalf("%d was put, and is not there", n)
		}
		must(t, c.SetCovers(7, to))
		g := m.(*guarded)
		g.tenders.Wait() // they tidy too
		if g.disk != nil {
			g.tidy(g.disk)
		}
		failed = errors.Join(failed, m.Close())
	}
	return failed
}

// Every operation of a catalogue on disk that is ours to do fails, of one that is well and
// of one that is made anew because an opening ended the process: what was put reads, and the
// next opening holds all that it says it covers.
func TestBadgerErrorAtEveryOperation(t *testing.T) {
	from, to := Marker{Pos: 1}, Marker{Pos: 2}
	step := 1
	if testing.Short() {
		step = 9
	}
	grown := grownCatalogue(t)
	for _, ended := range []bool{false, true} {
		for at := 1; ; at += step {
			cfg, seen := badgerIn(t), 0
			must(t, os.CopyFS(cfg.Dir, os.DirFS(grown.Dir)))
			if ended {
				must(t, os.WriteFile(filepath.Join(cfg.Dir, inUseName), []byte(saysOpening+"one\n"), 0o600))
			}
			over := faultdisk.NewOver(ioengine.OS())
			over.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(string) bool { seen++; return true }})
			cfg.FS = over
			failed := useCatalogue(t, cfg, from, to)
			if seen < at {
				must(t, failed)
			}
			over.Heal()
			m := OpenBadger(cfg)
			c := NewCatalogue(m)
			if covers, ok := c.Covers(7); ok && covers == to {
				for _, n := range []uint64{1, tidyTables, 100, 101} {
					if _, have, err := c.Checkpoint(7, n); err != nil || !have {
						t.Fatalf("error at %d: %d is covered, and not there: %v", at, n, err)
					}
				}
			}
			must(t, m.Close())
			if seen < at || ended && at > 60 { // by then it is made, and goes on as the other does
				t.Logf("made anew %v: %d errors", ended, at-1)
				break
			}
		}
	}
}
