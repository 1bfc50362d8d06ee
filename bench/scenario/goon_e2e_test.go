//go:build e2e

package scenario_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
)

// TestKilledSourceGoesOn kills the source VRA several times under a guest that writes more than the link takes: each
// one that follows goes on with the window, so that nothing is read again, checkpoints go on in the same
// incarnation, and each is a prefix of the order that the guest saw.
func TestKilledSourceGoesOn(t *testing.T) {
	const kills = 4
	corpus, h := load.Corpus(load.Random, 3), &load.History{}
	l := up(t, "", nil, "--volumes", "2", "--size", "64MiB", "--interval", "1s", "--link", "none")
	p := load.ProfileWild
	p.Max, p.BytesPerSecond = 64<<10, 3<<20
	s := l.Stamper(2, p, 4, corpus, h)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	after(t, s, 4<<20)
	l.protected()
	said := func(text string) int {
		names, _ := filepath.Glob(filepath.Join(l.Dir, "logs", "vra-source*"))
		n := 0
		for _, name := range names {
			src, err := os.ReadFile(name)
			l.must(err)
			n += bytes.Count(src, []byte(text))
		}
		return n
	}
	begun := said("incarnation begins")
	if begun == 0 {
		t.Fatal("no log of the source tells of its incarnation")
	}
	var listed []int
	for range kills {
		l.link("10Mbit") // less than half of what the guest writes
		after(t, s, 9<<20)
		before := said("the window is gone on with")
		l.kill("vra-source")
		await(t, 20*time.Second, "a source that goes on", func() bool { return said("the window is gone on with") > before })
		after(t, s, 3<<20)
		l.link("none")
		l.protected()
		all, err := l.Checkpoints(t.Context())
		l.must(err)
		listed = append(listed, len(all))
	}
	stop()
	if err := <-done; err != nil {
		t.Fatalf("the guest saw an error: %v", err)
	}
	last := l.checkpoint("end")
	if n := said("incarnation begins"); n != begun || said("state=resync") > 0 {
		t.Errorf("%d incarnations were begun, %d before; states of a resync: %d", n, begun, said("state=resync"))
	}
	for i, n := range listed[1:] {
		if n <= listed[i] {
			t.Errorf("%v checkpoints were listed after each kill", listed)
		}
	}
	all, err := l.Checkpoints(t.Context())
	l.must(err)
	for i := range 6 {
		c := all[i*(len(all)-1)/5]
		if _, err := l.Compare(t.Context(), c.ID, 2, h, corpus, c.ID == last.ID); err != nil {
			t.Errorf("checkpoint %s (%s): %v", c.ID, c.Time, err)
		}
	}
	t.Logf("%d checkpoints, after the kills %v", len(all), listed)
}
