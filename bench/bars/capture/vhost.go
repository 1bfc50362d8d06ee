package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// wrote is what a guest saw of its disk, and what that cost.
type wrote struct {
	guest.Measured
	CPU  float64 // seconds of the process that serves the disk
	Note string  // how the pipeline kept up
}

func (w wrote) rate() float64 { return float64(w.Requests) / w.Took.Seconds() }

// perWrite is the server's CPU, in seconds.
func (w wrote) perWrite() float64 { return w.CPU / float64(w.Requests) }

// write has a guest write to the side as the load says, once the lab is done with what was before, and
// tells how the pipeline keeps up. Beside, if it is not nil, runs meanwhile.
func (b *bench) write(w *wrote, s *server, l guest.Load, beside func() error) (foreign float64, err error) {
	if err := b.settled(); err != nil {
		return 0, err
	}
	other := make(chan error, 1)
	if beside == nil {
		beside = func() error { return nil }
	}
	go func() { other <- beside() }()
	foreign, err = b.drive(w, s, l)
	if err = errors.Join(err, <-other); err == nil && s == b.on {
		w.Note, err = b.keeps(b.lab)
	}
	return foreign, err
}

// drive has a guest write.
func (b *bench) drive(w *wrote, s *server, l guest.Load) (foreign float64, err error) {
	b.seed++
	l.Write, l.Size, l.Data, l.Seed = true, b.size, b.data, b.seed
	g, err := guest.New(guest.Options{Slots: l.Depth, SlotBytes: l.Bytes})
	if err != nil {
		return 0, err
	}
	defer g.Close()
	if err := g.Connect(s.vhost); err != nil {
		return 0, err
	}
	*w = wrote{}
	w.CPU, foreign, err = during(s, func() (_ float64, err error) {
		w.Measured, err = g.Run(l)
		return 0, err
	})
	return foreign, err
}

// keeps says how far behind the pipeline is after a load, and in what state.
func (b *bench) keeps(lab *drive.Lab) (string, error) {
	s, err := lab.Status(b.Context)
	if err != nil {
		return "", err
	}
	behind := "an unknown amount"
	if s.BytesBehind != nil {
		behind = fmt.Sprintf("%d MiB", *s.BytesBehind>>20)
	}
	return fmt.Sprintf("at its end %s, %s behind", s.State, behind), nil
}

// against takes as many rounds as there are pairs of three sides: capture on, capture off, the peer.
func (b *bench) against(l guest.Load, keep func(on, off, peer wrote, foreign float64)) error {
	if err := b.open(); err != nil {
		return err
	}
	if b.qemu == nil {
		if err := b.openPeer(); err != nil {
			return err
		}
	}
	l.Duration = b.length
	for i := range b.Pairs {
		var on, off, peer wrote
		foreign, err := b.Pair(i,
			func() (float64, error) { return b.write(&on, b.on, l, nil) },
			func() (float64, error) { return b.write(&peer, b.qemu, l, nil) },
			func() (float64, error) { return b.write(&off, b.off, l, nil) })
		if err != nil {
			return err
		}
		for _, w := range []wrote{on, off, peer} {
			if w.Errors > 0 {
				return fmt.Errorf("%d of %d writes failed", w.Errors, w.Requests)
			}
		}
		keep(on, off, peer, foreign)
	}
	return nil
}

// small is many short writes at a time.
func (b *bench) small() error {
	return b.against(guest.Load{Bytes: 4096, Depth: 32}, func(on, off, peer wrote, foreign float64) {
		b.ratio("vhost-4k", on, peer, foreign)
		b.ratio("vhost-4k-off", off, peer, foreign)
		b.Sample(bars.Sample{Row: "filter-cpu", Value: 1e6 * on.perWrite(), Ours: 1e6 * on.perWrite(), Peer: 1e6 * peer.perWrite(), OursUnit: "us", Foreign: foreign,
			Note: fmt.Sprintf("capture off: %.3g us", 1e6*off.perWrite())})
	})
}

// large is long ones.
func (b *bench) large() error {
	return b.against(guest.Load{Bytes: 1 << 20, Depth: 4}, func(on, off, peer wrote, foreign float64) {
		b.ratio("vhost-1m", on, peer, foreign)
		b.ratio("vhost-1m-off", off, peer, foreign)
	})
}

func (b *bench) ratio(row string, ours, peer wrote, foreign float64) {
	b.Sample(bars.Sample{Row: row, Value: ours.rate() / peer.rate(), Ours: ours.rate(), Peer: peer.rate(), OursUnit: "IOPS", Foreign: foreign, Note: ours.Note})
}

// single is one short write at a time.
func (b *bench) single() error {
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	return b.against(guest.Load{Bytes: 4096, Depth: 1}, func(on, off, peer wrote, foreign float64) {
		b.Sample(bars.Sample{Row: "added-p50", Value: us(on.P50 - off.P50), Ours: us(on.P50), Peer: us(off.P50), OursUnit: "us", Foreign: foreign,
			Note: fmt.Sprintf("%.0f IOPS, qemu-storage-daemon %.0f and %.3g us; %s", on.rate(), peer.rate(), us(peer.P50), on.Note)})
		b.Sample(bars.Sample{Row: "added-p99", Value: us(on.P99) / us(off.P99), Ours: us(on.P99), Peer: us(off.P99), OursUnit: "us", Foreign: foreign,
			Note: fmt.Sprintf("qemu-storage-daemon: %.3g us", us(peer.P99))})
	})
}
