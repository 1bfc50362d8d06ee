package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var le = binary.LittleEndian

// ErrProtocol says that a front end does not keep to the protocol.
var ErrProtocol = errors.New("vhost-user: not by the protocol")

// What a front end may ask.
const (
	askGetFeatures         = 1
	askSetFeatures         = 2
	askSetOwner            = 3
	askResetOwner          = 4
	askSetMemTable         = 5
	askSetVringNum         = 8
	askSetVringAddr        = 9
	askSetVringBase        = 10
	askGetVringBase        = 11
	askSetVringKick        = 12
	askSetVringCall        = 13
	askSetVringErr         = 14
	askGetProtocolFeatures = 15
	askSetProtocolFeatures = 16
	askGetQueueNum         = 17
	askSetVringEnable      = 18
	askSetBackendChannel   = 21
	askGetConfig           = 24
	askSetConfig           = 25
	askGetInflight         = 31
	askSetInflight         = 32
)

// Bits of what both sides can do: of the device, then of the protocol.
const (
	featSegMax      = 1 << 2
	featReadOnly    = 1 << 5
	featBlockSize   = 1 << 6
	featFlush       = 1 << 9
	featTopology    = 1 << 10
	featMultiQueue  = 1 << 12
	featDiscard     = 1 << 13
	featWriteZeroes = 1 << 14
	featIndirect    = 1 << 28
	featEventIdx    = 1 << 29
	featProtocol    = 1 << 30
	featVersion1    = 1 << 32

	protoMultiQueue = 1 << 0
	protoReplyAck   = 1 << 3
	protoBackend    = 1 << 5 // a channel on which we begin
	protoConfig     = 1 << 9
	protoInflight   = 1 << 12

	protoFeatures = protoMultiQueue | protoReplyAck | protoBackend | protoConfig | protoInflight
)

// A message: a header, then as many bytes as it says.
const (
	headerBytes = 12

	flagVersion = 1
	flagsOfVers = 3
	flagReply   = 4
	flagNeedAck = 8

	// An index of a queue comes in eight bits, beside this one: no descriptor came along.
	noDescriptor = 1 << 8
)

// message is what a front end sends. The descriptors are the server's to close.
type message struct {
	ask  uint32
	ack  bool // an answer is asked for, whatever the message
	body []byte
	fds  []int
}

// parseHeader reads a header, and says how long the body behind it is.
func parseHeader(p []byte) (m message, bytes int, err error) {
	flags, n := le.Uint32(p[4:]), le.Uint32(p[8:])
	m.ask = le.Uint32(p)
	switch {
	case flags&flagsOfVers != flagVersion:
		return m, 0, fmt.Errorf("%w: message %d of version %d", ErrProtocol, m.ask, flags&flagsOfVers)
	case flags&flagReply != 0:
		return m, 0, fmt.Errorf("%w: an answer to nothing (%d)", ErrProtocol, m.ask)
	case n > maxMessage:
		return m, 0, fmt.Errorf("%w: message %d of %d bytes", ErrProtocol, m.ask, n)
	}
	m.ack = flags&flagNeedAck != 0
	return m, int(n), nil
}

// tellConfig is what we say on the channel of our own: the configuration has changed.
const tellConfig = 2

func appendTold(p []byte, what uint32) []byte {
	return le.AppendUint32(le.AppendUint32(le.AppendUint32(p, what), flagVersion), 0)
}

// appendReply appends an answer to that question.
func appendReply(p []byte, ask uint32, body []byte) []byte {
	p = le.AppendUint32(p, ask)
	p = le.AppendUint32(p, flagVersion|flagReply)
	p = le.AppendUint32(p, uint32(len(body)))
	return append(p, body...)
}

// want says that the body is shorter than its message is.
func (m *message) want(bytes int) error {
	if len(m.body) < bytes {
		return fmt.Errorf("%w: message %d of %d bytes, want %d", ErrProtocol, m.ask, len(m.body), bytes)
	}
	return nil
}

func (m *message) u64() (uint64, error) {
	if err := m.want(8); err != nil {
		return 0, err
	}
	return le.Uint64(m.body), nil
}

// state is a queue and a number: its size, where it stands, or whether it is enabled.
func (m *message) state() (queue int, value uint32, err error) {
	if err := m.want(8); err != nil {
		return 0, 0, err
	}
	i := le.Uint32(m.body)
	if i >= MaxQueues {
		return 0, 0, fmt.Errorf("%w: message %d for queue %d", ErrProtocol, m.ask, i)
	}
	return int(i), le.Uint32(m.body[4:]), nil
}

