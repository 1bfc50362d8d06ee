package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/spf13/cobra"
)

// attachResult is what attach and detach say; its JSON is kept for ever.
type attachResult struct {
	Volume  string       `json:"volume"`
	Disk    string       `json:"disk"`   // the path that the filter serves
	Device  *string      `json:"device"` // of the guest; null without a guest
	Node    *string      `json:"node"`   // that the device is on then
	State   string       `json:"state"`  // attached or detached
	Changed bool         `json:"changed"`
	DryRun  bool         `json:"dry_run"`
	Mirror  bool         `json:"mirror"` // the guest keeps its own way to its disk
	Steps   []attachStep `json:"steps"`
}

type attachStep struct {
	What string       `json:"what"`
	QMP  *kvm.Command `json:"qmp"` // null for what is asked of the filter, or looked at
}

// attaching is what the flags of both commands say.
type attaching struct {
	qmp, device, volume string
	filters             []string
	dry, noGuest        bool

	discard   string
	reconnect config.Duration
	node      string

	mirror, forget bool
	serve          string
}

func (o *attaching) flags(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&o.qmp, "qmp", "", "`SOCK` of the guest's QEMU: a unix socket that speaks QMP")
	f.StringVar(&o.device, "device", "", "`DEVICE` of the guest: its id, its drive or its node; by default the one that fits")
	f.StringVar(&o.volume, "volume", "", "`NAME` of the volume; by default the one that fits")
	f.StringArrayVar(&o.filters, "filter", nil, "`FILE` of a vra-filter of this host; by default those of the context; may be repeated")
	f.BoolVar(&o.dry, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&o.noGuest, "no-guest", false, "no guest runs: only tell the filter; wants --volume")
	cmd.MarkFlagFilename("qmp")
	cmd.MarkFlagFilename("filter", "yaml")
	return cmd
}

func (a *app) attachCommand() *cobra.Command {
	o := attaching{reconnect: config.Duration(time.Hour)}
	cmd := o.flags(&cobra.Command{
		Use:   "attach --qmp SOCK",
		Short: "Protect a disk of a guest that runs, without stopping it",
		Long: `Attach moves a disk of a running guest from its file or block device onto the filter
that serves the same one, over NBD. The guest does not notice: QEMU lets what is in flight
end, changes the way, and goes on. Then the volume is compared with what the target holds,
since nobody knows what was written before, and what differs is sent; checkpoints begin once
that is done: see holdfast status.

It needs QEMU 6.2 or later on this host, a monitor of it that nobody else holds (-qmp
unix:SOCK,server=on,wait=off; with libvirt one of its own, by qemu:commandline), a
raw disk, and a filter that runs and has that disk as a volume with an NBD socket, which
QEMU may open. Until a guest is attached its volume is not synced and its group lists no
checkpoints: a filter sees when another process has the disk open for writing, unless
that was started with locking=off.

The nodes that the guest had stay open in QEMU with all their options, for detach. While
a disk is attached, start no block job, snapshot or backup on these: they see nothing of
what the guest writes. When the guest is started anew it has its disk as it is
configured: attach it again, or configure the filter's socket.

With --mirror the guest keeps its own way to its disk, whatever its format: qcow2, with backing files
or without, and others. The volume is a mirror target then (mirror in the filter's file says how large), and QEMU
writes each write to its image and then to the filter before it answers the guest. The guest's disk
is read through an NBD export of QEMU's own, read-only, on a socket beside the monitor (--serve).
When the mirror is lost, because the filter died or QEMU was started anew, the guest goes on,
the group lists no checkpoints, and status says so: attach again. A dirty bitmap in QEMU, which a qcow2 image
keeps, tells what was written meanwhile: that is compared and what differs is sent. Do
not complete the job (block-job-complete): the filter has no disk to go on with.

Run twice, it changes nothing; after it was killed, it finishes. If a step fails, it goes
back. Should the filter die, the guest waits for it as long as --reconnect-delay says,
and what it wrote is repeated; after that its requests fail.`,
		Example: `  holdfast attach --qmp /run/web1.qmp --dry-run
  holdfast attach --qmp /run/web1.qmp --device vd0 --volume web1
  holdfast attach --qmp /run/web2.qmp --mirror
  holdfast attach --volume web1 --no-guest     # the guest is off, and is started from the filter's socket`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.discard != "ignore" && o.discard != "unmap" {
				return usagef("--discard %q: want ignore or unmap", o.discard)
			}
			if o.reconnect < config.Duration(time.Second) || o.reconnect > maxReconnect {
				return usagef("--reconnect-delay: want 1s to %s", maxReconnect)
			}
			return a.attach(cmd.Context(), &o, true)
		},
	})
	f := cmd.Flags()
	f.Var(durationFlag{&o.reconnect}, "reconnect-delay", "`DURATION` that the guest waits for a filter that is gone")
	f.StringVar(&o.discard, "discard", "ignore", "what the guest discards: ignore, or unmap as its disk does so (QEMU does not tell)")
	f.BoolVar(&o.mirror, "mirror", false, "the guest keeps its own way to its disk, and QEMU mirrors its writes to a volume that is a mirror target")
	f.StringVar(&o.serve, "serve", "", "with --mirror: `SOCK` at which QEMU lets the filter read the disk; by default the monitor's with .nbd behind")
	cmd.MarkFlagFilename("serve")
	return cmd
}

