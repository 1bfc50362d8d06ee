package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// nbd holds the filter's NBD server against nbdkit on a file, both of which leave in the page cache what they have answered; fio is the guest of
// all. Beside that a filter that writes past it is held against qemu-nbd, which does so too, and against the disk itself: no server can be faster that writes so.
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
	if b.cached == nil {
		if err := b.openCached(); err != nil {
			return err
		}
	}
	disk := &server{path: filepath.Join(b.Dir, nbdkitDisk)}
	for i := range b.Pairs {
		var ours, peer, past, direct, most float64
		var note string
		foreign, err := b.Pair(i,
			func() (foreign float64, err error) {
				if ours, foreign, err = b.fio(b.cached, depth); err == nil {
					note, err = b.keeps(b.cachedLab)
				}
				return foreign, err
			},
			func() (foreign float64, err error) { peer, foreign, err = b.fio(b.nbdkit, depth); return foreign, err },
			func() (foreign float64, err error) { past, foreign, err = b.fio(b.on, depth); return foreign, err },
			func() (foreign float64, err error) {
				direct, foreign, err = b.fio(b.qemuNBD, depth)
				return foreign, err
			},
			func() (foreign float64, err error) { most, foreign, err = b.fio(disk, depth); return foreign, err })
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: row, Value: ours / peer, Ours: ours, Peer: peer, OursUnit: "IOPS", Foreign: foreign,
			Note: note + "; both write into the page cache (ours: cache: writeback), and sync at the end of their time"})
		b.Sample(bars.Sample{Row: row + "-qemu", Value: past / direct, Ours: past, Peer: direct, OursUnit: "IOPS", Foreign: foreign,
			Note: fmt.Sprintf("both past the page cache (ours: cache: none); the disk itself, so and with no server before it: %.0f IOPS", most)})
	}
	return nil
}

// openCached starts a lab whose filter writes into the page cache.
func (b *bench) openCached() error {
	store := filepath.Join(b.run, "cached-store")
	if err := os.Mkdir(store, 0o700); err != nil {
		return err
	}
	lab, end, err := b.ownLab("cached", nil, "--size", fmt.Sprint(b.size), "--target-store", store, "--cache", config.CacheWriteback)
	if err != nil {
		return err
	}
	b.stop = append(b.stop, end)
	b.cachedLab, b.cached = lab, &server{vhost: lab.Volumes[0].VhostUser, nbd: lab.Volumes[0].NBD}
	if b.cached.pid, err = lab.PID(b.Context, "vra-filter"); err != nil {
		return err
	}
	g, err := guest.New(guest.Options{Slots: 1, SlotBytes: layTurn})
	if err != nil {
		return err
	}
	defer g.Close()
	if err := g.Connect(b.cached.vhost); err != nil {
		return err
	}
	for at := int64(0); at < b.size; at += layTurn {
		if err := g.Write(0, b.data[at%int64(len(b.data)):][:min(layTurn, b.size-at)], at); err != nil {
			return err
		}
	}
	if err := g.Flush(0); err != nil {
		return err
	}
	return bars.DropCaches()
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
