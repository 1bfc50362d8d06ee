package datapath

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// checkpoints implements api.CheckpointsHandler.
type checkpoints struct{ *handler }

// The size of a page of checkpoints, when none or too large a one is asked for.
const (
	pageDefault = 1000
	pageMax     = 10000
)

// List tells the checkpoints of a target.
func (h checkpoints) List(_ context.Context, r *holdfastv1.CheckpointsServiceListRequest) (*holdfastv1.CheckpointsServiceListResponse, error) {
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	q, err := query(r)
	if err != nil {
		return nil, err
	}
	page, err := g.ListShown(q)
	if err != nil {
		return nil, err
	}
	counts, err := g.CountsShown()
	if err != nil {
		return nil, err
	}
	res := &holdfastv1.CheckpointsServiceListResponse{Counts: &holdfastv1.CheckpointCounts{
		Good: int64(counts.Good), Verifying: int64(counts.Verifying), Bad: int64(counts.Bad),
		Tagged: int64(counts.Tagged), Pinned: int64(counts.Pinned),
	}}
	for _, c := range page.Checkpoints {
		res.Checkpoints = append(res.Checkpoints, checkpointMessage(c))
	}
	if page.Next != 0 {
		res.NextPageToken = strconv.FormatUint(page.Next, 10)
	}
	return res, nil
}

// query is what a request for a list asks of the journal.
func query(r *holdfastv1.CheckpointsServiceListRequest) (q journal.Query, err error) {
	q = journal.Query{Limit: int(r.PageSize), Newest: r.NewestFirst, Tag: r.Tag, Tagged: r.Tagged, Pinned: r.Pinned, State: index.State(r.State)}
	if r.PageToken != "" {
		if q.After, err = strconv.ParseUint(r.PageToken, 10, 64); err != nil {
			return q, api.Errorf(api.InvalidArgument, "begin at the first page", "page token %q is not one of ours", r.PageToken)
		}
	}
	switch {
	case q.Limit < 0:
		return q, api.Errorf(api.InvalidArgument, "ask for 1 to "+strconv.Itoa(pageMax), "a page of %d", q.Limit)
	case q.Limit == 0:
		q.Limit = pageDefault
	}
	q.Limit = min(q.Limit, pageMax)
	switch q.State {
	case "", index.Good, index.Verifying, index.Bad:
	default:
		return q, api.Errorf(api.InvalidArgument, "ask for good, verifying or bad", "state %q", r.State)
	}
	q.From, q.To = clock(api.Time(r.From)), clock(api.Time(r.To))
	return q, nil
}

// clock is a time as a bound of a query: the zero time is none, and all that a clock does not
// reach is its end.
func clock(t time.Time) record.Time {
	switch {
	case t.IsZero():
		return 0
	case t.Before(time.Unix(0, 1)):
		return 1
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return record.Time(t.UnixNano())
}

// Get tells one checkpoint.
func (h checkpoints) Get(_ context.Context, r *holdfastv1.CheckpointsServiceGetRequest) (*holdfastv1.CheckpointsServiceGetResponse, error) {
	c, err := h.one(r.Group, r.Id, (*journal.Group).Checkpoint)
	return &holdfastv1.CheckpointsServiceGetResponse{Checkpoint: c}, err
}

// Tag gives a checkpoint a tag, or takes it away.
func (h checkpoints) Tag(_ context.Context, r *holdfastv1.CheckpointsServiceTagRequest) (*holdfastv1.CheckpointsServiceTagResponse, error) {
	if r.Tag != "" {
		if err := api.CheckNewTag(r.Tag); err != nil {
			return nil, api.Errorf(api.InvalidArgument, "choose another", "tag %v", err)
		}
	}
	c, err := h.one(r.Group, r.Id, func(g *journal.Group, n uint64) (journal.Checkpoint, error) { return g.Tag(n, r.Tag) })
	return &holdfastv1.CheckpointsServiceTagResponse{Checkpoint: c}, err
}

// Pin keeps a checkpoint.
func (h checkpoints) Pin(_ context.Context, r *holdfastv1.CheckpointsServicePinRequest) (*holdfastv1.CheckpointsServicePinResponse, error) {
	if r.Label != "" {
		if err := api.CheckTag(r.Label); err != nil {
			return nil, api.Errorf(api.InvalidArgument, "choose another", "label %v", err)
		}
	}
	c, err := h.one(r.Group, r.Id, func(g *journal.Group, n uint64) (journal.Checkpoint, error) { return g.Pin(n, r.Label) })
	return &holdfastv1.CheckpointsServicePinResponse{Checkpoint: c}, err
}

// Unpin lets a checkpoint go.
func (h checkpoints) Unpin(_ context.Context, r *holdfastv1.CheckpointsServiceUnpinRequest) (*holdfastv1.CheckpointsServiceUnpinResponse, error) {
	c, err := h.one(r.Group, r.Id, (*journal.Group).Unpin)
	return &holdfastv1.CheckpointsServiceUnpinResponse{Checkpoint: c}, err
}

// one does something with one checkpoint of a target's group, and tells how it is then.
func (h checkpoints) one(group, id string, do func(*journal.Group, uint64) (journal.Checkpoint, error)) (*holdfastv1.Checkpoint, error) {
	g, err := h.targetGroup(group)
	if err != nil {
		return nil, err
	}
	n, err := numberOf(g, id)
	if err != nil {
		return nil, err
	}
	c, err := do(g, n)
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return nil, api.Errorf(api.NotFound, "see checkpoint list", "no checkpoint %d", n)
	case errors.Is(err, journal.ErrTooMany):
		return nil, api.Errorf(api.Exhausted, "take the tag or pin off one that is not needed any more: see checkpoint list --tagged or --pinned", "%v", err)
	case err != nil:
		return nil, err
	}
	return checkpointMessage(g.Shown(c)), nil
}

