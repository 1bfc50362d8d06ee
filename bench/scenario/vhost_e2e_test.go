//go:build e2e

package scenario_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// machine is a virtual machine of one disk, which comes back to its server as QEMU does.
type machine struct {
	*guest.Guest
	wg  sync.WaitGroup
	ctx context.Context
	end context.CancelFunc

	mu    sync.Mutex
	next  int           // queue of the next worker
	met   int           // how often it met a server
	pause time.Duration // the longest it was without
}

func boot(t *testing.T, socket string, o guest.Options) *machine {
	t.Helper()
	g, err := guest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Guest: g}
	m.ctx, m.end = context.WithCancel(context.Background())
	if _, err := m.Meet(m.ctx, socket); err != nil {
		t.Fatal(errors.Join(err, g.Close()))
	}
	m.met = 1
	m.wg.Go(func() {
		m.Stay(m.ctx, socket, func(took time.Duration) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.met, m.pause = m.met+1, max(m.pause, took)
		})
	})
	t.Cleanup(func() {
		m.end()
		err := m.Disconnect()
		m.wg.Wait()
		if err = errors.Join(err, m.Close()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// disk is what one worker writes to: a queue of the machine's.
type disk struct {
	m     *machine
	queue int
}

func (m *machine) dial(context.Context) (load.Disk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	return &disk{m, m.next % 2}, nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	return len(p), d.m.Write(d.queue, p, off)
}
func (d *disk) WriteZeroes(off, n int64, unmap bool) error {
	return d.m.WriteZeroes(d.queue, unmap, guest.Range{Off: off, Len: n})
}
func (d *disk) Trim(off, n int64) error { return d.m.Discard(d.queue, guest.Range{Off: off, Len: n}) }
func (d *disk) Flush() error            { return d.m.Flush(d.queue) }
func (d *disk) Close() error            { return nil }

// TestHungFilter has a queue of the filter hang: its watchdog ends it, it is started again, and the guest goes on.
func TestHungFilter(t *testing.T) {
	corpus, h := load.Corpus(load.DB, 3), &load.History{}
	l := up(t, "planted", []string{"HOLDFAST_PLANTED=capture/lane-hangs"}, "--volumes", "1", "--size", "64MiB", "--interval", "1s", "--link", "none")
	m := boot(t, l.Volumes[0].VhostUser, guest.Options{Queues: 2, Slots: 16, SlotBytes: 1 << 20, Scatter: 64 << 10})
	p := load.ProfileWild
	p.BytesPerSecond = 8 << 20
	s := &load.Stamper{Profile: p, Workers: 8, Seed: 42, Corpus: corpus, History: h}
	s.Volumes = []load.Volume{{Size: l.Volumes[0].Size, Dial: m.dial}}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	after(t, s, 8<<20)
	l.must(os.WriteFile(l.diskPath()+".hang", nil, 0o600))
	after(t, s, 16<<20)
	l.protected()
	stop()
	if err := <-done; err != nil {
		t.Fatalf("the guest saw an error: %v", err)
	}
	m.mu.Lock()
	met, pause := m.met, m.pause
	m.mu.Unlock()
	t.Logf("%d servers, the longest without one %v, the longest operation %v", met, pause, s.Stats().Slowest)
	if met != 2 {
		t.Errorf("it met %d servers, and one hung", met)
	}
	last := l.checkpoint("end")
	if _, err := l.Compare(t.Context(), last.ID, 1, h, corpus, true); err != nil {
		t.Error(err)
	}
}

// TestEndToEndOverSharedMemory has a machine write over vhost-user while its filter is killed
// again and again: it sees no error, and what it wrote is at the second site.
func TestEndToEndOverSharedMemory(t *testing.T) {
	corpus, h := load.Corpus(load.DB, 3), &load.History{}
	l := up(t, "", nil, "--volumes", "1", "--size", "64MiB", "--interval", "1s", "--link", "none")
	m := boot(t, l.Volumes[0].VhostUser, guest.Options{Queues: 2, Slots: 16, SlotBytes: 1 << 20, Scatter: 64 << 10})
	p := load.ProfileWild
	p.BytesPerSecond = 24 << 20
	s := &load.Stamper{Profile: p, Workers: 8, Seed: 42, Corpus: corpus, History: h}
	s.Volumes = []load.Volume{{Size: l.Volumes[0].Size, Dial: m.dial}}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	after(t, s, 16<<20)
	const kills = 4
	for range kills {
		l.kill("vra-filter")
		after(t, s, 8<<20)
	}
	l.protected()
	after(t, s, 16<<20)
	stop()
	if err := <-done; err != nil {
		t.Fatalf("the guest saw an error: %v", err)
	}
	m.mu.Lock()
	met, pause := m.met, m.pause
	m.mu.Unlock()
	stats := s.Stats()
	t.Logf("guest: %d operations, %d MiB; %d servers, the longest without one %v, the longest operation %v", stats.Ops, stats.Bytes>>20, met, pause, stats.Slowest)
	if met != kills+1 {
		t.Errorf("it met %d servers, and %d were killed", met, kills)
	}
	l.protected()
	last := l.checkpoint("end")
	if _, err := l.Compare(t.Context(), last.ID, 1, h, corpus, true); err != nil {
		t.Error(err)
	}
	all, err := l.Checkpoints(t.Context())
	l.must(err)
	for i := range 4 {
		c := all[i*(len(all)-1)/4]
		if v, err := l.Compare(t.Context(), c.ID, 1, h, corpus, false); err != nil {
			t.Errorf("checkpoint %s: %v", c.ID, err)
		} else {
			t.Logf("checkpoint %s: %d of %d operations", c.ID, v.Included, v.Answered)
		}
	}
}
