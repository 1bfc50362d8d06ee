package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The numbers of the protocol. All integers on the wire are big-endian.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, the same both ways.
const (
	flagFixedNewstyle = 1 << iota
	flagNoZeroes
)

// Options.
const (
	optExportName = 1
	optAbort      = 2
	optList       = 3
	optInfo       = 6
	optGo         = 7
	optStructured = 8
	optListMeta   = 9
	optSetMeta    = 10
)

// Replies to options; those with the top bit set are errors.
const (
	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repMeta       = 4
	repError      = 1 << 31
	repErrUnsup   = repError + 1
	repErrInvalid = repError + 3
	repErrUnknown = repError + 6
	repErrTooBig  = repError + 9
)

// Kinds of information in a repInfo.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags: what an export can do.
const (
	canFlags       = 1 << 0
	canReadOnly    = 1 << 1
	canFlush       = 1 << 2
	canFUA         = 1 << 3
	canTrim        = 1 << 5
	canWriteZeroes = 1 << 6
	canDF          = 1 << 7
	canMultiConn   = 1 << 8
	canFastZero    = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags.
const (
	flagFUA      = 1 << 0
	flagNoHole   = 1 << 1
	flagDF       = 1 << 2
	flagReqOne   = 1 << 3
	flagFastZero = 1 << 4
)

// Chunks of a structured reply; those with the top bit set are errors.
const (
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2

	chunkDone = 1 // the flag of the last chunk
)

// Errors on the wire: numbers of Linux.
const (
	wireOK       = 0
	wirePerm     = 1
	wireIO       = 5
	wireInvalid  = 22
	wireNoSpace  = 28
	wireOverflow = 75
	wireNotSup   = 95
)

// base:allocation is the one metadata context here; its number is ours to choose.
const (
	contextName = "base:allocation"
	contextID   = 1

	stateHole = 1
	stateZero = 2

	contextBitmap = "qemu:dirty-bitmap:" // with a name behind it: a context of QEMU's
	stateDirty    = 1                    // there
)

const (
	requestBytes   = 28
	simpleBytes    = 16
	structBytes    = 20
	optionBytes    = 16
	optReplyBytes  = 20
	greetingBytes  = 18
	exportTailZero = 124
)

var errMagic = errors.New("bad magic number")

// request is a command as it came.
type request struct {
	flags, cmd uint16
	cookie     uint64
	off        uint64
	n          uint32
}

// parseRequest reads the header; p is requestBytes long.
func parseRequest(p []byte) (request, error) {
	if binary.BigEndian.Uint32(p) != magicRequest {
		return request{}, fmt.Errorf("request: %w", errMagic)
	}
	return request{
		flags:  binary.BigEndian.Uint16(p[4:]),
		cmd:    binary.BigEndian.Uint16(p[6:]),
		cookie: binary.BigEndian.Uint64(p[8:]),
		off:    binary.BigEndian.Uint64(p[16:]),
		n:      binary.BigEndian.Uint32(p[24:]),
	}, nil
}

func (r request) appendTo(p []byte) []byte {
	p = binary.BigEndian.AppendUint32(p, magicRequest)
	p = binary.BigEndian.AppendUint16(p, r.flags)
	p = binary.BigEndian.AppendUint16(p, r.cmd)
	p = binary.BigEndian.AppendUint64(p, r.cookie)
	p = binary.BigEndian.AppendUint64(p, r.off)
	return binary.BigEndian.AppendUint32(p, r.n)
}

// fits says whether the request's range lies in a disk of size bytes.
func (r request) fits(size int64) bool {
	if invariant.Planted("nbd/offset-wraps") {
		return r.off+uint64(r.n) <= uint64(size)
	}
	return r.off <= uint64(size) && uint64(r.n) <= uint64(size)-r.off
}

// check judges a command before anything is done for it: an error number, or 0.
func (r request) check(size int64, readOnly, structured, allocation bool) uint32 {
	var allowed uint16
	changes, pastEnd := true, uint32(wireNoSpace)
	switch r.cmd {
	case cmdRead:
		changes, pastEnd = false, wireInvalid
		if structured {
			allowed = flagDF
		}
	case cmdWrite, cmdTrim:
	case cmdWriteZeroes:
		allowed = flagNoHole | flagFastZero
	case cmdFlush:
		if r.flags&^flagFUA != 0 {
			return wireInvalid
		}
		return wireOK // it has no range
	case cmdBlockStatus:
		changes, pastEnd = false, wireInvalid
		allowed = flagReqOne
		if !allocation || r.n == 0 {
			return wireInvalid
		}
	default:
		return wireInvalid
	}
	switch {
	case r.flags&^(allowed|flagFUA) != 0:
		return wireInvalid
	case changes && readOnly:
		return wirePerm
	case !r.fits(size):
		return pastEnd
	case r.cmd == cmdRead && r.n > front.MaxWrite:
		return wireInvalid
	case r.cmd == cmdRead && r.flags&flagDF != 0 && r.n > pieceBytes:
		return wireOverflow
	case r.flags&flagFastZero != 0:
		return wireNotSup
	}
	return wireOK
}

// refusedChange says whether the request was to change the disk, was answered code before the device was asked, and so will not.
func (r request) refusedChange(code uint32) bool {
	switch r.cmd {
	case cmdWrite, cmdWriteZeroes, cmdTrim:
		return code != wireOK && code != wireNotSup // a client may ask for what is not supported in another way
	default:
		return false
	}
}

// wireError is the number that tells a guest of a device's error.
func wireError(err error) uint32 {
	switch {
	case err == nil:
		return wireOK
	case errors.Is(err, front.ErrNoSpace):
		return wireNoSpace
	case errors.Is(err, front.ErrReadOnly):
		return wirePerm
	default:
		return wireIO
	}
}

func appendSimple(p []byte, cookie uint64, code uint32) []byte {
	p = binary.BigEndian.AppendUint32(p, magicSimple)
	p = binary.BigEndian.AppendUint32(p, code)
	return binary.BigEndian.AppendUint64(p, cookie)
}

func appendChunk(p []byte, cookie uint64, flags, kind uint16, n int) []byte {
	p = binary.BigEndian.AppendUint32(p, magicStructured)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, kind)
	p = binary.BigEndian.AppendUint64(p, cookie)
	return binary.BigEndian.AppendUint32(p, uint32(n))
}

