package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/spf13/cobra"
)

// preseedEvery is how often a command asks how far the target has read.
const preseedEvery = 500 * time.Millisecond

func (a *app) groupPreseed() *cobra.Command {
	var disks []string
	cmd := &cobra.Command{
		Use:   "preseed NAME",
		Short: "Begin with disks that were carried to the target",
		Long: `A copy of a volume's disk that was brought to the target, as a raw file or on a block device, is
where the group begins: both sides are compared by sums, and what differs is sent. Machines may
run and write all the while, and the copy may be as old as it likes.

The target takes the disk itself as the volume's replica: it stays where it is, is read once for
its sums, and is written to once checkpoints grow older than the history that is kept. Copy it
first where it is to stay as it was carried. Volumes that are not named are sent as a whole.

The group's entry in the file of the source's vra says paused: true, so that nothing is sent
before; its filters run. It is refused where a disk has another size than its volume, where
somebody has it open, and for a group of which anything was sent. A command that was cut short is
given again.`,
		Example:           "  holdfast group preseed db --disk data=/mnt/carried/data.raw --disk log=/dev/vg0/log",
		Args:              oneArg("group"),
		ValidArgsFunction: a.completeSourceGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			paths := map[string]string{}
			for _, d := range disks {
				volume, path, ok := strings.Cut(d, "=")
				if !ok || !filepath.IsAbs(path) || paths[volume] != "" {
					return usagef("--disk %q: want a volume, once, and the absolute path of its disk at the target, as db1=/images/db1.raw", d)
				}
				paths[volume] = path
			}
			if len(paths) == 0 {
				return usagef("--disk is missing: name the disk of one volume at least")
			}
			return a.preseed(cmd.Context(), args[0], paths)
		},
	}
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "the disk of a volume, at the target, as `VOLUME=PATH`; may be repeated")
	cmd.RegisterFlagCompletionFunc("disk", cobra.NoFileCompletions)
	return cmd
}

func (a *app) preseed(ctx context.Context, group string, paths map[string]string) error {
	source, _, err := a.dial(api.RoleSource)
	if err != nil {
		return err
	}
	defer source.Close()
	res, err := source.Groups.GetMembers(ctx, &holdfastv1.GroupsServiceGetMembersRequest{Group: group})
	if err != nil {
		return explain(api.RoleSource, err)
	}
	req, err := adoption(res.GetMembers(), paths)
	if err != nil {
		return err
	}
	target, _, err := a.dial(api.RoleTarget)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := a.adopted(ctx, target, req); err != nil {
		return err
	}
	resumed, err := source.Groups.Resume(ctx, &holdfastv1.GroupsServiceResumeRequest{Group: group, Preseeded: true, IdempotencyKey: api.NewKey()})
	if err != nil {
		return explain(api.RoleSource, err)
	}
	return a.printMembers(newMembers(resumed.GetMembers()))
}

// adoption is what the target is asked for.
func adoption(m *holdfastv1.GroupMembers, paths map[string]string) (*holdfastv1.RecoveryServiceAdoptRequest, error) {
	if !m.GetPaused() {
		return nil, fmt.Errorf("group %s is not paused, and is sent already: give its disks to a group with another id, whose entry in the file of the source's vra says paused: true", m.GetGroup())
	}
	if m.GetId() == "" {
		return nil, fmt.Errorf("the source's vra is of an older release, which begins with nothing that was carried")
	}
	r := &holdfastv1.RecoveryServiceAdoptRequest{Group: m.GetGroup(), Id: m.GetId(), Stream: m.GetStream(), Lineage: m.GetLineage()}
	named := 0
	for _, v := range m.GetVolumes() {
		path := paths[v.GetName()]
		if path == "" {
			continue
		}
		if named++; v.GetBytes() == 0 {
			return nil, fmt.Errorf("the size of volume %s is not known: start its vra-filter, and ask again", v.GetName())
		}
		r.Disks = append(r.Disks, &holdfastv1.Disk{Volume: v.GetName(), Id: v.GetId(), Bytes: uint64(v.GetBytes()), Path: path})
	}
	if named < len(paths) {
		return nil, usagef("--disk: group %s has not all of these volumes: see holdfast group volume list %s", m.GetGroup(), m.GetGroup())
	}
	return r, nil
}

// adopted waits until the target has made the group of the disks.
func (a *app) adopted(ctx context.Context, target *api.Client, r *holdfastv1.RecoveryServiceAdoptRequest) error {
	for told := -1; ; {
		res, err := target.Recovery.Adopt(ctx, r)
		if err != nil {
			return explain(api.RoleTarget, err)
		}
		if res.GetAdopted() {
			return nil
		}
		if percent := int(100 * res.GetReadBytes() / max(1, res.GetBytes())); percent/10 > told {
			told = percent / 10
			fmt.Fprintf(a.stderr, "The target has read %d%% of the disks.\n", percent)
		}
		select {
		case <-time.After(preseedEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
