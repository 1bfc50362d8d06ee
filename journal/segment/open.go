package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Open opens the group's log in dir, which it makes when absent (the caller has its
// parent). It calls each, if not nil, with every record in order; the record has its
// tables and body and no payload, and is borrowed until each returns. An error of
// each ends Open. A tail that was never acknowledged is cut; anything else amiss that
// is read is ErrCorrupt, and the files are left as they were.
//
// Without each, a closed segment costs two small reads, and the last one is read from
// the watermark on: damage elsewhere is found by whoever reads there, and by sealing.
//
//  1. Each segment must begin as its predecessor's header, and footer, says. What lies
//     below the watermark's First is removed, and what a folded segment stands for.
//  2. Of the last one every whole round counts. The last round alone may never have
//     been synced: its payload is verified too.
//  3. Below the watermark, and below what a later commit vouches for, nothing may be
//     missing.
//  4. A new segment begins with a copy of that last round, synced; the old ends
//     before it. So what was not durable when it was found is durable now, without
//     a second sync of a file whose last one may have failed, and no file ever
//     holds the writes of two lives.
func Open(fsys ioengine.FS, dir string, group record.GroupID, w Watermark, o Options, each func(Pos, record.Record) error) (*Log, error) {
	if group == 0 {
		return nil, errBadLog
	}
	o = o.withDefaults()
	l := &Log{fs: fsys, dir: dir, group: group, opt: o, files: newFiles(fsys, dir, o.OpenFiles)}
	if err := l.recover(w, each); err != nil {
		return nil, errors.Join(fmt.Errorf("log of group %s: %w", group, err), l.files.close())
	}
	for _, s := range l.mu.segs {
		if s.state == StateClosed && !s.restored {
			l.seal(s)
		}
	}
	return l, nil
}

