package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

// nbd holds the filter's NBD server against nbdkit on a file; fio is the guest of both. Beside them it writes by qemu-nbd, and to the
// disk itself, as the filter does: past the page cache, where nbdkit leaves what it has answered. No server can be faster that writes so.
func (b *bench) nbd(row string, depth int) error {
	if err := b.open(); err != nil {
		return err
	}
	if b.nbdkit == nil {
		socket := filepath.Join(b.run, "nbdkit")
		b.nbdkit = &server{nbd: "nbd+unix:///?socket=" + socket}
		if err := b.start(exec.CommandContext(b.Context, "nbdkit", "-f", "-U", socket, "file", filepath.Join(b.Dir, nbdkitDisk)), b.nbdkit); err != nil {
			return err
		}
	}
	if b.qemuNBD == nil {
		socket := filepath.Join(b.run, "qemu-nbd")
		b.qemuNBD = &server{nbd: "nbd+unix:///?socket=" + socket}
		if err := b.start(exec.CommandContext(b.Context, "qemu-nbd", "--format=raw", "--persistent", "--shared=16", "--cache=none", "--aio=native",
			"--discard=unmap", "--socket="+socket, filepath.Join(b.Dir, nbdkitDisk)), b.qemuNBD); err != nil {
			return err
		}
	}
	disk := &server{path: filepath.Join(b.Dir, nbdkitDisk)}
	for i := range b.Pairs {
		var ours, peer, direct, most float64
		var note string
		foreign, err := b.Pair(i,
			func() (foreign float64, err error) {
				if ours, foreign, err = b.fio(b.on, depth); err == nil {
					note, err = b.keeps()
				}
				return foreign, err
			},
			func() (foreign float64, err error) { peer, foreign, err = b.fio(b.nbdkit, depth); return foreign, err },
			func() (foreign float64, err error) {
				direct, foreign, err = b.fio(b.qemuNBD, depth)
				return foreign, err
			},
			func() (foreign float64, err error) { most, foreign, err = b.fio(disk, depth); return foreign, err })
		if err != nil {
			return err
		}
		note = fmt.Sprintf("%s; the disk itself, past the page cache and with no server before it: %.0f IOPS", note, most)
		b.Sample(bars.Sample{Row: row, Value: ours / peer, Ours: ours, Peer: peer, OursUnit: "IOPS", Foreign: foreign, Note: note})
		b.Sample(bars.Sample{Row: row + "-qemu", Value: ours / direct, Ours: ours, Peer: direct, OursUnit: "IOPS", Foreign: foreign})
	}
	return nil
}

// fio writes 4 KiB at random places and returns how many a second, the flush at its end included: what one side
// leaves in the page cache it has to write within its time.
func (b *bench) fio(s *server, depth int) (iops, foreign float64, err error) {
	if err := b.settled(); err != nil {
		return 0, 0, err
	}
	report := filepath.Join(b.run, "fio.json")
	_, foreign, err = during(s, func() (cpu float64, err error) {
		cmd := exec.CommandContext(b.Context, "fio", "--name=guest", "--rw=randwrite", "--bs=4k", "--buffer_compress_percentage=55",
			fmt.Sprintf("--iodepth=%d", depth), fmt.Sprintf("--size=%d", b.size), "--time_based=1", fmt.Sprintf("--runtime=%dms", b.length.Milliseconds()), "--norandommap=1", "--end_fsync=1", "--output-format=json", "--output="+report)
		cmd.Args = append(cmd.Args, s.way(depth)...)
		kernel := bars.KernelCPU()
		if said, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("fio: %w: %s", err, said)
		}
		return bars.CPUOf(cmd) + bars.KernelCPU() - kernel, nil
	})
	if err != nil {
		return 0, 0, err
	}
	out, err := os.ReadFile(report)
	if err != nil {
		return 0, 0, err
	}
	var told struct {
		Jobs []struct {
			Error int
			Write struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(out, &told); err != nil {
		return 0, 0, fmt.Errorf("fio: %w", err)
	}
	if len(told.Jobs) != 1 || told.Jobs[0].Error != 0 || told.Jobs[0].Write.IOPS == 0 {
		return 0, 0, fmt.Errorf("fio tells of %+v", told.Jobs)
	}
	return told.Jobs[0].Write.IOPS, foreign, nil
}

// way is how fio writes to what s serves, or to the file that it is.
func (s *server) way(depth int) []string {
	switch {
	case s.path == "":
		return []string{"--ioengine=nbd", "--uri=" + s.nbd}
	case depth == 1:
		return []string{"--ioengine=psync", "--direct=1", "--filename=" + s.path}
	default:
		return []string{"--ioengine=io_uring", "--direct=1", "--filename=" + s.path}
	}
}
