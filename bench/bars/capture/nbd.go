package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

// nbd holds the filter's NBD server against nbdkit on a file; fio is the guest of both.
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
	var note string
	return bars.Pairs(b.Run,
		func() (iops, foreign float64, err error) {
			iops, foreign, err = b.fio(b.on, depth)
			if err == nil {
				note, err = b.keeps()
			}
			return iops, foreign, err
		},
		func() (float64, float64, error) { return b.fio(b.nbdkit, depth) },
		func(ours, peer, foreign float64) {
			b.Sample(bars.Sample{Row: row, Value: ours / peer, Ours: ours, Peer: peer, OursUnit: "IOPS", Foreign: foreign, Note: note})
		})
}

// fio writes 4 KiB at random places and returns how many a second, the flush at its end included: what one side
// leaves in the page cache it has to write within its time.
func (b *bench) fio(s *server, depth int) (iops, foreign float64, err error) {
	if err := b.settled(); err != nil {
		return 0, 0, err
	}
	report := filepath.Join(b.run, "fio.json")
	_, foreign, err = during(s, func() (cpu float64, err error) {
		cmd := exec.CommandContext(b.Context, "fio", "--name=guest", "--ioengine=nbd", "--uri="+s.nbd, "--rw=randwrite", "--bs=4k", "--buffer_compress_percentage=55",
			fmt.Sprintf("--iodepth=%d", depth), fmt.Sprintf("--size=%d", b.size), "--time_based=1", fmt.Sprintf("--runtime=%dms", b.length.Milliseconds()), "--norandommap=1", "--end_fsync=1", "--output-format=json", "--output="+report)
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
