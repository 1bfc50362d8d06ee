package segment

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Log is the log of one group. Append, Full, Write, Commit, Abandon and Close are for one
// goroutine; the others may be called beside them.
type Log struct {
	fs    ioengine.FS
	dir   string
	group record.GroupID
	opt   Options
	files *files

	// Of the goroutine that appends.
	w      *writer  // of the open segment
	cur    *segment // the open segment, last in segs once its header is durable; it changes with making held
	backed int64    // bytes of its file that space was set aside for
	grows  bool     // more was asked for in vain: it grows as it is written

	making sync.Mutex // one segment is made, or made ready, at a time; before mu
	next   *prepared  // the one after cur; guarded by making

	busy   sync.WaitGroup // what Close waits for
	upkeep sync.Mutex     // one change of the closed segments at a time
	// names is held for writing while a file and the segment that stands for it change at
	// once, and for reading by who looks one up to open the other. It comes before mu.
	names sync.RWMutex

	end   atomic.Int64 // Pos: where the next record goes
	ready atomic.Int64 // bytes of next

	mu struct {
		sync.RWMutex
		segs    []*segment // by number, each with the places after the one before
		coming  *segment   // the open one until its first round is durable, and its header with it; else nil
		asked   uint64     // the number that was last asked to be made ready
		dropped []*segment // whose files are still to be got rid of
		failed  error      // why, since the last Abandon

		written writtenRound // the round that waits for Synced
		spare   []entry      // memory of the one before
		closed  bool
	}
}

func (o Options) withDefaults() Options {
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = 256 << 20
	}
	if o.StageBytes <= 0 {
		o.StageBytes = 1 << 20
	}
	if o.Stages == nil {
		o.Stages = NewStages(o.StageBytes, maxFlying+1)
	}
	if o.OpenFiles <= 0 {
		o.OpenFiles = 64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Life == nil {
		o.Life = drawLife
	}
	return o
}

func drawLife() uint64 {
	var b [8]byte
	for binary.LittleEndian.Uint64(b[:]) == 0 {
		_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	}
	return binary.LittleEndian.Uint64(b[:])
}

// Append puts one whole record at the log's end and returns its place. It is
// durable only after Commit. It may write, and begin a segment; after an error other
// than a malformed record the log has failed. A large record (Options.LendBytes) is borrowed until
// Write has returned, or Recall, Abandon or Close; another one is copied.
func (l *Log) Append(rec []byte) (Pos, error) {
	h, err := record.ParseHeader(rec)
	switch {
	case err != nil:
		return 0, err
	case h.Size != len(rec):
		return 0, fmt.Errorf("%w: %d bytes of a record of %d", record.ErrShort, len(rec), h.Size)
	}
	if err := l.usable(); err != nil {
		return 0, err
	}
	if err := l.makeRoom(h.Size); err != nil {
		return 0, l.fail(err)
	}
	if l.lends(rec) {
		err = l.w.appendLent(h, rec)
	} else {
		err = l.w.append(h, rec)
	}
	if err != nil {
		l.w.drop()
		return 0, l.fail(err)
	}
	l.end.Store(int64(l.w.end))
	return l.w.entries[len(l.w.entries)-1].Pos, nil
}

// lends says whether a record is written from where it lies.
func (l *Log) lends(rec []byte) bool {
	align, least := l.w.file.Align(), l.opt.LendBytes
	if least <= 0 {
		least = lendUnits * int(l.w.unit())
	}
	return len(rec) >= least && (buf.IsAligned(rec, align) || invariant.Planted("journal/segment/lend-unaligned"))
}

// lendUnits is from how many units on a record is lent: the zeros before it, half a unit
// as a rule, are then less than half a percent of it.
const lendUnits = 128

// Recall waits until nothing is borrowed of what was appended since the last Write; the log
// is to be abandoned then.
func (l *Log) Recall() {
	if !invariant.Planted("journal/segment/recall-at-once") {
		l.w.drop()
	}
}

