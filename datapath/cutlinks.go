package datapath

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/cut"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/cutword"
)

// cutLinks are a source's connections with the other source VRAs of its site that share groups
// with it. It is a wire.CutHandler.
type cutLinks struct {
	source *Source
	server *wire.CutServer

	mu struct {
		sync.Mutex
		last  cut.Link
		links map[*wire.CutLink]cut.Link // over which others lead
	}
}

// openCutLinks opens the port for cuts, if a group is shared; nil if none is.
func openCutLinks(s *Source) (*cutLinks, error) {
	h := &cutLinks{source: s}
	h.mu.links = map[*wire.CutLink]cut.Link{}
	if len(h.peers()) == 0 {
		return nil, nil
	}
	var err error
	h.server, err = wire.ListenCuts(wire.CutServerConfig{Listen: s.cfg.ListenCuts, Credentials: s.cfg.SiteCredentials, Log: s.cfg.Log,
		Knows: func(p wire.Peer) bool { return h.peers()[p.ID] != "" }})
	return h, err
}

// peers are the other VRAs, and where they are told of cuts.
func (h *cutLinks) peers() map[string]string {
	all := make(map[string]string)
	for _, f := range h.source.flows {
		if f.cuts == nil {
			continue
		}
		for _, m := range f.cuts.members {
			if m.Stream != f.cfg.Stream {
				all[m.VRA] = m.Address
			}
		}
	}
	return all
}

// run takes and keeps connections until ctx ends.
func (h *cutLinks) run(ctx context.Context) error {
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	wg.Go(func() { fail(h.server.Serve(run, h)) })
	cfg := h.source.cfg
	own, err := cfg.SiteCredentials.Self()
	if err != nil {
		fail(err)
	}
	for vra, address := range h.peers() {
		wg.Go(func() {
			if err := wire.ConnectCuts(run, wire.CutClientConfig{Address: address, Credentials: cfg.SiteCredentials,
				Peer: wire.Peer{Site: own.Site, Role: wire.RoleVRA, ID: vra}, Log: cfg.Log}, h); err != nil {
				fail(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(run)
}

// shared calls do for each group that is shared with the VRA at the other end.
func (h *cutLinks) shared(l *wire.CutLink, do func(*cutter, Member)) {
	for _, f := range h.source.flows {
		if f.cuts == nil {
			continue
		}
		if m, ok := f.cuts.named(l.Peer().ID); ok {
			do(f.cuts, m)
		}
	}
}

// Opened implements wire.CutHandler.
func (h *cutLinks) Opened(l *wire.CutLink) {
	if l.Leads() {
		h.shared(l, func(c *cutter, m Member) {
			c.with(func() {
				c.mu.ways[m.Stream] = l
				c.lead(cut.Up{Member: m.Stream})
			})
		})
		return
	}
	h.mu.Lock()
	h.mu.last++
	link := h.mu.last
	h.mu.links[l] = link
	h.mu.Unlock()
	h.shared(l, func(c *cutter, _ Member) { c.with(func() { c.mu.backs[link] = l }) })
}

// Word implements wire.CutHandler.
func (h *cutLinks) Word(l *wire.CutLink, w cutword.Word) error {
	known := false
	h.shared(l, func(c *cutter, m Member) {
		if c.flow.cfg.ID != w.Group || known {
			return
		}
		known = true
		c.with(func() {
			switch {
			case l.Leads():
				c.lead(cut.Heard{Member: m.Stream, Word: w})
			case w.ID.Leader == m.Stream: // nobody leads in another's name
				c.memberStep(cut.Said{From: h.link(l), Word: w})
			}
		})
	})
	if !known && w.Kind == cutword.Place {
		return l.Send(cutword.Word{Kind: cutword.Refused, Group: w.Group, ID: w.ID, Why: fmt.Sprintf("the group %s is not shared here", w.Group)})
	}
	return nil
}

func (h *cutLinks) link(l *wire.CutLink) cut.Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.links[l]
}

// Closed implements wire.CutHandler.
func (h *cutLinks) Closed(l *wire.CutLink, _ error) {
	if l.Leads() {
		h.shared(l, func(c *cutter, m Member) {
			c.with(func() {
				c.mu.ways[m.Stream] = nil
				c.lead(cut.Down{Member: m.Stream})
			})
		})
		return
	}
	link := h.link(l)
	h.mu.Lock()
	delete(h.mu.links, l)
	h.mu.Unlock()
	h.shared(l, func(c *cutter, _ Member) {
		c.with(func() {
			delete(c.mu.backs, link)
			c.memberStep(cut.Gone{From: link})
		})
	})
}