// descriptor is a queue and the descriptor that came along, which the caller now has to
// close; -1: the front end has none.
func (m *message) descriptor() (queue, fd int, err error) {
	v, err := m.u64()
	if err != nil {
		return 0, -1, err
	}
	i := v & (noDescriptor - 1)
	switch {
	case i >= MaxQueues:
		return 0, -1, fmt.Errorf("%w: message %d for queue %d", ErrProtocol, m.ask, i)
	case v&noDescriptor != 0:
		return int(i), -1, nil
	case len(m.fds) != 1:
		return 0, -1, fmt.Errorf("%w: message %d with %d descriptors, want 1", ErrProtocol, m.ask, len(m.fds))
	}
	fd, m.fds = m.fds[0], nil
	return int(i), fd, nil
}

// vringAddr tells where the three parts of a queue lie, by the front end's own addresses.
type vringAddr struct {
	desc, used, avail uint64
}

func (m *message) vringAddr() (queue int, a vringAddr, err error) {
	if err := m.want(40); err != nil {
		return 0, a, err
	}
	i := le.Uint32(m.body)
	if i >= MaxQueues {
		return 0, a, fmt.Errorf("%w: message %d for queue %d", ErrProtocol, m.ask, i)
	}
	return int(i), vringAddr{le.Uint64(m.body[8:]), le.Uint64(m.body[16:]), le.Uint64(m.body[24:])}, nil
}

// regionInfo is a piece of the guest's memory: where the guest has it, how long it is,
// where the front end has it, and from which byte of its file on.
type regionInfo struct {
	guest, bytes, user, offset uint64
}

func (m *message) regions() ([]regionInfo, error) {
	if err := m.want(8); err != nil {
		return nil, err
	}
	n := le.Uint32(m.body)
	if n == 0 || n > maxRegions || int(n) != len(m.fds) {
		return nil, fmt.Errorf("%w: %d regions of memory with %d descriptors, want 1 to %d of each", ErrProtocol, n, len(m.fds), maxRegions)
	}
	if err := m.want(8 + int(n)*32); err != nil {
		return nil, err
	}
	list := make([]regionInfo, n)
	var all uint64
	for i := range list {
		p := m.body[8+32*i:]
		r := regionInfo{le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])}
		if r.bytes == 0 || r.bytes > maxRegionBytes || r.offset > maxRegionBytes || r.guest+r.bytes < r.guest || r.user+r.bytes < r.user {
			return nil, fmt.Errorf("%w: region of memory %+v", ErrProtocol, r)
		}
		if all += r.offset + r.bytes; all > maxMemoryBytes {
			return nil, fmt.Errorf("%w: more than %d TiB of memory", ErrProtocol, maxMemoryBytes>>40)
		}
		list[i] = r
	}
	return list, nil
}

const (
	// maxRegionBytes is far below what makes sums wrap.
	maxRegionBytes = 1 << 46
	// maxMemoryBytes is above any machine's memory, and far below what a process has of
	// addresses: none are left for a process of which a front end takes them all.
	maxMemoryBytes = 8 << 40
)

// configRange is a part of the device's configuration.
type configRange struct {
	off, bytes int
}

const configHead = 12

func (m *message) configRange() (configRange, error) {
	if err := m.want(configHead); err != nil {
		return configRange{}, err
	}
	off, n := le.Uint32(m.body), le.Uint32(m.body[4:])
	if off > maxConfig || n > maxConfig-off || int(n) > len(m.body)-configHead {
		return configRange{}, fmt.Errorf("%w: configuration [%d, +%d] in a message of %d bytes", ErrProtocol, off, n, len(m.body))
	}
	return configRange{int(off), int(n)}, nil
}

// maxConfig is the longest configuration the protocol has room for.
const maxConfig = 256

// inflightInfo describes the table in flight.
type inflightInfo struct {
	bytes, offset uint64
	queues, size  uint16
}

const inflightInfoBytes = 20

func (m *message) inflight() (i inflightInfo, err error) {
	if err := m.want(inflightInfoBytes); err != nil {
		return i, err
	}
	i = inflightInfo{le.Uint64(m.body), le.Uint64(m.body[8:]), le.Uint16(m.body[16:]), le.Uint16(m.body[18:])}
	if i.queues == 0 || i.queues > MaxQueues || i.size == 0 || i.size > maxQueueSize {
		return i, fmt.Errorf("%w: table in flight of %d queues of %d", ErrProtocol, i.queues, i.size)
	}
	return i, nil
}

func (i inflightInfo) appendTo(p []byte) []byte {
	p = le.AppendUint64(le.AppendUint64(p, i.bytes), i.offset)
	return le.AppendUint32(le.AppendUint16(le.AppendUint16(p, i.queues), i.size), 0)
}