// appendErrorChunk ends a structured reply with an error and no words.
func appendErrorChunk(p []byte, cookie uint64, code uint32) []byte {
	p = appendChunk(p, cookie, chunkDone, chunkError, 6)
	p = binary.BigEndian.AppendUint32(p, code)
	return binary.BigEndian.AppendUint16(p, 0)
}

func appendOption(p []byte, option uint32, data []byte) []byte {
	p = binary.BigEndian.AppendUint64(p, magicOption)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

func appendOptReply(p []byte, option, kind uint32, data []byte) []byte {
	p = binary.BigEndian.AppendUint64(p, magicOptReply)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, kind)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

// appendString appends a length and the bytes.
func appendString(p []byte, s string) []byte {
	p = binary.BigEndian.AppendUint32(p, uint32(len(s)))
	return append(p, s...)
}

// cutString takes a string with its length off p.
func cutString(p []byte) (s string, rest []byte, err error) {
	if len(p) < 4 {
		return "", nil, io.ErrUnexpectedEOF
	}
	n := binary.BigEndian.Uint32(p)
	if n > MaxName {
		return "", nil, fmt.Errorf("name of %d bytes", n)
	}
	p = p[4:]
	if uint32(len(p)) < n {
		return "", nil, io.ErrUnexpectedEOF
	}
	return string(p[:n]), p[n:], nil
}

// infoRequest is the data of INFO and GO.
type infoRequest struct {
	name  string
	kinds []uint16 // what the client asks for besides infoExport
}

func parseInfo(p []byte) (infoRequest, error) {
	name, p, err := cutString(p)
	if err != nil {
		return infoRequest{}, err
	}
	if len(p) < 2 {
		return infoRequest{}, io.ErrUnexpectedEOF
	}
	n := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	if len(p) != 2*n {
		return infoRequest{}, fmt.Errorf("%d kinds in %d bytes", n, len(p))
	}
	r := infoRequest{name: name}
	for ; len(p) > 0; p = p[2:] {
		r.kinds = append(r.kinds, binary.BigEndian.Uint16(p))
	}
	return r, nil
}

func (r infoRequest) appendTo(p []byte) []byte {
	p = appendString(p, r.name)
	p = binary.BigEndian.AppendUint16(p, uint16(len(r.kinds)))
	for _, k := range r.kinds {
		p = binary.BigEndian.AppendUint16(p, k)
	}
	return p
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

func parseMeta(p []byte) (metaRequest, error) {
	name, p, err := cutString(p)
	if err != nil {
		return metaRequest{}, err
	}
	if len(p) < 4 {
		return metaRequest{}, io.ErrUnexpectedEOF
	}
	n := binary.BigEndian.Uint32(p)
	p = p[4:]
	if uint64(n)*4 > uint64(len(p)) {
		return metaRequest{}, fmt.Errorf("%d queries in %d bytes", n, len(p))
	}
	r := metaRequest{name: name}
	for range n {
		var q string
		if q, p, err = cutString(p); err != nil {
			return metaRequest{}, err
		}
		r.queries = append(r.queries, q)
	}
	if len(p) != 0 {
		return metaRequest{}, fmt.Errorf("%d bytes too many", len(p))
	}
	return r, nil
}

func (r metaRequest) appendTo(p []byte) []byte {
	p = appendString(p, r.name)
	p = binary.BigEndian.AppendUint32(p, uint32(len(r.queries)))
	for _, q := range r.queries {
		p = appendString(p, q)
	}
	return p
}

// wants says whether the queries select base:allocation. A listing without queries
// asks for all there is, and "base:" for all of that kind.
func (r metaRequest) wants(list bool) bool {
	if list && len(r.queries) == 0 {
		return true
	}
	for _, q := range r.queries {
		if q == contextName || list && q == "base:" {
			return true
		}
	}
	return false
}
