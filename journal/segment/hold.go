package segment

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// FileInfo says which file a closed segment is: no two files ever have one life.
type FileInfo struct {
	Name         string
	Group        record.GroupID
	Number, Life uint64
	First        Pos
}

// Offset is where in the file the byte at a position of the segment stands.
func (f FileInfo) Offset(pos Pos) int64 { return offset(f.First, pos) }

func (l *Log) fileInfo(s *segment) FileInfo {
	return FileInfo{Name: l.path(s.Number), Group: l.group, Number: s.Number, Life: s.Life, First: s.First}
}

// Hold calls fn with the file of a closed segment, which is neither dropped nor used again
// until fn returns; verified says whether it was read back. ErrRange: there is no such segment.
func (l *Log) Hold(number uint64, fn func(f FileInfo, verified bool) error) error {
	l.mu.RLock()
	var found *segment
	verified := false
	for _, s := range l.mu.segs[:max(len(l.mu.segs)-1, 0)] {
		if s.Number == number {
			found, verified = s, s.state == StateVerified
		}
	}
	l.mu.RUnlock()
	if found == nil {
		return fmt.Errorf("segment %d: %w", number, ErrRange)
	}
	if err := l.pin(found); err != nil {
		return fmt.Errorf("segment %d: %w", number, err)
	}
	defer l.unpin(found)
	return fn(l.fileInfo(found), verified)
}
