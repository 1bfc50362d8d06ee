package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/spf13/cobra"
)

// reverseFlags are what is said of a reversal.
type reverseFlags struct {
	group, to, filter, note string
	disks                   []string
	interval                time.Duration
	dry                     bool
}

func (a *app) reverseCommand() *cobra.Command {
	f := reverseFlags{interval: time.Duration(config.DefaultInterval)}
	cmd := &cobra.Command{
		Use:   "reverse",
		Short: "After a committed failover, protect a group the other way round",
		Long: `Reverse swaps the parts of the two sites once a failover was committed: the machines run on
where they are, protected from there, and the disks that they had before are the replicas.
What differs is found by comparing both sides by sums, and is all that is sent.

  adopt      the old site's vra reads its old disks once, and takes them as replicas. They
             stay where they are, and as they are until a checkpoint of the new direction is
             listed. Stop the vra-filter that served them, for good, and give the file of
             that vra a target section
  hand-over  what machines wrote goes into the disks of the second site, and its vra is their
             source from then on. Both vra open their files anew for that: other groups that
             they send are resynced. The journal of before is given back
  serve      a vra-filter serves the disks at the socket where machines look for them; they
             wait from the hand-over until then. It is started by this command, on this host,
             which must be that of the machines, unless somebody serves there
  attach     only after holdfast failover plain: each machine moves from its plain disks onto
             the filter, without a stop, and has its disks there when it is started again.
             Machines of no job of this host you attach yourself (holdfast attach) while the next step waits for it
  sync       until a checkpoint is listed

It is a job as those of holdfast failover. What fails, or is interrupted, halts it where it is: failover resume
carries it on, and at each step both sites have what they had. It is not taken back:
swap the roles in the context, and holdfast move and another reverse bring the group back. In
the machines' file of that way the source of each machine is the one that the failover made: under
libvirt the domain NAME-8hex, as web1-1c42e7af, and not the domain of before, which is off.
It is refused while a job of holdfast failover plain, of whatever folder, is half way: the
target keeps that in mind.`,
		Example: "  holdfast reverse --to 192.0.2.1:4007,192.0.2.1:4008 --disk db1=/images/db1.raw --dry-run\n  holdfast reverse --to 192.0.2.1:4007,192.0.2.1:4008 --disk db1=/images/db1.raw",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.reverse(cmd.Context(), &f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.group, "group", "", "`NAME` of the group; by default that of the context")
	fs.StringVar(&f.to, "to", "", "where the old site's vra takes records from now on, `CONTROL,DATA`, each host:port; one where one port takes both")
	fs.StringArrayVar(&f.disks, "disk", nil, "the old disk of a volume, at the old site, as `VOLUME=PATH`; may be repeated; not needed where a reversal has named it before")
	fs.StringVar(&f.filter, "filter", "", "`FILE` of the vra-filter that serves the disks from then on; it is written unless it is there; by default among the jobs")
	fs.DurationVar(&f.interval, "interval", f.interval, "`DURATION` between checkpoints")
	fs.StringVar(&f.note, "note", "", "`TEXT` for the report")
	fs.BoolVar(&f.dry, "dry-run", false, "say what would be done, and do nothing")
	cmd.MarkFlagFilename("filter", "yaml")
	return cmd
}

func (a *app) reverse(ctx context.Context, f *reverseFlags) error {
	folder, c, client, err := a.jobsAndTarget()
	if err != nil {
		return err
	}
	defer client.Close()
	if f.group == "" {
		f.group = c.Group
	}
	r, checkpoint, onDisks, err := f.reversal(ctx, client, folder)
	if err != nil {
		return err
	}
	p := &recovery.Plan{Kind: recovery.Reverse}
	run := a.runner(client)
	if onDisks {
		if p, err = backFromDisks(folder, r.Failover); err == nil && p.Onto != nil {
			err = run.MayMove(ctx, folder, p)
		}
		if err != nil {
			return err
		}
	}
	p.Key, p.Group, p.Checkpoint, p.Who, p.Note, p.Reversal = strings.ToLower(api.NewKey()), f.group, checkpoint, who(), f.note, r
	r.ID, r.Stream = drawnID(p.Key+" group"), drawnID(p.Key+" stream")
	if err := a.check(ctx, run, p); err != nil {
		return err
	}
	a.tellUnheard(ctx, r)
	if f.dry {
		return a.printPlan(p)
	}
	j, err := failover.Create(folder, p, recovery.Entry{Time: time.Now(), Who: p.Who})
	if err != nil {
		return err
	}
	defer j.Close()
	fmt.Fprintf(a.stderr, "Job %s: group %s, the other way round.\n", p.ID, p.Group)
	if onDisks && p.Onto == nil {
		fmt.Fprintln(a.stderr, "The machines are on plain disks, and of no job here: attach each once the filter serves (holdfast attach), and have it started from there from then on.")
	}
	return a.carryOn(ctx, run, j)
}

// heardWait is how long the old site may take to take a connection.
const heardWait = 2 * time.Second

// tellUnheard warns of places where the old site is to take records, and nobody listens now. That is no error: its vra may listen
// there only once it has taken its new part, and this host may not be the one that connects.
func (a *app) tellUnheard(ctx context.Context, r *recovery.Reversal) {
	ctx, cancel := context.WithTimeout(ctx, heardWait)
	defer cancel()
	var d net.Dialer
	for _, at := range slices.Compact([]string{r.Control, r.Data}) {
		conn, err := d.DialContext(ctx, "tcp", at)
		if err != nil {
			fmt.Fprintln(a.stderr, printable(fmt.Sprintf("Nobody listens at %s now, as seen from here (%v): see that --to is where the old site's vra is to listen, as its file's target section says.", at, err)))
			continue
		}
		conn.Close()
	}
}

// drawnID makes an id of 16 hexadecimal digits of a word that nobody else has drawn.
func drawnID(word string) string {
	h := fnv.New64a()
	h.Write([]byte(word))
	return fmt.Sprintf("%016x", h.Sum64()|1)
}

// backFromDisks plans the way back of machines that are on the plain disks of a failover: those of the job that brought it about. There may be
// none of it in the folder: then whoever has the machines attaches them.
func backFromDisks(folder, id string) (*recovery.Plan, error) {
	jobs, err := failover.IDs(folder)
	if err != nil {
		return nil, err
	}
	var damaged error
	for _, job := range jobs {
		entries, _, err := failover.Read(folder, job)
		if err != nil {
			damaged = errors.Join(damaged, fmt.Errorf("job %s: %w", job, err))
		}
		if err != nil || len(entries) == 0 || entries[0].Plan == nil || entries[0].Plan.Key != id {
			continue
		}
		p, err := onto(folder, job)
		if err == nil {
			p.Kind = recovery.Reverse
		}
		return p, err
	}
	if damaged != nil {
		return nil, fmt.Errorf("which machines are on the disks is not known: mend that, or take the job out of %s and attach its machines yourself: %w", folder, damaged)
	}
	return &recovery.Plan{Kind: recovery.Reverse}, nil
}

// filterOf finds a volume of the filter with that file.
func (a *app) filterOf(file, volume string) (kvm.Filter, error) {
	list, err := a.served([]string{file})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(s servedVolume) bool { return s.Name == volume })
	if i < 0 {
		return nil, fmt.Errorf("%s has no such volume", file)
	}
	return list[i], nil
}