func (l *Log) recover(w Watermark, each func(Pos, record.Record) error) error {
	numbers, err := l.list()
	if err != nil {
		return err
	}
	w.First, w.Durable = max(w.First, Start), max(w.Durable, Start)
	if len(numbers) == 0 {
		return l.recoverNothing(w)
	}
	found, err := l.withoutPrepared(l.survey(numbers))
	if err != nil {
		return err
	}
	if n := len(found) - 1; found[n].empty && !invariant.Planted("journal/segment/header-is-all") {
		if found = found[:n]; n == 0 { // nothing came into it: it is made again
			return l.recoverNothing(w)
		}
	}
	segs, leftover, err := arrange(l.group, found, w.First)
	if err != nil {
		return err
	}
	last := segs[len(segs)-1]
	file, err := l.fs.Open(l.path(last.Number), ioengine.ReadOnly|ioengine.Direct)
	if err != nil {
		return err
	}
	err = l.recoverLast(file, segs, w, each)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("segment %d: %w", last.Number, err)
	}
	for _, n := range leftover {
		if err := l.fs.Remove(l.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// withoutPrepared removes the newest file if it was made ready for a segment that was never
// begun: that gives its space back before any is needed.
func (l *Log) withoutPrepared(found []surveyed) ([]surveyed, error) {
	n := len(found) - 1
	if !found[n].unbegun {
		return found, nil
	}
	if n == 0 {
		return nil, corrupt(fmt.Sprintf("the segment before %d is missing", found[n].number))
	}
	return found[:n], l.removeTemp(l.path(found[n].number))
}

func (l *Log) path(number uint64) string { return path.Join(l.dir, fileName(number)) }

func (l *Log) recoverNothing(w Watermark) error {
	if w.Durable > Start {
		return corrupt(fmt.Sprintf("no segments, but it was durable up to %s", w.Durable))
	}
	if err := l.fs.SyncDir(path.Dir(l.dir)); err != nil {
		return err
	}
	h := header{Group: l.group, Number: 1, Life: l.opt.Life(), First: Start, Chain: chainStart(l.group)}
	writer, s, err := l.create(h, nil)
	if err != nil {
		return err
	}
	l.take(writer, s)
	l.publishLocked(s)
	return nil
}

// recoverLast reads the last of the segments, which was open, delivers all of the log
// if that is wanted, and opens the segment after it.
func (l *Log) recoverLast(file ioengine.File, segs []*segment, w Watermark, each func(Pos, record.Record) error) error {
	s := segs[len(segs)-1]
	sc, err := scannerOf(file, s)
	if err != nil {
		return err
	}
	if s.folded() {
		return corrupt(fmt.Sprintf("the segment after %d is missing", s.Fold.Last))
	}
	final, torn, err := l.readTail(sc, s, w.Durable)
	if err != nil {
		return err
	}
	whole := &segment{header: s.header, end: s.end, chain: s.chain, state: StateClosed, restored: s.restored}
	if final != nil {
		whole.end, whole.chain = final.end, final.chain
	}
	if whole.end < w.Durable && !invariant.Planted("journal/segment/no-watermark") {
		return fmt.Errorf("%w: it ends at %s and was durable up to %s: %w", ErrCorrupt, whole.end, w.Durable, torn)
	}
	vouched, err := sc.vouches(whole, torn)
	if err != nil {
		return err
	}
	if vouched && !invariant.Planted("journal/segment/no-vouching") {
		return fmt.Errorf("%w: a later commit was written when it was durable beyond %s: %w", ErrCorrupt, whole.end, torn)
	}
	if each != nil {
		all := append(segs[:len(segs)-1:len(segs)-1], whole)
		if err := l.replay(all, all[0].First, whole.end, ReplayOptions{}, each); err != nil {
			return err
		}
	}
	return l.carry(sc, segs, final)
}

// asCorrupt says that what is amiss is no torn tail.
func asCorrupt(err error) error {
	if torn := (*errTorn)(nil); errors.As(err, &torn) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// tornTail says why the log ends where it does.
type tornTail struct {
	*errTorn
	longest Pos // of the rounds that were read, in bytes
}

// readTail reads the last segment from the watermark on, if a round ends there, else
// from its beginning. It sets the end of s before the last whole round, which it
// returns, if any, with its payload verified; and why the next is none.
func (l *Log) readTail(sc *scanner, s *segment, durable Pos) (final *round, torn tornTail, err error) {
	sc.want = wantHeaders
	if durable > s.First {
		chain, ok, err := sc.chainAt(durable)
		if err != nil {
			return nil, torn, err
		}
		if ok {
			s.end, s.chain = durable, chain
		}
	}
	rounds := [2]round{}
	begin, chain := s.end, s.chain
	for i := 0; ; i++ {
		r := &rounds[i%2]
		err := sc.round(r, begin, chain)
		if errors.Is(err, ErrVersion) {
			err = sc.ours(begin, err)
		}
		if errors.As(err, &torn.errTorn) && (r.end != durable || !sc.nearly(r)) {
			break
		}
		if err != nil && torn.errTorn == nil {
			return nil, torn, err
		}
		torn.errTorn = nil
		if final != nil { // r's commit says that it was durable
			s.end, s.chain = final.end, final.chain
		}
		torn.longest = max(torn.longest, r.end-r.begin)
		final, begin, chain = r, r.end, r.chain
	}
	if final == nil || invariant.Planted("journal/segment/payload-unread") {
		return final, torn, nil
	}
	for _, e := range final.entries {
		_, err := sc.whole(e)
		if errors.As(err, &torn.errTorn) {
			return nil, torn, nil
		}
		if err != nil {
			return nil, torn, err
		}
	}
	return final, torn, nil
}

// nearly says whether the last round that is known to have been durable is whole but for some of
// its commit: one word of it at most is not what the records say. It was never torn,
// and no record can be missing: a commit that counts others differs in more.
func (sc *scanner) nearly(r *round) bool {
	if len(r.entries) == 0 || invariant.Planted("journal/segment/last-commit-is-all") {
		return false
	}
	last := r.entries[len(r.entries)-1]
	end := last.Pos + Pos(last.Size)
	var want [commitBytes]byte
	commit{Life: sc.Life, Durable: r.begin, Records: end, End: r.end, Count: uint32(len(r.entries)), Chain: r.chain}.put(want[:])
	p, err := sc.bytes(offset(sc.First, end), int(r.end-end))
	if err != nil || len(p) != int(r.end-end) || !allZero(p[:len(p)-commitBytes]) {
		return false
	}
	other := 0
	for i, have := 0, p[len(p)-commitBytes:]; i < commitBytes; i += 8 {
		if le.Uint64(have[i:]) != le.Uint64(want[i:]) {
			other++
		}
	}
	return other <= 1
}

// ours returns the error of a round of an unknown version or kind if this segment's life
// wrote it. The old bytes of a recycled file, a guest's for one, say nothing: they are a torn tail.
func (sc *scanner) ours(begin Pos, why error) error {
	if !sc.Recycled && !sc.restored {
		return why
	}
	_, ok, err := sc.following(begin, begin+lookAhead, begin)
	if err != nil {
		return err
	}
	if ok {
		return why
	}
	return &errTorn{begin, corrupt("bytes of an earlier use")}
}

// lookAhead bounds how far into the old bytes of a recycled file a later commit is looked
// for: 4 of the longest round, and no less than this. Every log of a store is looked
// through in this way when it opens; a new file costs only what was written to it.
const lookAhead Pos = 2 << 20

// vouches looks for a commit behind the end of s which says that the log was durable
// beyond it: then what is amiss there is no torn tail.
func (sc *scanner) vouches(s *segment, torn tornTail) (bool, error) {
	to := s.end + Pos(sc.size)
	if sc.Recycled && !s.restored {
		to = s.end + max(lookAhead, 4*torn.longest)
	}
	_, ok, err := sc.following(s.end, to, s.end+1)
	return ok, err
}

// carry begins the next segment with a copy of the final round of the last one, which
// may be nil.
func (l *Log) carry(sc *scanner, segs []*segment, final *round) error {
	s := segs[len(segs)-1]
	h := header{Group: l.group, Number: s.Number + 1, Life: l.opt.Life(), First: s.end, Pred: s.Life, Chain: s.chain}
	if s.end == s.First {
		h.Number, h.Pred = s.Number, s.Pred // nothing is left in it: it is replaced
		segs = segs[:len(segs)-1]
	}
	var fill func(*writer) error
	if final != nil {
		fill = func(w *writer) error {
			for _, e := range final.entries {
				rec, err := sc.whole(e)
				if err != nil {
					return asCorrupt(err)
				}
				if invariant.Planted("journal/segment/carry-unpadded") {
					e.Pos = w.end
				}
				if err := w.padTo(e.Pos); err != nil {
					return err
				}
				if err := w.append(rec.Header, rec.Bytes()); err != nil {
					return err
				}
			}
			return nil
		}
	}
	w, next, err := l.create(h, fill)
	if err != nil {
		return err
	}
	if final != nil {
		if w.end != final.end || w.chain != final.chain {
			return errors.Join(corrupt("the last round changed while it was copied"), w.file.Close())
		}
		done := w.next(nil)
		next.entries, next.records = done.entries, len(done.entries)
		next.end, next.chain = done.end, done.chain
	}
	l.mu.segs = segs
	l.take(w, next)
	l.publishLocked(next)
	return nil
}
