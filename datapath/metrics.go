package datapath

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/wire"
)

// metrics tells monitoring systems what status tells users, each time they ask.
type metrics struct {
	h *handler
}

// Metrics is a collector for a VRA that is a source, a target, or both.
func Metrics(who Identity, s *Source, t *Target) prometheus.Collector {
	return metrics{&handler{who: who, source: s, target: t}}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

var (
	descLag         = desc("group_lag_seconds", "Age of the oldest captured write the target has not acknowledged; absent when unknown.", "group")
	descBehind      = desc("group_behind_bytes", "Bytes the target lacks: captured and not acknowledged, and marked.", "group")
	descState       = desc("group_state", "1 for the state the group is in.", "group", "role", "state")
	descFailover    = desc("failover_state", "1 for the state that the last live failover of a group is in. Absent where it had none.", "group", "state")
	descCheckpoints = desc("group_checkpoints", "Listed checkpoints.", "group")
	descWrites      = desc("capture_writes_total", "Guest writes answered by the filters.", "group")
	descBytes       = desc("capture_bytes_total", "Bytes of guest writes answered by the filters.", "group")
	descWire        = desc("wire_bytes_total", "Bytes of TLS on the sockets of sessions.", "direction")
	descBad         = desc("wire_bad_frames_total", "Sessions and link tests that ended because the peer broke the protocol, by what it sent.", "kind")
	descRefused     = desc("wire_refused_total", "Connections that were refused before they were part of a session, by why.", "reason")
	descRaw         = desc("pack_raw_bytes_total", "Bytes of payload sealed, before compression.", "group")
	descStored      = desc("pack_stored_bytes_total", "Bytes of sealed records.", "group")
	descPackTime    = desc("pack_seconds_total", "Time that sealing batches took, all workers together.", "group")
	descPackWrong   = desc("pack_wrong_blocks_total", "Blocks whose compressed form did not open as what it was made of: sent raw. Faulty memory, a faulty processor, or a fault of the encoder.", "group")
	descPackRaw     = desc("pack_stores_raw", "1 while batches are not compressed: as configured, or because the link is faster than compression.", "group")
	descPackTurns   = desc("pack_given_up_total", "How often compression was given up because the link was faster.", "group")
	descWindow      = desc("window_bytes", "Bytes of sealed records that are not acknowledged.", "group")
	descConns       = desc("wire_connections", "Data connections to a target: up, and wanted at the moment.", "target", "state")
	descConnsLost   = desc("wire_connections_lost_total", "Data connections that broke while others of their session went on.")
	descAgain       = desc("wire_records_again_total", "Records sent again because their data connection broke.", "group")
	descReordered   = desc("wire_records_early_total", "Records received before their turn and held: they came over another connection than what was before them.")
	descWindowMost  = desc("window_limit_bytes", "What a group's window may hold now: less than its own limit while the memory of all windows is short.", "group")
	descBudget      = desc("window_budget_bytes", "What the windows of all groups may hold together.")
	descSpill       = desc("spill_bytes", "Bytes of records that wait on the spill disk.", "group")
	descSpillMost   = desc("spill_limit_bytes", "What a group's files on the spill disk may take now; absent where there is none.", "group")
	descSpillDisk   = desc("spill_disk_bytes", "What a group's files on the spill disk take.", "group")
	descSpilled     = desc("spill_written_bytes_total", "Bytes of records that went to the spill disk.", "group")
	descUnspilled   = desc("spill_read_bytes_total", "Bytes of records that came back from the spill disk.", "group")
	descCompared    = desc("group_compared_bytes_total", "Bytes of disk that were compared with what the target holds, by sums.", "group")
	descDiffer      = desc("group_compared_differing_bytes_total", "Bytes of them in blocks that differ, and are sent.", "group")
	descGaveWay     = desc("group_gave_way_total", "Times a group gave up what its window held, for groups of higher priority.", "group")
	descDirty       = desc("dirty_bytes", "Bytes marked in the dirty maps.", "group")
	descErrors      = desc("errors_total", "What went wrong and was handled: sessions that ended or could not be had, refusals of the target, filters that did not answer, groups that stopped, what the spill disk failed at.", "kind")
	descScrub       = desc("scrub_bytes_total", "Bytes of segments and replicas read back in the background, and held against their checksums.")
	descRepairs     = desc("repairs_total", "Segments that were damaged and brought back by parity.")
	descDamage      = desc("damage", "Places of a group's log and replicas that are damaged and not repaired.", "group")
	descJournal     = desc("journal_bytes", "Bytes on disk of a group's log, index, scratch and replica.", "group", "part")
	descLimit       = desc("journal_limit_bytes", "What log, index and scratch of a group may take; absent without a limit.", "group")
	descLevel       = desc("journal_level", "How a group stands with its space: 0 plenty, 1 warning, 2 history is shortened, 3 no data is taken.", "group")
	descFolded      = desc("journal_folded_bytes_total", "Bytes of log that thinning folded.", "group")
	descFreed       = desc("journal_folded_freed_bytes_total", "Bytes by which folding made the log shorter.", "group")
	descThinned     = desc("journal_thinned_checkpoints_total", "Checkpoints that were thinned out.", "group")
	descPromoted    = desc("journal_promoted_bytes_total", "Bytes that promotion wrote into replicas.", "group")
	descOldest      = desc("journal_oldest_checkpoint_age_seconds", "How far back the oldest checkpoint lies; absent when there is none.", "group")
	descCuts        = desc("group_shared_cuts_total", "Cuts that this VRA led for a group with several source VRAs: confirmed by all, or void and tried again.", "group", "result")
	descIntervals   = desc("group_shared_intervals_total", "Intervals in which this VRA was to lead a checkpoint of a group with several source VRAs.", "group")
	descServed      = desc("group_shared_intervals_listed_total", "Intervals of them whose checkpoint was listed.", "group")
	descHolds       = desc("group_hold_seconds", "For how long guests' answers were held for a cut of several source VRAs.", "group")
	descCap         = desc("shaping_cap_bytes_per_second", "What may leave this VRA a second, as the interface counts; absent without a cap.")
	descShaped      = desc("shaping_wire_bytes_total", "Bytes that sessions put on the interface: TLS, headers, acknowledgements and what was sent again.")
	descHeld        = desc("group_held_by_cap_seconds_total", "Time in which a group had something to send and only the cap held it.", "group")
	descPolicy      = desc("journal_policy_history_seconds", "How much history the policy of a group asks for.", "group")
	descNewest      = desc("group_newest_checkpoint_timestamp_seconds", "When the newest checkpoint was cut, by the source's clock, in seconds since 1970; absent when there is none.", "group")
	descBadPoints   = desc("group_bad_checkpoints", "Listed checkpoints that cannot be opened whole.", "group")
	descScrubAge    = desc("scrub_oldest_seconds", "For how long something that is kept was not read back, of all groups.")
	descStores      = desc("stores", "Stores of a target that keeps its journal in several, by state.", "state")
	descSpare       = desc("stores_spare", "How many more stores may be lost; below zero something is lost. Absent without several stores.")
	descThin        = desc("stores_thin_files", "Files with fewer copies or shards than they should have. Absent without several stores.")
	descDropped     = desc("capture_dropped_writes_total", "Guest writes that no record carries: their blocks are marked, and a resync sends them.", "group")
	descUnlogged    = desc("capture_unlogged_volumes", "Volumes of a group that are compared whole if the host crashes: their activity log cannot be written (failed), or there is none.", "group", "state")
	descMirrors     = desc("capture_mirrors", "Volumes of a group that their guests' QEMU mirrors to, by whether it does (stands) or not (lost).", "group", "state")
	descUncaptured  = desc("capture_uncaptured_writes_total", "Guest writes to blocks that were marked already, and will be read.", "group")
	descSlots       = desc("capture_slots", "Slots of the pools of a group's filters.", "group", "state")
	descFilters     = desc("capture_filters", "Filters of a group: connected, and needed.", "group", "state")
	descCertificate = desc("certificate_expiry_timestamp_seconds", "When a certificate ends, in seconds since 1970: this process's own, and that of each authority of a peer site.", "certificate", "site")
	descBuild       = desc("build_info", "1; the labels say who runs, and what it was built from.", "site", "vra", "version", "commit")
	descStore       = desc("store_bytes", "Bytes that the store has set aside, keeps for use again, or has left.", "part")
)

// newSyncs times the syncs of a journal: a fast disk takes 50 us, one that is in trouble seconds.
func newSyncs() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "holdfast_journal_sync_seconds",
		Help:    "Duration of the sync that makes a commit round of all groups durable.",
		Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18), // to 6.5 s
	})
}

