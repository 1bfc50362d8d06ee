package record

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// VolumeSize names a volume and its size in bytes.
type VolumeSize struct {
	ID    VolumeID
	Bytes int64
}

// Cut is a checkpoint's place in a stream.
type Cut struct {
	Checkpoint uint64 // its number; rises within the group, from 1
	Wall       int64  // wall clock at the cut, ns since 1970
	Tag        string // the user's; up to MaxTag bytes of UTF-8, may be empty
	// Listed is the newest checkpoint that the sender knows to be listed on all
	// targets, below Checkpoint; 0 for none.
	Listed uint64
	// Solo says that this source is the group's only one: the cut needs no confirm.
	Solo bool
	// Sources is how many streams of the group have this cut, each with a confirm, when all
	// is well: the checkpoint is listed then and not before. 2 to MaxSources; 0 with Solo, and
	// where the sender does not say.
	Sources uint8
	// Freeze says whether the guests were asked to come to rest around the cut.
	Freeze  Freeze
	Volumes []VolumeSize // that the checkpoint holds; stored in order of ID
}

// MaxSources bounds the source VRAs of one group.
const MaxSources = 16

// Freeze is how a freeze of the guests around a cut went.
type Freeze uint8

// The ways it may have gone. Only Frozen makes a checkpoint application-consistent.
const (
	NotAsked     Freeze = iota
	Frozen              // they were at rest when the cut took its ticket
	FreezeFailed        // they were not, though somebody had asked for it
)

// Resync is a resync boundary.
type Resync struct {
	Initial bool         // there is no history: the first synchronisation
	Reason  string       // for people; cut to MaxTag bytes of UTF-8
	Volumes []VolumeSize // that it concerns; stored in order of ID
}

// Where things stand in the bodies.
const (
	cutCheckpoint = 0
	cutWall       = 8
	cutListed     = 16
	cutList       = 24
	flagSolo      = 1
	flagFrozen    = 2
	flagUnfrozen  = 4 // the freeze failed

	resyncList  = 0
	flagInitial = 1

	// A list is flags u8, a byte that is a cut's Sources and else zero, the length of the text u16, the count of
	// volumes u32, then the volumes and the text, which ends the body.
	listSources = 1
	listText    = 2
	listCount   = 4
	listHead    = 8
	volumeBytes = 12 // id u32, size u64
)

// CheckTag says why a tag cannot be stored, or nil. AppendCut panics on such a tag.
func CheckTag(tag string) error {
	if len(tag) > MaxTag {
		return fmt.Errorf("tag of %d bytes; at most %d", len(tag), MaxTag)
	}
	if !utf8.ValidString(tag) {
		return fmt.Errorf("tag %q is not UTF-8", tag)
	}
	return nil
}

// AppendCut appends a cut record to dst, at the ticket that the cut took. It panics,
// as all of these do, on what ParseCut would refuse: a bug of the caller's.
func AppendCut(dst []byte, id Identity, t Time, ticket Ticket, c Cut) []byte {
	if err := CheckTag(c.Tag); err != nil {
		panic("BUG: " + err.Error())
	}
	flags := bit(c.Solo, flagSolo) | bit(c.Freeze == Frozen, flagFrozen) | bit(c.Freeze == FreezeFailed, flagUnfrozen)
	dst, start := begin(dst)
	dst = le.AppendUint64(dst, c.Checkpoint)
	dst = le.AppendUint64(dst, uint64(c.Wall))
	dst = le.AppendUint64(dst, c.Listed)
	list := len(dst)
	dst = appendList(dst, flags, c.Tag, c.Volumes)
	dst[list+listSources] = c.Sources
	return end(dst, start, KindCut, id, t, ticket)
}

// ParseCut reads the body of a KindCut record. Its Tag and Volumes are copies.
func ParseCut(r Record) (Cut, error) {
	if r.Kind != KindCut {
		return Cut{}, notA(r, KindCut)
	}
	return decodeCut(r.Body())
}

