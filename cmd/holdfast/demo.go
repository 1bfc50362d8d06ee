package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/bench/scenario"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/spf13/cobra"
)

// The demo's lab and workload. The workload is db-like and shrinks to about half, so
// that it fills two thirds of the link.
const (
	demoVolumes  = 2
	demoSize     = config.Size(1 << 30)
	demoLink     = config.Rate(50e6)
	demoRate     = 8 << 20 // bytes a second of the guest
	demoWorkers  = 4
	demoSeed     = 1
	demoSpace    = 3 << 30 // what it may take on disk, in bytes, with some to spare
	demoInterval = config.DefaultInterval
)

var demoProfile = load.Profile{
	Name: "demo", Kind: load.DB, Min: 4 << 10, Max: 64 << 10, Align: 4 << 10, Zero: 1, Trim: 1, Flush: 2, BytesPerSecond: demoRate,
}

func (a *app) demoCommand() *cobra.Command {
	var dir string
	var keep bool
	d := config.Duration(time.Minute)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole path on this machine in about two minutes",
		Long: `Demo starts a lab with two disks of 1 GiB over a link of 50 Mbit/s, writes to both
disks like a database, and shows how replication goes. Then it opens the group at
an older checkpoint and at the latest, reads every byte of both, and compares it
with what the workload knows it wrote: each must be the state after a prefix of the
writes, in the order in which they were answered; the latest must hold them all.

It cleans up after itself; with --keep the lab stays for you to try things.

Demo guest shows a real guest come back after its site has died.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.D() < time.Second || d.D() > time.Hour {
				return usagef("--time %s is not between 1s and 1h", d)
			}
			return a.demo(cmd.Context(), dir, d.D(), keep)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` of the lab (default a new one for temporary files)")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the lab running")
	cmd.Flags().Var(durationFlag{&d}, "time", "`DURATION` to write")
	cmd.MarkFlagDirname("dir")
	cmd.AddCommand(a.demoGuestCommand())
	return cmd
}

// verdict is what the comparison of one checkpoint found.
type verdict struct {
	Checkpoint string  `json:"checkpoint"`
	Time       *string `json:"time"`
	Writes     int     `json:"writes"` // of the workload, that it holds
	Answered   int     `json:"answered"`
	Bytes      int64   `json:"bytes_compared"`
}

// demo brings the lab up, writes, compares, and takes it down.
func (a *app) demo(ctx context.Context, dir string, d time.Duration, keep bool) (err error) {
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "holdfast-demo-"+fmt.Sprint(os.Getpid()))
	}
	if err := errors.Join(scenario.CheckDir(dir), scenario.CheckFree(dir, demoSpace)); err != nil {
		return err
	}
	o := scenario.Options{Dir: dir, Volumes: demoVolumes, Size: demoSize, Link: demoLink, Interval: demoInterval, Overcommit: true}
	if o.Binaries, err = scenario.Beside(); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "Two sites on this machine, %d disks of %s in one group, a link of %s.\n", demoVolumes, demoSize.Text(), demoLink)
	m := newMeter(a.stderr)
	lab, err := scenario.Up(ctx, o, func(p scenario.Progress) { m.show(p.Stage, p.Done, p.Total) })
	m.done()
	if err != nil {
		return err
	}
	wrong := false
	defer func() {
		if (keep && ctx.Err() == nil) || wrong {
			return
		}
		fmt.Fprintln(a.stderr, "Stopping.")
		_, downErr := lab.Down(context.WithoutCancel(ctx), true)
		err = errors.Join(err, downErr)
	}()
	verdicts, err := a.writeAndCompare(ctx, lab, d)
	if err != nil {
		if _, wrong = errors.AsType[mismatch](err); wrong {
			err = fmt.Errorf("%w\nThe lab in %s was left as it is, for a look", err, dir)
		}
		return err
	}
	rows := make([][]string, len(verdicts))
	for i, v := range verdicts {
		rows[i] = []string{v.Checkpoint, shortTime(v.Time), fmt.Sprint(v.Writes), fmt.Sprint(v.Answered), bytesText(v.Bytes), "every byte as written"}
	}
	if err := a.print(verdicts, "CHECKPOINT TIME WRITES OF COMPARED RESULT", rows); err != nil {
		return err
	}
	fmt.Fprintln(a.stderr, "Both checkpoints are exactly what was written, byte for byte, in the order it was answered.")
	if keep {
		a.tryNext(lab)
	}
	return nil
}

// mismatch is a checkpoint that is not what was written.
type mismatch struct{ error }

func (m mismatch) Unwrap() error { return m.error }

