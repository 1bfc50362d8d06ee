package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/spf13/cobra"
)

// view is a view as the user sees it; its JSON is kept for ever.
type view struct {
	ID           string       `json:"id"`
	Name         *string      `json:"name"`
	Checkpoint   string       `json:"checkpoint"`
	Opened       *string      `json:"opened"`
	Writable     bool         `json:"writable"`
	Live         bool         `json:"live"`
	State        string       `json:"state"`
	Reason       *string      `json:"reason"`
	ScratchBytes int64        `json:"scratch_bytes"`
	ScratchLimit *int64       `json:"scratch_limit"`
	Clients      int32        `json:"clients"`
	Volumes      []viewVolume `json:"volumes"`

	age string
}

type viewVolume struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	NBD   string `json:"nbd"`
	// VhostUser is the socket where it is a vhost-user-blk device, too; null of a view that takes no writes.
	VhostUser *string `json:"vhost_user"`
}

func newView(v *holdfastv1.View) view {
	opened := time.Time{}
	if t := v.GetOpened(); t != nil {
		opened = t.AsTime()
	}
	out := view{ID: v.GetId(), Name: textOrNull(v.GetName()), Checkpoint: v.GetCheckpoint(), Opened: timeText(opened),
		Writable: !v.GetReadOnly(), Live: v.GetLive(), State: v.GetState(), Reason: textOrNull(v.GetReason()),
		ScratchBytes: v.GetScratchBytes(), Clients: v.GetClients(), Volumes: []viewVolume{}, age: "-"}
	if limit := v.GetScratchLimit(); limit != 0 {
		out.ScratchLimit = &limit
	}
	if !opened.IsZero() {
		out.age = ageText(time.Since(opened))
	}
	for _, vol := range v.GetVolumes() {
		out.Volumes = append(out.Volumes, viewVolume{Name: vol.GetName(), Bytes: vol.GetBytes(), NBD: vol.GetNbd(), VhostUser: textOrNull(vol.GetVhostUser())})
	}
	return out
}

// ageText is how long ago something was, in its largest unit.
func ageText(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", max(d, 0)/time.Second)
}

// scratch is what its writes take, and may take.
func (v view) scratch() string {
	switch {
	case !v.Writable:
		return "read-only"
	case v.ScratchLimit == nil:
		return bytesText(v.ScratchBytes)
	}
	return bytesText(v.ScratchBytes) + "/" + bytesText(*v.ScratchLimit)
}

// rows are one line a volume, with what is known of the checkpoint.
func (v view) rows(checkpoints map[string]checkpoint) [][]string {
	var rows [][]string
	c := checkpoints[v.Checkpoint]
	at, age, scratch := v.Checkpoint, v.age, v.scratch()
	if at == "" { // the target knows no more of it than its id
		at, age, scratch = "unknown", "unknown", "unknown"
	}
	volumes := v.Volumes
	if len(volumes) == 0 { // it cannot be reached
		volumes = []viewVolume{{Name: "-", NBD: "-"}}
	}
	for _, vol := range volumes {
		rows = append(rows, []string{v.ID, orHyphen(v.Name), at, shortTime(c.Time), orHyphen(c.Tag), age, v.State, scratch,
			strconv.Itoa(int(v.Clients)), vol.Name, vol.NBD})
	}
	return rows
}

const viewHead = "VIEW NAME CHECKPOINT TIME TAG AGE STATE SCRATCH CLIENTS VOLUME NBD"

// printViews prints one view, or a list of them.
func (a *app) printViews(ctx context.Context, client *api.Client, group string, result any, views ...view) error {
	var rows [][]string
	if a.output == "table" && len(views) > 0 {
		checkpoints := named(ctx, client, group)
		for _, v := range views {
			rows = append(rows, v.rows(checkpoints)...)
		}
	}
	return a.print(result, viewHead, rows)
}

func (a *app) viewCommand() *cobra.Command {
	return parent("view", "Open a group as it was at a checkpoint",
		`A view shows all disks of a group as they were at a checkpoint, each as an NBD
export that a virtual machine or a tool can attach; of one that can be written to each is a
vhost-user-blk device, too (vhost_user in -o json), for machines that share their memory. What is
written goes to scratch, changes nothing else, and ends with the view. Protection
goes on meanwhile. A view is there until it is closed, also after a restart of the
target: at the same place, with what was written to it.

A view is good (view show tells of writes that failed all the same); or full: a write failed
because of its limit; damaged: its checkpoint
is bad, or something that was written to it rotted, and some of it reads as an error;
failed: what was written to it may be lost, and it can only be read; broken: it does
not open; or closed: it gave way to newer history because the target ran out of space,
which only test views do.`,
		a.viewOpen(), a.viewList(), a.viewShow(), a.viewClose())
}

