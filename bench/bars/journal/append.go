package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// appendArgs say what a process appends to a new store.
type appendArgs struct {
	Dir    string
	Groups int
	Writes int   // of a record
	Size   int   // bytes of a write
	Bytes  int64 // of guest writes in all
	Volume int64 // bytes, over which the writes are spread
	// Ahead makes all records before the clock starts, so that making them takes no time.
	// Else each is made just before it is appended, as it comes from a connection: the CPU
	// that making it took is not counted, but its time is.
	Ahead bool
	// Every is how often the caller waits until all that it appended is acknowledged, for
	// records made ahead; 0: it waits all the time, while inFlight are not acknowledged.
	Every time.Duration
}

type appendResult struct {
	Seconds, CPU float64
	Stored       int64 // bytes of records
	Written      int64 // bytes handed to the disk, the closing of the store included
	Memory       int64 // resident at the peak, beyond what it was when the clock started
}

// inFlight is how many records are not acknowledged at any time.
const inFlight = 32

func appendPart(_ context.Context, a appendArgs) (r appendResult, err error) {
	s, err := openStore(a.Dir)
	if err != nil {
		return r, err
	}
	streams, err := openGroups(s, a.Groups, a.Volume)
	if err != nil {
		return r, err
	}
	for _, st := range streams {
		if err := st.begin(); err != nil {
			return r, err
		}
	}
	data := load.Noise(16*mib, 1)
	count := int(a.Bytes / int64(a.Writes*a.Size))
	turn, made := 0, 0.0
	writes := make([]write, a.Writes)
	seal := func(dst []byte) ([]byte, *stream, error) {
		st := streams[turn%len(streams)]
		turn++
		for i := range writes {
			at := st.rng.IntN((len(data)-a.Size)/512) * 512
			writes[i] = write{st.rng.Int64N(a.Volume/int64(a.Size)) * int64(a.Size), data[at : at+a.Size]}
		}
		p, err := st.seal(dst, writes...)
		return p, st, err
	}
	var ahead [][]byte
	if a.Ahead {
		if ahead, err = sealAhead(count, func(dst []byte) ([]byte, error) {
			p, _, err := seal(dst)
			return p, err
		}); err != nil {
			return r, err
		}
	}
	turn = 0
	runtime.LockOSThread() // whose CPU is counted
	defer runtime.UnlockOSThread()
	free := make(chan []byte, inFlight)
	received := buf.NewPool(record.MaxRecordBytes, inFlight) // as the wire receives records
	for range inFlight {
		free <- received.Get().Bytes()
	}
	failed := make(chan error, inFlight)
	var unacked sync.WaitGroup
	defer bars.Profile()()
	from, mem := now(), watchMemory()
	waited := from.at
	for i := range count {
		var p []byte
		var st *stream
		switch {
		case a.Every == 0:
			p = <-free
		case time.Since(waited) >= a.Every:
			unacked.Wait()
			waited = time.Now()
		}
		if a.Ahead {
			p, st = ahead[i], streams[i%len(streams)]
		} else {
			before, err := threadCPU()
			if err != nil {
				return r, err
			}
			if p, st, err = seal(p[:0]); err != nil {
				return r, err
			}
			after, err := threadCPU()
			if err != nil {
				return r, err
			}
			made += after - before
		}
		rec, err := record.Parse(p)
		if err != nil {
			return r, err
		}
		r.Stored += int64(len(p))
		unacked.Add(1)
		err = st.group.Append(rec, func(err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
			if a.Every == 0 {
				free <- p
			}
			unacked.Done()
		})
		if err != nil {
			return r, err
		}
	}
	unacked.Wait()
	to := now()
	select {
	case err := <-failed:
		return r, err
	default:
	}
	r.Seconds, r.CPU, r.Memory = to.at.Sub(from.at).Seconds(), to.cpu-from.cpu-made, mem.peak()
	err = s.Close()
	r.Written = now().written - from.written
	return r, err
}

// sealAhead makes records, each in memory such as the wire receives into.
func sealAhead(count int, seal func(dst []byte) ([]byte, error)) ([][]byte, error) {
	first, err := seal(nil)
	if err != nil {
		return nil, err
	}
	ahead := buf.Row(len(first), count) // all are of one size
	ahead[0] = append(ahead[0][:0], first...)
	for i := 1; i < count; i++ {
		if ahead[i], err = seal(ahead[i][:0]); err != nil {
			return nil, err
		}
	}
	return ahead, nil
}

// fioResult is the peer's rate.
type fioResult struct{ BytesPerSecond, CPUPerGiB float64 }

