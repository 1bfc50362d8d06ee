package wire

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// Hello, Welcome, Join and Joined never change, whatever the version: by them two
// ends find out whether they have one in common.

// Versions is a range of protocol versions, both included.
type Versions struct{ Min, Max uint16 }

func (v Versions) String() string {
	if v.Min == v.Max {
		return fmt.Sprint(v.Min)
	}
	return fmt.Sprintf("%d to %d", v.Min, v.Max)
}

// ours are the versions this code speaks.
//
//	2 adds Lacking
//	3 adds Everywhere
//	4 adds link tests
//	5 adds further data connections
//	6 has cuts say how a freeze of the guests went
//	7 adds Compare and Sums
//	8 adds Fenced
//	9 has cuts say how many sources their group has, which may have several
var ours = Versions{1, 9}

// OrderedSince is the first version in which records are ordered by the target, and so
// may travel over several data connections.
const OrderedSince = 5

// freezeSince is the first version whose targets take cuts that say how a freeze went.
const freezeSince = 6

// testsSince is the first version with link tests.
const testsSince = 4

// pick returns the highest version in both, 0 for none.
func pick(a, b Versions) uint16 {
	if v := min(a.Max, b.Max); v >= max(a.Min, b.Min) {
		return v
	}
	return 0
}

const (
	helloBytes   = 2 + 2
	tokenBytes   = 16
	welcomeBytes = 2 + 2 + 2 + tokenBytes
	attachBytes  = tokenBytes + 4
)

// token ties a data connection to the session its control connection opened. It is
// random, used once, and seen only inside TLS.
type token [tokenBytes]byte

// hello opens the control connection.
type hello struct{ speaks Versions }

func (h hello) appendTo(p []byte) []byte { return putU16(putU16(p, h.speaks.Min), h.speaks.Max) }

func parseHello(p []byte) (hello, error) {
	d := decoder{p: p}
	h := hello{Versions{d.u16(), d.u16()}}
	if d.bad == "" && (h.speaks.Min == 0 || h.speaks.Min > h.speaks.Max) {
		d.fail("versions")
	}
	return h, d.end("hello")
}

// welcome answers it. Version 0 says that there is none in common; then the token is zero.
type welcome struct {
	version uint16
	speaks  Versions
	token   token
}

func (w welcome) appendTo(p []byte) []byte {
	p = putU16(putU16(putU16(p, w.version), w.speaks.Min), w.speaks.Max)
	return append(p, w.token[:]...)
}

func parseWelcome(p []byte) (welcome, error) {
	d := decoder{p: p}
	w := welcome{version: d.u16(), speaks: Versions{d.u16(), d.u16()}}
	copy(w.token[:], d.take(tokenBytes))
	if d.bad == "" && (w.speaks.Min == 0 || w.speaks.Min > w.speaks.Max ||
		w.version != 0 && (w.version < w.speaks.Min || w.version > w.speaks.Max) ||
		(w.version == 0) != (w.token == token{})) {
		d.fail("versions")
	}
	return w, d.end("welcome")
}

// attach makes a connection one more of the data connections of an open session.
type attach struct {
	token  token
	number uint32 // above those of all before in the session; the first one's is 0
}

func (a attach) appendTo(p []byte) []byte { return putU32(append(p, a.token[:]...), a.number) }

func parseAttach(p []byte) (attach, error) {
	d := decoder{p: p}
	var a attach
	copy(a.token[:], d.take(tokenBytes))
	if a.number = d.u32(); d.bad == "" && a.number == 0 {
		d.fail("number")
	}
	return a, d.end("attach")
}

// bye ends a connection with a reason.
type bye struct {
	code Code
	text string
}

func (b bye) appendTo(p []byte) []byte { return putString(putU16(p, uint16(b.code)), cutText(b.text)) }

func parseBye(p []byte) (bye, error) {
	d := decoder{p: p}
	b := bye{Code(d.u16()), d.string(MaxText)}
	if d.bad == "" && b.code == 0 {
		d.fail("no code")
	}
	return b, d.end("bye")
}

func appendBye(dst []byte, err error) []byte {
	return appendFrame(dst, typeBye, bye{codeFor(err), err.Error()}.appendTo)
}

// readHandshake reads one frame of the handshake, which must be of the type
// wanted; a Bye in its place is the peer's reason.
func readHandshake(r io.Reader, want frameType) ([]byte, error) {
	_, body, err := readOneOf(r, want)
	return body, err
}

// readOneOf reads one frame, which must be of one of the types; a Bye in its place is
// the peer's reason.
func readOneOf(r io.Reader, want ...frameType) (frameType, []byte, error) {
	var head [frameBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	t, n, err := parseFrame(head[:])
	if err != nil {
		return 0, nil, err
	}
	if !slices.Contains(want, t) && t != typeBye {
		return 0, nil, badFrame(BadType, "type %d, not %d", t, want)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	if t == typeBye {
		b, err := parseBye(body)
		if err != nil {
			return 0, nil, err
		}
		return 0, nil, &PeerError{b.code, b.text}
	}
	return t, body, nil
}

func writeHandshake(w io.Writer, t frameType, body func([]byte) []byte) error {
	_, err := w.Write(appendFrame(nil, t, body))
	return err
}
