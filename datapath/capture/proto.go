package capture

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// The pool socket: one request or reply a datagram of a SOCK_SEQPACKET socket.
const (
	sockMagic   = 0x504c_4648 // "HFLP"
	sockVersion = 1

	requestBytes = 56
	maxRequest   = requestBytes + 4096
	replyBytes   = 24
	maxReply     = 64 << 10
	maxExtents   = 2048 // in one reply
)

// What is asked.
const (
	askHello    = 1 + iota // with the VRA's eventfd; answered by welcome and the three memory files
	askFold                // move live generations to the dirty maps
	askMarkAll             // volume
	askDirty               // blocks dirty, a volume each
	askExtents             // volume, from off, at most max
	askSyncRead            // volume, off, n
	askMark                // volume, off, n: dirty
	askPast                // alone on its connection, without a hello: volume, max one of those below
	askMirror              // as askPast, of a mirror volume; a joining has mirrorJoin.text behind it, and the token as off
	askLook                // whether all mirrors stand: what does not is in lost by the time of the answer
)

// What askMirror wants.
const (
	mirrorTell     = iota // only to know
	mirrorWishJoin        // QEMU mirrors from now on
)

// What askPast wants.
const (
	pastTell   = iota // only to know
	pastDetach        // from now on somebody may write past the filter
	pastAttach        // from now on nobody does
)

// request is what the VRA asks.
type request struct {
	ask    uint16
	id     uint64 // comes back in the reply
	group  record.GroupID
	page   uint64 // of the order page that the VRA has mapped
	volume record.VolumeID
	max    uint32
	off, n int64
	text   string // of an askMirror alone
}

func (r request) bytes() []byte {
	p := make([]byte, requestBytes, requestBytes+len(r.text))
	le := binary.LittleEndian
	le.PutUint32(p[0:], sockMagic)
	le.PutUint16(p[4:], sockVersion)
	le.PutUint16(p[6:], r.ask)
	le.PutUint64(p[8:], r.id)
	le.PutUint64(p[16:], uint64(r.group))
	le.PutUint64(p[24:], r.page)
	le.PutUint32(p[32:], uint32(r.volume))
	le.PutUint32(p[36:], r.max)
	le.PutUint64(p[40:], uint64(r.off))
	le.PutUint64(p[48:], uint64(r.n))
	return append(p, r.text...)
}

func parseRequest(p []byte) (request, error) {
	if err := checkSock(p, requestBytes); err != nil {
		return request{}, err
	}
	if len(p) > maxRequest {
		return request{}, fmt.Errorf("request of %d bytes: %w", len(p), ErrCorrupt)
	}
	le := binary.LittleEndian
	r := request{
		ask:    le.Uint16(p[6:]),
		id:     le.Uint64(p[8:]),
		group:  record.GroupID(le.Uint64(p[16:])),
		page:   le.Uint64(p[24:]),
		volume: record.VolumeID(le.Uint32(p[32:])),
		max:    le.Uint32(p[36:]),
		off:    int64(le.Uint64(p[40:])),
		n:      int64(le.Uint64(p[48:])),
		text:   string(p[requestBytes:]),
	}
	if r.text != "" && r.ask != askMirror {
		return request{}, fmt.Errorf("request of %d bytes: %w", len(p), ErrCorrupt)
	}
	if r.ask < askHello || r.ask > askLook || r.off < 0 || r.n < 0 || r.off+r.n < r.off || r.max > maxExtents {
		return request{}, fmt.Errorf("request %+v: %w", r, ErrCorrupt)
	}
	return r, nil
}

