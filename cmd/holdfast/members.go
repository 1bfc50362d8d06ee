package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/spf13/cobra"
)

// members are what a source replicates of a group, as the user sees it; their JSON is kept for ever.
type members struct {
	Group   string   `json:"group"`
	Paused  bool     `json:"paused"`
	Volumes []member `json:"volumes"`
}

type member struct {
	Name       string  `json:"name"`
	ID         uint32  `json:"id"`
	Phase      string  `json:"phase"`
	Bytes      *int64  `json:"bytes"`
	Dirty      *int64  `json:"dirty_bytes"`
	SyncAsked  bool    `json:"sync_asked"`
	PoolSocket *string `json:"pool_socket"`
}

func newMembers(m *holdfastv1.GroupMembers) members {
	r := members{Group: m.GetGroup(), Paused: m.GetPaused(), Volumes: []member{}}
	for _, v := range m.GetVolumes() {
		one := member{Name: v.GetName(), ID: v.GetId(), Phase: v.GetPhase(), Dirty: v.DirtyBytes, SyncAsked: v.GetSyncAsked(), PoolSocket: textOrNull(v.GetPoolSocket())}
		if n := v.GetBytes(); n > 0 {
			one.Bytes = &n
		}
		r.Volumes = append(r.Volumes, one)
	}
	return r
}

func (m members) phase(volume string) string {
	for _, v := range m.Volumes {
		if v.Name == volume {
			return v.Phase
		}
	}
	return ""
}

func (a *app) printMembers(m members) error {
	var rows [][]string
	for _, v := range m.Volumes {
		rows = append(rows, []string{v.Name, strconv.FormatUint(uint64(v.ID), 10), v.Phase, bytesOrHyphen(v.Bytes), bytesOrHyphen(v.Dirty), orHyphen(v.PoolSocket)})
	}
	if err := a.print(m, "VOLUME ID PHASE SIZE DIRTY POOL-SOCKET", rows); err != nil || a.output == "json" || !m.Paused {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s is paused: resume it with holdfast group resume %s\n", printable(m.Group), printable(m.Group))
	return err
}

// onSource calls the source and prints what it says of the group then.
func (a *app) onSource(cmd *cobra.Command, call func(context.Context, *api.Client) (*holdfastv1.GroupMembers, error)) error {
	client, _, err := a.dial(api.RoleSource)
	if err != nil {
		return err
	}
	defer client.Close()
	m, err := call(cmd.Context(), client)
	if err != nil {
		return explain(api.RoleSource, err)
	}
	return a.printMembers(newMembers(m))
}

func (a *app) groupPause() *cobra.Command {
	return &cobra.Command{
		Use:   "pause NAME",
		Short: "Send nothing of a group until it is resumed",
		Long: `Nothing of the group is captured or sent from then on, and no checkpoint is made; its
guests go on, and what they change is marked. Checkpoints that were made stay. It holds
over restarts, until holdfast group resume: what was marked is then sent in a resync.`,
		Example:           "  holdfast group pause db",
		Args:              oneArg("group"),
		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onSource(cmd, func(ctx context.Context, c *api.Client) (*holdfastv1.GroupMembers, error) {
				res, err := c.Groups.Pause(ctx, &holdfastv1.GroupsServicePauseRequest{Group: args[0], IdempotencyKey: api.NewKey()})
				return res.GetMembers(), err
			})
		},
	}
}

func (a *app) groupResume() *cobra.Command {
	return &cobra.Command{
		Use:               "resume NAME",
		Short:             "Go on with a group that is paused",
		Long:              "What changed meanwhile is sent in a resync; after that checkpoints are made again.",
		Example:           "  holdfast group resume db",
		Args:              oneArg("group"),
		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onSource(cmd, func(ctx context.Context, c *api.Client) (*holdfastv1.GroupMembers, error) {
				res, err := c.Groups.Resume(ctx, &holdfastv1.GroupsServiceResumeRequest{Group: args[0], IdempotencyKey: api.NewKey()})
				return res.GetMembers(), err
			})
		},
	}
}