const maxReconnect = config.Duration(30 * 24 * time.Hour)

func (a *app) detachCommand() *cobra.Command {
	var o attaching
	cmd := o.flags(&cobra.Command{
		Use:   "detach --qmp SOCK",
		Short: "Give a running guest its disk back, past the filter",
		Long: `Detach moves a disk that was attached back onto the nodes that the guest had before, which
QEMU has kept with all their options. The guest does not notice. From then on its writes
go past the filter: older checkpoints stay, and there are no new ones of its group until it is
attached again, which compares the volume with what the target holds.

The filter must run: without it QEMU would wait, and fail what the guest has in flight. A guest
that is mirrored is detached by ending the mirror, with the filter or without; the bitmap stays in QEMU, so that
attaching again compares only what was written meanwhile. --forget removes it.`,
		Example: "  holdfast detach --qmp /run/web1.qmp\n  holdfast detach --volume web1 --no-guest     # a guest is about to be started on the disk itself",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.attach(cmd.Context(), &o, false) },
	})
	cmd.Flags().StringVar(&o.node, "node", "", "`NODE` to go back to, where that is not clear")
	cmd.Flags().BoolVar(&o.forget, "forget", false, "of a guest that was mirrored: QEMU is not to note what is written from now on")
	return cmd
}

// attach attaches, or detaches.
func (a *app) attach(ctx context.Context, o *attaching, in bool) error {
	switch {
	case o.noGuest && o.qmp != "":
		return usagef("--no-guest and --qmp: there is a guest or there is none")
	case o.noGuest && o.volume == "":
		return usagef("--no-guest: say of which --volume")
	case o.serve != "" && !o.mirror:
		return usagef("--serve is for --mirror")
	case o.noGuest && o.mirror:
		return usagef("--mirror wants a guest that runs")
	case !o.noGuest && o.qmp == "":
		return usagef("--qmp is missing: name the monitor of the guest's QEMU, or say --no-guest")
	}
	served, err := a.served(o.filters)
	if err != nil {
		return err
	}
	if o.noGuest {
		return a.tellFilter(ctx, o, served, in)
	}
	m, err := kvm.Dial(ctx, o.qmp)
	if err != nil {
		return a.monitorTrouble(err)
	}
	defer m.Close()
	var volumes []kvm.Volume
	var missing []error
	for _, s := range served {
		if in && s.Mirror != o.mirror {
			missing = append(missing, otherWay(s))
			continue
		}
		v, err := m.Disk(s.Volume)
		if s.Mirror {
			v, err = mirrorDisk(s.Volume, v, err), nil
		}
		if err == nil {
			volumes = append(volumes, v)
		} else {
			missing = append(missing, fmt.Errorf("volume %s: %w", s.Name, err))
		}
	}
	if len(volumes) == 0 {
		return errors.Join(missing...)
	}
	g, err := kvm.Look(ctx, m)
	if err != nil {
		return err
	}
	d, v, err := kvm.Find(g, volumes, o.device, o.volume)
	if err != nil {
		return err
	}
	s := served[slices.IndexFunc(served, func(s servedVolume) bool { return s.Name == v.Name })]
	var plan kvm.Plan
	var told bool
	if !s.Mirror {
		if told, err = s.ready(ctx); err != nil {
			return err
		}
	}
	switch {
	case s.Mirror:
		plan, err = a.planMirror(ctx, o, in, g, d, v, s)
	case in:
		plan, err = kvm.PlanAttach(g, d, v, told, kvm.Options{ReconnectDelay: time.Duration(o.reconnect), Unmap: o.discard == "unmap"})
	default:
		plan, err = kvm.PlanDetach(g, d, v, told, o.node)
	}
	if err != nil {
		return err
	}
	if !o.dry {
		if err := kvm.Carry(ctx, m, s, plan); err != nil {
			return err
		}
	}
	id := d.ID()
	r := newAttachResult(s, in, o.dry)
	r.Device, r.Node, r.Changed = &id, textOrNull(plan.Ends()), len(plan.Steps) > 0
	for _, step := range plan.Steps {
		r.Steps = append(r.Steps, attachStep{step.What, step.QMP})
	}
	return a.printAttached(r)
}

func (a *app) monitorTrouble(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no QEMU listens there: %w: name the socket of its -qmp", err)
	}
	return err
}

func newAttachResult(s servedVolume, in, dry bool) attachResult {
	r := attachResult{Volume: s.Name, Disk: s.Path, State: "detached", DryRun: dry, Mirror: s.Mirror, Steps: []attachStep{}}
	if in {
		r.State = "attached"
	}
	return r
}