func checkSock(p []byte, least int) error {
	if len(p) < least || binary.LittleEndian.Uint32(p) != sockMagic {
		return fmt.Errorf("message of %d bytes: %w", len(p), ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint16(p[4:]); v != sockVersion {
		return fmt.Errorf("pool socket version %d: %w", v, ErrVersion)
	}
	return nil
}

// reply answers a request: a failure in words, or a body.
type reply struct {
	id   uint64
	fail string
	body []byte
}

func (r reply) bytes() []byte {
	p := make([]byte, replyBytes, replyBytes+len(r.fail)+len(r.body))
	le := binary.LittleEndian
	le.PutUint32(p[0:], sockMagic)
	le.PutUint16(p[4:], sockVersion)
	le.PutUint64(p[8:], r.id)
	le.PutUint32(p[16:], uint32(len(r.fail)))
	le.PutUint32(p[20:], uint32(len(r.body)))
	return append(append(p, r.fail...), r.body...)
}

// parseReply reads a reply, whose body is a part of p.
func parseReply(p []byte) (reply, error) {
	if err := checkSock(p, replyBytes); err != nil {
		return reply{}, err
	}
	le := binary.LittleEndian
	fail, body := uint64(le.Uint32(p[16:])), uint64(le.Uint32(p[20:]))
	if uint64(len(p)) != replyBytes+fail+body || len(p) > maxReply || le.Uint16(p[6:]) != 0 {
		return reply{}, fmt.Errorf("reply of %d bytes: %w", len(p), ErrCorrupt)
	}
	id := le.Uint64(p[8:])
	p = p[replyBytes:]
	return reply{id: id, fail: string(p[:fail]), body: p[fail:]}, nil
}

// welcome tells the shape of the pool, and what the filter serves.
type welcome struct {
	shape   poolShape
	volumes []VolumeInfo // each has the ring of its place here
}

func (w welcome) bytes() []byte {
	le := binary.LittleEndian
	p := le.AppendUint64(nil, w.shape.instance)
	p = le.AppendUint32(p, uint32(w.shape.slots))
	p = le.AppendUint32(p, uint32(w.shape.rings))
	for _, v := range w.volumes {
		p = le.AppendUint32(p, uint32(v.ID))
		p = le.AppendUint32(p, uint32(len(v.Name)))
		p = le.AppendUint64(p, uint64(v.Bytes))
		p = append(p, v.Name...)
	}
	return p
}

func parseWelcome(p []byte) (welcome, error) {
	bad := fmt.Errorf("welcome of %d bytes: %w", len(p), ErrCorrupt)
	if len(p) < 16 {
		return welcome{}, bad
	}
	le := binary.LittleEndian
	slots, rings := le.Uint32(p[8:]), le.Uint32(p[12:])
	if slots < minSlots || slots > maxSlots || rings < 1 || rings > maxRings {
		return welcome{}, bad
	}
	w := welcome{shape: shapeOf(int(slots), int(rings), le.Uint64(p))}
	if err := w.shape.check(); err != nil {
		return welcome{}, err
	}
	for p = p[16:]; len(p) > 0; {
		if len(p) < 16 || len(w.volumes) == w.shape.rings {
			return welcome{}, bad
		}
		v := VolumeInfo{ID: record.VolumeID(le.Uint32(p)), Bytes: int64(le.Uint64(p[8:]))}
		name := uint64(le.Uint32(p[4:]))
		if p = p[16:]; name > uint64(len(p)) || v.ID == 0 || v.Bytes <= 0 || v.Bytes > record.VolumeLimit {
			return welcome{}, bad
		}
		v.Name, p = string(p[:name]), p[name:]
		w.volumes = append(w.volumes, v)
	}
	return w, nil
}

// pastBody answers askPast.
func pastBody(p Past, path string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(p)), path...)
}

func parsePast(p []byte) (VolumePast, error) {
	if len(p) < 8 || binary.LittleEndian.Uint64(p) > uint64(PastUnsynced) {
		return VolumePast{}, fmt.Errorf("%d bytes of who writes past the filter: %w", len(p), ErrCorrupt)
	}
	return VolumePast{Past: Past(binary.LittleEndian.Uint64(p)), Path: string(p[8:])}, nil
}

// appendPair appends to the body of the other answers: extents, or a volume and its dirty blocks.
func appendPair(p []byte, a, b int64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(p, uint64(a)), uint64(b))
}

func parsePairs(p []byte) (pairs [][2]int64, err error) {
	if len(p)%16 != 0 {
		return nil, fmt.Errorf("%d bytes of pairs: %w", len(p), ErrCorrupt)
	}
	for ; len(p) > 0; p = p[16:] {
		a, b := int64(binary.LittleEndian.Uint64(p)), int64(binary.LittleEndian.Uint64(p[8:]))
		if a < 0 || b < 0 || a+b < a {
			return nil, fmt.Errorf("pair %d, %d: %w", a, b, ErrCorrupt)
		}
		pairs = append(pairs, [2]int64{a, b})
	}
	return pairs, nil
}

// text is what a joining says behind the request: the three names, each ended by a zero byte.
func (j mirrorJoin) text() string { return j.source + "\x00" + j.bitmap + "\x00" + j.changes + "\x00" }

func parseJoin(q request) (mirrorJoin, error) {
	names := strings.Split(q.text, "\x00")
	if len(names) != 4 || names[0] == "" || names[3] != "" || q.off == 0 || (names[1] == "") != (names[2] == "") {
		return mirrorJoin{}, fmt.Errorf("joining with %d names: %w", len(names)-1, ErrCorrupt)
	}
	return mirrorJoin{token: uint64(q.off), source: names[0], bitmap: names[1], changes: names[2]}, nil
}

// mirrorBody answers askMirror.
func mirrorBody(m VolumeMirror) []byte {
	p := binary.LittleEndian.AppendUint64(nil, uint64(m.Past))
	return appendPair(p, int64(m.Token), m.Bytes)
}

func parseMirror(p []byte) (VolumeMirror, error) {
	if len(p) != 24 {
		return VolumeMirror{}, fmt.Errorf("%d bytes of a mirror: %w", len(p), ErrCorrupt)
	}
	past, err := parsePast(p[:8])
	if err != nil {
		return VolumeMirror{}, err
	}
	return VolumeMirror{Past: past.Past, Token: binary.LittleEndian.Uint64(p[8:]), Bytes: int64(binary.LittleEndian.Uint64(p[16:]))}, nil
}