func decodeCut(p []byte) (Cut, error) {
	if len(p) < cutList+listHead {
		return Cut{}, corrupt("body of a cut")
	}
	c := Cut{
		Checkpoint: le.Uint64(p[cutCheckpoint:]),
		Wall:       int64(le.Uint64(p[cutWall:])),
		Listed:     le.Uint64(p[cutListed:]),
	}
	if c.Checkpoint == 0 || c.Wall <= 0 || c.Listed >= c.Checkpoint {
		return Cut{}, corrupt("numbers of a cut")
	}
	c.Sources = p[cutList+listSources]
	flags, text, volumes, err := decodeList(p[cutList:], flagSolo|flagFrozen|flagUnfrozen, c.Sources)
	c.Solo, c.Tag, c.Volumes = flags&flagSolo != 0, text, volumes
	if c.Sources == 1 || c.Sources > MaxSources || c.Solo && c.Sources != 0 {
		return Cut{}, corrupt("sources of a cut")
	}
	switch flags &^ flagSolo {
	case flagFrozen:
		c.Freeze = Frozen
	case flagUnfrozen:
		c.Freeze = FreezeFailed
	case flagFrozen | flagUnfrozen:
		return Cut{}, corrupt("flags of a cut")
	}
	return c, err
}

// AppendConfirm appends a confirm record: every source of the group holds to the
// checkpoint's cut.
func AppendConfirm(dst []byte, id Identity, t Time, ticket Ticket, checkpoint uint64) []byte {
	dst, start := begin(dst)
	return end(le.AppendUint64(dst, checkpoint), start, KindConfirm, id, t, ticket)
}

// ParseConfirm returns the number of the checkpoint that a KindConfirm record confirms.
func ParseConfirm(r Record) (checkpoint uint64, err error) {
	if r.Kind != KindConfirm {
		return 0, notA(r, KindConfirm)
	}
	return decodeConfirm(r.Body())
}

func decodeConfirm(p []byte) (uint64, error) {
	if len(p) != 8 || le.Uint64(p) == 0 {
		return 0, corrupt("body of a confirm")
	}
	return le.Uint64(p), nil
}

// AppendResize appends a resize record: from its ticket on the volume has that size.
func AppendResize(dst []byte, id Identity, t Time, ticket Ticket, v VolumeSize) []byte {
	dst, start := begin(dst)
	return end(appendVolume(dst, v), start, KindResize, id, t, ticket)
}

// ParseResize reads the body of a KindResize record.
func ParseResize(r Record) (VolumeSize, error) {
	if r.Kind != KindResize {
		return VolumeSize{}, notA(r, KindResize)
	}
	return decodeResize(r.Body())
}

func decodeResize(p []byte) (VolumeSize, error) {
	if len(p) != volumeBytes {
		return VolumeSize{}, corrupt("body of a resize")
	}
	return decodeVolume(p)
}

// AppendResyncOpen appends the boundary that opens a resync.
func AppendResyncOpen(dst []byte, id Identity, t Time, ticket Ticket, s Resync) []byte {
	return appendResync(dst, KindResyncOpen, id, t, ticket, s)
}

// AppendResyncClose appends the boundary that ends all resyncs open in its stream.
func AppendResyncClose(dst []byte, id Identity, t Time, ticket Ticket, s Resync) []byte {
	return appendResync(dst, KindResyncClose, id, t, ticket, s)
}

func appendResync(dst []byte, k Kind, id Identity, t Time, ticket Ticket, s Resync) []byte {
	dst, start := begin(dst)
	dst = appendList(dst, bit(s.Initial, flagInitial), shorten(s.Reason), s.Volumes)
	return end(dst, start, k, id, t, ticket)
}

// ParseResync reads the body of a KindResyncOpen or KindResyncClose record.
func ParseResync(r Record) (Resync, error) {
	if r.Kind != KindResyncOpen && r.Kind != KindResyncClose {
		return Resync{}, notA(r, KindResyncOpen)
	}
	return decodeResync(r.Body())
}

func decodeResync(p []byte) (Resync, error) {
	flags, text, volumes, err := decodeList(p[resyncList:], flagInitial, 0)
	return Resync{Initial: flags&flagInitial != 0, Reason: text, Volumes: volumes}, err
}

