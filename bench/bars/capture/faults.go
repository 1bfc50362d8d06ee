package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// killed kills the VRA in the middle of a load, as often as there are pairs.
func (b *bench) killed() error {
	if err := b.open(); err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	l := guest.Load{Bytes: 4096, Depth: 32, Duration: b.length}
	for range b.Pairs {
		var well, hit wrote
		foreign, err := b.write(&well, b.on, l, nil)
		if err != nil {
			return err
		}
		// What a process has used that was killed is not known: others' use is only told of the first.
		if _, err = b.write(&hit, b.on, l, func() error {
			time.Sleep(b.length / 3)
			return b.lab.Kill(b.Context, "vra-source")
		}); err != nil {
			return err
		}
		if hit.Errors > 0 {
			return fmt.Errorf("the guest was answered %d errors", hit.Errors)
		}
		b.Sample(bars.Sample{Row: "vra-killed", Value: ms(hit.Gap), Ours: ms(hit.Gap), Peer: ms(well.Gap), OursUnit: "ms", Foreign: foreign, Note: hit.Note})
	}
	return nil
}

// hostCrash has the host of a lab of its own crash, as often as there are pairs.
func (b *bench) hostCrash() (err error) {
	if err := b.open(); err != nil {
		return err
	}
	boot := filepath.Join(b.run, "boot")
	env, err := drive.BootFile(boot)
	if err != nil {
		return err
	}
	lab, err := drive.Up(b.Context, b.binaries, filepath.Join(b.Dir, "crash"), []string{env}, "--size", "1GiB", "--overcommit", "--link", "none")
	if lab != nil {
		defer func() { err = errors.Join(err, lab.Down()) }()
	}
	if err != nil {
		return err
	}
	for range b.Pairs {
		if err := lab.Protected(b.Context); err != nil {
			return err
		}
		c, err := lab.CrashHost(b.Context, boot, 1000)
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "host-crash", Value: float64(c.Sent) / float64(c.Allowed()), Ours: float64(c.Sent) / (1 << 20), Peer: float64(c.Allowed()) / (1 << 20), OursUnit: "MiB",
			Note: fmt.Sprintf("%d MiB compared of 1024, %d KiB changed", c.Compared>>20, c.Changed>>10)})
	}
	return nil
}

// fault is something that is wrong with a lab for a while.
type fault struct {
	row        string
	begin, end func() error
}

// faultList are those that a guest of load l is measured under.
func (b *bench) faultList(l guest.Load) []fault {
	signal := func(name string, s syscall.Signal) func() error {
		return func() error { return syscall.Kill(b.parts[name], s) }
	}
	vra, away := filepath.Join(b.binaries, "vra"), filepath.Join(b.binaries, "vra.away")
	return []fault{
		{"p99-link", signal(link, syscall.SIGSTOP), signal(link, syscall.SIGCONT)}, // it carries what goes from site to site
		{"p99-dead", func() error { // and is not started again
			return errors.Join(os.Rename(vra, away), signal("vra-target", syscall.SIGKILL)())
		}, func() error { return os.Rename(away, vra) }},
		{"p99-stopped", signal("vra-source", syscall.SIGSTOP), signal("vra-source", syscall.SIGCONT)},
		{"p99-spill", func() error {
			if err := b.spills(); err != nil {
				return err
			}
			err := errors.Join(signal(link, syscall.SIGSTOP)(), b.fillSpill(l))
			if err != nil { // a lab whose link stands does not end
				err = errors.Join(err, signal(link, syscall.SIGCONT)())
			}
			return err
		}, signal(link, syscall.SIGCONT)},
	}
}

// faulty measures a guest that asks for half of what it could have, under each fault and with all well beside it, in turn the one and the
// other first: what the disk does by itself comes to both. The pairs of a fault take as long together as the bar says.
func (b *bench) faulty() error {
	if err := b.open(); err != nil {
		return err
	}
	l := guest.Load{Bytes: 4096, Depth: 8, Duration: b.length}
	var most wrote
	if _, err := b.write(&most, b.on, l, nil); err != nil {
		return err
	}
	l.Rate, l.Duration = most.rate()/2, b.faults/time.Duration(b.Pairs)
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	failed := 0
	for i := range b.Pairs {
		for _, f := range b.faultList(l) {
			if !b.Wanted(f.row) && !b.Wanted("fault-errors") {
				continue
			}
			var well, hit wrote
			var foreign float64
			for turn := range 2 {
				var err error
				if i%2 == turn {
					_, err = b.write(&well, b.on, l, nil)
				} else {
					foreign, err = b.under(f, &hit, l)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", f.row, err)
				}
			}
			failed += well.Errors + hit.Errors
			b.Sample(bars.Sample{Row: f.row, Value: us(hit.P99) / us(well.P99), Ours: us(hit.P99), Peer: us(well.P99), OursUnit: "us", Foreign: foreign,
				Note: fmt.Sprintf("%v each at %.0f IOPS; longest stall %v, all well %v; all well: %s", l.Duration, l.Rate,
					hit.Gap.Round(time.Microsecond), well.Gap.Round(time.Microsecond), well.Note)})
		}
	}
	b.Sample(bars.Sample{Row: "fault-errors", Value: float64(failed)})
	return b.settled()
}

// under measures a guest under a fault.
func (b *bench) under(f fault, hit *wrote, l guest.Load) (foreign float64, err error) {
	if err := errors.Join(b.settled(), f.begin()); err != nil {
		return 0, err
	}
	foreign, err = b.drive(hit, b.on, l)
	return foreign, errors.Join(err, f.end())
}
