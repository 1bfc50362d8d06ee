package group

import "github.com/holdfast-dr/holdfast/ioengine/invariant"

// Look is how a volume stands that was read beside the others and shall stand in cuts.
type Look struct {
	Life  uint64 // of the group
	Whole bool   // ordered capture alone carries the group
	Lost  uint64 // read before Dirty was asked for
	Dirty int64  // blocks that the target may lack, reads in flight and what they left out among them
}

// MayJoin says whether cuts whose tickets are taken from now on may name the volume. before
// is complete; of after, Life, Whole and Lost are read last, where no cut's ticket is being
// taken. Then nothing of the volume was dirty at some moment, every sync read of it has a
// ticket below those to come, and nothing was dropped since: what is dropped later raises lost,
// and voids the cuts after it.
func MayJoin(before, after Look) bool {
	if invariant.Planted("group/joins-dirty") {
		return before.Whole && after.Whole
	}
	return before.Whole && after.Whole && before.Life == after.Life && before.Lost == after.Lost && before.Dirty == 0 && after.Dirty == 0
}
