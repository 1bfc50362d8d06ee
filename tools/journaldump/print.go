package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// recordView is what print tells of a record.
type recordView struct {
	Position    int64  `json:"position"`
	Size        int    `json:"size"`
	Kind        string `json:"kind"`
	Stream      string `json:"stream"`
	Epoch       uint32 `json:"epoch"`
	Incarnation uint32 `json:"incarnation"`
	Seq         uint64 `json:"seq"`
	Extents     int    `json:"extents"`
	Blocks      int    `json:"blocks"`
	Raw         int64  `json:"raw"`
	Stored      int64  `json:"stored"`
	Detail      string `json:"detail,omitempty"`
}

// checkKind says which kinds there are when it is told another.
func checkKind(kind string) error {
	var kinds []string
	for _, k := range []record.Kind{record.KindData, record.KindCut, record.KindConfirm, record.KindResize, record.KindResyncOpen, record.KindResyncClose, record.KindFolded} {
		kinds = append(kinds, k.String())
	}
	if kind == "" || slices.Contains(kinds, kind) {
		return nil
	}
	return fmt.Errorf("-kind %s: want one of %s: %w", kind, strings.Join(kinds, ", "), errUsage)
}

var errEnough = errors.New("enough")

// printRecords prints the records of a group's log, a line each.
func printRecords(ctx context.Context, d *dump, args []string) error {
	g, err := d.group(args[0])
	if err != nil {
		return err
	}
	log, err := d.openLog(g.Info().ID)
	if err != nil {
		return err
	}
	infos := log.Segments()
	from, to := infos[0].First, log.Durable()
	if d.from != 0 {
		if from = segment.Pos(d.from); from < infos[0].First || from > to {
			return errors.Join(fmt.Errorf("-from %d: the log runs from %d to %d", d.from, infos[0].First, to), log.Close())
		}
	}
	shown := 0
	e := json.NewEncoder(d.out)
	// From the edge of the segment that holds the place: records are found in order.
	start := infos[0].First
	for _, s := range infos {
		if s.First <= from {
			start = s.First
		}
	}
	err = log.Replay(start, to, segment.ReplayOptions{}, func(pos segment.Pos, r record.Record) error {
		v := viewOf(pos, r)
		if pos < from || d.kind != "" && v.Kind != d.kind {
			return ctx.Err()
		}
		if d.json {
			err = e.Encode(v)
		} else {
			_, err = fmt.Fprintf(d.out, "%12d %8d  %-12s %s/%d/%d/%d  %d extents, %d blocks, %s raw, %s stored  %s\n", v.Position, v.Size, v.Kind,
				v.Stream, v.Epoch, v.Incarnation, v.Seq, v.Extents, v.Blocks, size(v.Raw), size(v.Stored), v.Detail)
		}
		if shown++; err == nil && shown == d.count {
			err = errEnough
		}
		return errors.Join(err, ctx.Err())
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return errors.Join(err, log.Close())
}

func viewOf(pos segment.Pos, r record.Record) recordView {
	v := recordView{Position: int64(pos), Size: r.Size, Kind: r.Kind.String(), Stream: r.Stream.String(), Epoch: uint32(r.Epoch),
		Incarnation: uint32(r.Incarnation), Seq: uint64(r.Seq), Extents: r.Extents, Blocks: r.Blocks, Raw: r.Raw, Stored: r.Stored}
	switch r.Kind {
	case record.KindCut:
		if c, err := record.ParseCut(r); err == nil {
			v.Detail = fmt.Sprintf("checkpoint %d %q", c.Checkpoint, c.Tag)
		}
	case record.KindConfirm:
		if n, err := record.ParseConfirm(r); err == nil {
			v.Detail = fmt.Sprintf("checkpoint %d", n)
		}
	case record.KindResyncOpen, record.KindResyncClose:
		if x, err := record.ParseResync(r); err == nil {
			v.Detail = fmt.Sprintf("initial %v %s", x.Initial, x.Reason)
		}
	case record.KindResize:
		if x, err := record.ParseResize(r); err == nil {
			v.Detail = fmt.Sprintf("volume %d to %s", x.ID, size(x.Bytes))
		}
	}
	return v
}