var states = []string{
	api.StateInitialSync, api.StateProtected, api.StateBehind, api.StateSpilling, api.StateMarksOnly, api.StateResync,
	api.StateDisconnected, api.StatePaused, api.StateRemoved, api.StateStandby, api.StateRecovering, api.StateError,
}

// Describe implements prometheus.Collector.
func (m metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descLag, descBehind, descState, descFailover, descCheckpoints, descWrites, descBytes, descWire, descBad, descRefused, descRaw, descStored, descPackTime, descPackWrong, descPackRaw, descPackTurns, descWindow,
		descDirty, descErrors, descJournal, descScrub, descRepairs, descDamage, descLimit, descLevel, descPromoted, descFolded, descFreed, descThinned, descOldest, descStore,
		descConns, descConnsLost, descAgain, descReordered, descCap, descShaped, descHeld, descWindowMost, descBudget, descSpill, descSpillMost, descSpillDisk, descSpilled, descUnspilled, descGaveWay, descCompared, descDiffer,
		descCuts, descIntervals, descServed, descHolds, descPolicy, descNewest, descBadPoints, descScrubAge, descStores, descSpare, descThin, descDropped, descUncaptured, descUnlogged, descMirrors, descSlots, descFilters,
		descCertificate, descBuild,
	} {
		ch <- d
	}
	if m.h.target != nil {
		m.h.target.syncs.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	res, err := m.h.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil {
		return // Get of all groups does not fail
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	for _, g := range res.Groups {
		for _, s := range states {
			v := 0.0
			if s == g.State {
				v = 1
			}
			gauge(descState, v, g.Name, g.Role, s)
		}
		if g.Checkpoints != nil {
			gauge(descCheckpoints, float64(*g.Checkpoints), g.Name)
		}
		if g.Newest != nil {
			gauge(descNewest, float64(api.Time(g.Newest.Time).UnixNano())/1e9, g.Name)
		}
		if g.Role != api.RoleSource {
			continue
		}
		if g.LagSeconds != nil {
			gauge(descLag, *g.LagSeconds, g.Name)
		}
		if g.BytesBehind != nil {
			gauge(descBehind, float64(*g.BytesBehind), g.Name)
		}
		if g.BytesBehind != nil { // else what is dirty is not known either
			dirty := 0.0
			for _, v := range g.Volumes {
				dirty += float64(v.GetDirtyBytes())
			}
			gauge(descDirty, dirty, g.Name)
		}
		gauge(descWindow, float64(g.WindowBytes), g.Name)
		gauge(descWindowMost, float64(g.WindowLimit), g.Name)
		gauge(descSpill, float64(g.SpillBytes), g.Name)
		if g.SpillLimit > 0 {
			gauge(descSpillMost, float64(g.SpillLimit), g.Name)
		}
		count(descWrites, float64(g.GuestWritesTotal), g.Name)
		count(descBytes, float64(g.GuestBytesTotal), g.Name)
		count(descRaw, float64(g.PackRawBytesTotal), g.Name)
		count(descStored, float64(g.PackStoredBytesTotal), g.Name)
	}
	gauge(descBuild, 1, m.h.who.Site, m.h.who.ID, m.h.who.Version, m.h.who.Commit)
	m.collectCertificates(gauge)
	m.collectCapture(gauge, count)
	m.collectPack(gauge, count)
	m.collectSpill(gauge, count)
	m.collectCuts(ch, count)
	m.collectShaping(gauge, count)
	m.collectWire(count)
	m.collectConnections(gauge, count)
	m.collectErrors(count)
	if t := m.h.target; t != nil {
		t.syncs.Collect(ch)
		read, repairs := t.store.ScrubStats()
		count(descScrub, float64(read))
		count(descRepairs, float64(repairs))
		gauge(descScrubAge, t.store.ScrubAge().Seconds())
		m.collectRetention(t, gauge, count)
		m.collectStores(t, gauge)
	}
}

// collectCertificates tells when what a session needs ends.
func (m metrics) collectCertificates(gauge func(*prometheus.Desc, float64, ...string)) {
	var c wire.Credentials
	switch {
	case m.h.target != nil:
		c = m.h.target.cfg.Credentials
	case m.h.source != nil:
		c = m.h.source.cfg.Credentials
	}
	if leaf := c.Certificate.Leaf; leaf != nil {
		gauge(descCertificate, float64(leaf.NotAfter.Unix()), "own", m.h.who.Site)
	}
	for _, pin := range c.Pins {
		gauge(descCertificate, float64(pin.CA.NotAfter.Unix()), "authority", pin.Site)
	}
}

// collectCapture tells how the filters of a source's groups stand, as their shared memory says.
func (m metrics) collectCapture(gauge, count func(*prometheus.Desc, float64, ...string)) {
	if m.h.source == nil {
		return
	}
	for _, f := range m.h.source.flows {
		s := f.tap.Stats()
		count(descDropped, float64(s.Dropped), f.cfg.Name)
		count(descUncaptured, float64(s.Uncaptured), f.cfg.Name)
		f.mu.Lock()
		failed, none := f.unloggedLocked()
		f.mu.Unlock()
		gauge(descUnlogged, float64(len(failed)), f.cfg.Name, "failed")
		gauge(descUnlogged, float64(none), f.cfg.Name, "none")
		stand, mirrors := 0, f.tap.Mirrors()
		for _, stands := range mirrors {
			if stands {
				stand++
			}
		}
		gauge(descMirrors, float64(stand), f.cfg.Name, "stands")
		gauge(descMirrors, float64(len(mirrors)-stand), f.cfg.Name, "lost")
		gauge(descSlots, float64(s.Free), f.cfg.Name, "free")
		gauge(descSlots, float64(s.Slots-s.Free), f.cfg.Name, "taken")
		gauge(descFilters, float64(s.Filters), f.cfg.Name, "connected")
		gauge(descFilters, float64(s.Needed), f.cfg.Name, "needed")
	}
}

// collectCuts tells of the groups that have several source VRAs.
func (m metrics) collectCuts(ch chan<- prometheus.Metric, count func(*prometheus.Desc, float64, ...string)) {
	if m.h.source == nil {
		return
	}
	for _, f := range m.h.source.flows {
		if f.cuts == nil {
			continue
		}
		s := f.cuts.state()
		count(descCuts, float64(s.Stats.Confirmed), f.cfg.Name, "confirmed")
		count(descCuts, float64(s.Stats.Void), f.cfg.Name, "void")
		if s.Leads {
			count(descIntervals, float64(s.Stats.Intervals), f.cfg.Name)
			count(descServed, float64(s.Stats.Listed), f.cfg.Name)
		}
		buckets, below := make(map[float64]uint64), uint64(0)
		for i, b := range holdBounds {
			below += s.Holds.buckets[i]
			buckets[b.Seconds()] = below
		}
		ch <- prometheus.MustNewConstHistogram(descHolds, s.Holds.count, s.Holds.sum.Seconds(), buckets, f.cfg.Name)
	}
}

// collectStores tells how the stores are, where there are several.
func (m metrics) collectStores(t *Target, gauge func(*prometheus.Desc, float64, ...string)) {
	if t.protection.set == nil {
		return
	}
	st, states := t.protection.set.State(), map[string]int{api.StoreIn: 0, api.StoreOut: 0, api.StoreRetiring: 0, api.StoreRebuilding: 0}
	for _, s := range st.Stores {
		states[s.State]++
	}
	states[api.StoreStray] = len(st.Strays)
	for state, n := range states {
		gauge(descStores, float64(n), state)
	}
	gauge(descSpare, float64(st.Spare))
	gauge(descThin, float64(st.Thin))
}

// collectPack tells what sealing costs, and how it is done at present.
func (m metrics) collectPack(gauge, count func(*prometheus.Desc, float64, ...string)) {
	if m.h.source == nil {
		return
	}
	for _, f := range m.h.source.flows {
		raw := 0.0
		if f.count.storing.Load() {
			raw = 1
		}
		gauge(descPackRaw, raw, f.cfg.Name)
		count(descPackTime, time.Duration(f.count.packing.Load()).Seconds(), f.cfg.Name)
		count(descPackWrong, float64(f.count.wrong.Load()), f.cfg.Name)
		count(descPackTurns, float64(f.count.rawTurns.Load()), f.cfg.Name)
	}
}

// collectShaping tells what the cap does, and the budget of the windows.
func (m metrics) collectShaping(gauge, count func(*prometheus.Desc, float64, ...string)) {
	if m.h.source == nil {
		return
	}
	for _, f := range m.h.source.flows {
		count(descGaveWay, float64(f.count.gaveWay.Load()), f.cfg.Name)
		count(descCompared, float64(f.count.compared.Load()), f.cfg.Name)
		count(descDiffer, float64(f.count.differ.Load()), f.cfg.Name)
	}
	gauge(descBudget, float64(m.h.source.share.book.Total()))
	s := m.h.source.gate.State(time.Now())
	if s.Cap > 0 {
		gauge(descCap, s.Cap.BytesPerSecond())
	}
	count(descShaped, float64(s.Spent))
	for _, g := range s.Groups {
		count(descHeld, g.Total.Seconds(), g.Name)
	}
}

// collectRetention tells what history takes.
func (m metrics) collectRetention(t *Target, gauge, count func(*prometheus.Desc, float64, ...string)) {
	for _, g := range t.groups() {
		name, r := g.Info().Name, g.Retention()
		gauge(descJournal, float64(r.Usage.Log), name, "log")
		gauge(descJournal, float64(r.Usage.Index), name, "index")
		gauge(descJournal, float64(r.Usage.Scratch), name, "scratch")
		gauge(descJournal, float64(r.Usage.Replica), name, "replica")
		gauge(descDamage, float64(g.Damaged()), name)
		if f := g.Failover(); f.State != failover.None {
			for s := failover.Raised; s <= failover.Last; s++ {
				gauge(descFailover, map[bool]float64{true: 1}[s == f.State], name, s.String())
			}
		}
		gauge(descBadPoints, float64(g.State().Bad), name)
		gauge(descPolicy, r.Policy.History.Seconds(), name)
		if r.Policy.Limit != 0 {
			gauge(descLimit, float64(r.Policy.Limit), name)
		}
		gauge(descLevel, float64(r.Level), name)
		count(descPromoted, float64(r.Promoted), name)
		count(descFolded, float64(r.Folded), name)
		count(descFreed, float64(r.Freed), name)
		count(descThinned, float64(r.Thinned), name)
		if r.Oldest != 0 {
			gauge(descOldest, r.Held.Seconds(), name)
		}
	}
	u := t.store.Usage()
	gauge(descStore, float64(u.Reserve), "reserve")
	gauge(descStore, float64(u.Spare), "spare")
	if u.Free >= 0 {
		gauge(descStore, float64(u.Free), "free")
	}
}

func (m metrics) collectErrors(count func(*prometheus.Desc, float64, ...string)) {
	if m.h.source == nil {
		return
	}
	var session, refusal, filter, stop, spill uint64
	for _, p := range m.h.source.peers {
		session += p.lost.Load()
	}
	for _, f := range m.h.source.flows {
		refusal += f.count.refusals.Load()
		filter += f.count.silences.Load()
		stop += f.count.stops.Load()
		spill += f.window.SpillStats().Failures
	}
	count(descErrors, float64(session), "session")
	count(descErrors, float64(refusal), "refusal")
	count(descErrors, float64(filter), "filter")
	count(descErrors, float64(stop), "stop")
	count(descErrors, float64(spill), "spill")
}

// collectSpill tells what goes to the spill disk and comes back.
func (m metrics) collectSpill(gauge, count func(*prometheus.Desc, float64, ...string)) {
	if m.h.source == nil {
		return
	}
	for _, f := range m.h.source.flows {
		s := f.window.SpillStats()
		gauge(descSpillDisk, float64(s.Disk), f.cfg.Name)
		count(descSpilled, float64(s.Written), f.cfg.Name)
		count(descUnspilled, float64(s.Fetched), f.cfg.Name)
	}
}

// collectConnections tells how many data connections a source has to each target.
func (m metrics) collectConnections(gauge, count func(*prometheus.Desc, float64, ...string)) {
	if m.h.source == nil {
		return
	}
	for _, p := range m.h.source.peers {
		p.mu.Lock()
		session := p.mu.session
		p.mu.Unlock()
		up, wanted := 0, 0
		if session != nil {
			up, wanted = session.Connections(), session.Wanted()
		}
		gauge(descConns, float64(up), p.data, "up")
		gauge(descConns, float64(wanted), p.data, "wanted")
	}
	for _, f := range m.h.source.flows {
		count(descAgain, float64(f.count.again.Load()), f.cfg.Name)
	}
}

func (m metrics) collectWire(count func(*prometheus.Desc, float64, ...string)) {
	var all []*wire.Counters
	if m.h.source != nil {
		for _, p := range m.h.source.peers {
			all = append(all, &p.counters)
		}
	}
	if m.h.target != nil {
		all = append(all, m.h.target.server.Counters())
	}
	var sent, received, lost, early uint64
	bad, refused := make(map[wire.Bad]uint64), make(map[wire.Reason]uint64)
	for _, c := range all {
		for k, n := range c.BadFrames() {
			bad[k] += n
		}
		for k, n := range c.Refusals() {
			refused[k] += n
		}
		lost += c.ConnectionsLost.Load()
		early += c.RecordsEarly.Load()
		sent += c.DataSent.Load() + c.ControlSent.Load()
		received += c.DataReceived.Load() + c.ControlReceived.Load()
	}
	count(descConnsLost, float64(lost))
	count(descReordered, float64(early))
	count(descWire, float64(sent), "sent")
	count(descWire, float64(received), "received")
	for k, n := range bad {
		count(descBad, float64(n), k.String())
	}
	for k, n := range refused {
		count(descRefused, float64(n), k.String())
	}
}
