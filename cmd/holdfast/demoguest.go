package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/bench/guest"
	"github.com/holdfast-dr/holdfast/bench/scenario"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/spf13/cobra"
)

// The guest of the demo.
const (
	guestName     = "guest"
	guestDisk     = 256 << 20 // bytes
	guestMemory   = 192 << 20
	guestFiles    = 20
	guestInterval = config.Duration(2 * time.Second)
	guestSpace    = 2 << 30
	guestTime     = 5 * time.Minute // all of it, at most
)

func (a *app) demoGuestCommand() *cobra.Command {
	var dir, kernel string
	var keep bool
	cmd := &cobra.Command{
		Use:   "guest --kernel DIR",
		Short: "Show a real guest come back after its whole site has died",
		Long: `Guest boots a small Linux under QEMU from a disk that a lab of two sites protects. It writes
files and says which are safe on its disk. Then all of its site is killed at once: the guest
itself, its filter, the vra that sends. The group is brought up at the second site, at the newest
checkpoint; the guest boots there, reads each file and compares it with what it must be.

It needs QEMU, busybox and mke2fs, and a kernel for virtual machines with its modules, unpacked:
tools/setup/kernel.sh DIR fetches Debian's, and prints the folder that --kernel wants. It ends within
five minutes, and cleans up after itself, also after Ctrl-C; with --keep the guest runs on.`,
		Example: "  holdfast demo guest --kernel \"$(tools/setup/kernel.sh ~/.cache/holdfast/guest-kernel)\"",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kernel == "" {
				return usagef("--kernel is missing: name a folder with boot/vmlinuz-* and lib/modules, as tools/setup/kernel.sh makes it")
			}
			return a.demoGuest(cmd.Context(), dir, kernel, keep)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` for lab and guest (default a new one for temporary files)")
	cmd.Flags().StringVar(&kernel, "kernel", "", "`DIR` of an unpacked kernel")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the lab and the guest at the second site running")
	cmd.MarkFlagDirname("dir")
	cmd.MarkFlagDirname("kernel")
	return cmd
}

// comeBack is what the demo of a guest found.
type comeBack struct {
	Checkpoint string  `json:"checkpoint"`
	Time       *string `json:"time"`
	Age        float64 `json:"age_seconds"`   // of the checkpoint when the site died
	Ready      float64 `json:"ready_seconds"` // from the command until the guest was up and had read its files
	Files      int     `json:"files"`         // that it knew to be safe
	Bad        int     `json:"bad"`           // of those, that are not what they were
}

// guestDemo is a guest on its way.
type guestDemo struct {
	*app
	kit    *guest.Kit
	lab    *scenario.Lab
	source *kvm.Local // where the guest runs before its site dies
	act    int
}

// say tells what comes next.
func (d *guestDemo) say(format string, args ...any) {
	d.act++
	fmt.Fprintf(d.stderr, "%d. %s\n", d.act, fmt.Sprintf(format, args...))
}

func (a *app) demoGuest(ctx context.Context, dir, kernel string, keep bool) (err error) {
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "holdfast-demo-guest-"+fmt.Sprint(os.Getpid()))
	}
	if err := errors.Join(scenario.CheckDir(dir), scenario.CheckFree(dir, guestSpace)); err != nil {
		return err
	}
	made := os.Mkdir(dir, 0o700) == nil
	asked := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, guestTime, fmt.Errorf("the demo did not come to its end within %s", config.Duration(guestTime)))
	defer cancel()
	d := &guestDemo{app: a}
	wrong := false
	defer func() {
		switch {
		case err != nil && asked.Err() != nil:
			err = asked.Err()
		case err != nil && ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		if keep && err == nil || wrong {
			return
		}
		err = errors.Join(err, d.end(context.WithoutCancel(asked), dir, made))
	}()
	result, err := d.run(ctx, dir, kernel)
	if err != nil {
		if _, wrong = errors.AsType[mismatch](err); wrong {
			err = fmt.Errorf("%w\nThe lab in %s was left as it is, for a look", err, dir)
		}
		return err
	}
	if err := a.print(result, "CHECKPOINT TIME AGE READY FILES BAD", [][]string{{result.Checkpoint, shortTime(result.Time), secondsOrHyphen(&result.Age),
		secondsOrHyphen(&result.Ready), fmt.Sprint(result.Files), fmt.Sprint(result.Bad)}}); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "The guest is back: all %d files that it knew to be safe are as it wrote them.\n", result.Files)
	if keep {
		fmt.Fprintf(a.stderr, "\nIt runs on at the second site. See what is there, and end it:\n\n  export %s=%s\n  %s\n  %s\n  %s\n", contextVariable, scenario.Quote(d.lab.Context()),
			scenario.Command("failover", "report", "r1"), scenario.Command("status"), scenario.Command("lab", "down", "--purge"))
	}
	return nil
}

// end ends all that was begun.
func (d *guestDemo) end(ctx context.Context, dir string, made bool) error {
	fmt.Fprintln(d.stderr, "Stopping.")
	var errs []error
	if d.source != nil {
		errs = append(errs, d.source.Stop(ctx, guestName, hypervisor.ByForce))
	}
	if d.lab != nil {
		errs = append(errs, failover.EndMachines(ctx, d.lab.Jobs(), kvm.Open, true))
		_, err := d.lab.Down(ctx, true)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, name := range []string{"kit", "source", "disk"} {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	if made {
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}

// run goes from a guest that is made to one that has come back.
func (d *guestDemo) run(ctx context.Context, dir, kernel string) (*comeBack, error) {
	d.say("A guest is made: a small Linux on a disk of %s.", config.Size(guestDisk).Text())
	kit := filepath.Join(dir, "kit")
	err := os.Mkdir(kit, 0o700)
	if err == nil {
		d.kit, err = guest.New(kit, kernel)
	}
	image := filepath.Join(dir, "disk")
	if err == nil {
		err = d.kit.MakeDisk(image, guestDisk)
	}
	if err != nil {
		return nil, err
	}

	d.say("Two sites on this machine, joined by a link of %s. The disk is protected.", demoLink)
	o := scenario.Options{Dir: filepath.Join(dir, "lab"), Images: []string{image}, Link: demoLink, Interval: guestInterval, Overcommit: true}
	if o.Binaries, err = scenario.Beside(); err != nil {
		return nil, err
	}
	m := newMeter(d.stderr)
	d.lab, err = scenario.Up(ctx, o, func(p scenario.Progress) { m.show("   "+p.Stage, p.Done, p.Total) })
	m.done()
	if err != nil {
		return nil, err
	}
	if err := os.Remove(image); err != nil { // the lab has its own
		return nil, err
	}
	d.contextFile = d.lab.Context()

	d.say("The guest boots at the first site, and writes %d files.", guestFiles)
	if d.source, err = kvm.NewLocal(filepath.Join(dir, "source"), kvm.DefaultQEMU); err != nil {
		return nil, err
	}
	volume := d.lab.Volumes()[0]
	machine := hypervisor.Machine{Name: guestName, MemoryBytes: guestMemory, CPUs: 1, Firmware: hypervisor.BIOS, Kernel: d.kit.Kernel, Initrd: d.kit.Initrd,
		Cmdline: guest.Cmdline(guest.Write, guestFiles, "pause=0.2"), Disks: []hypervisor.Disk{{Volume: volume.Name, NBD: volume.NBD}}}
	if err := errors.Join(d.source.Define(ctx, machine), d.source.Start(ctx, guestName)); err != nil {
		return nil, err
	}
	if err := d.hear(ctx, fmt.Sprintf("SAFE %d", guestFiles-1)); err != nil {
		return nil, err
	}
	last, err := d.protected(ctx, time.Now())
	if err != nil {
		return nil, err
	}

	d.say("The site dies: the guest, its filter, its vra, all killed at once, while it writes.")
	died := time.Now()
	_, err = d.lab.SetSite(ctx, scenario.SourceSite, false)
	if err = errors.Join(err, d.source.Stop(ctx, guestName, hypervisor.ByForce)); err != nil {
		return nil, err
	}
	d.say("Failover, at the newest checkpoint.")
	return d.failOver(ctx, filepath.Join(dir, "kit", "machines.yaml"), volume.Name, died, last)
}

// hear shows what the guest says, until it says a text.
func (d *guestDemo) hear(ctx context.Context, want string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	m := newMeter(d.stderr)
	defer m.done()
	var said string
	for {
		p, err := d.source.Serial(ctx, guestName, int64(len(said)))
		if err != nil {
			return err
		}
		said += string(p)
		if whole := strings.LastIndexByte(said, '\n'); whole >= 0 {
			lines := strings.Split(strings.TrimSpace(said[:whole]), "\n")
			last := strings.TrimSpace(lines[len(lines)-1])
			m.show("   the guest says: "+printable(last), 0, 0)
			if last == want || strings.Contains(said, want+"\r\n") {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the guest did not say %q: %w", want, ctx.Err())
		}
	}
}

// protected waits for a checkpoint of after a moment.
func (d *guestDemo) protected(ctx context.Context, after time.Time) (*checkpoint, error) {
	target := api.DialUnix(d.lab.TargetSocket())
	defer target.Close()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		all, err := listCheckpoints(ctx, target, d.lab.Group())
		if err != nil {
			return nil, explain(api.RoleTarget, err)
		}
		if n := len(all); n > 0 && all[n-1].at.After(after) {
			fmt.Fprintf(d.stderr, "   Checkpoint %s of %s holds them, at the second site.\n", all[n-1].ID, shortTime(all[n-1].Time))
			return &all[n-1], nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("no checkpoint holds what the guest wrote: %w", ctx.Err())
		}
	}
}

// hasRead is what a guest says of its files.
var hasRead = regexp.MustCompile(`READ (\d+) BAD (\d+)`)

// failOver brings the guest up at the second site, and reads what it says of its files.
func (d *guestDemo) failOver(ctx context.Context, file, volume string, died time.Time, least *checkpoint) (*comeBack, error) {
	text, err := config.Marshal(&config.Machines{Machines: []config.Machine{{Name: guestName, Memory: guestMemory, Disks: []string{volume}, Kernel: d.kit.Kernel, Initrd: d.kit.Initrd,
		Cmdline: guest.Cmdline(guest.Stay, guestFiles, ""), Wait: config.Wait{Kind: config.WaitSerial, What: fmt.Sprintf("READ %d BAD ", guestFiles)}}}})
	if err == nil {
		err = kvm.WriteFile(file, text)
	}
	if err != nil {
		return nil, err
	}
	folder, c, client, err := d.jobsAndTarget()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	began := time.Now()
	p, err := d.plan(ctx, client, c, &jobFlags{at: api.Latest, machines: file, note: "demo"}, recovery.Live)
	if err != nil {
		return nil, err
	}
	p.Override, p.Then = "the site is dead: it is a demo", recovery.Rollback
	at, err := whichOf(ctx, client, d.lab.Group(), p.Checkpoint)
	if err != nil {
		return nil, err
	}
	j, err := failover.Create(folder, p, recovery.Entry{Time: time.Now(), Who: p.Who})
	if err != nil {
		return nil, err
	}
	defer j.Close()
	if _, err := d.carry(ctx, d.runner(client), j); err != nil {
		return nil, err
	}
	result := &comeBack{Checkpoint: at.ID, Time: at.Time, Age: died.Sub(at.at).Seconds(), Ready: time.Since(began).Seconds()}
	said, err := os.ReadFile(filepath.Join(j.MachinesDir(), guestName, "serial"))
	if err != nil {
		return nil, err
	}
	got := hasRead.FindSubmatch(said)
	if got == nil {
		return nil, mismatch{errors.New("the guest does not say how it found its files")}
	}
	result.Files, _ = strconv.Atoi(string(got[1]))
	result.Bad, _ = strconv.Atoi(string(got[2]))
	if result.Bad > 0 || result.Files != guestFiles {
		return nil, mismatch{fmt.Errorf("%d of %d files are NOT what they were at checkpoint %s, which should hold what %s does", result.Bad, result.Files, at.ID, least.ID)}
	}
	return result, nil
}

// whichOf is the checkpoint of an id.
func whichOf(ctx context.Context, client *api.Client, group, id string) (checkpoint, error) {
	all, err := listCheckpoints(ctx, client, group)
	if err != nil {
		return checkpoint{}, explain(api.RoleTarget, err)
	}
	for _, c := range all {
		if c.ID == id {
			return c, nil
		}
	}
	return checkpoint{}, fmt.Errorf("checkpoint %s is not listed", id)
}