// grown says that a disk is larger than its volume: only one that its owner made so is.
func grown(d *holdfastv1.Disk) error {
	f, err := os.Open(d.Path)
	if err != nil {
		return fmt.Errorf("volume %s: this command is to run on the host of the machines: %w", d.Volume, err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	const block = 4096 // images are whole blocks
	if most := (int64(d.Bytes) + block - 1) / block * block; err == nil && size > most {
		err = fmt.Errorf("volume %s: %s has grown to %d bytes since its machine is on it, and the volume has %d: protect it from the second site as a new group", d.Volume, d.Path, size, d.Bytes)
	}
	return err
}

// reversal is what the flags say of the failover that was committed, and whether its machines are on plain disks.
func (f *reverseFlags) reversal(ctx context.Context, client *api.Client, folder string) (r *recovery.Reversal, checkpoint string, onDisks bool, err error) {
	control, data, two := strings.Cut(f.to, ",")
	if !two {
		data = control
	}
	for _, at := range []string{control, data} {
		if _, _, err := net.SplitHostPort(at); err != nil {
			return nil, "", false, usagef("--to %q: want where the old site's vra listens, as target.listen_control and listen_data of its file: host:port,host:port", f.to)
		}
	}
	if f.interval < time.Duration(config.MinInterval) || f.interval > time.Duration(config.MaxInterval) {
		return nil, "", false, usagef("--interval %s: want 1s to 1m", f.interval)
	}
	paths := map[string]string{}
	for _, d := range f.disks {
		volume, path, ok := strings.Cut(d, "=")
		if !ok || !filepath.IsAbs(path) {
			return nil, "", false, usagef("--disk %q: want a volume and the absolute path of its old disk, as db1=/images/db1.raw", d)
		}
		paths[volume] = path
	}
	res, err := client.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{Group: f.group})
	if err != nil {
		return nil, "", false, explain(api.RoleTarget, err)
	}
	have := res.Failover
	switch have.State {
	case api.FailoverCommitted, api.FailoverSettled, api.FailoverPassing, api.FailoverOnDisks:
	case api.FailoverMoving:
		return nil, "", false, fmt.Errorf("machines of group %s have begun to move onto plain disks: finish that, with holdfast failover resume, and say this again", f.group)
	default:
		return nil, "", false, fmt.Errorf("there is nothing to reverse: the last failover of group %s is %s, and not committed: see holdfast failover list, and commit one; a reversal that was begun is carried on with holdfast failover resume", f.group, have.State)
	}
	r = &recovery.Reversal{Failover: have.Id, Lineage: have.Lineage, Control: control, Data: data, Interval: f.interval, Filter: f.filter, OnDisks: have.State == api.FailoverOnDisks}
	if r.Filter == "" {
		r.Filter = filepath.Join(folder, "filter-"+f.group+"-"+have.Checkpoint+".yaml")
	}
	if r.Filter, err = filepath.Abs(r.Filter); err != nil {
		return nil, "", false, err
	}
	for _, d := range have.Disks {
		if r.OnDisks {
			if err := grown(d); err != nil {
				return nil, "", false, err
			}
		}
		r.Disks = append(r.Disks, recovery.ReverseDisk{Volume: d.Volume, ID: d.Id, Bytes: d.Bytes, Path: paths[d.Volume]})
		delete(paths, d.Volume)
	}
	for v := range paths {
		return nil, "", false, usagef("--disk: group %s has no volume %s", f.group, v)
	}
	if len(r.Disks) == 0 {
		return nil, "", false, fmt.Errorf("the disks of group %s are not told: %s", f.group, orHyphen(textOrNull(have.Reason)))
	}
	return r, have.Checkpoint, r.OnDisks, nil
}
