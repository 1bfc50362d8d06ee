package journal

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// wound is a part of a volume that reads as damaged wherever a checkpoint holds the
// version that is.
type wound struct {
	index.Place // Pos 0: of the replica
	damage      *damage
}

// reason says to a user why a checkpoint with the wound is bad.
func (w *wound) reason() string {
	if w.Pos == 0 {
		return cut(w.damage.String())
	}
	return cut(fmt.Sprintf("volume %d at %d: %s", w.Volume, w.Off, w.damage))
}

// heldBy says whether the checkpoint holds the record that put the version there.
func (w *wound) heldBy(cp *Checkpoint) bool {
	return w.Pos == 0 || index.NewVector(*cp).Holds(w.Stream, w.Seq)
}

// within says whether the checkpoint has the place at all.
func (w *wound) within(cp *Checkpoint) bool {
	return slices.ContainsFunc(cp.Volumes, func(v record.VolumeSize) bool { return v.ID == w.Volume && v.Bytes > w.Off })
}

// woundsPart is how much log is searched for wounds at once: what it held makes a list
// in memory, some tens of MiB where all of it is damaged and its writes were small.
const woundsPart = 64 << 20

// eachWounds calls f with the parts of volumes that the damage concerns, some at a time.
func (g *Group) eachWounds(ds damages, f func([]wound) error) error {
	for i := range ds {
		d := &ds[i]
		if d.volume != 0 {
			end := d.to // of a block, which may reach beyond the volume
			g.mu.Lock()
			if v := g.volumes[d.volume]; v != nil {
				end = min(end, v.info.Bytes)
			}
			g.mu.Unlock()
			if end <= d.from {
				continue
			}
			if err := f([]wound{{index.Place{Volume: d.volume, Off: d.from, Len: end - d.from}, d}}); err != nil {
				return err
			}
			continue
		}
		for from := d.from; from < d.to; from += woundsPart {
			span := index.Span{From: segment.Pos(from), To: segment.Pos(min(d.to, from+woundsPart))}
			places, err := g.index.Stored([]index.Span{span})
			if err != nil {
				return err
			}
			ws := make([]wound, len(places))
			for i, p := range places {
				ws[i] = wound{p, d}
			}
			if err := f(ws); err != nil {
				return err
			}
		}
	}
	return nil
}

// shows says whether a checkpoint at that place shows the version: nothing that it holds
// has covered it. Of checkpoints that hold it, the older ones show it and the newer,
// from some on, do not.
func (g *Group) shows(w *wound, cp *Checkpoint) (bool, error) {
	found, err := g.index.LookupNow(nil, w.Volume, w.Off, w.Len, g.index.Vector(*cp))
	if err != nil {
		return false, err
	}
	for _, p := range found {
		if w.is(p) {
			return true, nil
		}
	}
	return false, nil
}

// spoiled are the listed checkpoints that show a wound: those with numbers in [first, end),
// as far as they have the place.
type spoiled struct {
	wound
	first, end uint64
}

// probes finds listed checkpoints by number.
type probes struct {
	g     *Group
	last  uint64 // the highest number
	known map[uint64]Checkpoint
}

// probesKept bounds what is remembered: halving comes by the same few again and again.
const probesKept = 4096

func (g *Group) probes() (*probes, error) {
	newest, err := g.store.catalogue.List(g.info.ID, index.Query{Newest: true, Limit: 1})
	p := &probes{g: g, known: make(map[uint64]Checkpoint)}
	if len(newest.Checkpoints) > 0 {
		p.last = newest.Checkpoints[0].Number
	}
	return p, err
}

// from returns the first listed checkpoint with that number or a higher one.
func (p *probes) from(number uint64) (*Checkpoint, error) {
	if cp, ok := p.known[number]; ok {
		return &cp, nil
	}
	cps, err := p.g.store.catalogue.Checkpoints(p.g.info.ID, number-1, 1)
	if err != nil {
		return nil, err
	}
	if len(cps) == 0 {
		return nil, fmt.Errorf("%w: no checkpoint from %d to %d", ErrCorrupt, number, p.last)
	}
	if len(p.known) < probesKept {
		p.known[number] = cps[0]
	}
	return &cps[0], nil
}

// search returns the lowest number in [lo, last+1] from which on the checkpoints
// satisfy is, which no lower one does.
func (p *probes) search(lo uint64, is func(*Checkpoint) (bool, error)) (uint64, error) {
	for hi := p.last + 1; lo < hi; {
		mid := lo + (hi-lo)/2
		cp, err := p.from(mid)
		if err != nil {
			return 0, err
		}
		yes, err := is(cp)
		if err != nil {
			return 0, err
		}
		if yes {
			hi = mid
		} else {
			lo = cp.Number + 1
		}
		if lo > hi {
			lo = hi
		}
	}
	return lo, nil
}

// spoils finds which listed checkpoints show the wound, by halving: it costs as many
// lookups as their numbers have binary digits, however many they are.
func (p *probes) spoils(w wound) (s spoiled, err error) {
	s.wound = w
	s.first, err = p.search(1, func(cp *Checkpoint) (bool, error) { return w.heldBy(cp), nil })
	if err != nil || s.first > p.last {
		s.end = s.first
		return s, err
	}
	s.end, err = p.search(s.first, func(cp *Checkpoint) (bool, error) {
		shown, err := p.g.shows(&w, cp)
		return !shown, err
	})
	if invariant.Planted("journal/spoil-one") {
		s.end = min(s.end, s.first+1)
	}
	return s, err
}