// checkBody says whether the body is one that the kind's decoder takes, so that a
// control record that parsed can be read for ever.
func (h *Header) checkBody(p []byte) error {
	var err error
	switch h.Kind {
	case KindCut:
		_, err = decodeCut(p)
	case KindConfirm:
		_, err = decodeConfirm(p)
	case KindResize:
		_, err = decodeResize(p)
	case KindResyncOpen, KindResyncClose:
		_, err = decodeResync(p)
	}
	return err
}

// begin leaves room for the header; end fills it in.
func begin(dst []byte) (p []byte, start int) {
	return append(dst, make([]byte, HeaderBytes)...), len(dst)
}

func end(p []byte, start int, k Kind, id Identity, t Time, ticket Ticket) []byte {
	h := Header{Identity: id, Kind: k, Time: t, First: ticket, Last: ticket, Body: len(p) - start - HeaderBytes}
	if err := h.checkBody(p[start+HeaderBytes:]); err != nil || h.Body > MaxBody {
		panic(fmt.Sprintf("BUG: %v record that none could read: %v", k, err))
	}
	return h.finish(p, start)
}

func appendList(dst []byte, flags byte, text string, volumes []VolumeSize) []byte {
	dst = append(dst, flags, 0)
	dst = le.AppendUint16(dst, uint16(len(text)))
	dst = le.AppendUint32(dst, uint32(len(volumes)))
	for _, v := range sortedByID(volumes) {
		dst = appendVolume(dst, v)
	}
	return append(dst, text...)
}

// sortedByID leaves the caller's slice as it is.
func sortedByID(volumes []VolumeSize) []VolumeSize {
	byID := func(a, b VolumeSize) int { return cmp.Compare(a.ID, b.ID) }
	if slices.IsSortedFunc(volumes, byID) {
		return volumes
	}
	return slices.SortedFunc(slices.Values(volumes), byID)
}

func decodeList(p []byte, known, sources byte) (flags byte, text string, volumes []VolumeSize, err error) {
	if len(p) < listHead || p[0]&^known != 0 || p[listSources] != sources {
		return 0, "", nil, corrupt("flags of a control record")
	}
	flags = p[0]
	textLen, count := int(le.Uint16(p[listText:])), le.Uint32(p[listCount:])
	p = p[listHead:]
	if textLen > MaxTag || count > MaxVolumes || int(count)*volumeBytes+textLen != len(p) {
		return 0, "", nil, corrupt("lengths in a control record")
	}
	if count > 0 {
		volumes = make([]VolumeSize, count)
	}
	var last VolumeID
	for i := range volumes {
		if volumes[i], err = decodeVolume(p); err != nil {
			return 0, "", nil, err
		}
		if volumes[i].ID <= last && !invariant.Planted("record/volumes-unordered") {
			return 0, "", nil, corrupt("volumes of a control record out of order")
		}
		last, p = volumes[i].ID, p[volumeBytes:]
	}
	if text = string(p); !utf8.ValidString(text) {
		return 0, "", nil, corrupt("text of a control record")
	}
	return flags, text, volumes, nil
}

func appendVolume(dst []byte, v VolumeSize) []byte {
	return le.AppendUint64(le.AppendUint32(dst, uint32(v.ID)), uint64(v.Bytes))
}

func decodeVolume(p []byte) (VolumeSize, error) {
	v := VolumeSize{ID: VolumeID(le.Uint32(p)), Bytes: int64(le.Uint64(p[4:]))}
	if v.ID == 0 || v.Bytes < 1 || v.Bytes > VolumeLimit {
		return VolumeSize{}, corrupt("volume of a control record")
	}
	return v, nil
}

func bit(set bool, mask byte) byte {
	if set {
		return mask
	}
	return 0
}

// shorten cuts text for people to MaxTag bytes of UTF-8.
func shorten(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= MaxTag {
		return text
	}
	cut := MaxTag
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut]
}

func notA(r Record, k Kind) error {
	return fmt.Errorf("%w: %v record, not %v", ErrKind, r.Kind, k)
}
