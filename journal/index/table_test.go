package index

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// rapidDraws draws from a property.
type rapidDraws struct{ t *rapid.T }

func (d rapidDraws) IntN(n int) int { return rapid.IntRange(0, n-1).Draw(d.t, "") }

// A table answers as the plain list of what it was told does, whatever happens to it in
// whatever order.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &tableLife{d: rapidDraws{t}, cfg: testTable(faultdisk.New(512)), told: &told{}}
		okay := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		l.cfg.Damaged = func(err error) { t.Fatalf("damaged: %v", err) }
		okay(l.open())
		add := func(*rapid.T) { okay(l.add()) }
		t.Repeat(map[string]func(*rapid.T){
			"add":  add,
			"add2": add,
			"add3": add,
			"flush": func(*rapid.T) {
				okay(l.flush())
			},
			"drop":   func(*rapid.T) { okay(l.drop()) },
			"fold":   func(*rapid.T) { okay(l.fold()) },
			"stored": func(*rapid.T) { okay(l.checkStored()) },
			"lookup": func(*rapid.T) { okay(l.check(3)) },
			"reopen": func(*rapid.T) {
				okay(l.t.Close())
				okay(l.open())
			},
		})
		okay(l.check(5))
		okay(l.checkStored())
		okay(l.t.Close())
	})
}

// The same, longer lives with more runs and merges.
func TestTableLong(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		l := &tableLife{d: rand.New(rand.NewPCG(uint64(seed), 2)), cfg: testTable(faultdisk.New(512)), told: &told{}}
		l.cfg.Damaged = func(err error) { t.Fatalf("seed %d: damaged: %v", seed, err) }
		must(t, l.open())
		merges := int64(0)
		for step := range 250 {
			if err := l.step(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			merges = max(merges, l.t.Stats().Merges)
		}
		must(t, l.t.Close())
		if merges == 0 {
			t.Errorf("seed %d: nothing was merged", seed)
		}
	}
}
