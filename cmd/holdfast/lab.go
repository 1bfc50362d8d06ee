package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/bench/scenario"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/spf13/cobra"
)

func (a *app) labCommand() *cobra.Command {
	return parent("lab", "Run two sites on this machine",
		`A lab is two sites as real processes on this machine: a filter that serves the
protected disks, a VRA that sends their writes, and a VRA that takes them
into its journal, joined by a link that can be slowed and cut. A supervisor starts
a daemon that dies again within a second. Nothing needs root, and several labs can
run side by side.`,
		a.labUp(), a.labStart(), a.labStatus(), a.labLink(), a.labSite(), a.labDown(), a.labSupervise())
}

// labUpResult is what lab up says; its JSON is kept for ever.
type labUpResult struct {
	Context string      `json:"context"`
	Group   string      `json:"group"`
	Volumes []labVolume `json:"volumes"`
}

type labVolume struct {
	Name      string  `json:"name"`
	Size      int64   `json:"size"`
	NBD       string  `json:"nbd"`
	VhostUser *string `json:"vhost_user"` // null in a lab of before there were any
}

func (a *app) labUp() *cobra.Command {
	var o scenario.Options
	var size, link, interval string
	cmd := &cobra.Command{
		Use:   "up --dir DIR",
		Short: "Start a lab and wait for its first checkpoint",
		Long: `Up makes a lab in DIR, which must be empty or not exist, starts it in the background,
and returns when the initial sync is complete and the first checkpoint is listed.
Attach to the disks and write: what you write is protected. A virtual machine that shares
its memory uses the vhost-user socket (vhost-user-blk), which is faster; others, and tools, NBD.

With --image it protects copies of existing raw disks, named by their file names,
and makes no empty ones unless --volumes asks for them. Names are
[a-z0-9][a-z0-9._-]{0,62}.

If it fails or is interrupted, nothing stays behind.`,
		Example: `  holdfast lab up --dir /tmp/lab --volumes 2 --size 1GiB --link 50Mbit
  holdfast lab up --dir /tmp/lab --image web.raw --image db.raw -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cmd.Flags().Changed("volumes") && o.Volumes < 1 {
				return usagef("--volumes %d: want at least 1", o.Volumes)
			}
			if o.Size, err = config.ParseSize(size); err != nil {
				return usagef("--size: %w", err)
			}
			if o.Size == 0 {
				return usagef("--size: a disk of no bytes")
			}
			if o.Direct = link == "direct"; !o.Direct {
				if o.Link, err = config.ParseRate(link); err != nil {
					return usagef("--link: %w, or direct", err)
				}
			}
			if o.Interval, err = config.ParseDuration(interval); err != nil {
				return usagef("--interval: %w", err)
			}
			if o.Interval == 0 {
				return usagef("--interval: want more than zero")
			}
			return a.bringUp(cmd.Context(), scenario.Up, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", "", "`DIR` of the lab: empty, or absent and then made")
	f.Var(countFlag{&o.Volumes}, "volumes", "`N` empty disks, named vol1 and on (default 1, with --image 0)")
	f.StringVar(&size, "size", scenario.DefaultSize.String(), "`SIZE` of each empty disk")
	f.StringVar(&link, "link", "none", "`RATE` of the link between the sites, none, or direct (they dial each other, and there is no link to slow or cut)")
	f.StringVar(&interval, "interval", config.DefaultInterval.String(), "`DURATION` between checkpoints, 1s to 1m")
	f.StringVar(&o.Compression, "compression", "auto", "auto (LZ4, and raw where the link is faster than compressing), lz4 or none")
	f.StringVar(&o.Cache, "cache", config.CacheNone, "of the disks: none, or writeback, where a write is answered that stands in the page cache")
	f.StringArrayVar(&o.Images, "image", nil, "raw disk `FILE` to protect a copy of; may be repeated")
	f.StringVar(&o.TargetStore, "target-store", "", "empty `DIR` for the store of the target, as on another disk; stays when the lab is deleted")
	f.BoolVar(&o.Overcommit, "overcommit", false, "do not ask that full disks would fit")
	cmd.MarkFlagDirname("dir")
	cmd.MarkFlagDirname("target-store")
	return cmd
}

// bringUp makes or starts a lab and tells of it.
func (a *app) bringUp(ctx context.Context, up func(context.Context, scenario.Options, func(scenario.Progress)) (*scenario.Lab, error), o scenario.Options) (err error) {
	if o.Binaries, err = scenario.Beside(); err != nil {
		return err
	}
	m := newMeter(a.stderr)
	lab, err := up(ctx, o, func(p scenario.Progress) { m.show(p.Stage, p.Done, p.Total) })
	m.done()
	if err != nil {
		return err
	}
	result := newLabUpResult(lab)
	rows := diskRows(lab.Volumes())
	if a.output == "table" {
		fmt.Fprintf(a.stderr, "The lab runs. Next: export %s=%s; %s\n", contextVariable, scenario.Quote(result.Context), scenario.Command("status"))
	}
	return a.print(result, "VOLUME "+diskHead, rows)
}

const diskHead = "SIZE NBD VHOST-USER"

func diskRows(volumes []scenario.Volume) [][]string {
	rows := make([][]string, len(volumes))
	for i, v := range volumes {
		rows[i] = []string{v.Name, config.Size(v.Size).Text(), v.NBD, cmp.Or(v.VhostUser, "-")}
	}
	return rows
}

func newLabUpResult(lab *scenario.Lab) labUpResult {
	r := labUpResult{Context: lab.Context(), Group: lab.Group(), Volumes: []labVolume{}}
	for _, v := range lab.Volumes() {
		volume := labVolume{Name: v.Name, Size: v.Size, NBD: v.NBD}
		if v.VhostUser != "" {
			volume.VhostUser = &v.VhostUser
		}
		r.Volumes = append(r.Volumes, volume)
	}
	return r
}

func (a *app) labStart() *cobra.Command {
	var dir string
	return dirFlag(&cobra.Command{
		Use:   "start",
		Short: "Start a lab that has ended",
		Long: `Start starts a lab that was ended with lab down, or by a reboot: with its own disks,
journal, link and names. It returns as lab up does, when the group is protected and a
new checkpoint is listed. The disks are synced whole, since they may have been written
to meanwhile; older checkpoints stay.

If it fails or is interrupted, the lab is ended again and nothing of it is lost.`,
		Example: "  holdfast lab start --dir /tmp/lab",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := a.openLab(dir)
			if err != nil {
				return err
			}
			return a.bringUp(cmd.Context(), scenario.Start, scenario.Options{Dir: lab.Dir()})
		},
	}, &dir)
}

// openLab finds the lab that --dir or the context names.
func (a *app) openLab(dir string) (*scenario.Lab, error) {
	if dir == "" {
		c, err := a.context()
		if err != nil {
			return nil, err
		}
		if c.Lab == "" {
			return nil, usagef("the context is that of no lab: give --dir DIR")
		}
		dir = c.Lab
	}
	return scenario.Open(dir)
}

func dirFlag(cmd *cobra.Command, dir *string) *cobra.Command {
	cmd.Flags().StringVar(dir, "dir", "", "`DIR` of the lab; by default the context's")
	cmd.MarkFlagDirname("dir")
	return cmd
}

func (a *app) labStatus() *cobra.Command {
	var dir string
	return dirFlag(&cobra.Command{
		Use:   "status",
		Short: "Say how the lab's processes and its link are",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := a.openLab(dir)
			if err != nil {
				return err
			}
			st, err := lab.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.print(st, "", nil)
			}
			if st.Supervisor == 0 {
				fmt.Fprintf(a.stderr, "The lab does not run. Start it with: %s\nRemove it with: %s\n",
					scenario.Command("lab", "start", "--dir", lab.Dir()), scenario.Command("lab", "down", "--purge", "--dir", lab.Dir()))
			}
			disks := diskRows(st.Volumes)
			if err := a.print(nil, "PART STATE PID RESTARTS NOTE", partRows(st)); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout)
			return a.print(nil, "DISK "+diskHead, disks)
		},
	}, &dir)
}

// partRows are the link and the daemons; a daemon that died says when and why.
func partRows(st *scenario.Status) [][]string {
	rows := [][]string{{"link", upDown(st.Link.Up), "-", "-", "rate " + st.Link.Rate}}
	for _, d := range st.Processes {
		note := d.Deaths()
		if d.SiteDown {
			note = "its site is down"
		}
		rows = append(rows, []string{d.Name, upDown(d.PID != 0), numberOrHyphen(d.PID), strconv.Itoa(d.Restarts), orHyphen(textOrNull(note))})
	}
	return rows
}

func numberOrHyphen(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func (a *app) labLink() *cobra.Command {
	var dir string
	cmd := dirFlag(&cobra.Command{
		Use:   "link RATE|down|up",
		Short: "Slow, cut or mend the link between the sites",
		Long: `Link limits the link to RATE in each direction (none: no limit), cuts it (down: all
connections are reset and new ones refused), or mends it (up). A rate given while
the link is down holds once it is up.`,
		Example:           "  holdfast lab link 10Mbit\n  holdfast lab link down\n  holdfast lab link up",
		Args:              oneArg("of RATE, down, up"),
		ValidArgsFunction: firstArg("up", "down", "none", "50Mbit"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var rate config.Rate
			if args[0] != "up" && args[0] != "down" {
				var err error
				if rate, err = config.ParseRate(args[0]); err != nil {
					return usagef("%w; or down, or up", err)
				}
				if rate != 0 && rate < scenario.MinLink {
					return usagef("rate %s is less than %s; none is no limit", rate, scenario.MinLink)
				}
			}
			lab, err := a.openLab(dir)
			if err != nil {
				return err
			}
			st, err := setLink(cmd.Context(), lab, args[0], rate)
			if err != nil {
				return err
			}
			return a.print(st.Link, "LINK RATE", [][]string{{upDown(st.Link.Up), st.Link.Rate}})
		},
	}, &dir)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if m := shorthandDigit.FindStringSubmatch(err.Error()); m != nil {
			_, err := config.ParseRate(m[1])
			return usagef("%w; or down, or up", err)
		}
		return flagError(err)
	})
	return cmd
}

// siteArgs wants a site, and what becomes of it.
func siteArgs(_ *cobra.Command, args []string) error {
	if len(args) != 2 || args[0] != scenario.SourceSite && args[0] != scenario.TargetSite || args[1] != "down" && args[1] != "up" {
		return usagef("want a site, %s or %s, and down or up", scenario.SourceSite, scenario.TargetSite)
	}
	return nil
}

func (a *app) labSite() *cobra.Command {
	var dir string
	return dirFlag(&cobra.Command{
		Use:   "site production|recovery down|up",
		Short: "Take a site down whole, or bring it up again",
		Long: `Site kills all daemons of a site at once, as a power cut does, and keeps them away (down), or has
them started again (up). What runs there beside them, as a guest, is for you to end.`,
		Example: "  holdfast lab site production down\n  holdfast failover live --machines machines.yaml --override-reason \"the site is gone\"",
		Args:    siteArgs,

		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			words := [][]string{{scenario.SourceSite, scenario.TargetSite}, {"down", "up"}}
			if len(args) >= len(words) {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return words[len(args)], cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := a.openLab(dir)
			if err != nil {
				return err
			}
			st, err := lab.SetSite(cmd.Context(), args[0], args[1] == "up")
			if err != nil {
				return err
			}
			return a.print(st.Processes, "PART STATE PID RESTARTS NOTE", partRows(st))
		},
	}, &dir)
}

// shorthandDigit is what becomes of a rate with a minus before it.
var shorthandDigit = regexp.MustCompile(`^unknown shorthand flag: '[0-9.]' in (-[0-9.].*)$`)

func setLink(ctx context.Context, lab *scenario.Lab, word string, rate config.Rate) (*scenario.Status, error) {
	switch word {
	case "up":
		return lab.SetLinkUp(ctx, true)
	case "down":
		return lab.SetLinkUp(ctx, false)
	}
	return lab.SetRate(ctx, rate)
}

func (a *app) labDown() *cobra.Command {
	var dir string
	var purge bool
	cmd := dirFlag(&cobra.Command{
		Use:   "down",
		Short: "End a lab",
		Long: `Down ends the lab's processes, also when its supervisor is gone, and the machines
that failover started there, as a power cut would. Disks, journal and
logs stay in the lab's folder, and lab start starts it again; with --purge they are
deleted: exactly what the lab made, and nothing that others put beside it.`,
		Example: "  holdfast lab down --purge\n  holdfast lab down --dir /tmp/lab",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := a.openLab(dir)
			if err != nil {
				return err
			}
			if err := failover.EndMachines(cmd.Context(), lab.Jobs(), kvm.Open, purge); err != nil {
				return err
			}
			stays, err := lab.Down(cmd.Context(), purge)
			for _, path := range stays {
				fmt.Fprintf(a.stderr, "%s stays: the lab did not make what it holds: %s\n", path, someOf(path))
			}
			if err != nil {
				return err
			}
			if !purge && a.output == "table" {
				fmt.Fprintf(a.stderr, "The lab has ended. Start it again with: %s\n", scenario.Command("lab", "start", "--dir", lab.Dir()))
			}
			return a.print(map[string]any{"stays": append([]string{}, stays...)}, "", nil)
		},
	}, &dir)
	cmd.Flags().BoolVar(&purge, "purge", false, "delete what the lab made")
	return cmd
}

// someOf names what is in a folder, at most a few of it.
func someOf(path string) string {
	const few = 5
	entries, err := os.ReadDir(path)
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, e := range entries[:min(few, len(entries))] {
		names = append(names, e.Name())
	}
	text := strings.Join(names, ", ")
	if more := len(entries) - few; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// labSupervise is what lab up starts in the background; users never call it.
func (a *app) labSupervise() *cobra.Command {
	var dir string
	return dirFlag(&cobra.Command{
		Use:    "supervise",
		Short:  "Run the daemons of a lab until told to stop",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !filepath.IsAbs(dir) {
				return usagef("--dir: want an absolute path")
			}
			return scenario.Supervise(cmd.Context(), dir, slog.New(slog.NewTextHandler(a.stderr, nil)))
		},
	}, &dir)
}