// Create cuts a checkpoint at a source and waits until it is listed.
func (h checkpoints) Create(ctx context.Context, r *holdfastv1.CheckpointsServiceCreateRequest) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
	if h.source == nil {
		return nil, api.Errorf(api.Precondition, "ask the source", "this VRA is the target: checkpoints are made at the source")
	}
	f := h.source.flow(r.Group)
	if f == nil {
		return nil, noGroup(r.Group)
	}
	if err := api.CheckNewTag(r.Tag); err != nil {
		return nil, api.Errorf(api.InvalidArgument, "choose another", "tag %v", err)
	}
	if z := f.freezer.commands; r.Freeze && len(z.Before)+len(z.After) == 0 {
		return nil, api.Errorf(api.Precondition, "give source.groups[].freeze in the vra's file its commands", "the group has no commands to bring its guests to rest")
	}
	c, unfrozen, err := f.create(ctx, r.Tag, r.Freeze)
	if err != nil {
		return nil, err
	}
	res := &holdfastv1.CheckpointsServiceCreateResponse{Checkpoint: c}
	if unfrozen != nil {
		res.FreezeFailed = unfrozen.Error()
		f.log.Warn("a checkpoint is crash-consistent, though a freeze was asked for", "checkpoint", c.Id, "error", unfrozen)
	}
	return res, nil
}

// LeadCut leads a cut of all source VRAs of a group and waits until its checkpoint is listed.
func (h checkpoints) LeadCut(ctx context.Context, r *holdfastv1.CheckpointsServiceLeadCutRequest) (*holdfastv1.CheckpointsServiceLeadCutResponse, error) {
	if h.source == nil {
		return nil, api.Errorf(api.Precondition, "ask a source", "this VRA is the target: cuts are led at a source")
	}
	f := h.source.flow(r.Group)
	if f == nil {
		return nil, noGroup(r.Group)
	}
	if f.cuts == nil {
		return nil, api.Errorf(api.Precondition, "call Create", "the group has one source VRA alone, and no others to lead")
	}
	if err := api.CheckNewTag(r.Tag); err != nil {
		return nil, api.Errorf(api.InvalidArgument, "choose another", "tag %v", err)
	}
	if have, asked := f.cuts.names(), slices.Sorted(slices.Values(r.Sources)); !slices.Equal(have, asked) && !invariant.Planted("datapath/any-sources") {
		return nil, api.Errorf(api.Precondition, "give source.groups[].sources in the files of all VRAs the same list, or name these", "the group's source VRAs are %s here, and not %s",
			strings.Join(have, ", "), strings.Join(asked, ", "))
	}
	c, _, err := f.create(ctx, r.Tag, false)
	return &holdfastv1.CheckpointsServiceLeadCutResponse{Checkpoint: c}, err
}

func checkpointMessage(c journal.Checkpoint) *holdfastv1.Checkpoint {
	return &holdfastv1.Checkpoint{
		Id: strconv.FormatUint(c.Number, 10), Time: api.Timestamp(time.Unix(0, c.Wall)), Tag: c.Tag,
		State: string(c.State), Reason: c.Reason, Pinned: c.Pinned, Label: c.Label,
		Consistency: consistency(c.Freeze),
	}
}

func consistency(z record.Freeze) string {
	switch z {
	case record.Frozen:
		return api.ConsistencyApplication
	case record.FreezeFailed:
		return api.ConsistencyFailed
	}
	return api.ConsistencyCrash
}
