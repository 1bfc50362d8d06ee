package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// verifyView is what verify found in a group.
type verifyView struct {
	Group    string       `json:"group"`
	Bytes    int64        `json:"bytes_read"`
	Segments int          `json:"segments"`
	Replicas int          `json:"replicas"`
	Damage   []damageView `json:"damage"`
}

type damageView struct {
	Where string `json:"where"`
	From  int64  `json:"from"`
	To    int64  `json:"to"`
	Error string `json:"error"`
}

// errDamaged makes verify end with 1.
var errDamaged = errors.New("something is damaged")

// verify reads all that a group keeps and checks every sum.
func verify(ctx context.Context, d *dump, args []string) error {
	groups := d.store.Groups()
	if len(args) == 1 {
		g, err := d.group(args[0])
		if err != nil {
			return err
		}
		groups = []*journal.Group{g}
	}
	var all []verifyView
	damaged := false
	for _, g := range groups {
		v := verifyView{Group: g.Info().Name, Damage: []damageView{}}
		p := newProgress(d.log, v.Group, g.State().Bytes)
		if err := unopened(g); err != nil {
			v.Damage = append(v.Damage, damageView{Where: "group", Error: err.Error()})
		}
		if err := d.verifyLog(ctx, g, &v, p); err != nil {
			return err
		}
		if err := d.verifyReplicas(ctx, g, &v, p); err != nil {
			return err
		}
		p.end()
		damaged = damaged || len(v.Damage) > 0
		all = append(all, v)
	}
	err := d.show(all, func(w io.Writer) {
		for _, v := range all {
			fmt.Fprintf(w, "group %s: %d segments and %d replicas read, %s; %d damaged\n", v.Group, v.Segments, v.Replicas, size(v.Bytes), len(v.Damage))
			for _, x := range v.Damage {
				fmt.Fprintf(w, "  %s, %d to %d: %s\n", x.Where, x.From, x.To, x.Error)
			}
		}
	})
	if err == nil && damaged {
		err = errDamaged
	}
	return err
}

// unopened says why a group does not open; nil: it does.
func unopened(g *journal.Group) error {
	_, err := g.Checkpoints(0, 1)
	return err
}

func (d *dump) verifyLog(ctx context.Context, g *journal.Group, v *verifyView, p *progress) error {
	log, err := d.openLog(g.Info().ID)
	if err != nil {
		v.Damage = append(v.Damage, damageView{Where: "log", Error: err.Error()})
		return nil
	}
	for _, s := range log.Segments() {
		v.Segments++
		if s.State == segment.StateOpen {
			continue // made by this opening: a copy of the last round, which was verified
		}
		found, err := log.Verify(s.Number, func(n int) error {
			v.Bytes += int64(n)
			p.add(n)
			return ctx.Err()
		})
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), log.Close())
		}
		where := fmt.Sprintf("segment %d", s.Number)
		for _, f := range found {
			v.Damage = append(v.Damage, damageView{where, int64(f.From), int64(f.To), f.Err.Error()})
		}
		if err != nil && len(found) == 0 {
			v.Damage = append(v.Damage, damageView{where, int64(s.First), int64(s.End), err.Error()})
		}
	}
	return log.Close()
}

func (d *dump) verifyReplicas(ctx context.Context, g *journal.Group, v *verifyView, p *progress) error {
	dir := path.Join(d.dir, "groups", g.Info().ID.String(), "replica")
	for _, vol := range g.Volumes() {
		v.Replicas++
		where := fmt.Sprintf("replica of volume %d", vol.ID)
		r, err := replica.Open(d.overlay, dir, replica.Place{Group: g.Info().ID, Volume: vol.ID}, vol.Bytes)
		if err != nil {
			v.Damage = append(v.Damage, damageView{where, 0, vol.Bytes, err.Error()})
			continue
		}
		off, failed := int64(0), error(nil)
		buf := make([]byte, 256<<10)
		err = r.Extents(0, vol.Bytes, func(n int64, hole bool) bool {
			for end := off + n; off < end; {
				k := min(end-off, int64(len(buf)))
				if !hole {
					v.Damage = checkReplica(r, buf[:k], off, where, v.Damage)
					v.Bytes += k
					p.add(int(k))
				} else {
					k = end - off
				}
				off += k
				if failed = ctx.Err(); failed != nil {
					return false
				}
			}
			return true
		})
		if err != nil && failed == nil {
			v.Damage = append(v.Damage, damageView{where, off, vol.Bytes, err.Error()})
		}
		if err := errors.Join(failed, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// checkReplica reads a part, and block by block when it does not verify.
func checkReplica(r *replica.Volume, p []byte, off int64, where string, found []damageView) []damageView {
	if r.ReadAt(p, off) == nil {
		return found
	}
	for at := 0; at < len(p); at += replica.BlockBytes {
		n := min(replica.BlockBytes, len(p)-at)
		if err := r.ReadAt(p[at:at+n], off+int64(at)); err != nil {
			found = append(found, damageView{where, off + int64(at), off + int64(at+n), err.Error()})
		}
	}
	return found
}

// progress tells of long work once a second, with its rate.
type progress struct {
	w           io.Writer
	what        string
	total       int64
	done        int64
	began, last time.Time
}

func newProgress(w io.Writer, what string, total int64) *progress {
	now := time.Now()
	return &progress{w: w, what: what, total: total, began: now, last: now}
}

func (p *progress) add(n int) {
	p.done += int64(n)
	if now := time.Now(); now.Sub(p.last) >= time.Second {
		p.last = now
		p.say("\r")
	}
}

func (p *progress) say(end string) {
	took := time.Since(p.began).Seconds()
	rate := float64(p.done) / max(took, 0.001)
	left := ""
	if p.total > p.done && rate > 0 {
		left = fmt.Sprintf(", about %s left", time.Duration(float64(p.total-p.done)/rate*1e9).Round(time.Second))
	}
	fmt.Fprintf(p.w, "%s: %s, %s/s%s          %s", p.what, size(p.done), size(int64(rate)), left, end)
}

// end ends the line, if one was begun.
func (p *progress) end() {
	if p.last != p.began {
		p.say("\n")
	}
}
