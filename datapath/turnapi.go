package datapath

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// turns is what a target keeps of reversals under way.
type turns struct {
	turned chan struct{} // closed when this process is to open its files anew

	mu struct {
		sync.Mutex
		adoptions map[record.GroupID]*adopting
		closed    bool
		done      bool // turned is closed
	}
	under sync.WaitGroup // adoptions
}

// adopting is an adoption under way, or over.
type adopting struct {
	asked       *turn
	read, bytes int64
	over        bool
	err         error
}

func newTurns() *turns {
	t := &turns{turned: make(chan struct{})}
	t.mu.adoptions = make(map[record.GroupID]*adopting)
	return t
}

// ErrTurned says that this VRA's part in a group is another one from now on, and its files are to be opened anew.
var ErrTurned = errors.New("protection of a group is reversed")

// Turned waits until a part has changed, and then returns ErrTurned; nil when ctx ends before.
func (t *Target) Turned(ctx context.Context) error {
	select {
	case <-t.turns.turned:
		return ErrTurned
	case <-ctx.Done():
		return nil
	}
}

// turn lets the process open its files anew.
func (t *turns) turn() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.mu.done {
		close(t.turned)
	}
	t.mu.done = true
}

// stop ends the adoptions under way.
func (t *turns) stop() {
	t.mu.Lock()
	t.mu.closed = true
	t.mu.Unlock()
	t.under.Wait()
}

// adopt begins to adopt, unless that is under way or over, and tells how far it has come. That it failed is told once. While
// it is under way, other disks of the same group are an error. One that is over, and whose group was removed since, is begun anew: the
// store says what it thinks of that.
func (t *Target) adopt(asked *turn, after func() error) (adopting, error) {
	t.turns.mu.Lock()
	defer t.turns.mu.Unlock()
	p := t.turns.mu.adoptions[asked.ID]
	gone := p != nil && p.over && p.err == nil && !t.has(asked.ID) && !invariant.Planted("datapath/adopted-and-removed")
	if p != nil && !gone && (!p.over || p.asked.sameDisks(asked)) {
		if !p.asked.sameDisks(asked) {
			return adopting{}, p.asked.hasDisks("is being made")
		}
		if p.err != nil {
			delete(t.turns.mu.adoptions, asked.ID) // who asks again wants it begun again
		}
		return *p, nil
	}
	p = &adopting{asked: asked, bytes: bytesOf(asked.Disks)}
	t.turns.mu.adoptions[asked.ID] = p
	if t.turns.mu.closed {
		p.over, p.err = true, journal.ErrClosed
		return *p, nil
	}
	a := asked.adoption()
	a.Read = func(n int64) error {
		if err := t.turns.read(p, n); err != nil || n < p.bytes {
			return err
		}
		return asked.inUse() // who came while the disks were read
	}
	told := *p
	t.turns.under.Go(func() {
		_, err := t.store.Adopt(a)
		if err == nil {
			err = after()
		}
		t.cfg.Log.Info("disks adopted", "group", a.Group.Name, "id", a.Group.ID, "disks", len(a.Disks), "error", err)
		t.turns.mu.Lock()
		defer t.turns.mu.Unlock()
		p.over, p.err = true, err
	})
	return told, nil
}

// read notes how much of the disks was read. ErrClosed: the adoption is to end.
func (t *turns) read(p *adopting, n int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.read = n
	if t.mu.closed {
		return journal.ErrClosed
	}
	return nil
}

// inUse says that somebody has one of the disks, as far as ioengine.InUse sees that.
func (t *turn) inUse() error {
	for _, d := range t.Disks {
		if err := ioengine.InUse(d.Path); err != nil && !(errors.Is(err, ioengine.ErrLocked) && invariant.Planted("datapath/adopts-from-qemu")) {
			return err
		}
	}
	return nil
}

// sameDisks says whether both are the same history on the same disks.
func (t *turn) sameDisks(o *turn) bool {
	paths := func(t *turn) map[record.VolumeID]string {
		m := make(map[record.VolumeID]string)
		for _, d := range t.Disks {
			m[d.ID] = d.Path
		}
		return m
	}
	return t.Lineage == o.Lineage && len(t.Disks) == len(o.Disks) && maps.Equal(paths(t), paths(o))
}

