package tape

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// What is wrong with a tape; use errors.Is.
var (
	ErrFormat  = errors.New("not a tape")
	ErrVersion = errors.New("unknown version of a tape")
	ErrDamaged = errors.New("damaged")
	ErrCut     = errors.New("the tape ends within an entry")
)

// Type says what an entry is.
type Type uint8

// The types.
const (
	Open  Type = 1 // a connection got through TLS
	Bytes Type = 2 // of a connection
	Close Type = 3 // of a connection
	Lost  Type = 4 // bytes that the tape could not take in time
	Full  Type = 5 // the last entry of a tape that reached its limit
)

// Way is which way bytes went, as seen from who wrote the tape.
type Way uint8

// The ways.
const (
	Sent     Way = 1
	Received Way = 2
)

func (w Way) String() string {
	switch w {
	case Sent:
		return "sent"
	case Received:
		return "received"
	}
	return "-"
}

// Side says who dialled.
type Side uint8

// The sides.
const (
	Dialled Side = 1 // here: this end is a source
	Taken   Side = 2
)

func (s Side) String() string {
	switch s {
	case Dialled:
		return "dialled"
	case Taken:
		return "taken"
	}
	return "-"
}

// Header is the beginning of a tape.
type Header struct {
	Began   time.Time
	Payload bool // what guests wrote is on it
}

// Entry is one thing that happened.
type Entry struct {
	Type       Type
	Way        Way
	Begins     bool   // of Bytes: a frame begins with them
	Connection uint32 // from 1; 0 for Lost and Full
	Offset     uint64 // of Bytes: of the first, in its connection and way; of Lost: how many
	Time       time.Time
	Data       []byte // of Bytes, borrowed
	Opened     Opened // of Open
}

// Opened says who is at the ends of a connection.
type Opened struct {
	Side        Side
	Peer        string
	Here, There string // addresses
}

const (
	headerBytes = 32
	headerMagic = 0x31544648 // "HFT1"
	version     = 1
	flagPayload = 1

	atVersion   = 4
	atFlags     = 6
	atBegan     = 8
	atHeaderCRC = 28

	entryBytes = 40
	entryMagic = 0x45544648 // "HFTE"
	flagBegins = 1

	atType       = 4
	atWay        = 5
	atEntryFlags = 6
	atEntryZero  = 7
	atConnection = 8
	atLength     = 12
	atOffset     = 16
	atTime       = 24
	atBytesCRC   = 32
	atEntryCRC   = 36

	// MaxBytes is the longest body of an entry.
	MaxBytes = 64 << 10
	maxText  = 255
)

var (
	_ [headerBytes]byte = [atHeaderCRC + 4]byte{}
	_ [entryBytes]byte  = [atEntryCRC + 4]byte{}

	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func sum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

func (h Header) appendTo(dst []byte) []byte {
	p := make([]byte, headerBytes)
	le.PutUint32(p, headerMagic)
	le.PutUint16(p[atVersion:], version)
	if h.Payload {
		le.PutUint16(p[atFlags:], flagPayload)
	}
	le.PutUint64(p[atBegan:], uint64(h.Began.UnixNano()))
	le.PutUint32(p[atHeaderCRC:], sum(p[:atHeaderCRC]))
	return append(dst, p...)
}

// parseHeader takes p of headerBytes apart.
func parseHeader(p []byte) (Header, error) {
	switch {
	case le.Uint32(p) != headerMagic:
		return Header{}, ErrFormat
	case le.Uint32(p[atHeaderCRC:]) != sum(p[:atHeaderCRC]):
		return Header{}, fmt.Errorf("%w: the checksum of its header", ErrDamaged)
	case le.Uint16(p[atVersion:]) != version:
		return Header{}, fmt.Errorf("%w: %d", ErrVersion, le.Uint16(p[atVersion:]))
	}
	flags := le.Uint16(p[atFlags:])
	if flags&^flagPayload != 0 || !zeros(p[atBegan+8:atHeaderCRC]) {
		return Header{}, fmt.Errorf("%w: reserved bytes in use", ErrDamaged)
	}
	return Header{time.Unix(0, int64(le.Uint64(p[atBegan:]))), flags&flagPayload != 0}, nil
}

func zeros(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// appendTo appends the whole entry; Data or Opened is at most MaxBytes.
func (e Entry) appendTo(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, entryBytes)...)
	if e.Type == Open {
		dst = e.Opened.appendTo(dst)
	} else {
		dst = append(dst, e.Data...)
	}
	p, body := dst[at:at+entryBytes], dst[at+entryBytes:]
	le.PutUint32(p, entryMagic)
	p[atType], p[atWay] = byte(e.Type), byte(e.Way)
	if e.Begins {
		p[atEntryFlags] = flagBegins
	}
	le.PutUint32(p[atConnection:], e.Connection)
	le.PutUint32(p[atLength:], uint32(len(body)))
	le.PutUint64(p[atOffset:], e.Offset)
	le.PutUint64(p[atTime:], uint64(e.Time.UnixNano()))
	le.PutUint32(p[atBytesCRC:], sum(body))
	le.PutUint32(p[atEntryCRC:], sum(p[:atEntryCRC]))
	return dst
}

