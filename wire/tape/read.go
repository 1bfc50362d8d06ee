package tape

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Reader reads a tape. Errors of ErrDamaged are told and Next may be called again: it
// goes on with the next entry that verifies.
type Reader struct {
	r      *bufio.Reader
	header Header
	at     int64 // in the file: where the next entry begins
	body   []byte
}

// NewReader reads the header. Errors: ErrFormat, ErrVersion, ErrDamaged, and r's.
func NewReader(r io.Reader) (*Reader, error) {
	t := &Reader{r: bufio.NewReaderSize(r, entryBytes+MaxBytes), at: headerBytes}
	var p [headerBytes]byte
	if _, err := io.ReadFull(t.r, p[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it has fewer than %d bytes", ErrFormat, headerBytes)
		}
		return nil, err
	}
	var err error
	t.header, err = parseHeader(p[:])
	return t, err
}

// Header is the tape's.
func (t *Reader) Header() Header { return t.header }

// At is where the next entry begins in the file, in bytes.
func (t *Reader) At() int64 { return t.at }

// Next returns the next entry, whose Data is valid until the call after. Errors:
// io.EOF at the end, ErrCut where the last entry is not whole, ErrDamaged with the place of
// the damage and how much of the file was passed over, and the file's own.
func (t *Reader) Next() (Entry, error) {
	head, err := t.r.Peek(entryBytes)
	if len(head) == 0 {
		return Entry{}, err
	}
	if len(head) < entryBytes {
		return Entry{}, t.short(err, len(head))
	}
	e, n, err := parseEntry(head)
	if err != nil {
		return Entry{}, t.skip(err)
	}
	whole, short := t.r.Peek(entryBytes + n)
	if short != nil {
		return Entry{}, t.short(short, len(whole))
	}
	t.body = append(t.body[:0], whole[entryBytes:]...)
	at := t.at
	err = e.take(whole, t.body)
	t.pass(entryBytes + n)
	if err != nil { // its length is sure
		return Entry{}, fmt.Errorf("at %d: %w: %d bytes passed over", at, err, entryBytes+n)
	}
	return e, nil
}

// short is the end of the file within an entry, of which n bytes are there.
func (t *Reader) short(err error, n int) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	at := t.at
	t.pass(n)
	return fmt.Errorf("at %d: %w, of which %d bytes are there", at, ErrCut, n)
}

func (t *Reader) pass(n int) {
	d, _ := t.r.Discard(n)
	t.at += int64(d)
}

// skip passes over damage to where an entry begins again.
func (t *Reader) skip(why error) error {
	from := t.at
	for skipped := 1; ; {
		t.pass(skipped)
		p, err := t.r.Peek(entryBytes)
		if len(p) < entryBytes {
			t.pass(len(p))
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		if _, _, err := parseEntry(p); err == nil {
			break
		}
		p, _ = t.r.Peek(max(entryBytes, t.r.Buffered()))
		skipped = bytes.Index(p[1:], magicBytes) + 1
		if skipped == 0 { // but for its first bytes, which may stand at the end
			skipped = len(p) - len(magicBytes) + 1
		}
	}
	return fmt.Errorf("at %d: %w: %d bytes passed over", from, why, t.at-from)
}

var magicBytes = le.AppendUint32(nil, entryMagic)