// hasDisks refuses a request for other disks than those that the group was made of, or is being made.
func (t *turn) hasDisks(made string) error {
	var disks []string
	for _, d := range t.Disks {
		disks = append(disks, fmt.Sprintf("%s (%d) at %s", d.Name, d.ID, d.Path))
	}
	return api.Errorf(api.Precondition, "name these disks, or protect the group with another id",
		"group %s, id %s, %s here, with the lineage %016x, of the disks %s", t.Name, t.ID, made, t.Lineage, strings.Join(disks, ", "))
}

// parseID reads an id of 16 hexadecimal digits.
func parseID(what, text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 || n == 0 {
		return 0, api.Errorf(api.InvalidArgument, "give 16 hexadecimal digits, not all zero", "%s %q is no id", what, text)
	}
	return n, nil
}

// Adopt makes a group of disks that hold it already.
func (h recoveryHandler) Adopt(ctx context.Context, r *holdfastv1.RecoveryServiceAdoptRequest) (*holdfastv1.RecoveryServiceAdoptResponse, error) {
	if err := h.mayTurn(); err != nil {
		return nil, err
	}
	t, err := h.turnToTarget(r)
	if err != nil {
		return nil, err
	}
	have, err := readTurn(h.target.cfg.DataDir, t.Name)
	if err != nil {
		return nil, err
	}
	if have != nil && have.Part == partTarget && h.target.has(have.ID) {
		switch {
		case have.ID == t.ID && have.sameDisks(t):
			return &holdfastv1.RecoveryServiceAdoptResponse{Adopted: true, ReadBytes: uint64(bytesOf(t.Disks)), Bytes: uint64(bytesOf(t.Disks))}, nil
		case have.ID == t.ID:
			return nil, have.hasDisks("was made")
		case have.Lineage != t.Lineage: // what it says of a group that was sent from here is not to be lost
			return nil, anotherOfThatName(t.Name, "was adopted here")
		}
	}
	sends := h.source != nil && h.source.flow(t.Name) != nil
	if h.sendsAnother(t.Name, t.Lineage) {
		return nil, anotherOfThatName(t.Name, "is protected from here")
	}
	if sends {
		st := h.source.status(ctx, h.source.flow(t.Name))
		switch st.State {
		case api.StateInitialSync, api.StateProtected, api.StateBehind, api.StateSpilling, api.StateMarksOnly, api.StateResync:
			return nil, api.Errorf(api.Precondition, "commit a failover of it at the other site first, and see status",
				"group %s is %s here: it is protected from this site, and its target takes what it sends", t.Name, st.State)
		} // one whose filter is gone since the vra was started does not get as far as being told to stand by
	}
	if !h.target.has(t.ID) {
		if err := t.inUse(); err != nil {
			return nil, adoptFailure(err)
		}
	}
	p, err := h.target.adopt(t, func() error {
		if err := t.write(h.target.cfg.DataDir); err != nil {
			return err
		}
		if sends {
			h.target.turns.turn() // it is to be sent no more
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if p.err != nil {
		return nil, adoptFailure(p.err)
	}
	return &holdfastv1.RecoveryServiceAdoptResponse{Adopted: p.over, ReadBytes: uint64(p.read), Bytes: uint64(p.bytes)}, nil
}

// sendsAnother says whether a group of the name is sent from here whose lineage is another.
func (h recoveryHandler) sendsAnother(name string, lineage uint64) bool {
	if h.source == nil {
		return false
	}
	f := h.source.flow(name)
	return f != nil && f.cfg.Lineage != lineage
}

func anotherOfThatName(name, how string) error {
	return api.Errorf(api.Precondition, "give one of the two another name", "another group of the name %s %s, with another lineage", name, how)
}

// has says whether the store has a group.
func (t *Target) has(id record.GroupID) bool {
	_, ok := t.store.Group(id)
	return ok
}

func bytesOf(disks []turnDisk) (n int64) {
	for _, d := range disks {
		n += d.Bytes
	}
	return n
}

// mayTurn says whether this VRA can take another part in a group.
func (h recoveryHandler) mayTurn() error {
	switch {
	case h.target == nil:
		return api.Errorf(api.Precondition, "give its file a target section, with a store and ports, and start it anew", "this vra is no target, and takes no disks")
	case h.target.cfg.Parity.K > 0:
		return api.Errorf(api.Precondition, "protect the group anew from the other site, or use a target with one store", "disks that are kept over several stores are not handed over or adopted")
	}
	return nil
}

func adoptFailure(err error) error {
	switch {
	case errors.Is(err, ioengine.ErrLocked):
		return api.Errorf(api.Precondition, "stop the vra-filter that serves it, for good, and whatever else has it open: the machine on it, or what is mounted from it; and ask again", "somebody has a disk open: %v", err)
	case errors.Is(err, journal.ErrLineage), errors.Is(err, journal.ErrRemoved):
		return api.Errorf(api.Precondition, "draw another id", "%v", err)
	case errors.Is(err, journal.ErrClosed):
		return api.Errorf(api.Unavailable, "ask again", "the vra is being stopped")
	}
	return api.Errorf(api.Precondition, "mend that and ask again: the disks are as they were", "%v", err)
}

// turnToTarget is what the request means.
func (h recoveryHandler) turnToTarget(r *holdfastv1.RecoveryServiceAdoptRequest) (*turn, error) {
	id, err := parseID("group", r.Id)
	stream, err2 := parseID("stream", r.Stream)
	lineage, err3 := parseID("lineage", r.Lineage)
	if err := errors.Join(err, err2, err3); err != nil {
		return nil, err
	}
	t := &turn{Version: turnVersion, Name: r.Group, Part: partTarget, ID: record.GroupID(id), Stream: record.StreamID(stream), Lineage: lineage}
	known, err := readTurn(h.target.cfg.DataDir, r.Group)
	if err != nil {
		return nil, err
	}
	for _, d := range r.Disks {
		path := d.Path
		if path == "" && known != nil {
			if i := slices.IndexFunc(known.Disks, func(k turnDisk) bool { return k.Name == d.Volume }); i >= 0 {
				path = known.Disks[i].Path
			}
		}
		if d.Volume == "" || d.Id == 0 || d.Bytes == 0 || !filepath.IsAbs(path) {
			return nil, api.Errorf(api.InvalidArgument, "say where the disk of each volume is at this site, by an absolute path", "volume %q, number %d of %d bytes, has the disk %q", d.Volume, d.Id, d.Bytes, path)
		}
		t.Disks = append(t.Disks, turnDisk{record.VolumeID(d.Id), d.Volume, int64(d.Bytes), path})
	}
	if r.Group == "" || len(t.Disks) == 0 {
		return nil, api.Errorf(api.InvalidArgument, "name them", "a group and its disks are to be named")
	}
	return t, nil
}

func (t *turn) adoption() journal.Adoption {
	a := journal.Adoption{Group: journal.GroupInfo{ID: t.ID, Name: t.Name, Lineage: t.Lineage}, Stream: t.Stream}
	for _, d := range t.Disks {
		a.Disks = append(a.Disks, journal.Disk{VolumeInfo: journal.VolumeInfo{ID: d.ID, Name: d.Name, Bytes: d.Bytes}, Path: d.Path})
	}
	return a
}

// HandOver gives the disks of a settled failover away, to become their source.
func (h recoveryHandler) HandOver(_ context.Context, r *holdfastv1.RecoveryServiceHandOverRequest) (*holdfastv1.RecoveryServiceHandOverResponse, error) {
	if err := h.mayTurn(); err != nil {
		return nil, err
	}
	id, err := parseID("group", r.Id)
	if err != nil {
		return nil, err
	}
	if r.Group != "" {
		have, err := readTurn(h.target.cfg.DataDir, r.Group)
		if err != nil {
			return nil, err
		}
		if have != nil && have.Part == partSource && have.ID == record.GroupID(id) && have.counts(h.target) {
			f := h.sourceOf(have)
			if f == nil {
				h.target.turns.turn() // not opened anew since
			}
			return have.message(h.target.cfg.RunDir, f != nil), nil
		}
	}
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	t, err := h.turnToSource(g, r, record.GroupID(id))
	if err != nil {
		return nil, err
	}
	if h.sendsAnother(t.Name, t.Lineage) && !invariant.Planted("datapath/hides-another") { // which would not be sent any more
		return nil, anotherOfThatName(t.Name, "is protected from here")
	}
	if err := t.write(h.target.cfg.DataDir); err != nil {
		return nil, err
	}
	if err := h.target.release(g, r.Failover); err != nil {
		return nil, releaseFailure(err)
	}
	h.target.turns.turn()
	return t.message(h.target.cfg.RunDir, false), nil
}

// sourceOf is the flow of a turn that counts; nil before the process has opened its files anew.
func (h recoveryHandler) sourceOf(t *turn) *flow {
	if h.source == nil {
		return nil
	}
	if f := h.source.flow(t.Name); f != nil && f.cfg.ID == t.ID {
		return f
	}
	return nil
}

// release gives the disks of a settled failover away.
func (t *Target) release(g *journal.Group, id string) error {
	return t.givesUp(g, func() error {
		_, err := g.Release(id)
		return err
	})
}

// givesUp ends the serving of a settled failover's view, or of the disks onto which its machines have moved, and does what gives these up. What fails leaves them
// served.
func (t *Target) givesUp(g *journal.Group, do func() error) error {
	number := g.Failover().Failover.View
	t.views.withhold(number, true)
	err := do()
	if err != nil {
		t.views.withhold(number, false)
		t.views.serveKept()
	}
	return err
}

func releaseFailure(err error) error {
	switch {
	case errors.Is(err, failover.ErrUnsettled):
		return api.Errorf(api.Unavailable, "ask again, until holdfast failover list, or status, says settled", "%v", err)
	case errors.Is(err, failover.ErrNotCommitted), errors.Is(err, failover.ErrNone), errors.Is(err, failover.ErrRolledBack), errors.Is(err, failover.ErrOther):
		return api.Errorf(api.Precondition, "commit a failover first: there is nothing to reverse before that", "%v", err)
	}
	if errors.Is(err, failover.ErrMoving) {
		return api.Errorf(api.Precondition, "finish that with holdfast failover resume, and ask again: machines on plain disks come back from these", "%v", err)
	}
	return api.Errorf(api.Unavailable, "mend that and ask again: the machines go on", "%v", err)
}

// turnToSource is what the request means.
func (h recoveryHandler) turnToSource(g *journal.Group, r *holdfastv1.RecoveryServiceHandOverRequest, id record.GroupID) (*turn, error) {
	stream, err := parseID("stream", r.Stream)
	if err != nil {
		return nil, err
	}
	for _, a := range []string{r.Control, r.Data} {
		if _, port, err := net.SplitHostPort(a); err != nil || port == "0" {
			return nil, api.Errorf(api.InvalidArgument, "give host:port, as in 192.0.2.1:4007", "the other site's vra is not reached at %q", a)
		}
	}
	interval := 5 * time.Second
	if r.Interval != nil {
		if interval = r.Interval.AsDuration(); interval < time.Second || interval > time.Minute {
			return nil, api.Errorf(api.InvalidArgument, "give 1s to 1m", "an interval of %s between checkpoints", interval)
		}
	}
	i := g.Failover()
	if !i.State.Final() {
		return nil, releaseFailure(fmt.Errorf("it is %s: %w", i.State, failover.ErrNotCommitted))
	}
	if i.State == failover.Moving {
		return nil, releaseFailure(failover.ErrMoving)
	}
	if g.Info().ID == id {
		return nil, api.Errorf(api.InvalidArgument, "draw another", "the group of the other site has an id of its own, not %s", id)
	}
	t := &turn{Name: g.Info().Name, Part: partSource, Old: g.Info().ID, ID: id, Stream: record.StreamID(stream), Lineage: g.Info().Lineage,
		Source: &turnSource{Control: r.Control, Data: r.Data, Pool: h.target.poolSocket(id), NBD: h.target.views.socket(i.Failover.View), Interval: interval}}
	for _, d := range disksOf(g, i) {
		t.Disks = append(t.Disks, turnDisk{d.ID, d.Name, d.Bytes, d.Path})
	}
	if len(t.Disks) == 0 {
		return nil, releaseFailure(i.Err)
	}
	return t, nil
}

// poolSocket is where a filter of a group that was handed over has its pool.
func (t *Target) poolSocket(id record.GroupID) string {
	return filepath.Join(t.cfg.RunDir, "filter-"+id.String()+".pool")
}

// disksOf are the replicas of the volumes that a failover's view shows.
func disksOf(g *journal.Group, i journal.FailoverInfo) (disks []journal.Disk) {
	if i.State == failover.OnDisks {
		return g.Disks()
	}
	if !i.State.Final() || i.View.View == nil {
		return nil
	}
	for _, d := range g.Disks() {
		if _, ok := i.View.View.Device(d.ID); ok {
			disks = append(disks, d)
		}
	}
	return disks
}

func (t *turn) message(runDir string, source bool) *holdfastv1.RecoveryServiceHandOverResponse {
	m := &holdfastv1.RecoveryServiceHandOverResponse{Source: source, Nbd: t.Source.NBD, Pool: t.Source.Pool, RunDir: runDir}
	for _, d := range t.Disks {
		m.Disks = append(m.Disks, &holdfastv1.Disk{Volume: d.Name, Id: uint32(d.ID), Bytes: uint64(d.Bytes), Path: d.Path, VhostUser: diskSocket(t.Source.NBD, d.ID)})
	}
	return m
}