// makeRoom begins the next segment when this one is full, between rounds alone, and
// sees that there is space for a record of n bytes and a commit.
func (l *Log) makeRoom(n int) error {
	if l.Full() {
		if l.syncing() {
			panic("BUG: a segment is begun before the last round of the one before it was synced")
		}
		if err := l.succeed(false); err != nil {
			return err
		}
	}
	need, whole := offset(l.w.first, l.w.end)+int64(n)+3*pageBytes, pageBytes+l.opt.SegmentBytes
	if l.grows || need <= l.backed || l.backed >= whole { // the last round may go beyond: it grows the file
		return nil
	}
	return l.setAside(min(max(need, l.backed+stepBytes), whole))
}

// stepBytes is how much space is set aside at once: few enough changes of metadata, and
// a store of many groups that write little does not take a whole segment for each.
const stepBytes = 32 << 20

// setAside takes the space of the file up to the given size. Where there is not that
// much, what the failed call took is given back and the file grows as it is written: a
// store takes records until its last page. Its size then changes with each round, which
// Commit's sync makes durable with the bytes.
func (l *Log) setAside(to int64) error {
	err := l.w.file.Allocate(l.backed, to-l.backed)
	if err == nil {
		l.backed = to
	}
	if !errors.Is(err, syscall.ENOSPC) || invariant.Planted("journal/segment/whole-or-none") {
		return err
	}
	l.grows = true
	l.opt.Log.Warn("no space to set aside for a segment: it grows as it is written", "segment", l.cur.Number)
	return l.w.file.Truncate(max(l.backed, offset(l.w.first, l.w.out)))
}

// Commit makes everything appended durable. After an error nothing since the last
// Commit is, and the log has failed.
func (l *Log) Commit() error {
	file, err := l.Write()
	if err != nil || file == nil {
		return err
	}
	return l.Synced(l.sync(file))
}

// Write ends the round and has its bytes written. It is durable once the file was
// synced and Synced was told so: one sync may serve many logs. The file is nil when
// nothing was appended; it is lent until Synced. Until then records may be appended to
// the round that follows, but not be written by Write.
func (l *Log) Write() (ioengine.File, error) {
	if err := l.usable(); err != nil || l.w.empty() {
		return nil, err
	}
	if l.syncing() {
		panic("BUG: a round is written before the one before it was synced")
	}
	if err := l.w.finish(); err != nil {
		l.w.drop()
		return nil, l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end.Store(int64(l.w.end))
	l.mu.written = l.w.next(l.mu.spare)
	return l.mu.written.file, nil
}

// Synced says how the sync of what Write wrote went; it may be called beside Append.
// It returns the error as the log's: after one nothing since the last Synced is durable,
// and the log has failed.
func (l *Log) Synced(err error) error {
	l.mu.Lock()
	done := l.mu.written
	l.mu.written = writtenRound{}
	if done.file == nil {
		l.mu.Unlock()
		return err
	}
	l.mu.spare = done.entries
	if err == nil {
		l.cur.entries = append(l.cur.entries, done.entries...)
		l.cur.records += len(done.entries)
		l.cur.end, l.cur.chain = done.end, done.chain
	}
	var ended *segment
	var next uint64
	if err == nil {
		if l.mu.coming != nil {
			ended = l.publishLocked(l.mu.coming)
		}
		next = l.worthPreparingLocked()
	}
	l.mu.Unlock()
	if err != nil {
		return l.fail(err)
	}
	l.sealEnded(ended)
	if next != 0 {
		l.prepareAhead(next)
	}
	return nil
}

// syncing says whether a written round waits for Synced.
func (l *Log) syncing() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.written.file != nil
}

// Full says whether the next Append begins a segment. It must not be called then while
// a round waits for Synced.
func (l *Log) Full() bool {
	return l.w.empty() && int64(l.w.end-l.cur.First) >= l.opt.SegmentBytes
}

func (l *Log) sync(file ioengine.File) error {
	if invariant.Planted("journal/segment/no-sync") {
		return nil
	}
	err := file.Sync()
	if err != nil && invariant.Planted("journal/segment/sync-again") {
		err = file.Sync()
	}
	return err
}

// Abandon takes a failed log on: it forgets what is not durable, leaves the open
// segment at its last good byte, and begins another. The caller appends again what
// it still holds. It may be called again when it fails; on a log that is well it
// forgets what was appended since the last Commit.
func (l *Log) Abandon() error {
	failed := l.usable()
	if errors.Is(failed, ErrClosed) || failed == nil && l.w.empty() && !l.syncing() {
		return failed
	}
	l.w.drop()
	l.mu.Lock()
	l.cur.abandoned = true
	l.mu.written = writtenRound{}
	l.mu.Unlock()
	if err := l.succeed(true); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	l.mu.failed = nil
	l.mu.Unlock()
	l.opt.Log.Warn("segment abandoned", "goes_on_at", int64(l.Durable()), "err", failed)
	return nil
}

