package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
)

// durableArgs are those of a source and a target that are processes of their own.
type durableArgs struct {
	Certs       string
	Store       string // of the target
	Data        string // the file in memory that the source sends
	Address     string // of the target
	Compression string
	Connections int    // for data, 1 to 8
	Checkpoint  uint64 // what verify opens
}

// carried is what a source tells: from the first batch until the target had all of it durable.
type carried struct {
	Bytes      int64
	Stored     int64
	Seconds    float64
	Checkpoint uint64
	Raw        float64 // of the records: how many went uncompressed
}

func (c carried) rate() float64 { return float64(c.Bytes) / c.Seconds }

// run is one run of a side, with the CPU seconds of all its processes.
type run struct {
	carried
	CPU float64
}

func (r run) perGiB() float64 { return r.CPU / (float64(r.Bytes) / gib) }

// dataFile makes the file in memory that both sides read, once.
func (b *bench) dataFile(kind load.Kind) (string, error) {
	name := filepath.Join(b.memory, string(kind))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const corpora = 16
	var all [corpora][]byte
	for i := range all {
		all[i] = load.Corpus(kind, uint64(i+1))
	}
	for at, i := int64(0), 0; at < b.bytes; i++ {
		p := all[i%corpora]
		p = p[:min(int64(len(p)), b.bytes-at)]
		if _, err := f.Write(p); err != nil {
			return "", err
		}
		at += int64(len(p))
	}
	return name, nil
}

// durable holds batches of db against lz4 piped through socat.
func (b *bench) durable() error {
	data, err := b.dataFile(load.DB)
	if err != nil {
		return err
	}
	for i := range b.Pairs {
		var forced, auto, peer run
		foreign, err := b.Pair(i,
			func() (float64, error) { return b.ours(&forced, data, "lz4") },
			func() (float64, error) { return b.piped(&peer, data) },
			func() (float64, error) { return b.ours(&auto, data, "auto") })
		if err != nil {
			return err
		}
		ratio := fmt.Sprintf("stored %.2f of raw", float64(forced.Stored)/float64(forced.Bytes))
		b.Sample(bars.Sample{Row: "durable-lz4", Value: forced.rate() / peer.rate(), Ours: forced.rate() / 1e6, Peer: peer.rate() / 1e6, OursUnit: "MB/s", Foreign: foreign, Note: ratio})
		b.Sample(bars.Sample{Row: "durable-auto", Value: auto.rate() / peer.rate(), Ours: auto.rate() / 1e6, Peer: peer.rate() / 1e6, OursUnit: "MB/s", Foreign: foreign, Note: fmt.Sprintf("%.0f %% of the records raw", 100*auto.Raw)})
		b.Sample(bars.Sample{Row: "durable-cpu", Value: peer.perGiB() / forced.perGiB(), Ours: forced.perGiB(), Peer: peer.perGiB(), OursUnit: "CPU-s/GiB", Foreign: foreign})
	}
	return nil
}

// ours runs a source and a target, and compares what the target kept with what was sent.
func (b *bench) ours(r *run, data, compression string) (foreign float64, err error) {
	dir, err := b.Fresh("store")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	a := durableArgs{Certs: b.memory, Store: dir, Data: data, Compression: compression, Connections: b.connections}
	target, err := b.Command("target", a)
	if err != nil {
		return 0, err
	}
	*r = run{}
	r.carried, r.CPU, foreign, err = together[carried](target, func(address string) (*exec.Cmd, error) {
		a.Address = address
		return b.Command("source", a)
	})
	if err != nil {
		return 0, err
	}
	a.Checkpoint = r.Checkpoint
	_, _, err = bars.Alone[int64](b.Run, "verify", a)
	return foreign, err
}

// piped is the peer: lz4 -1 | socat, and socat | lz4 -d into a file, which is synced before the clock stops.
func (b *bench) piped(r *run, data string) (foreign float64, err error) {
	dir, err := b.Fresh("piped")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "copy")
	p, err := bars.PipeLZ4(b.Context, data, name)
	if err != nil {
		return 0, err
	}
	*r = run{CPU: p.CPU}
	r.Bytes, r.Seconds = p.Bytes, p.Took.Seconds()
	return p.Foreign, bars.SameFiles(b.Context, name, data)
}