// fio writes 4 GiB in order, 1 MiB at a time, past the page cache, into space set aside.
func (b *bench) fio(bytes int64) (r fioResult, foreign float64, err error) {
	dir, err := b.Fresh("fio")
	if err != nil {
		return r, 0, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(b.Context, "fio", "--name=w", "--filename="+filepath.Join(dir, "f"), fmt.Sprint("--size=", bytes),
		"--rw=write", "--bs=1M", "--direct=1", "--ioengine=psync", "--iodepth=1", "--end_fsync=1", "--fallocate=native", "--output-format=json")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	began := bars.Look()
	if err := cmd.Run(); err != nil {
		return r, 0, fmt.Errorf("fio: %w", err)
	}
	foreign = began.Foreign(bars.CPUOf(cmd))
	jobs, err := fioReport(out.String())
	if err != nil {
		return r, foreign, err
	}
	j := jobs[0]
	took := float64(max(j.Runtime, j.Write.Runtime)) / 1000
	r.BytesPerSecond = float64(j.Write.Bytes) / took
	r.CPUPerGiB = (j.User + j.Sys) / 100 * took / (float64(j.Write.Bytes) / gib)
	return r, foreign, nil
}

// size is the number of bytes, scaled, in whole MiB.
func (b *bench) size(bytes int64) int64 { return max(64*mib, int64(float64(bytes)*b.scale)/mib*mib) }

func (b *bench) appendOne() error {
	return b.appendAgainstFio("append-one", appendArgs{Groups: 1, Writes: 1, Size: mib, Bytes: b.size(4 * gib), Volume: 64 * gib, Ahead: true})
}

func (b *bench) appendMany() error {
	return b.appendAgainstFio("append-300", appendArgs{Groups: 300, Writes: 1, Size: mib, Bytes: b.size(4 * gib), Volume: 64 * gib, Ahead: true})
}

func (b *bench) appendAgainstFio(row string, a appendArgs) error {
	return b.besideFio(a, func(ours appendResult, peer fioResult, foreign float64) {
		rate := float64(ours.Stored) / ours.Seconds
		b.Sample(bars.Sample{Row: row, Value: rate / peer.BytesPerSecond, Ours: rate / 1e6, Peer: peer.BytesPerSecond / 1e6, OursUnit: "MB/s", Foreign: foreign})
	})
}

// besideFio appends, and has fio write as much, in pairs.
func (b *bench) besideFio(a appendArgs, keep func(appendResult, fioResult, float64)) error {
	return bars.Pairs(b.Run,
		func() (appendResult, float64, error) { return b.append(a) },
		func() (fioResult, float64, error) { return b.fio(a.Bytes) }, keep)
}

// append runs one append in a folder of its own.
func (b *bench) append(a appendArgs) (r appendResult, foreign float64, err error) {
	if a.Dir, err = b.Fresh("append"); err != nil {
		return r, 0, err
	}
	defer os.RemoveAll(a.Dir)
	return bars.Alone[appendResult](b.Run, "append", a)
}

// appendCPU is the CPU of appending alone; fio's, writing as much, stands beside it.
func (b *bench) appendCPU() error {
	return b.cpu("append-cpu", appendArgs{Groups: 1, Writes: 1, Size: mib, Bytes: b.size(4 * gib), Volume: 64 * gib})
}

func (b *bench) appendSmall() error {
	return b.cpu("append-cpu-4k", appendArgs{Groups: 1, Writes: 16, Size: 4 * kib, Bytes: b.size(4 * gib), Volume: 100 * gib})
}

func (b *bench) cpu(row string, a appendArgs) error {
	return b.besideFio(a, func(ours appendResult, peer fioResult, foreign float64) {
		cpu := ours.CPU / (float64(ours.Stored) / gib)
		b.Sample(bars.Sample{Row: row, Value: cpu, Ours: cpu, Peer: peer.CPUPerGiB, OursUnit: "CPU-s/GiB", Foreign: foreign})
	})
}

func (b *bench) bytesLarge() error {
	return b.bytes("bytes-64k", appendArgs{Groups: 1, Writes: 1, Size: 64 * kib, Bytes: b.size(20 * gib), Volume: 100 * gib})
}

func (b *bench) bytesSmall() error {
	return b.bytes("bytes-4k", appendArgs{Groups: 1, Writes: 16, Size: 4 * kib, Bytes: b.size(20 * gib), Volume: 100 * gib})
}

func (b *bench) bytes(row string, a appendArgs) error {
	r, foreign, err := b.append(a)
	if err != nil {
		return err
	}
	b.Sample(bars.Sample{Row: row, Value: float64(r.Written) / float64(r.Stored), Ours: float64(r.Written) / gib, OursUnit: "GiB", Foreign: foreign})
	return nil
}
