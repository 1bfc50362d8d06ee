package nbd

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

func TestRequestCheck(t *testing.T) {
	const size = 1 << 30
	type ask struct{ readOnly, structured, allocation bool }
	all := ask{structured: true, allocation: true}
	f := func(a ask, cmd, flags uint16, off uint64, n uint32, want uint32) {
		t.Helper()
		r := request{cmd: cmd, flags: flags, off: off, n: n}
		if got := r.check(size, a.readOnly, a.structured, a.allocation); got != want {
			t.Errorf("%+v under %+v: %d, want %d", r, a, got, want)
		}
	}
	f(all, cmdRead, 0, 0, 4096, wireOK)
	f(all, cmdRead, 0, size-1, 1, wireOK)
	f(all, cmdRead, 0, size, 0, wireOK)
	f(all, cmdRead, 0, size, 1, wireInvalid)
	f(all, cmdRead, 0, size-1, 2, wireInvalid)
	f(all, cmdRead, 0, math.MaxUint64, 1, wireInvalid)
	f(all, cmdRead, 0, math.MaxUint64-4095, 4096, wireInvalid) // the sum is 0
	f(all, cmdRead, 0, 1<<63, 4096, wireInvalid)
	f(all, cmdRead, 0, 0, front.MaxWrite, wireOK)
	f(all, cmdRead, 0, 0, front.MaxWrite+1, wireInvalid)
	f(all, cmdRead, flagDF, 0, pieceBytes, wireOK)
	f(all, cmdRead, flagDF, 0, pieceBytes+1, wireOverflow)
	f(ask{}, cmdRead, flagDF, 0, 4096, wireInvalid) // chunks were not asked for
	f(all, cmdRead, flagFUA, 0, 4096, wireOK)
	f(all, cmdRead, flagNoHole, 0, 4096, wireInvalid)
	f(all, cmdRead, 1<<5, 0, 4096, wireInvalid)
	f(ask{readOnly: true}, cmdRead, 0, 0, 4096, wireOK)

	f(all, cmdWrite, 0, 0, 4096, wireOK)
	f(all, cmdWrite, flagFUA, 0, 4096, wireOK)
	f(all, cmdWrite, flagDF, 0, 4096, wireInvalid)
	f(all, cmdWrite, 0, size-1, 2, wireNoSpace)
	f(all, cmdWrite, 0, math.MaxUint64-4095, 4096, wireNoSpace)
	f(ask{readOnly: true}, cmdWrite, 0, 0, 4096, wirePerm)
	f(ask{readOnly: true}, cmdTrim, 0, 0, 4096, wirePerm)
	f(ask{readOnly: true}, cmdWriteZeroes, 0, 0, 4096, wirePerm)

	f(all, cmdTrim, flagFUA, 0, size, wireOK)
	f(all, cmdTrim, 0, 1, size, wireNoSpace)
	f(all, cmdTrim, flagNoHole, 0, 4096, wireInvalid)
	f(all, cmdWriteZeroes, flagFUA|flagNoHole, 0, size, wireOK)
	f(all, cmdWriteZeroes, flagFastZero, 0, 4096, wireNotSup)
	f(all, cmdWriteZeroes, flagFastZero, size, 4096, wireNoSpace)
	f(all, cmdWriteZeroes, flagReqOne, 0, 4096, wireInvalid)

	f(all, cmdFlush, 0, 0, 0, wireOK)
	f(all, cmdFlush, flagFUA, math.MaxUint64, 7, wireOK) // its range means nothing
	f(all, cmdFlush, flagNoHole, 0, 0, wireInvalid)
	f(ask{readOnly: true}, cmdFlush, 0, 0, 0, wireOK)

	f(all, cmdBlockStatus, flagReqOne, 0, size, wireOK)
	f(all, cmdBlockStatus, 0, 0, 0, wireInvalid)
	f(all, cmdBlockStatus, 0, 1, size, wireInvalid)
	f(ask{structured: true}, cmdBlockStatus, 0, 0, 4096, wireInvalid) // the context was not chosen

	f(all, 5, 0, 0, 4096, wireInvalid) // CACHE, which is not offered
	f(all, 99, 0, 0, 4096, wireInvalid)
}

func TestParseOptions(t *testing.T) {
	long := strings.Repeat("n", MaxName)
	for _, r := range []infoRequest{{}, {name: "x"}, {name: long, kinds: []uint16{0, 3, 65535}}} {
		if got, err := parseInfo(r.appendTo(nil)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%.20v becomes %.20v (%v)", r, got, err)
		}
	}
	for _, r := range []metaRequest{{}, {name: "x"}, {name: long, queries: []string{"", "base:", contextName}}} {
		if got, err := parseMeta(r.appendTo(nil)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%.20v becomes %.20v (%v)", r, got, err)
		}
	}
	bad := func(p ...byte) {
		t.Helper()
		if _, err := parseInfo(p); err == nil {
			t.Errorf("INFO takes %x", p)
		}
		if _, err := parseMeta(p); err == nil {
			t.Errorf("SET_META_CONTEXT takes %x", p)
		}
	}
	bad()
	bad(0, 0, 0)
	bad(0, 0, 0, 0)                                                   // nothing after the name
	bad(0, 0, 0, 2, 'x', 0, 0)                                        // name cut short
	bad(255, 255, 255, 255, 0, 0, 0, 0)                               // name of 4 GiB
	bad(0, 0, 0, 0, 0, 1)                                             // one kind, and none there
	bad(0, 0, 0, 0, 0, 0, 0)                                          // a byte too many, or too few
	bad(0, 0, 0, 0, 255, 255, 255, 255, 0, 0)                         // a count beyond all data
	bad(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 'b')                      // query cut short
	bad(0, 0, 0, 0, 0, 0, 0, 0, 1)                                    // a byte behind the last query
	bad(append(infoRequest{name: long + "n"}.appendTo(nil), 0, 0)...) // name too long
}

