package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/holdfast-dr/holdfast/journal"
)

// groupView is what list tells of a group.
type groupView struct {
	ID          string           `json:"id"`
	Name        string           `json:"name"`
	Lineage     string           `json:"lineage"`
	State       string           `json:"state"`
	Error       string           `json:"error,omitempty"`
	LogBytes    int64            `json:"log_bytes"`
	Volumes     []volumeView     `json:"volumes"`
	Segments    []segmentView    `json:"segments"`
	Checkpoints []checkpointView `json:"checkpoints"`
}

type volumeView struct {
	ID    uint32 `json:"id"`
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	File  string `json:"file,omitempty"` // of a group that was removed: where the disk stays
}

type segmentView struct {
	Number  uint64 `json:"number"`
	First   int64  `json:"first"`
	End     int64  `json:"end"`
	Records int    `json:"records"`
	State   string `json:"state"`
	Error   string `json:"error,omitempty"`
}

type checkpointView struct {
	Number uint64    `json:"number"`
	Time   time.Time `json:"time"`
	Tag    string    `json:"tag,omitempty"`
	State  string    `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Pinned bool      `json:"pinned,omitempty"`
	Label  string    `json:"label,omitempty"` // of the pin
}

// pin is a pin as the table shows it.
func (c checkpointView) pin() string {
	switch {
	case c.Label != "":
		return fmt.Sprintf("pinned: %q", c.Label)
	case c.Pinned:
		return "pinned"
	}
	return "-"
}

// list tells what the store holds.
func list(ctx context.Context, d *dump, _ []string) error {
	var all []groupView
	for _, g := range d.store.Groups() {
		v, err := d.view(g)
		if err != nil {
			return err
		}
		all = append(all, v)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	for _, r := range d.store.Removed() {
		all = append(all, removedView(r))
	}
	return d.show(all, func(w io.Writer) {
		for _, g := range all {
			g.print(w)
		}
	})
}

// removedView is a group that is there no more.
func removedView(r journal.Removed) groupView {
	v := groupView{ID: r.ID.String(), Name: r.Name, Lineage: fmt.Sprintf("%x", r.Lineage), State: "removed"}
	for _, x := range r.Disks {
		v.Volumes = append(v.Volumes, volumeView{uint32(x.ID), x.Name, x.Bytes, x.File})
	}
	return v
}

func (d *dump) view(g *journal.Group) (groupView, error) {
	info, st := g.Info(), g.State()
	v := groupView{ID: info.ID.String(), Name: info.Name, Lineage: fmt.Sprintf("%x", info.Lineage), State: "ok", LogBytes: st.Bytes}
	if st.Resync {
		v.State = "resync"
	}
	if st.Err != nil {
		v.State, v.Error = "error", st.Err.Error()
	}
	for _, x := range g.Volumes() {
		v.Volumes = append(v.Volumes, volumeView{ID: uint32(x.ID), Name: x.Name, Bytes: x.Bytes})
	}
	log, err := d.openLog(info.ID)
	if err != nil {
		v.State, v.Error = "error", err.Error() // the rest is shown all the same
		return v, nil
	}
	for _, s := range log.Segments() {
		x := segmentView{Number: s.Number, First: int64(s.First), End: int64(s.End), Records: s.Records, State: s.State.String()}
		if s.Err != nil {
			x.Error = s.Err.Error()
		}
		v.Segments = append(v.Segments, x)
	}
	if err := log.Close(); err != nil {
		return v, err
	}
	for after := uint64(0); ; {
		cps, err := g.Checkpoints(after, 1000)
		if err != nil { // it does not open; the rest is shown all the same
			v.State, v.Error = "error", err.Error()
			return v, nil
		}
		if len(cps) == 0 {
			return v, nil
		}
		for _, c := range cps {
			v.Checkpoints = append(v.Checkpoints, checkpointView{c.Number, time.Unix(0, c.Wall).UTC(), c.Tag, string(c.State), c.Reason, c.Pinned, c.Label})
		}
		after = cps[len(cps)-1].Number
	}
}

func (g groupView) print(w io.Writer) {
	fmt.Fprintf(w, "group %s  %s  lineage %s  %s  log %s\n", g.Name, g.ID, g.Lineage, g.State, size(g.LogBytes))
	if g.Error != "" {
		fmt.Fprintf(w, "  %s\n", g.Error)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "  VOLUME\tSIZE\tNAME\n")
	for _, v := range g.Volumes {
		fmt.Fprintf(t, "  %d\t%s\t%s\t%s\n", v.ID, size(v.Bytes), v.Name, v.File)
	}
	if g.State == "removed" {
		t.Flush()
		fmt.Fprintln(w)
		return
	}
	fmt.Fprint(t, "  SEGMENT\tFIRST\tEND\tRECORDS\tSTATE\n")
	for _, s := range g.Segments {
		fmt.Fprintf(t, "  %d\t%d\t%d\t%d\t%s %s\n", s.Number, s.First, s.End, s.Records, s.State, s.Error)
	}
	fmt.Fprint(t, "  CHECKPOINT\tTIME\tPIN\tSTATE\tTAG\n")
	for _, c := range g.Checkpoints {
		fmt.Fprintf(t, "  %d\t%s\t%s\t%s %s\t%s\n", c.Number, c.Time.Format(time.RFC3339), c.pin(), c.State, c.Reason, c.Tag)
	}
	t.Flush()
	fmt.Fprintln(w)
}

// size writes bytes for people.
func size(n int64) string {
	v, unit := float64(n), 0
	for v >= 1024 && unit < 5 {
		v, unit = v/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, [...]string{"", "KiB", "MiB", "GiB", "TiB", "PiB"}[unit])
}
