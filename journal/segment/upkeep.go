package segment

import (
	"errors"
	"io"
)

// Verify reads a closed segment from the device, past the page cache where that can
// be, and checks every byte of it. It returns the damage by place, as sealing does,
// and why the segment is not whole; ErrCorrupt without damage is damage between the
// records, which no checkpoint needs and Replace mends. It calls pace, when not nil,
// with the bytes of each read before it, and ends with pace's error. It may be
// called beside anything else.
func (l *Log) Verify(number uint64, pace func(bytes int) error) ([]Damage, error) {
	return nil, errors.ErrUnsupported
}

// Replace puts a repaired copy, which build writes from its first byte to its last,
// into the place of a closed segment's file. The copy is a new file: it is synced,
// read back and verified whole against what log and successor know, and only then
// takes the name. An error or a crash leaves the old file or the new one.
func (l *Log) Replace(number uint64, build func(w io.Writer) error) error {
	return errors.ErrUnsupported
}

// ReplaceRange folds the closed segments first to last, by number, into one with the
// number first: it holds the records that build adds, at the places that add returns,
// from the first one's First on and below the last one's end, and stands for all that
// range. add copies the record. The old files go once the new one is durable and
// verified; an error or a crash before that leaves them all, a crash after it is
// finished by the next Open. Reads of what they held and the new one does not are ErrRange or
// other records: whoever keeps places forgets those of the range first.
func (l *Log) ReplaceRange(first, last uint64, build func(add func(rec []byte) (Pos, error)) error) error {
	return errors.ErrUnsupported
}
