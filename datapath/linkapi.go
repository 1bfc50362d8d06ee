package datapath

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/wire"
)

// linksHandler implements api.LinksHandler.
type linksHandler struct{ *handler }

// Test measures the link of a group, on connections of its own; there is one test of a
// link at a time.
func (h linksHandler) Test(ctx context.Context, r *holdfastv1.LinksServiceTestRequest, tell func(*holdfastv1.LinksServiceTestResponse) error) error {
	p, err := h.linkOf(r.Group)
	if err != nil {
		return err
	}
	if r.Duration.AsDuration() < 0 || r.Duration.AsDuration() > wire.MaxTestTime || r.Bytes < 0 || r.Bytes > wire.MaxTestBytes || r.Cap < 0 {
		return api.Errorf(api.InvalidArgument, "choose less", "at most %v and 4 GiB each way", wire.MaxTestTime)
	}
	// Under a cap the test takes half of it, or what was asked for, and replication the rest.
	site := int64(h.source.gate.Cap())
	limit := site / 2
	if r.Cap > 0 {
		limit = 0
	}
	if site > 0 && r.Cap > site {
		return api.Errorf(api.Precondition, "ask for at most that, or lift it with holdfast shaping set", "the site's cap of %d bit/s is in force, and a test keeps to it", site)
	}
	if !p.testing.CompareAndSwap(false, true) {
		return api.Errorf(api.Unavailable, "wait for it to end", "another test of this link is running")
	}
	defer p.testing.Store(false)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The newest progress only: who listens slowly must not slow the test down.
	news := make(chan wire.LinkProgress, 1)
	var telling sync.WaitGroup
	telling.Go(func() {
		for n := range news {
			m := &holdfastv1.LinksServiceTestResponse{Stage: n.Stage, Bytes: n.Bytes, Took: api.Span(n.Took)}
			if err := tell(m); err != nil {
				cancel(err)
			}
		}
	})
	before := p.counters.DataSent.Load()
	report, err := wire.RunLinkTest(ctx, p.client(h.source.cfg), wire.LinkTest{
		Lasts: r.Duration.AsDuration(), Bytes: r.Bytes, Cap: r.Cap, Limit: limit, Sent: h.source.gate.Charge,
		Progress: func(n wire.LinkProgress) {
			select {
			case <-news:
			default:
			}
			news <- n // one goroutine calls this: there is room
		},
	})
	close(news)
	telling.Wait()
	if err != nil {
		return linkFailure(p, err)
	}
	m := reportMessage(report)
	m.Control, m.Data = p.control, p.data
	m.ReplicatedBytes = int64(p.counters.DataSent.Load() - before)
	return tell(&holdfastv1.LinksServiceTestResponse{Report: m})
}

// linkOf finds the link that a group uses; the empty name is the only link.
func (h linksHandler) linkOf(group string) (*peer, error) {
	if h.source == nil {
		return nil, api.Errorf(api.Precondition, "ask the source", "this VRA is a target: links are dialled from the source")
	}
	if group == "" {
		if len(h.source.peers) == 1 {
			return h.source.peers[0], nil
		}
		return nil, api.Errorf(api.InvalidArgument, "name a group that goes to the one you mean", "this source has %d targets", len(h.source.peers))
	}
	f := h.source.flow(group)
	if f == nil {
		return nil, noGroup(group)
	}
	return h.source.peerOf(f.cfg), nil
}

func linkFailure(p *peer, err error) error {
	var peer *wire.PeerError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, wire.ErrNoLinkTest):
		return api.Errorf(api.Unimplemented, "update the target", "%v", err)
	case errors.As(err, &peer) && peer.Code == wire.CodeBusy:
		return api.Errorf(api.Unavailable, "try again in a minute", "the target is busy: %s", peer.Text)
	case errors.Is(err, wire.ErrUntrusted), strings.Contains(err.Error(), "TLS: "):
		return api.Errorf(api.Precondition, "see the log of the target for what it refused, and compare certificates and clocks", "%s: %v", p.control, err)
	}
	return api.Errorf(api.Unavailable, "see whether a firewall lets both ports of the target pass", "%s, %s: %v", p.control, p.data, err)
}

func reportMessage(r *wire.LinkReport) *holdfastv1.LinkReport {
	m := &holdfastv1.LinkReport{
		Target: r.Peer.String(), Protocol: uint32(r.Version), RoundTrip: spreadMessage(r.Idle), RoundTripLoaded: spreadMessage(r.Loaded),
		Up: wayMessage(r.Up), Down: wayMessage(r.Down), MtuBlackHole: r.MTU.Lost,
		ClockAhead: api.Span(r.Clock.Ahead), ClockWithin: api.Span(r.Clock.Within), Cap: r.Cap,
	}
	if r.MTU.Path > 0 {
		n := int32(r.MTU.Path)
		m.PathMtu = &n
	}
	if reached, known := r.CapReached(); known {
		m.CapReached = &reached
	}
	for _, f := range r.Findings() {
		m.Findings = append(m.Findings, &holdfastv1.LinkFinding{Level: f.Level, Text: f.Text})
	}
	return m
}

func spreadMessage(s wire.Spread) *holdfastv1.LinkSpread {
	if s.Count == 0 {
		return nil
	}
	return &holdfastv1.LinkSpread{Count: int32(s.Count), Min: api.Span(s.Min), Median: api.Span(s.Median), Max: api.Span(s.Max)}
}

func wayMessage(w *wire.WayReport) *holdfastv1.LinkWay {
	if w == nil {
		return nil
	}
	m := &holdfastv1.LinkWay{Bytes: w.Bytes, Took: api.Span(w.Took), PayloadBitsPerSecond: w.Payload, InterfaceBitsPerSecond: w.Interface}
	if w.TCP.Segments > 0 {
		m.Segments, m.Retransmitted, m.SegmentBytes = &w.TCP.Segments, &w.TCP.Retransmitted, &w.TCP.MSS
	}
	return m
}