// parseEntry takes an entry's header apart, of entryBytes, and tells the length of its bytes.
func parseEntry(p []byte) (e Entry, n int, err error) {
	if le.Uint32(p) != entryMagic || le.Uint32(p[atEntryCRC:]) != sum(p[:atEntryCRC]) {
		return e, 0, fmt.Errorf("%w: no entry begins here", ErrDamaged)
	}
	e = Entry{
		Type: Type(p[atType]), Way: Way(p[atWay]), Begins: p[atEntryFlags] == flagBegins, Connection: le.Uint32(p[atConnection:]),
		Offset: le.Uint64(p[atOffset:]), Time: time.Unix(0, int64(le.Uint64(p[atTime:]))),
	}
	length := le.Uint32(p[atLength:])
	if p[atEntryFlags]&^flagBegins != 0 || p[atEntryZero] != 0 || length > MaxBytes || !e.sound(int(length)) {
		return e, 0, fmt.Errorf("%w: an entry that nobody writes", ErrDamaged)
	}
	return e, int(length), nil
}

// sound says whether the fields of an entry with n bytes go together.
func (e *Entry) sound(n int) bool {
	if e.Type != Bytes && (e.Way != 0 || e.Begins) || e.Type != Bytes && e.Type != Lost && e.Offset != 0 {
		return false
	}
	switch e.Type {
	case Open:
		return e.Connection > 0 && n > 0
	case Bytes:
		return e.Connection > 0 && n > 0 && (e.Way == Sent || e.Way == Received) && e.Offset < 1<<63
	case Close:
		return e.Connection > 0 && n == 0
	case Lost, Full:
		return e.Connection == 0 && n == 0
	}
	return false
}

// take gives the entry its bytes, which were announced.
func (e *Entry) take(head, body []byte) error {
	if le.Uint32(head[atBytesCRC:]) != sum(body) && !invariant.Planted("tape/bytes-unchecked") {
		return fmt.Errorf("%w: the checksum of an entry's bytes", ErrDamaged)
	}
	if e.Type == Open {
		return e.Opened.parse(body)
	}
	e.Data = body
	return nil
}

func (o Opened) appendTo(dst []byte) []byte {
	dst = append(dst, byte(o.Side))
	for _, s := range []string{o.Peer, o.Here, o.There} {
		s = s[:min(len(s), maxText)]
		dst = append(le.AppendUint16(dst, uint16(len(s))), s...)
	}
	return dst
}

func (o *Opened) parse(p []byte) error {
	bad := fmt.Errorf("%w: who opened a connection does not read", ErrDamaged)
	o.Side = Side(p[0])
	if o.Side != Dialled && o.Side != Taken {
		return bad
	}
	p = p[1:]
	for _, s := range []*string{&o.Peer, &o.Here, &o.There} {
		if len(p) < 2 {
			return bad
		}
		n := int(le.Uint16(p))
		if p = p[2:]; n > maxText || n > len(p) || !utf8.Valid(p[:n]) {
			return bad
		}
		*s, p = string(p[:n]), p[n:]
	}
	if len(p) > 0 {
		return bad
	}
	return nil
}
