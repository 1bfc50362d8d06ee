package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// surveyed is what the first and the last page of a segment's file say.
type surveyed struct {
	number  uint64
	header  header
	trailer *trailer // of this life, nil: the file does not end in one
	err     error    // why the header cannot be had
	endErr  error    // why it cannot be told whether there is a trailer

	remains  *remains // of a damaged header
	restored bool     // header is what remains say
	empty    bool     // the header is damaged, and nothing follows it
	unbegun  bool     // it was made ready for a segment that was never begun
}

// list returns the numbers of the segments, rising, and removes what never became one.
func (l *Log) list() (numbers []uint64, err error) {
	if err := l.fs.Mkdir(l.dir); err != nil {
		return nil, err
	}
	names, err := l.fs.List(l.dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names { // sorted, and numbers have one width
		if n, ok := fileNumber(name); ok {
			numbers = append(numbers, n)
		} else if isTemporary(name) {
			if err := l.fs.Remove(path.Join(l.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	return numbers, nil
}

func isTemporary(name string) bool {
	return strings.HasSuffix(name, newSuffix) || strings.HasSuffix(name, repairSuffix) || strings.HasSuffix(name, foldSuffix)
}

// surveyWorkers is how many files are read at once. A log of few segments is read in
// order: many such logs are opened at once.
const surveyWorkers = 8

// survey reads the ends of every segment.
func (l *Log) survey(numbers []uint64) []surveyed {
	found := make([]surveyed, len(numbers))
	if len(numbers) < 2*surveyWorkers {
		for i, n := range numbers {
			found[i] = l.look(n)
		}
		return found
	}
	var wg sync.WaitGroup
	for w := range surveyWorkers {
		wg.Go(func() {
			for i := w; i < len(numbers); i += surveyWorkers {
				found[i] = l.look(numbers[i])
			}
		})
	}
	wg.Wait()
	return found
}

func (l *Log) look(number uint64) surveyed {
	x := surveyed{number: number}
	file, err := l.fs.Open(l.path(number), ioengine.ReadOnly|ioengine.Direct)
	if err != nil {
		x.err = err
		return x
	}
	defer file.Close() // only read
	sc, err := openScanner(file)
	if err != nil {
		x.err = err
		if sc != nil && errors.Is(err, ErrCorrupt) {
			if x.remains, x.endErr = sc.remains(); x.remains == nil && x.endErr == nil {
				x.empty, x.endErr = sc.empty()
			}
			if x.endErr != nil { // the disk's fault comes before that of the header
				x.err = x.endErr
			}
		}
		return x
	}
	if x.unbegun = sc.header.unbegun(); x.unbegun { // and whatever comes behind it is not there
		x.err = corrupt("it was never begun")
		return x
	}
	x.header = sc.header
	x.trailer, x.endErr = sc.lastPage()
	return x
}

// arrange puts together the log that begins at or below first: its segments, all closed, and the
// numbers of the files that are no longer part of it. The end of the last one is not
// known yet.
//
// Files below first are those that a Drop did not get to, in any number; files that a
// folded segment stands for, those that a ReplaceRange did not.
func arrange(group record.GroupID, found []surveyed, first Pos) (segs []*segment, leftover []uint64, err error) {
	restore(group, found)
	var live []surveyed
	covered := uint64(0) // by a folded segment
	for _, x := range found {
		if x.number <= covered {
			leftover = append(leftover, x.number)
			continue
		}
		if x.err == nil && x.header.Number == x.number && x.header.Group == group {
			if last, _ := x.header.last(); last > x.number {
				covered = last
			}
		}
		live = append(live, x)
	}
	begin := len(live) - 1
	for ; begin >= 0; begin-- {
		x := live[begin]
		if err := x.check(group); err != nil {
			if y := unread(live); y != nil { // it may be all that is wrong
				x, err = *y, y.err
			}
			return nil, nil, fmt.Errorf("segment %d: %w", x.number, err)
		}
		if x.header.First <= first {
			break
		}
	}
	if begin < 0 {
		return nil, nil, corrupt(fmt.Sprintf("the log should begin at %s, and it begins at %s", first, live[0].header.First))
	}
	for _, x := range live[:begin] {
		leftover = append(leftover, x.number)
	}
	for i, x := range live[begin:] {
		s := &segment{header: x.header, end: x.header.First, chain: x.header.Chain, state: StateClosed, restored: x.restored}
		if i > 0 {
			if err := segs[i-1].endBefore(x.header); err != nil {
				return nil, nil, fmt.Errorf("segment %d: %w", x.number, err)
			}
		}
		segs = append(segs, s)
	}
	for i, s := range segs[:len(segs)-1] {
		s.seen(live[begin+i])
	}
	return segs, leftover, nil
}

// unread is a file that the disk did not give; nil: there is none.
func unread(live []surveyed) *surveyed {
	for i := range live {
		if err := live[i].err; err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			return &live[i]
		}
	}
	return nil
}

// check says why the file is not segment number of the group.
func (x surveyed) check(group record.GroupID) error {
	switch {
	case x.err != nil:
		return x.err
	case errors.Is(x.endErr, ErrVersion):
		return x.endErr
	case x.header.Group != group:
		return corrupt(fmt.Sprintf("it is of group %s", x.header.Group))
	case x.header.Number != x.number:
		return corrupt(fmt.Sprintf("it is number %d", x.header.Number))
	}
	return nil
}

// endBefore gives s the end that its successor's header next says, if that follows s.
func (s *segment) endBefore(next header) error {
	number, life := s.last()
	ok := next.Number == number+1 && next.Pred == life && next.First >= s.First
	if s.folded() {
		ok = ok && next.First == s.Fold.To && next.Chain == s.Fold.Chain
		s.end, s.chain = s.Fold.End, s.Fold.EndChain
	} else {
		s.end, s.chain = next.First, next.Chain
	}
	if !ok {
		return corrupt(fmt.Sprintf("it does not follow segment %d", number))
	}
	return nil
}

// seen marks s as verified if its file ends in the footer that a segment with its end has.
func (s *segment) seen(x surveyed) {
	t := x.trailer
	if t != nil && t.First == s.First && t.End == s.end && t.Chain == s.chain {
		s.state, s.records = StateVerified, t.count
	}
}