// writeAndCompare runs the workload for d with the screen on, then looks at two checkpoints.
func (a *app) writeAndCompare(ctx context.Context, lab *scenario.Lab, d time.Duration) ([]verdict, error) {
	source, target := api.DialUnix(lab.SourceSocket()), api.DialUnix(lab.TargetSocket())
	defer source.Close()
	defer target.Close()
	history, corpus := &load.History{}, load.Corpus(demoProfile.Kind, demoSeed)
	s := &load.Stamper{Profile: demoProfile, Workers: demoWorkers, Seed: demoSeed, Corpus: corpus, History: history}
	for _, v := range lab.Volumes() {
		s.Volumes = append(s.Volumes, load.Volume{Size: v.Size, Dial: func(ctx context.Context) (load.Disk, error) {
			c, err := nbd.Dial(ctx, v.NBD)
			if err != nil {
				return nil, err
			}
			return c, nil
		}})
	}
	if err := a.writeFor(ctx, d, s, newScreen(a.stderr, source, target, lab.Group())); err != nil {
		return nil, err
	}
	fmt.Fprintf(a.stderr, "The workload stopped after %d operations. A last checkpoint, then every byte is compared.\n", history.Len())
	last, err := source.Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Group: lab.Group(), Tag: "demo-end", IdempotencyKey: api.NewKey()})
	if err != nil {
		return nil, explain(api.RoleSource, err)
	}
	all, err := listCheckpoints(ctx, target, lab.Group())
	if err != nil {
		return nil, explain(api.RoleTarget, err)
	}
	c := comparer{lab: lab, target: target, history: history, corpus: corpus, meter: newMeter(a.stderr)}
	older, err := c.compare(ctx, all[len(all)/2], false)
	if err != nil {
		return nil, err
	}
	latest, err := c.compare(ctx, newCheckpoint(last.GetCheckpoint()), true)
	if err != nil {
		return nil, err
	}
	return []verdict{older, latest}, nil
}

// writeFor runs the workload and the screen until d is over.
func (a *app) writeFor(ctx context.Context, d time.Duration, s *load.Stamper, scr *screen) error {
	write, stop := context.WithTimeout(ctx, d)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.Run(write) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer scr.done()
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		case <-tick.C:
			scr.show(ctx, d, s.Stats())
		}
	}
}

// comparer holds checkpoints against what the workload knows.
type comparer struct {
	lab     *scenario.Lab
	target  *api.Client
	history *load.History
	corpus  []byte
	meter   *meter
}

// compare opens the checkpoint and compares every byte of all volumes. With whole it
// must hold all writes.
func (c *comparer) compare(ctx context.Context, at checkpoint, whole bool) (v verdict, err error) {
	began := time.Now()
	res, err := c.target.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Group: c.lab.Group(), Checkpoint: at.ID, IdempotencyKey: api.NewKey()})
	if err != nil {
		return v, explain(api.RoleTarget, err)
	}
	fmt.Fprintf(c.meter.w, "Checkpoint %s of %s opened in %.2f s.\n", at.ID, orHyphen(at.Time), time.Since(began).Seconds())
	view := res.GetView()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
		defer cancel()
		_, closeErr := c.target.Views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: view.GetId(), IdempotencyKey: api.NewKey()})
		err = errors.Join(err, explain(api.RoleTarget, closeErr))
	}()
	volumes := c.lab.Volumes()
	images := make([]load.Image, len(volumes))
	tally := &tally{meter: c.meter, stage: "comparing checkpoint " + at.ID}
	for i, vol := range volumes {
		client, err := nbd.Dial(ctx, nbdOf(view, vol.Name))
		if err != nil {
			return v, err
		}
		defer client.Close()
		defer context.AfterFunc(ctx, func() { client.Close() })()
		if client.Size() != vol.Size {
			return v, mismatch{fmt.Errorf("checkpoint %s: %s has %d bytes, its disk has %d", at.ID, vol.Name, client.Size(), vol.Size)}
		}
		tally.total += vol.Size
		images[i] = load.Image{Reader: &counted{client, tally}, Size: vol.Size}
	}
	got, err := load.Check(c.history, c.corpus, images, whole)
	c.meter.done()
	if ctx.Err() != nil {
		return v, ctx.Err()
	}
	if err != nil {
		if _, answer := errors.AsType[*nbd.Error](err); answer || errors.Is(err, nbd.ErrClosed) {
			return v, fmt.Errorf("checkpoint %s cannot be read: %w", at.ID, err)
		}
		return v, mismatch{fmt.Errorf("checkpoint %s is NOT what was written: %w", at.ID, err)}
	}
	return verdict{Checkpoint: at.ID, Time: at.Time, Writes: got.Included, Answered: got.Answered, Bytes: got.Bytes}, nil
}

func nbdOf(v *holdfastv1.View, name string) string {
	for _, vol := range v.GetVolumes() {
		if vol.GetName() == name {
			return vol.GetNbd()
		}
	}
	return ""
}

// tally shows how much has been compared.
type tally struct {
	meter       *meter
	stage       string
	done, total int64
}

// counted is a reader that tells the tally.
type counted struct {
	*nbd.Client
	tally *tally
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Client.ReadAt(p, off)
	c.tally.done += int64(n)
	c.tally.meter.show(c.tally.stage, c.tally.done, c.tally.total)
	return n, err
}

// tryNext says what can be done with a lab that stays.
func (a *app) tryNext(lab *scenario.Lab) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nThe lab stays. Try:\n\n  export %s=%s\n", contextVariable, scenario.Quote(lab.Context()))
	line := func(args ...string) { fmt.Fprintf(&b, "  %s\n", scenario.Command(args...)) }
	line("status")
	line("lab", "status")
	line("checkpoint", "list")
	fmt.Fprintf(&b, "  qemu-io -f raw -c 'write -P 7 0 1M' %s\n", scenario.Quote(lab.Volumes()[0].NBD))
	line("checkpoint", "create", "--tag", "mine")
	line("view", "open", "--checkpoint", "mine")
	line("view", "list")
	line("view", "close", "ID")
	line("export", "--checkpoint", "mine", "--out", lab.Dir()+"-images")
	line("lab", "link", "down")
	line("lab", "link", "up")
	line("lab", "down", "--purge")
	io.WriteString(a.stderr, b.String())
}
