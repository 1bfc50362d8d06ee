package main

import (
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

const (
	gib         = 1 << 30
	recordBytes = 1 << 20 // of payload, as datapath makes them at most
)

// moved is what a part moved, and what that took.
type moved struct {
	Bytes        int64
	Seconds, CPU float64
}

func (m moved) rate() float64   { return float64(m.Bytes) / m.Seconds }
func (m moved) perGiB() float64 { return m.CPU / (float64(m.Bytes) / gib) }

// clock measures what happens until stop.
func clock() (stop func(bytes int64) moved) {
	done := bars.Profile()
	at, cpu := time.Now(), bars.OwnCPU()
	return func(bytes int64) moved {
		m := moved{bytes, time.Since(at).Seconds(), bars.OwnCPU() - cpu}
		done()
		return m
	}
}

// contrast runs two parts that move bytes, in pairs.
func (b *bench) contrast(ours, peer string, args any, keep func(ours, peer moved, foreign float64)) error {
	side := func(part string) func() (moved, float64, error) {
		return func() (moved, float64, error) { return bars.Alone[moved](b.Run, part, args) }
	}
	return bars.Pairs(b.Run, side(ours), side(peer), keep)
}
