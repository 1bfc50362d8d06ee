package main

import (
	"fmt"
	"strconv"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/spf13/cobra"
)

// storeList is what is said of a target's stores; its JSON is kept for ever.
type storeList struct {
	Parity string        `json:"parity"`
	Spare  *int32        `json:"spare"` // how many more stores may be lost
	Reason *string       `json:"reason"`
	Files  int64         `json:"files"`
	Thin   int64         `json:"thin"`
	Doing  *string       `json:"doing"`
	Done   int64         `json:"done_files"`
	Todo   int64         `json:"todo_files"`
	Stores []storeStatus `json:"stores"`
}

type storeStatus struct {
	Folder string  `json:"folder"`
	State  string  `json:"state"`
	Files  int64   `json:"files"`
	Errors int64   `json:"read_errors"`
	Reason *string `json:"reason"`
}

func (a *app) storeCommand() *cobra.Command {
	return parent("store", "List, add and retire the folders of a target",
		`A target keeps its journal in one folder, or in several that are on a disk each
(target.stores and target.parity in its configuration). With a parity of k+m it goes on
when any m of them are lost, and says so; what is then too thin is made anew as soon
as there are stores enough.

States: in, out (it failed, and what it holds is not read again), retiring (what it
holds is moved to the others), rebuilding (it was out and was added again, and what it
is to hold is not all there yet), stray (configured, and not of the set).`,
		a.storeList(), a.storeAdd(), a.storeRetire())
}

func (a *app) storeList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the stores, and say how many more may be lost",
		Example: "  holdfast store list\n  holdfast store list -o json | jq .spare",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			res, err := api.All(cmd.Context(), &holdfastv1.StoresServiceListRequest{}, client.Stores.List)
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			l := newStoreList(res)
			if a.output == "table" && l.Reason != nil {
				fmt.Fprintln(a.stderr, printable(*l.Reason))
			}
			rows := make([][]string, len(l.Stores))
			for i, s := range l.Stores {
				rows[i] = []string{s.Folder, s.State, strconv.FormatInt(s.Files, 10), strconv.FormatInt(s.Errors, 10), orHyphen(s.Reason)}
			}
			return a.print(l, "FOLDER STATE FILES ERRORS REASON", rows)
		},
	}
}

func newStoreList(res *holdfastv1.StoresServiceListResponse) storeList {
	l := storeList{Parity: res.GetParity(), Spare: res.Spare, Reason: textOrNull(res.GetReason()), Files: res.GetFiles(), Thin: res.GetThin(),
		Doing: textOrNull(res.GetDoing()), Done: res.GetDoneFiles(), Todo: res.GetTodoFiles(), Stores: []storeStatus{}}
	for _, s := range res.GetStores() {
		l.Stores = append(l.Stores, storeStatus{s.GetFolder(), s.GetState(), s.GetFiles(), s.GetReadErrors(), textOrNull(s.GetReason())})
	}
	return l
}

func (a *app) storeAdd() *cobra.Command {
	return &cobra.Command{
		Use:   "add FOLDER",
		Short: "Take an empty folder into the set",
		Long: `Add takes an empty folder into the set, or one that was of it and is out: what that one
held is removed. New files use it at once; what lies too thin is moved to it in the
background. Name it in target.stores too, so that it is found when others are gone.`,
		Example: "  holdfast store add /disks/e/holdfast",
		Args:    oneArg("FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			_, err = client.Stores.Add(cmd.Context(), &holdfastv1.StoresServiceAddRequest{Folder: args[0], IdempotencyKey: api.NewKey()})
			return explain(api.RoleTarget, err)
		},
	}
}

func (a *app) storeRetire() *cobra.Command {
	return &cobra.Command{
		Use:   "retire FOLDER",
		Short: "Move everything off a store and let go of it",
		Long: `Retire has everything that a store holds moved to the others in the background; when
store list shows it no more, the folder may go. There must be stores enough without
it: add another first.`,
		Example: "  holdfast store retire /disks/b/holdfast",
		Args:    oneArg("FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			_, err = client.Stores.Retire(cmd.Context(), &holdfastv1.StoresServiceRetireRequest{Folder: args[0], IdempotencyKey: api.NewKey()})
			return explain(api.RoleTarget, err)
		},
	}
}