func (a *app) groupSync() *cobra.Command {
	var volumes []string
	cmd := &cobra.Command{
		Use:   "sync NAME",
		Short: "Send all of a group again, whatever is marked",
		Long: `Marks all of the group's volumes, or of those that are named, and has them sent in a
resync beside what the guests write. Older checkpoints stay good; new ones are made when
it is through. It is needed only where the marks are not believed, as after a disk was
written to while nothing watched it. It returns at once; holdfast status tells how far it is.`,
		Example:           "  holdfast group sync db\n  holdfast group sync db --volume data --volume log",
		Args:              oneArg("group"),
		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onSource(cmd, func(ctx context.Context, c *api.Client) (*holdfastv1.GroupMembers, error) {
				res, err := c.Groups.Sync(ctx, &holdfastv1.GroupsServiceSyncRequest{Group: args[0], Volumes: volumes, IdempotencyKey: api.NewKey()})
				return res.GetMembers(), err
			})
		},
	}
	cmd.Flags().StringArrayVar(&volumes, "volume", nil, "only the volume of that `NAME`; may be given more than once")
	cmd.RegisterFlagCompletionFunc("volume", cobra.NoFileCompletions)
	return cmd
}

func (a *app) groupAdopt() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "adopt NAME",
		Short: "Go on with a group that another vra has sent, or that this one has forgotten",
		Long: `A source whose target holds what it did not send itself is refused: it may be a clone, or
have been restored from an older state. Where the other one is gone for good, or this one has
only lost its data directory, adopt lets it go on: the group's disks, as they are here, are
compared with what the target holds, and what differs is sent. Checkpoints that were made
stay. Who adopted, when and why stands in the log and in the audit of the sidecar.
Stop the other vra first: the target lets nobody in beside a source that lives.`,
		Example:           "  holdfast group adopt db --reason 'the host was installed anew'",
		Args:              oneArg("group"),
		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("say with --reason why the other one does not go on")
			}
			return a.onSource(cmd, func(ctx context.Context, c *api.Client) (*holdfastv1.GroupMembers, error) {
				res, err := c.Groups.Adopt(ctx, &holdfastv1.GroupsServiceAdoptRequest{Group: args[0], Reason: reason, IdempotencyKey: api.NewKey()})
				return res.GetMembers(), err
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a `TEXT` of at most 256 bytes")
	cmd.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions)
	return cmd
}

func (a *app) groupVolume() *cobra.Command {
	return parent("volume", "The volumes of a group that runs",
		`A group may get another volume, or lose one, while it runs. What is changed so stays in
the data_dir of the source's vra and holds over restarts, beside what its file says.`,
		a.volumeList(), a.volumeAdd(), a.volumeRemove())
}

func (a *app) volumeList() *cobra.Command {
	return &cobra.Command{
		Use:   "list NAME",
		Short: "Show the volumes of a group, and how far each is",
		Long: `A volume that is adding was asked for and is not begun with: its filter is not there, or
the target not connected. One that is joining is read, beside the others, and in no
checkpoint yet. Checkpoints hold those that are members.`,
		Example:           "  holdfast group volume list db",
		Args:              oneArg("group"),
		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onSource(cmd, func(ctx context.Context, c *api.Client) (*holdfastv1.GroupMembers, error) {
				res, err := c.Groups.GetMembers(ctx, &holdfastv1.GroupsServiceGetMembersRequest{Group: args[0]})
				return res.GetMembers(), err
			})
		},
	}
}

// joinEvery is how often a command that waits for a volume asks.
const joinEvery = 200 * time.Millisecond

