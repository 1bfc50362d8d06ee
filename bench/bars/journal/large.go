package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// openArgs say which view of a large journal is opened.
type openArgs struct {
	Dir        string
	Checkpoint uint64
	Volume     int64
	Blocks     int
	Times      int
}

type openResult struct {
	Store float64   // seconds to open the store
	Open  []float64 // ms to open a view, a new one each time
	First []float64 // ms for its first read, at another cold place each time
	RSS   int64     // after all of it
}

func openPart(_ context.Context, a openArgs) (r openResult, err error) {
	from := time.Now()
	s, err := openStore(a.Dir)
	if err != nil {
		return r, err
	}
	defer s.Close()
	r.Store = time.Since(from).Seconds()
	g, ok := s.Group(record.GroupID(1))
	if !ok {
		return r, errors.New("no group")
	}
	place := places(a.Volume, a.Blocks)
	p := make([]byte, blockBytes)
	for range a.Times {
		if err := bars.DropCaches(); err != nil {
			return r, err
		}
		from := time.Now()
		v, err := g.OpenView(a.Checkpoint, journal.ViewOptions{Options: view.Options{Scratch: true}})
		if err != nil {
			return r, err
		}
		r.Open = append(r.Open, ms(from))
		d, _ := v.Device(volumeID)
		off := place(0)
		from = time.Now()
		if err := d.ReadAt(p, off); err != nil {
			return r, err
		}
		r.First = append(r.First, ms(from))
		if !stamped(p, off, 1) {
			return r, fmt.Errorf("block at %d is another", off)
		}
		if err := v.Close(); err != nil {
			return r, err
		}
	}
	v, err := g.OpenView(a.Checkpoint, journal.ViewOptions{})
	if err != nil {
		return r, err
	}
	d, _ := v.Device(volumeID)
	for range 20000 { // until the caches are as full as they get
		if err := d.ReadAt(p, place(0)); err != nil {
			return r, err
		}
	}
	r.RSS = field("/proc/self/status", "VmRSS")
	return r, v.Close()
}

func ms(from time.Time) float64 { return time.Since(from).Seconds() * 1000 }

// cacheBytes is the cache that a store has when nothing else is configured.
const cacheBytes = 64 * mib

func (b *bench) large() error {
	h := historyArgs{Groups: 1, Volume: 512 * gib, Blocks: int(100e6 * b.scale), Writes: 64, Small: true}
	made, drop, err := b.history("large", b.kept, h)
	if err != nil {
		return err
	}
	defer drop()
	r, foreign, err := bars.Alone[openResult](b.Run, "open", openArgs{made.Args.Dir, made.Checkpoint, h.Volume, h.Blocks, max(5, b.Pairs)})
	if err != nil {
		return err
	}
	for i := range r.Open {
		b.Sample(bars.Sample{Row: "open-view", Value: r.Open[i], Foreign: foreign, Note: made.Note})
		b.Sample(bars.Sample{Row: "first-read", Value: r.First[i], Foreign: foreign})
	}
	b.Sample(bars.Sample{Row: "memory", Value: float64(r.RSS-cacheBytes) / mib, Foreign: foreign, Note: fmt.Sprintf("store opened in %.2f s", r.Store)})
	return nil
}