// lasting says whether checkpoints that are listed from now on may show the wound.
func (p *probes) lasting(s *spoiled) bool { return s.end > p.last }

// spoil marks as bad the good ones among the listed checkpoints that show the wounds,
// tells bad of all that show them, in order, and returns the wounds that later ones may
// show too.
func (g *Group) spoil(ws []wound, bad func(number uint64)) (lasting []wound, err error) {
	p, err := g.probes()
	if err != nil {
		return nil, err
	}
	var all []spoiled
	for _, w := range ws {
		s, err := p.spoils(w)
		if err != nil {
			return nil, err
		}
		if p.lasting(&s) {
			lasting = append(lasting, w)
		}
		if s.first < s.end && s.first <= p.last {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b spoiled) int { return cmp.Compare(a.first, b.first) })
	for len(all) > 0 {
		n, end := 1, all[0].end
		for n < len(all) && all[n].first <= end {
			end = max(end, all[n].end)
			n++
		}
		if err := g.markBad(all[:n], all[0].first, min(end-1, p.last), bad); err != nil {
			return nil, err
		}
		all = all[n:]
	}
	return lasting, nil
}

// markBad marks the checkpoints in [first, last] that show any of the wounds, which are
// ordered by where they begin.
func (g *Group) markBad(ss []spoiled, first, last uint64, bad func(number uint64)) error {
	var open []spoiled
	var from, to uint64
	reason := ""
	marked, err := g.store.catalogue.Change(g.info.ID, first, last, func(cp *Checkpoint) bool {
		for len(ss) > 0 && ss[0].first <= cp.Number {
			open = append(open, ss[0])
			ss = ss[1:]
		}
		open = slices.DeleteFunc(open, func(s spoiled) bool { return s.end <= cp.Number })
		i := slices.IndexFunc(open, func(s spoiled) bool { return s.within(cp) })
		if i < 0 {
			return false
		}
		bad(cp.Number)
		if cp.State == index.Bad {
			return false
		}
		cp.State, cp.Reason = index.Bad, open[i].reason()
		if from == 0 {
			from, reason = cp.Number, cp.Reason
		}
		to = cp.Number
		return true
	})
	if marked > 0 {
		g.log.Error("checkpoints are bad", "count", marked, "first", from, "last", to, "reason", reason)
	}
	return err
}

// hurt are the wounds that checkpoints listed later may show: those that fit, and the
// damage whose wounds are too many to be kept.
type hurt struct {
	wounds []wound
	rest   damages
}

// maxHurt bounds the wounds that are kept, at some 80 bytes each.
const maxHurt = 1 << 17

// add takes the wounds of one damage.
func (h *hurt) add(ws []wound) {
	if len(ws) == 0 || len(h.wounds)+len(ws) <= maxHurt {
		h.wounds = append(h.wounds, ws...)
		return
	}
	for i := range ws {
		if d := *ws[i].damage; !h.rest.holds(d) {
			h.rest = h.rest.add(d)
		}
	}
}

// spoilNew marks those of the checkpoints that are about to be listed that are bad from
// the start, and forgets the wounds that all later ones have covered.
func (g *Group) spoilNew(h *hurt, cps []Checkpoint) error {
	if len(cps) == 0 || invariant.Planted("journal/list-wounded") {
		return nil
	}
	check := func(ws []wound) (open []wound, err error) {
		for i := range ws {
			w, last := &ws[i], false
			for k := range cps {
				cp := &cps[k]
				if last = true; !w.heldBy(cp) {
					continue
				}
				if last, err = g.shows(w, cp); err != nil {
					return nil, err
				}
				if last && cp.State == index.Good && w.within(cp) {
					cp.State, cp.Reason = index.Bad, w.reason()
				}
			}
			if last {
				open = append(open, *w)
			}
		}
		return open, nil
	}
	open, err := check(h.wounds)
	if err != nil {
		return err
	}
	left := 0
	err = g.eachWounds(h.rest, func(ws []wound) error {
		open, err := check(ws)
		left += len(open)
		return err
	})
	if err != nil {
		return err
	}
	if h.wounds = open; left == 0 {
		h.rest = nil
	}
	return nil
}

// blame finds out for all of the damage which checkpoints it is in and which wounds
// later ones may show. What was marked as bad and shows none of it any more is good
// again. It is for the one who loads the group, or holds its marking.
func (g *Group) blame(ds damages, marks *facts) (h hurt, err error) {
	var bad spans
	err = g.eachWounds(ds, func(ws []wound) error {
		lasting, err := g.spoil(ws, func(n uint64) { bad = bad.add(span{n - 1, n + 1}) })
		h.add(lasting)
		return err
	})
	for q := (index.Query{State: index.Bad, Limit: relistBatch}); err == nil; {
		page, err := g.store.catalogue.List(g.info.ID, q)
		if err != nil {
			return h, err
		}
		for _, cp := range page.Checkpoints {
			if _, stated := marks.bad[cp.Number]; stated || bad.holds(cp.Number) || g.beyond(cp.Number) {
				continue
			}
			_, err := g.store.catalogue.Change(g.info.ID, cp.Number, cp.Number, func(cp *Checkpoint) bool {
				cp.State, cp.Reason = index.Good, ""
				return true
			})
			if err != nil {
				return h, err
			}
			g.log.Info("checkpoint is good again", "checkpoint", cp.Number)
		}
		if q.After = page.Next; q.After == 0 {
			return h, nil
		}
	}
	return h, err
}
