package wire

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// The integers of a body are little-endian, a string is a u16 length and UTF-8,
// a bool is a byte 0 or 1. Each body has one encoding.

func putU16(dst []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(dst, v) }
func putU32(dst []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(dst, v) }
func putU64(dst []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(dst, v) }

func putBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func putString(dst []byte, s string) []byte {
	return append(putU16(dst, uint16(len(s))), s...)
}

// decoder takes a body apart. After the first mistake it returns zeros; end tells.
type decoder struct {
	p   []byte
	bad string
}

func (d *decoder) fail(why string) {
	if d.bad == "" {
		d.bad = why
	}
	d.p = nil
}

func (d *decoder) take(n int) []byte {
	if n > len(d.p) {
		d.fail("too short")
		return nil
	}
	p := d.p[:n]
	d.p = d.p[n:]
	return p
}

func (d *decoder) u16() uint16 {
	if p := d.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) bool() bool {
	p := d.take(1)
	if p != nil && p[0] > 1 {
		d.fail("a bool that is neither 0 nor 1")
	}
	return p != nil && p[0] == 1
}

func (d *decoder) string(limit int) string {
	n := int(d.u16())
	if n > limit {
		d.fail("a string beyond its limit")
		return ""
	}
	p := d.take(n)
	if !utf8.Valid(p) {
		d.fail("a string that is not UTF-8")
		return ""
	}
	return string(p)
}

// end says whether the whole body, and nothing else, was taken.
func (d *decoder) end(what string) error {
	if d.bad == "" && len(d.p) > 0 {
		d.bad = "too long"
	}
	if d.bad != "" {
		return badFrame(BadBody, "%s: %s", what, d.bad)
	}
	return nil
}

// cutText makes any text fit to travel as a reason.
func cutText(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxText {
		return s
	}
	s = s[:MaxText]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// validName says whether s may name a site, a VRA, a group or a volume:
// [a-z0-9][a-z0-9._-]{0,62}.
func validName(s string) bool {
	if s == "" || len(s) > MaxName {
		return false
	}
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}
