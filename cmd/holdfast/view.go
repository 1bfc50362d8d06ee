package main

import (
	"context"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/spf13/cobra"
)

// view is a view as the user sees it; its JSON is kept for ever.
type view struct {
	ID         string       `json:"id"`
	Checkpoint string       `json:"checkpoint"`
	Volumes    []viewVolume `json:"volumes"`
}

type viewVolume struct {
	Name string `json:"name"`
	NBD  string `json:"nbd"`
}

func newView(v *holdfastv1.View) view {
	out := view{ID: v.GetId(), Checkpoint: v.GetCheckpoint(), Volumes: []viewVolume{}}
	for _, vol := range v.GetVolumes() {
		out.Volumes = append(out.Volumes, viewVolume{Name: vol.GetName(), NBD: vol.GetNbd()})
	}
	return out
}

// rows are one line a volume, with what is known of the checkpoint.
func (v view) rows(checkpoints map[string]checkpoint) [][]string {
	var rows [][]string
	c := checkpoints[v.Checkpoint]
	for _, vol := range v.Volumes {
		rows = append(rows, []string{v.ID, v.Checkpoint, shortTime(c.Time), orHyphen(c.Tag), vol.Name, vol.NBD})
	}
	return rows
}

const viewHead = "VIEW CHECKPOINT TIME TAG VOLUME NBD"

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
export that a virtual machine or a tool can attach. It can be written to: what is
written goes to scratch, changes nothing else, and ends with the view. Protection
goes on meanwhile.`,
		a.viewOpen(), a.viewList(), a.viewClose())
}

func (a *app) viewOpen() *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:     "open --checkpoint ID|TAG|latest",
		Short:   "Open a view",
		Example: "  holdfast view open --checkpoint latest\n  nbdinfo \"$(holdfast view open --checkpoint 12 -o json | jq -r '.volumes[0].nbd')\"",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkAt(at); err != nil {
				return err
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
			res, err := client.Views.Open(cmd.Context(), &holdfastv1.ViewsServiceOpenRequest{Group: c.Group, Checkpoint: id, IdempotencyKey: api.NewKey()})
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			v := newView(res.GetView())
			return a.printViews(cmd.Context(), client, c.Group, v, v)
		},
	}
	a.atFlag(cmd, &at)
	return cmd
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
			res, err := client.Views.List(cmd.Context(), &holdfastv1.ViewsServiceListRequest{Group: c.Group})
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
			if _, err = client.Views.Close(cmd.Context(), &holdfastv1.ViewsServiceCloseRequest{Id: args[0], IdempotencyKey: api.NewKey()}); err != nil {
				return explain(api.RoleTarget, err)
			}
			return a.print(map[string]string{"id": args[0]}, "", nil)
		},
	}
}
