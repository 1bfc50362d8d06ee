package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"strings"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// allocations counts what a record costs from its packing until it was received and verified.
func (b *bench) allocations() error {
	for range 3 {
		n, foreign, err := bars.Alone[allocs](b.Run, "allocs", tlsArgs{Certs: b.memory})
		if err != nil {
			return err
		}
		// Whole ones, as testing.AllocsPerRun counts: what timers and heartbeats take is no record's.
		b.Sample(bars.Sample{Row: "allocations", Value: math.Floor(n.Ours), Ours: n.Ours, Peer: n.TLS, Foreign: foreign, Note: "records of 64 KiB; peer: those of crypto/tls"})
	}
	return nil
}

// allocs are allocations a record.
type allocs struct{ Ours, TLS float64 }

// allocsPart has records of 64 KiB go round: packed, sent, received, verified, acknowledged.
func allocsPart(ctx context.Context, a tlsArgs) (r allocs, err error) {
	runtime.MemProfileRate = 1 // each is counted
	const size, warm, count = 64 << 10, 2000, 20000
	data := load.Noise(size, 1)
	source := &checker{opened: make(chan *wire.Session, 1)}
	target := &checker{opened: make(chan *wire.Session, 1), left: math.MaxInt64, done: make(chan error, 1)}
	session, stop, err := joined(ctx, a.Certs, target, source, source.opened)
	if err != nil {
		return r, err
	}
	defer stop()
	var before made
	n := 0
	packed(ctx, warm+count, size, func(b *record.Batch, _ int) {
		b.Add(record.Piece{Volume: 1, Len: size, Ticket: 1, Data: data})
	}, func(j *pack.Job) {
		if n++; n == warm {
			before = madeSoFar()
		}
		if err == nil {
			err = session.SendRecord(ctx, j.Out)
		}
	})
	after := madeSoFar()
	if err != nil {
		return r, fmt.Errorf("record %d: %w", n, err)
	}
	return allocs{float64(after.ours-before.ours) / count, float64(after.tls-before.tls) / count}, nil
}

// made is how many objects were allocated, by crypto/tls and what it calls or by anybody else.
type made struct{ ours, tls int64 }

func madeSoFar() (m made) {
	runtime.GC() // what a profile shows is as of the last
	runtime.GC()
	records := make([]runtime.MemProfileRecord, 1<<16)
	n, _ := runtime.MemProfile(records, true)
	for _, r := range records[:n] {
		inTLS := false
		for frames, more := runtime.CallersFrames(r.Stack()), true; more; {
			var f runtime.Frame
			f, more = frames.Next()
			inTLS = inTLS || strings.HasPrefix(f.Function, "crypto/tls.")
		}
		if inTLS {
			m.tls += r.AllocObjects
		} else {
			m.ours += r.AllocObjects
		}
	}
	return m
}