func (a *app) viewOpen() *cobra.Command {
	var at, limit, name string
	var live, readOnly bool
	writable := true
	cmd := &cobra.Command{
		Use:     "open --checkpoint ID|TAG|latest",
		Short:   "Open a view",
		Example: "  holdfast view open --checkpoint latest\n  nbdinfo \"$(holdfast view open --checkpoint 12 -o json | jq -r '.volumes[0].nbd')\"",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkAt(at); err != nil {
				return err
			}
			most := config.Size(0)
			if limit != "" {
				var err error
				if most, err = config.ParseSize(limit); err != nil {
					return usagef("--limit: %w", err)
				}
				if most < api.MinScratchLimit {
					return usagef("--limit %s: want at least %s, or none given for no limit", most.Text(), config.Size(api.MinScratchLimit).Text())
				}
			}
			if readOnly && writable && cmd.Flags().Changed("writable") {
				return usagef("--writable and --read-only: a view takes writes, or takes none")
			}
			writable = writable && !readOnly
			if !writable && (limit != "" || live) {
				return usagef("a view that takes no writes has no --limit, and is not --live")
			}
			if len(name) > 63 {
				return usagef("--name has at most 63 bytes")
			}
			client, c, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			id, err := resolve(cmd.Context(), client, c.Group, at)
			if err != nil {
				return err
			}
			res, err := client.Views.Open(cmd.Context(), &holdfastv1.ViewsServiceOpenRequest{
				Group: c.Group, Checkpoint: id, ReadOnly: !writable, Name: name, ScratchLimit: int64(most), Live: live, IdempotencyKey: api.NewKey(),
			})
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			v := newView(res.GetView())
			return a.printViews(cmd.Context(), client, c.Group, v, v)
		},
	}
	a.atFlag(cmd, &at)
	cmd.Flags().BoolVar(&writable, "writable", true, "take writes, into scratch")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "take no writes; the same as --writable=false")
	cmd.Flags().StringVar(&limit, "limit", "", "the most that writes may take, such as 20GiB; beyond it they fail (default no limit)")
	cmd.Flags().StringVar(&name, "name", "", "a label, of at most 63 bytes")
	cmd.Flags().BoolVar(&live, "live", false, "a production disk stands on it: it never gives way")
	return cmd
}

// viewOf is the id of the view that the word names: v1 is 1 too, since no id is only
// digits.
func viewOf(word string) string {
	if word != "" && isNumber(word) {
		return "v" + word
	}
	return word
}

func (a *app) viewShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show a view, and why it is not good",
		Args:  oneArg("view id"),

		ValidArgsFunction: a.completeViews,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, c, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			res, err := api.All(cmd.Context(), &holdfastv1.ViewsServiceListRequest{Group: c.Group}, client.Views.List)
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			for _, m := range res.GetViews() {
				if m.GetId() != viewOf(args[0]) {
					continue
				}
				v := newView(m)
				if err := a.printViews(cmd.Context(), client, c.Group, v, v); err != nil || v.Reason == nil || a.output == "json" {
					return err
				}
				_, err := fmt.Fprintf(a.stdout, "\n%s: %s\n", v.State, printable(*v.Reason))
				return err
			}
			return fmt.Errorf("no view %q; see holdfast view list", args[0])
		},
	}
}

func (a *app) viewList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the open views",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, c, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			res, err := api.All(cmd.Context(), &holdfastv1.ViewsServiceListRequest{Group: c.Group}, client.Views.List)
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			views := []view{}
			for _, v := range res.GetViews() {
				views = append(views, newView(v))
			}
			return a.printViews(cmd.Context(), client, c.Group, views, views...)
		},
	}
}

func (a *app) viewClose() *cobra.Command {
	return &cobra.Command{
		Use:   "close ID",
		Short: "Close a view and drop what was written to it",
		Args:  oneArg("view id"),

		ValidArgsFunction: a.completeViews,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			if _, err = client.Views.Close(cmd.Context(), &holdfastv1.ViewsServiceCloseRequest{Id: viewOf(args[0]), IdempotencyKey: api.NewKey()}); err != nil {
				return explain(api.RoleTarget, err)
			}
			return a.print(map[string]string{"id": viewOf(args[0])}, "", nil)
		},
	}
}