func (a *app) volumeAdd() *cobra.Command {
	var id uint32
	var socket string
	var wait bool
	cmd := &cobra.Command{
		Use:   "add NAME VOLUME",
		Short: "Add a volume to a group that runs",
		Long: `The volume is served by a filter of its own: a vra-filter with the group's name and id,
the volume under this name and id, and a pool socket that no other filter has. Start it
after this command: the group's order waits for every filter that takes part, and one
that nobody knows of costs the group a short resync.

The volume is read beside the others, which go on with their checkpoints. Those hold it
from the moment at which all of it is at the target. The id is for good: no other volume
of the group may ever have it. The command returns at once, or with --wait when
checkpoints hold the volume.`,
		Example: "  holdfast group volume add db archive --id 3 --pool-socket /run/holdfast/db3.pool\n  holdfast group volume add db archive --id 3 --pool-socket /run/holdfast/db3.pool --wait",
		Args:    twoArgs("a group and a volume"),

		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case config.CheckName(args[1]) != nil:
				return usagef("volume %w", config.CheckName(args[1]))
			case id == 0:
				return usagef("--id is missing or 0: give one that no volume of the group ever had")
			case !filepath.IsAbs(socket):
				return usagef("--pool-socket %q: want the absolute path that the filter's file has as pool_socket", socket)
			}
			client, _, err := a.dial(api.RoleSource)
			if err != nil {
				return err
			}
			defer client.Close()
			res, err := client.Groups.AddVolume(cmd.Context(), &holdfastv1.GroupsServiceAddVolumeRequest{
				Group: args[0], Name: args[1], Id: id, PoolSocket: socket, IdempotencyKey: api.NewKey()})
			if err != nil {
				return explain(api.RoleSource, err)
			}
			m := newMembers(res.GetMembers())
			for wait && m.phase(args[1]) != "member" {
				select {
				case <-time.After(joinEvery):
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				}
				res, err := client.Groups.GetMembers(cmd.Context(), &holdfastv1.GroupsServiceGetMembersRequest{Group: args[0]})
				if err != nil {
					return explain(api.RoleSource, err)
				}
				if m = newMembers(res.GetMembers()); m.phase(args[1]) == "" {
					return fmt.Errorf("volume %s was removed again", args[1])
				}
			}
			return a.printMembers(m)
		},
	}
	cmd.Flags().Uint32Var(&id, "id", 0, "`NUMBER` of the volume within the group, never given out twice")
	cmd.Flags().StringVar(&socket, "pool-socket", "", "`PATH` of the pool socket of its filter")
	cmd.Flags().BoolVar(&wait, "wait", false, "return when checkpoints hold the volume")
	return cmd
}

func (a *app) volumeRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME VOLUME",
		Short: "Take a volume out of a group that runs",
		Long: `Checkpoints from then on do not hold the volume; those that do stay as they are, and what
they need stays at the target. Its guest goes on; the filter may be stopped when the
guest does not need it any more. It does not come back: to protect the disk again add it
under another id.`,
		Example:           "  holdfast group volume remove db archive",
		Args:              twoArgs("a group and a volume"),
		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onSource(cmd, func(ctx context.Context, c *api.Client) (*holdfastv1.GroupMembers, error) {
				res, err := c.Groups.RemoveVolume(ctx, &holdfastv1.GroupsServiceRemoveVolumeRequest{Group: args[0], Name: args[1], IdempotencyKey: api.NewKey()})
				return res.GetMembers(), err
			})
		},
	}
}

// twoArgs wants two arguments, named by what.
func twoArgs(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 2 || args[0] == "" || args[1] == "" {
			return usagef("want %s, have %d arguments", what, len(args))
		}
		return nil
	}
}

// completeSourceGroups offers the groups of the source.
func (a *app) completeSourceGroups(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, args, api.RoleSource, func(ctx context.Context, client *api.Client, _ *config.Context) (words []string) {
		res, _ := api.All(ctx, &holdfastv1.StatusServiceGetRequest{}, client.Status.Get)
		for _, g := range res.GetGroups() {
			if g.GetRole() == api.RoleSource {
				words = append(words, g.GetName())
			}
		}
		return words
	})
}
