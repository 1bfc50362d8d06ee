package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/datapath/capture/activity"
	"github.com/holdfast-dr/holdfast/datapath/capture/activity/regions"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// touchRows is how many rows of regions are touched in a pass; touchRow is what one is long: its regions enter the
// activity log together, so only one first write in it waits.
const (
	touchRows = 64
	touchRow  = regions.Kin * activity.RegionBytes
)

// ownLab is a lab for one measure, with its disks and stores in the run's folder; end takes it down.
func (b *bench) ownLab(name string, env []string, args ...string) (lab *drive.Lab, end func() error, err error) {
	if err := b.open(); err != nil {
		return nil, nil, err
	}
	lab, err = drive.Up(b.Context, b.binaries, filepath.Join(b.Dir, name), env, append([]string{"--overcommit", "--link", "none"}, args...)...)
	if err != nil {
		return nil, nil, errors.Join(err, lab.Down())
	}
	return lab, lab.Down, nil
}

// touches writes to regions that do not stand in the activity log, and again to each, in as many passes as there are
// pairs: before each the filter is closed clean, by which all regions leave the log.
func (b *bench) touches() (err error) {
	lab, end, err := b.ownLab("touch", nil, "--size", fmt.Sprint(touchRows*touchRow))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	socket := lab.Volumes[0].VhostUser
	if _, _, err := b.touch(socket); err != nil { // the disk has room there from now on
		return err
	}
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	for range b.Pairs {
		if err := lab.EmptyLog(b.Context); err != nil {
			return err
		}
		began := bars.Look()
		first, again, err := b.touch(socket)
		if err != nil {
			return err
		}
		synced, err := b.syncs()
		if err != nil {
			return err
		}
		added := median(first) - median(again)
		b.Sample(bars.Sample{Row: "first-touch", Value: us(added) / us(median(synced)), Ours: us(added), Peer: us(median(synced)), OursUnit: "us", Foreign: began.Foreign(0),
			Note: fmt.Sprintf("p50 of %d first writes %.0f us, of the next there %.0f us; the most added %.0f us, the longest sync %.0f us; the lab's processes count as others",
				touchRows, us(median(first)), us(median(again)), us(slices.Max(first)-median(again)), us(slices.Max(synced)))})
	}
	return nil
}

// touch writes 4 KiB to each row of regions, and 4 KiB beside them, one after the other, and says how long each took.
func (b *bench) touch(socket string) (first, again []time.Duration, err error) {
	g, err := guest.New(guest.Options{Slots: 1, SlotBytes: 4096})
	if err != nil {
		return nil, nil, err
	}
	defer g.Close()
	if _, err := g.Meet(b.Context, socket); err != nil {
		return nil, nil, err
	}
	for row := range int64(touchRows) {
		var took [2]time.Duration
		for i := range took {
			began := time.Now()
			if err := g.Write(0, b.data[row*4096:][:4096], row*touchRow+int64(i)*4096); err != nil {
				return nil, nil, err
			}
			took[i] = time.Since(began)
		}
		first, again = append(first, took[0]), append(again, took[1])
	}
	return first, again, nil
}

// syncs writes 4 KiB to places of a file that has them, beside the guest's disk, and says how long the sync of each took.
func (b *bench) syncs() (took []time.Duration, err error) {
	f, err := os.Create(filepath.Join(b.Dir, "synced"))
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	p := b.data[:touchRows*4096]
	for range 2 { // the second time they are there
		took = took[:0]
		for at := 0; at < len(p); at += 4096 {
			if _, err := f.WriteAt(p[at:][:4096], int64(at)); err != nil {
				return nil, err
			}
			began := time.Now()
			if err := f.Sync(); err != nil {
				return nil, err
			}
			took = append(took, time.Since(began))
		}
	}
	return took, nil
}

func median(all []time.Duration) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}