// succeed begins the segment after the open one, at the durable end, in the file that was made
// ready for it, if any. An open one that holds nothing durable is replaced. durable: the
// beginning is to be durable when it returns, and not with the first round.
func (l *Log) succeed(durable bool) error {
	l.making.Lock()
	defer l.making.Unlock()
	old := l.cur
	h := header{Group: l.group, Number: old.Number + 1, Life: l.opt.Life(), First: old.end, Pred: old.Life, Chain: old.chain}
	if old.end == old.First {
		h.Number, h.Pred = old.Number, old.Pred
	}
	if invariant.Planted("journal/segment/rollover-short") && !old.abandoned && h.First-pageBytes > old.First {
		h.First -= pageBytes
	}
	if !durable {
		p, err := l.beginNext(h)
		if err != nil {
			return err
		}
		if p != nil {
			l.take(newWriter(p.file, p.header, l.opt.Stages), openSegmentOf(p.header))
			l.backed = p.backed
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.mu.coming = l.cur; invariant.Planted("journal/segment/publish-early") {
				l.publishLocked(l.cur)
			}
			return nil
		}
	}
	w, s, err := l.create(h, nil)
	if err != nil {
		return err
	}
	_ = l.giveUpNext().close() // its name is taken
	l.take(w, s)
	l.mu.Lock()
	ended := l.publishLocked(s)
	l.mu.Unlock()
	l.sealEnded(ended)
	return nil
}

// take makes s, which w writes, the open segment.
func (l *Log) take(w *writer, s *segment) {
	if l.w != nil {
		l.w.drop()
		l.files.drop(l.w.life, l.cur.Number == s.Number)
	}
	l.files.add(w.life, w.file)
	l.w, l.cur, l.backed, l.grows = w, s, offset(w.first, w.out), false
	if s.Recycled {
		l.backed = pageBytes + l.opt.SegmentBytes
	}
	l.end.Store(int64(w.end))
}

// publishLocked makes the open segment, whose header is durable, the last of the log. It
// returns the one before if that is ended by it.
func (l *Log) publishLocked(s *segment) (ended *segment) {
	if last := len(l.mu.segs) - 1; last >= 0 {
		if l.mu.segs[last].Number == s.Number {
			l.mu.segs[last].gone = true
			l.mu.segs = l.mu.segs[:last]
		} else if l.mu.segs[last].state == StateOpen {
			ended = l.mu.segs[last]
			ended.state = StateClosed
		}
	}
	l.mu.segs, l.mu.coming = append(l.mu.segs, s), nil
	return ended
}

// sealEnded has a segment that was ended read back; it may be nil. Nothing more goes to the file
// of one that was abandoned.
func (l *Log) sealEnded(s *segment) {
	if s != nil && !s.abandoned {
		l.seal(s)
	}
}

func (l *Log) usable() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.mu.closed {
		return ErrClosed
	}
	return l.mu.failed
}

// fail notes the first error since the last Abandon and returns err, as ErrFailed too.
func (l *Log) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.failed == nil {
		l.mu.failed = err
	}
	l.end.Store(int64(l.cur.end))
	return err
}

// Durable returns how far the log is durable.
func (l *Log) Durable() Pos {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.durableLocked()
}

func (l *Log) durableLocked() Pos { return l.mu.segs[len(l.mu.segs)-1].end }

// End returns where the next record goes, if no Commit comes before it.
func (l *Log) End() Pos { return Pos(l.end.Load()) }

// Close ends the log without committing. It waits for what runs beside the appends to end.
func (l *Log) Close() error {
	l.mu.Lock()
	closed := l.mu.closed
	l.mu.closed = true
	l.mu.Unlock()
	if closed {
		return ErrClosed
	}
	l.w.drop()
	l.busy.Wait()
	return errors.Join(l.next.close(), l.files.close())
}

var errBadLog = errors.New("a log of no group")
