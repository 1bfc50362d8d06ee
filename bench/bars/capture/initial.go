package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
)

// initialRun is how long data and holes are that take turns in the disk that is synced.
const initialRun = 64 << 20

// initialSide copies the whole disk at name to the second site, synced, and says how long that took and how many cores others used.
type initialSide func(name string) (took time.Duration, foreign float64, err error)

// initial has our first sync race each of the wanted peers. The disk lies in memory, and what is made of it on the
// run's disk.
func (b *bench) initial() (err error) {
	if err := b.open(); err != nil {
		return err
	}
	name := filepath.Join(b.run, "initial.raw")
	if err := b.makeInitial(name); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(name)) }()
	peers := []struct {
		row string
		do  initialSide
	}{{"sync-convert", b.convert}, {"sync-nbdcopy", b.nbdcopy}, {"sync-lz4", b.pipe}}
	for i := range b.Pairs {
		took := map[string]time.Duration{}
		side := func(row string, do initialSide) bars.Side {
			return func() (foreign float64, err error) {
				took[row], foreign, err = do(name)
				if err != nil {
					err = fmt.Errorf("%s: %w", row, err)
				}
				return foreign, err
			}
		}
		sides := []bars.Side{side("", b.firstSync)}
		for _, p := range peers {
			if b.Wanted(p.row) {
				sides = append(sides, side(p.row, p.do))
			}
		}
		foreign, err := b.Pair(i, sides...)
		if err != nil {
			return err
		}
		for _, p := range peers {
			if t, ok := took[p.row]; ok {
				b.Sample(bars.Sample{Row: p.row, Value: t.Seconds() / took[""].Seconds(), Ours: took[""].Seconds(), Peer: t.Seconds(), OursUnit: "s", Foreign: foreign, Note: b.firstParts})
			}
		}
	}
	return nil
}

// makeInitial makes the disk.
func (b *bench) makeInitial(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for at := int64(0); at < b.initialBytes; at += 2 * initialRun {
		for in := int64(0); in < min(initialRun, b.initialBytes-at); in += int64(len(b.data)) {
			if _, err := f.WriteAt(b.data[:min(int64(len(b.data)), b.initialBytes-at-in)], at+in); err != nil {
				return err
			}
		}
	}
	return f.Truncate(b.initialBytes)
}

// firstSync is ours: a lab whose disk is a copy of the one in memory. The clock runs from when that copy stands, before the lab's
// processes are started, until the group has its first checkpoint; that is compared. The sites dial each other: a relay between them would take
// the processors that the peers, who have none, keep for themselves.
func (b *bench) firstSync(name string) (took time.Duration, foreign float64, err error) {
	store, err := b.Fresh("initial-store")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(store)
	dir := filepath.Join(b.run, "initial")
	began := make(chan bars.Moment, 1)
	ctx, stop := context.WithCancel(b.Context)
	defer stop()
	go func() { // the copy stands once there are folders of the sites
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, "logs")); err == nil {
				began <- bars.Look()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	lab, err := drive.Up(b.Context, b.binaries, dir, nil, "--image", name, "--overcommit", "--link", "direct", "--interval", "1s", "--target-store", store)
	defer func() { err = errors.Join(err, lab.Down()) }()
	if err != nil {
		return 0, 0, err
	}
	from := <-began
	took = time.Since(from.At)
	cpu, parts, err := b.partsOf(lab)
	if err != nil {
		return 0, 0, err
	}
	b.firstParts = fmt.Sprintf("CPU of all of ours %.1f s: %s", cpu, parts)
	return took, from.Foreign(cpu), b.arrived(lab, name)
}

// arrived holds a checkpoint made now of a lab whose guest rests against the file that its first volume should be.
func (b *bench) arrived(lab *drive.Lab, name string) error {
	c, err := lab.Checkpoint(b.Context, "compared")
	if err != nil {
		return err
	}
	v, err := lab.Open(b.Context, c.ID)
	if err != nil {
		return err
	}
	return errors.Join(b.compare(name, v.Volumes[0].NBD), lab.Close(b.Context, v))
}

// partsOf is what the processes of a lab have used of the processors so far, in seconds, and each for people; its supervisor
// is the link.
func (b *bench) partsOf(lab *drive.Lab) (cpu float64, parts string, err error) {
	m, err := lab.Machinery(b.Context)
	if err != nil {
		return 0, "", err
	}
	pids := map[string]int{link: m.Supervisor}
	for _, p := range m.Processes {
		pids[p.Name] = p.PID
	}
	var said []string
	for _, name := range slices.Sorted(maps.Keys(pids)) {
		used, err := bars.CPUOfProcess(pids[name])
		if err != nil {
			return 0, "", err
		}
		cpu += used
		said = append(said, fmt.Sprintf("%s %.1f", name, used))
	}
	return cpu, strings.Join(said, ", "), nil
}

// compare says whether a disk that is served holds what the file does.
func (b *bench) compare(name, served string) error {
	out, err := exec.CommandContext(b.Context, "qemu-img", "compare", "-f", "raw", "-F", "raw", name, served).CombinedOutput()
	if err != nil {
		return fmt.Errorf("compare: %w: %s", err, out)
	}
	return nil
}

// toNBD is a side that a command copies by, to a qemu-nbd on the run's disk; it is timed from the command's start until
// the server's file is synced.
func (b *bench) toNBD(name string, args func(target string) []string) (took time.Duration, foreign float64, err error) {
	dir, err := b.Fresh("initial-nbd")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "disk")
	to, err := os.Create(file)
	if err != nil {
		return 0, 0, err
	}
	defer to.Close()
	if err := to.Truncate(b.initialBytes); err != nil {
		return 0, 0, err
	}
	s, err := b.serveNBD(file, b.initialCache)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	line := args(s.nbd)
	cmd := exec.CommandContext(b.Context, line[0], line[1:]...)
	before, began := s.cpu(), bars.Look()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", line[0], err, out)
	}
	if err := to.Sync(); err != nil {
		return 0, 0, err
	}
	took = time.Since(began.At)
	foreign = began.Foreign(bars.CPUOf(cmd) + used(before, s.cpu()))
	return took, foreign, b.compare(name, file)
}

// convert is qemu-img, which writes what it has read as it comes, and leaves zeros out.
func (b *bench) convert(name string) (time.Duration, float64, error) {
	return b.toNBD(name, func(target string) []string {
		return []string{"qemu-img", "convert", "-n", "--target-is-zero", "-W", "-m", "8", "-f", "raw", "-O", "raw", name, target}
	})
}

// nbdcopy is libnbd's, which reads the file itself.
func (b *bench) nbdcopy(name string) (time.Duration, float64, error) {
	return b.toNBD(name, func(target string) []string {
		return []string{"nbdcopy", "--flush", "--destination-is-zero", "--connections=4", "--requests=64", name, target}
	})
}

// pipe is lz4 through socat.
func (b *bench) pipe(name string) (time.Duration, float64, error) {
	dir, err := b.Fresh("initial-pipe")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "disk")
	p, err := bars.PipeLZ4(b.Context, name, file)
	if err != nil {
		return 0, 0, err
	}
	return p.Took, p.Foreign, b.compare(name, file)
}
