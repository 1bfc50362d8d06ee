//go:build e2e

package scenario_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// hostStalls watches, until the returned function is called, how long this machine and its
// disk are away at most: that function returns the longest time that a small synced write and a
// wake-up took beside everything else. A guest waits at least that long, whoever serves it.
func hostStalls(t *testing.T) (longest func() time.Duration) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "beat"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var most time.Duration
	end := make(chan struct{})
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		last, block := time.Now(), make([]byte, 4096)
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			if _, err := f.WriteAt(block, 0); err == nil {
				_ = f.Sync()
			}
			now := time.Now()
			most = max(most, now.Sub(last))
			last = now
		}
	})
	return sync.OnceValue(func() time.Duration {
		close(end)
		wg.Wait()
		f.Close()
		return most
	})
}
