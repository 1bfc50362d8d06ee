package record

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
	Solo    bool
	Volumes []VolumeSize // that the checkpoint holds; stored in order of ID
}

// Resync is a resync boundary.
type Resync struct {
	Initial bool         // there is no history: the first synchronisation
	Reason  string       // for people; cut to MaxTag bytes of UTF-8
	Volumes []VolumeSize // that it concerns; stored in order of ID
}

// CheckTag says why a tag cannot be stored, or nil. AppendCut panics on such a tag.
func CheckTag(tag string) error { return errUnready }

// AppendCut appends a cut record to dst, at the ticket that the cut took.
func AppendCut(dst []byte, id Identity, t Time, ticket Ticket, c Cut) []byte { return dst }

// ParseCut reads the body of a KindCut record. Its Tag and Volumes are copies.
func ParseCut(r Record) (Cut, error) { return Cut{}, errUnready }

// AppendConfirm appends a confirm record: every source of the group holds to the checkpoint's cut.
func AppendConfirm(dst []byte, id Identity, t Time, ticket Ticket, checkpoint uint64) []byte {
	return dst
}

// ParseConfirm returns the number of the checkpoint that a KindConfirm record confirms.
func ParseConfirm(r Record) (checkpoint uint64, err error) { return 0, errUnready }

// AppendResize appends a resize record: from its ticket on the volume has that size.
func AppendResize(dst []byte, id Identity, t Time, ticket Ticket, v VolumeSize) []byte { return dst }

// ParseResize reads the body of a KindResize record.
func ParseResize(r Record) (VolumeSize, error) { return VolumeSize{}, errUnready }

// AppendResyncOpen appends the boundary that opens a resync.
func AppendResyncOpen(dst []byte, id Identity, t Time, ticket Ticket, s Resync) []byte { return dst }

// AppendResyncClose appends the boundary that ends all resyncs open in its stream.
func AppendResyncClose(dst []byte, id Identity, t Time, ticket Ticket, s Resync) []byte { return dst }

// ParseResync reads the body of a KindResyncOpen or KindResyncClose record.
func ParseResync(r Record) (Resync, error) { return Resync{}, errUnready }

// CommitBytes is the size of the smallest commit record.
const CommitBytes = HeaderBytes + 8

// AppendCommit appends a commit record to dst, padded with zeros so that the length
// of the result is a multiple of padTo (at most MaxBody/2; 0 or 1: no padding). It carries the
// log position that was known durable when it was written. A commit record has no identity.
func AppendCommit(dst []byte, durablePos uint64, padTo int) []byte { return dst }

// ParseCommit returns the position in a KindCommit record.
func ParseCommit(r Record) (durablePos uint64, err error) { return 0, errUnready }

func (h *Header) checkBody(body []byte) error { return errUnready }