func TestMetaWants(t *testing.T) {
	f := func(list, want bool, queries ...string) {
		t.Helper()
		if got := (metaRequest{queries: queries}).wants(list); got != want {
			t.Errorf("list %v, queries %q: %v", list, queries, got)
		}
	}
	f(true, true)
	f(false, false)
	f(true, true, "base:")
	f(false, false, "base:")
	f(false, true, "x:y", "base:allocation")
	f(true, false, "base:alloc", "BASE:ALLOCATION")
}

func FuzzParse(f *testing.F) {
	f.Add(request{flags: 1, cmd: 2, cookie: 3, off: 4, n: 5}.appendTo(nil))
	f.Add(infoRequest{name: "x", kinds: []uint16{3}}.appendTo(nil))
	f.Add(metaRequest{name: "x", queries: []string{contextName, ""}}.appendTo(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= requestBytes {
			if r, err := parseRequest(p); err == nil {
				if !bytes.Equal(r.appendTo(nil), p[:requestBytes]) {
					t.Errorf("request %x becomes %+v", p[:requestBytes], r)
				}
				if r.check(1<<30, false, true, true) == wireOK && r.cmd != cmdFlush && (r.off > 1<<30 || r.off+uint64(r.n) > 1<<30) {
					t.Errorf("%+v passes, past the end", r)
				}
			}
		}
		if r, err := parseInfo(p); err == nil && !bytes.Equal(r.appendTo(nil), p) {
			t.Errorf("INFO %x becomes %+v", p, r)
		}
		if r, err := parseMeta(p); err == nil && !bytes.Equal(r.appendTo(nil), p) {
			t.Errorf("SET_META_CONTEXT %x becomes %+v", p, r)
		}
	})
}

func TestURI(t *testing.T) {
	f := func(s string, want URI, again string) {
		t.Helper()
		u, err := ParseURI(s)
		if err != nil || u != want {
			t.Errorf("%s is %+v (%v), want %+v", s, u, err, want)
		}
		if u.String() != again {
			t.Errorf("%s is written %s, want %s", s, u, again)
		}
		if twice, err := ParseURI(u.String()); err != nil || twice != u {
			t.Errorf("%s reads back as %+v (%v)", u, twice, err)
		}
	}
	f("nbd+unix:///vol1?socket=/run/s", URI{"unix", "/run/s", "vol1"}, "nbd+unix:///vol1?socket=/run/s")
	f("nbd+unix://?socket=/s", URI{"unix", "/s", ""}, "nbd+unix:///?socket=/s")
	f("nbd+unix:////a/b?socket=/s", URI{"unix", "/s", "/a/b"}, "nbd+unix:////a/b?socket=/s")
	f("nbd+unix:///a%20b%3F?socket=/x%20y%26z%2B", URI{"unix", "/x y&z+", "a b?"}, "nbd+unix:///a%20b%3F?socket=/x%20y%26z%2B")
	f("nbd://h", URI{"tcp", "h:10809", ""}, "nbd://h:10809/")
	f("nbd://h:7/vol", URI{"tcp", "h:7", "vol"}, "nbd://h:7/vol")
	f("nbd://[::1]/v", URI{"tcp", "[::1]:10809", "v"}, "nbd://[::1]:10809/v")

	for _, s := range []string{
		"", "x", "nbd:", "nbd:unix:/s:exportname=x", "nbd://", "nbd:///x", "nbds://h/x", "nbd+vsock://2/x", "http://h/x",
		"nbd+unix:///x", "nbd+unix://h/x?socket=/s", "nbd+unix:///x?socket=", "nbd://u@h/x", "nbd://h/x#f", "nbd://h:port/x",
		"nbd://h/" + strings.Repeat("n", MaxName+1), "nbd://h/%zz", "nbd://::1/x",
	} {
		if u, err := ParseURI(s); err == nil {
			t.Errorf("%q is taken for %+v", s, u)
		} else if !strings.Contains(err.Error(), "NBD URI") {
			t.Errorf("%q: the error does not say what it is about: %v", s, err)
		}
	}
}

func FuzzURI(f *testing.F) {
	f.Add("nbd+unix:///vol1?socket=/run/s")
	f.Add("nbd://[::1]:7/a%2fb")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		if twice, err := ParseURI(u.String()); err != nil || twice != u {
			t.Errorf("%q is %+v, written %q, read back %+v (%v)", s, u, u, twice, err)
		}
	})
}
