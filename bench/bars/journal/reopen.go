package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire/record"
)

type reopenArgs struct {
	Dir         string
	Groups      int
	Volume      int64
	Incarnation record.Incarnation // higher each time
}

type reopenResult struct {
	Seconds     float64 // from nothing until every group has acknowledged a record
	Checkpoints int
}

// reopenPart opens a store that a kill left, and waits until each group takes data.
func reopenPart(_ context.Context, a reopenArgs) (r reopenResult, err error) {
	from := time.Now()
	s, err := journal.Open(journal.Config{FS: hollow{ioengine.OS()}, Dir: a.Dir}) // no space is set aside for what stays a hole
	if err != nil {
		return r, err
	}
	groups := s.Groups()
	if len(groups) != a.Groups {
		return r, fmt.Errorf("%d groups, not %d", len(groups), a.Groups)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, g := range groups {
		wg.Go(func() {
			id := record.Identity{Stream: record.StreamID(i + 1), Epoch: 1, Incarnation: a.Incarnation}
			st, failed := g.Admit(id.Stream, 1, a.Incarnation)
			if failed == nil {
				id.Seq = st.Durable + 1
				one := &stream{group: g}
				failed = one.send(record.AppendResyncOpen(nil, id, record.Time(time.Now().UnixNano()), record.Ticket(id.Seq)<<16,
					record.Resync{Reason: "killed", Volumes: []record.VolumeSize{{ID: volumeID, Bytes: a.Volume}}}))
			}
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, failed)
		})
	}
	wg.Wait()
	r.Seconds = time.Since(from).Seconds()
	for _, g := range groups {
		r.Checkpoints += g.State().Count
	}
	if err != nil {
		return r, err
	}
	if r.Checkpoints != a.Groups {
		return r, fmt.Errorf("%d checkpoints, not %d", r.Checkpoints, a.Groups)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return r, err
	}
	return r, syscall.Kill(os.Getpid(), syscall.SIGKILL) // so that the next one finds a crash too
}

func (b *bench) reopenOne() error  { return b.reopen("reopen-one", 1) }
func (b *bench) reopenMany() error { return b.reopen("reopen-300", 300) }

func (b *bench) reopen(row string, groups int) error {
	dir, err := b.Fresh("reopen")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	h := historyArgs{Dir: filepath.Join(dir, "store"), Groups: groups, Volume: 1024 * gib, Writes: 256, Hollow: true}
	h.Blocks = int(b.size(100*gib)/int64(groups)) / blockBytes
	if _, err := b.killed("history", h); err != nil {
		return err
	}
	for i := range b.Pairs {
		if err := bars.DropCaches(); err != nil {
			return err
		}
		out, err := b.killed("reopen", reopenArgs{h.Dir, groups, h.Volume, record.Incarnation(i + 2)})
		if err != nil {
			return err
		}
		var r reopenResult
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: row, Value: r.Seconds, Note: fmt.Sprintf("%d checkpoints", r.Checkpoints)})
	}
	return nil
}

// killed runs a measurement that ends by SIGKILL, and returns what it printed before.
func (b *bench) killed(name string, args any) (string, error) {
	cmd, err := b.Command(name, args)
	if err != nil {
		return "", err
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || b.Context.Err() != nil {
		return "", fmt.Errorf("%s: %w", name, errors.Join(errors.New("it did not end by its own kill"), err))
	}
	return string(out), nil
}