func (a *app) printAttached(r attachResult) error {
	if r.DryRun && a.output == "table" {
		var rows [][]string
		for i, s := range r.Steps {
			command := "-"
			if s.QMP != nil {
				text, err := json.Marshal(s.QMP)
				if err != nil {
					return err
				}
				command = string(text)
			}
			rows = append(rows, []string{strconv.Itoa(i + 1), s.What, command})
		}
		if len(rows) == 0 {
			fmt.Fprintln(a.stderr, "Nothing is to be done.")
		}
		return a.print(nil, "STEP WHAT QMP", rows)
	}
	if !r.DryRun && r.Changed && r.State == "attached" {
		fmt.Fprintln(a.stderr, "The volume is compared with what the target holds, and what differs is sent; checkpoints come after that: see holdfast status.")
	}
	changed := "no"
	if r.Changed {
		changed = "yes"
	}
	return a.print(r, "VOLUME STATE CHANGED DEVICE NODE DISK", [][]string{{r.Volume, r.State, changed, orHyphen(r.Device), orHyphen(r.Node), r.Disk}})
}

// servedVolume is a volume of a filter of this host; a kvm.Filter.
type servedVolume struct {
	kvm.Volume
	vhostUser string // the socket; empty: there is none
	filter    capture.Filtered
}

var _ kvm.Filter = servedVolume{}

// served reads which volumes the filters have that the flags or the context name.
func (a *app) served(files []string) (list []servedVolume, err error) {
	if len(files) == 0 {
		c, err := a.context()
		if err != nil {
			return nil, err
		}
		if files = c.Filters; len(files) == 0 {
			return nil, usagef("the context names no filters: give --filter FILE, the file of the vra-filter of this host")
		}
	}
	for _, file := range files {
		c, err := config.LoadFilter(file)
		if err != nil {
			return nil, err
		}
		for _, v := range c.Volumes {
			if slices.ContainsFunc(list, func(s servedVolume) bool { return s.Name == v.Name }) {
				return nil, fmt.Errorf("volume %s stands in several files: name its own with --filter", v.Name)
			}
			list = append(list, servedVolume{
				Volume:    kvm.Volume{Name: v.Name, Path: v.Path, Socket: v.NBD, Bytes: int64(v.Mirror), Mirror: v.Mirror > 0},
				vhostUser: v.VhostUser, filter: capture.Filtered{PoolSocket: c.PoolSocket, Group: record.GroupID(c.Group.ID), Volume: record.VolumeID(v.ID)},
			})
		}
	}
	return list, nil
}

func (s servedVolume) Detach(ctx context.Context) error { return s.filter.Detach(ctx) }
func (s servedVolume) Attach(ctx context.Context) error { return s.filter.Attach(ctx) }

// Serves connects as a guest does.
func (s servedVolume) Serves(ctx context.Context) error {
	c, err := nbd.Dial(ctx, nbd.URI{Network: "unix", Address: s.Socket, Export: s.Name}.String())
	if err == nil {
		err = c.Close()
	}
	return err
}

// errUnsynced: a flush of the disk failed. It ends by a word of whoever has seen to the disk, and of no other.
var errUnsynced = errors.New(capture.PastUnsynced.String())

// ready says whether the filter was told that the guest is detached, and why nothing can be done with it.
func (s servedVolume) ready(ctx context.Context) (told bool, err error) {
	p, err := s.filter.Past(ctx)
	if err == nil && s.Socket != "" {
		err = s.Serves(ctx)
	}
	if err != nil {
		return false, s.silent(err)
	}
	if !sameFile(p.Path, s.Path) {
		return false, fmt.Errorf("the filter that runs has %s for volume %s, and its file says %s: start it again", p.Path, s.Name, s.Path)
	}
	if p.Past == capture.PastUnsynced {
		return false, fmt.Errorf("volume %s: %w", s.Name, errUnsynced)
	}
	return p.Past == capture.PastTold, nil
}

func (s servedVolume) silent(err error) error {
	return fmt.Errorf("the filter of volume %s does not answer: start it first (vra-filter), and see its log: %w", s.Name, err)
}

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

// tellFilter tells the filter alone.
func (a *app) tellFilter(ctx context.Context, o *attaching, served []servedVolume, in bool) error {
	i := slices.IndexFunc(served, func(s servedVolume) bool { return s.Name == o.volume })
	if i < 0 {
		var names []string
		for _, s := range served {
			names = append(names, s.Name)
		}
		return fmt.Errorf("no filter serves a volume %q: those are %s", o.volume, strings.Join(names, ", "))
	}
	s := served[i]
	if s.Mirror {
		return fmt.Errorf("volume %s is a mirror target: without a guest there is nothing to tell its filter", s.Name)
	}
	told, err := s.ready(ctx)
	if in && errors.Is(err, errUnsynced) {
		told, err = true, nil
	}
	if err != nil {
		return err
	}
	r := newAttachResult(s, in, o.dry)
	if r.Changed = told == in; r.Changed {
		tell, what := s.Detach, "tell the filter that writes go past it"
		if in {
			tell, what = s.Attach, "tell the filter that it has all writes"
		}
		r.Steps = append(r.Steps, attachStep{What: what})
		if !o.dry {
			if err := tell(ctx); err != nil {
				return err
			}
		}
	}
	return a.printAttached(r)
}
