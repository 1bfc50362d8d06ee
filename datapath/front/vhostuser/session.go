package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// session is one front end's, from its first message to its last. Its methods are for one
// goroutine at a time, which has turn; queues run beside it.
type session struct {
	turn sync.Mutex
	over bool // nothing of it runs any more
	lost bool // what it was to go on with is not to be had, and dev is not its any more: what it is told or asked comes too late

	dev    front.Device
	opened Opened // is dev; nil: that is not the session's to close
	name   string
	log    *slog.Logger
	conn   *net.UnixConn

	features, protocol uint64
	mem                *memory
	flight             *flightFile
	queues             [MaxQueues]queue
	big                chan struct{} // a token for each long write under way
	channel            *channel
	told               bool // on it, that there is a configuration to read
}

// queue is what a front end has said of one.
type queue struct {
	size     uint32
	addr     vringAddr
	hasAddr  bool
	base     uint16
	disabled bool // by the front end, which has said that it will say
	kick     int  // -1: none
	call     *bell
	run      *running // nil while it is not served
}

// serve answers a front end until it leaves, or misbehaves. Nothing of it is in use when it returns:
// what was under way was answered.
func (s *session) serve() error {
	debug.SetPanicOnFault(true) // queues are looked at as they are set up
	s.big = make(chan struct{}, maxBigWrites)
	for i := range s.queues {
		s.queues[i].call, s.queues[i].kick = newBell(), -1
	}
	err := s.answerAll()
	s.turn.Lock()
	defer s.turn.Unlock()
	s.over = true
	err = errors.Join(err, s.channel.set(nil))
	for i := range s.queues {
		q := &s.queues[i]
		s.stop(q)
		err = errors.Join(err, q.unkick(), q.call.set(-1))
	}
	if s.flight != nil {
		err = errors.Join(err, s.flight.close())
	}
	if s.mem != nil {
		err = errors.Join(err, s.mem.unmap())
	}
	return err
}

// hold stops the queues, and keeps the turn until goOn.
func (s *session) hold() {
	s.turn.Lock()
	for i := range s.queues {
		if !invariant.Planted("vhostuser/holds-nobody") {
			s.stop(&s.queues[i])
		}
	}
}

// goOn has the queues go on with a device, or as they were if that is nil. What does not work ends the session: the front end comes again.
func (s *session) goOn(dev Opened, err error) {
	defer s.turn.Unlock()
	if dev != nil {
		err = errors.Join(err, s.close())
		s.dev, s.opened = dev, dev
	}
	if s.over {
		return
	}
	if err == nil {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // queues are looked at
		err = guard(s.settle)
	}
	if err != nil {
		s.log.Warn("vhost-user front end does not go on", "err", err)
		s.lost = !invariant.Planted("vhostuser/goes-on-without")
		s.conn.Close()
	}
}

// close gives back what was opened for the session.
func (s *session) close() error {
	was := s.opened
	if s.opened = nil; was == nil {
		return nil
	}
	return was.Close()
}

// errLost answers a message that came while the front end was held, if its device is no more.
var errLost = errors.New("held, and there is nothing to go on with")

// answerAll answers messages; nil: the front end left in good order.
func (s *session) answerAll() error {
	for {
		m, err := readMessage(s.conn)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var body []byte
		var fd = -1
		s.turn.Lock()
		if s.lost {
			err = errLost
		} else {
			err = guard(func() (err error) {
				body, fd, err = s.answer(&m)
				return err
			})
		}
		s.turn.Unlock()
		closeAll(m.fds)
		if err == nil && body == nil && m.ack && s.protocol&protoReplyAck != 0 {
			body = make([]byte, 8)
		}
		if body != nil {
			err = s.send(m.ask, body, fd)
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
}

// readMessage reads one message; io.EOF: there is none to come.
func readMessage(conn *net.UnixConn) (m message, err error) {
	var head [headerBytes]byte
	oob := make([]byte, unix.CmsgSpace(4*maxRegions))
	n, oobn, flags, _, err := conn.ReadMsgUnix(head[:], oob)
	if errors.Is(err, io.EOF) || err == nil && n == 0 {
		err = io.EOF // and not what says where
	}
	if err != nil {
		return m, err
	}
	fds, err := descriptors(oob[:oobn])
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = fmt.Errorf("%w: more than %d descriptors", ErrProtocol, maxRegions)
	}
	if err == nil {
		_, err = io.ReadFull(conn, head[n:])
	}
	if err != nil {
		return m, err
	}
	m, bytes, err := parseHeader(head[:])
	if err != nil {
		return m, err
	}
	m.fds, m.body = fds, make([]byte, bytes)
	if _, err = io.ReadFull(conn, m.body); err != nil {
		return m, fmt.Errorf("message %d: %w", m.ask, err)
	}
	return m, nil
}

// descriptors returns what came along with a message.
func descriptors(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		if list, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, list...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// send answers; a front end that does not read it loses its session.
func (s *session) send(ask uint32, body []byte, fd int) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(replyTime)); err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err := s.conn.WriteMsgUnix(appendReply(nil, ask, body), rights, nil)
	return err
}

// offered is what our device can do.
func (s *session) offered() uint64 {
	f := uint64(featSegMax | featBlockSize | featFlush | featTopology | featMultiQueue | featIndirect | featEventIdx | featProtocol | featVersion1)
	if s.dev.ReadOnly() {
		return f | featReadOnly
	}
	return f | featDiscard | featWriteZeroes
}

// answer does what a message asks. A body is the answer, with a descriptor beside it
// if that is not -1; no body: there is none to this question.
func (s *session) answer(m *message) (body []byte, fd int, err error) {
	fd = -1
	switch m.ask {
	case askGetFeatures:
		body = le.AppendUint64(nil, s.offered())
	case askSetFeatures:
		err = s.setFeatures(m)
	case askGetProtocolFeatures:
		body = le.AppendUint64(nil, protoFeatures)
	case askSetProtocolFeatures:
		s.protocol, err = m.u64()
		if err == nil && s.protocol&^protoFeatures != 0 {
			err = fmt.Errorf("%w: protocol features %#x, offered %#x", ErrProtocol, s.protocol, uint64(protoFeatures))
		}
	case askGetQueueNum:
		body = le.AppendUint64(nil, MaxQueues)
	case askSetOwner, askResetOwner: // nobody else can be; and the deprecated way to end a session
	case askSetMemTable:
		err = s.setMemory(m)
	case askGetConfig:
		body, err = s.config(m)
	case askSetConfig:
		err = fmt.Errorf("%w: the configuration is ours", ErrProtocol)
	case askSetBackendChannel:
		err = s.setChannel(m)
	case askGetInflight:
		return s.makeFlight(m)
	case askSetInflight:
		err = s.setFlight(m)
	case askSetVringNum, askSetVringBase, askGetVringBase, askSetVringEnable, askSetVringAddr, askSetVringKick, askSetVringCall, askSetVringErr:
		body, err = s.vring(m)
	default:
		err = fmt.Errorf("%w: message %d is not known here", ErrProtocol, m.ask)
	}
	return body, fd, err
}

func (s *session) setFeatures(m *message) error {
	f, err := m.u64()
	if err != nil {
		return err
	}
	if f&^s.offered() != 0 {
		return fmt.Errorf("%w: features %#x, offered %#x", ErrProtocol, f, s.offered())
	}
	s.features = f
	return nil
}

// setMemory maps the guest's memory. Queues that run are stopped first, and start again with
// the new.
func (s *session) setMemory(m *message) error {
	list, err := m.regions()
	if err != nil {
		return err
	}
	mem, err := mapMemory(list, m.fds)
	if err != nil {
		return err
	}
	for i := range s.queues {
		s.stop(&s.queues[i])
	}
	was := s.mem
	if s.mem = mem; was != nil {
		if err := was.unmap(); err != nil {
			return err
		}
	}
	return s.settle()
}

func (s *session) config(m *message) ([]byte, error) {
	r, err := m.configRange()
	if err != nil {
		return nil, err
	}
	all := make([]byte, maxConfig)
	copy(all, configuration(s.dev.Size()))
	body := slices.Clone(m.body[:configHead])
	return append(body, all[r.off:r.off+r.bytes]...), nil
}

// setChannel takes the channel on which the front end hears from us.
func (s *session) setChannel(m *message) error {
	if len(m.fds) != 1 || s.protocol&protoBackend == 0 {
		return fmt.Errorf("%w: a channel with %d descriptors", ErrProtocol, len(m.fds))
	}
	fd, err := unix.FcntlInt(uintptr(m.fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "channel")
	conn, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%w: a channel that is no socket: %w", ErrProtocol, err)
	}
	s.told = false
	return s.channel.set(conn)
}

// tellSize has a front end that comes back read the size, once its queues run: it may know our predecessor's. One
// that knows better does nothing.
func (s *session) tellSize() {
	if s.told {
		return
	}
	var err error
	if s.told, err = s.channel.tell(tellConfig); err != nil {
		s.told = true // it goes on with what it knows
		s.log.Warn("the front end does not hear us on the channel that it gave", "error", err)
	}
}

// makeFlight makes a table in flight, for the front end to keep.
func (s *session) makeFlight(m *message) ([]byte, int, error) {
	info, err := m.inflight()
	if err != nil {
		return nil, -1, err
	}
	f, fd, err := newFlightFile(info.queues, info.size)
	if err != nil {
		return nil, -1, err
	}
	body := f.info.appendTo(nil)
	return body, fd, f.close() // it is given to us again, as one that was kept is
}

func (s *session) setFlight(m *message) error {
	info, err := m.inflight()
	if err != nil {
		return err
	}
	if len(m.fds) != 1 {
		return fmt.Errorf("%w: table in flight with %d descriptors", ErrProtocol, len(m.fds))
	}
	for i := range s.queues {
		if s.queues[i].run != nil {
			return fmt.Errorf("%w: table in flight while queues run", ErrProtocol)
		}
	}
	f, err := openFlightFile(info, m.fds[0])
	if err != nil {
		return err
	}
	if s.flight != nil {
		err = s.flight.close()
	}
	s.flight = f
	return err
}

// vring takes what is said of one queue.
func (s *session) vring(m *message) (body []byte, err error) {
	var i, fd int
	var v uint32
	var addr vringAddr
	switch m.ask {
	case askSetVringAddr:
		i, addr, err = m.vringAddr()
	case askSetVringKick, askSetVringCall, askSetVringErr:
		i, fd, err = m.descriptor()
	default:
		i, v, err = m.state()
	}
	if err != nil {
		return nil, err
	}
	q := &s.queues[i]
	switch m.ask {
	case askSetVringNum:
		s.stop(q)
		q.size = v
	case askSetVringAddr:
		s.stop(q)
		q.addr, q.hasAddr = addr, true
	case askSetVringBase:
		s.stop(q)
		q.base = uint16(v)
	case askGetVringBase:
		s.stop(q)
		err = q.unkick()
		return le.AppendUint32(le.AppendUint32(nil, uint32(i)), uint32(q.base)), err
	case askSetVringEnable:
		if q.disabled = v == 0; q.disabled {
			s.stop(q)
		}
	case askSetVringCall:
		if err := q.call.set(fd); err != nil {
			return nil, err
		}
		q.call.ring() // one that was due may have been lost with a predecessor
	case askSetVringErr:
		if fd >= 0 {
			err = unix.Close(fd) // what is wrong with a queue is in the log
		}
		return nil, err
	case askSetVringKick:
		s.stop(q)
		if err := q.setKick(fd); err != nil {
			return nil, err
		}
	}
	return nil, s.settle()
}

// setKick takes fd, if it can be waited for.
func (q *queue) setKick(fd int) error {
	err := q.unkick()
	if q.kick = fd; fd < 0 {
		return errors.Join(err, fmt.Errorf("%w: a queue that must be polled", ErrProtocol))
	}
	f, openErr := openKick(fd)
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	return errors.Join(err, f.Close())
}

func (q *queue) unkick() (err error) {
	if q.kick >= 0 {
		err = unix.Close(q.kick)
	}
	q.kick = -1
	return err
}

// stop ends the queue, if it runs.
func (s *session) stop(q *queue) {
	if q.run != nil {
		q.base = q.run.stop()
		q.run = nil
	}
}

// settle starts the queues of which all is known.
func (s *session) settle() error {
	for i := range s.queues {
		q := &s.queues[i]
		if q.run != nil || q.kick < 0 || !q.hasAddr || q.size == 0 || q.disabled || s.mem == nil {
			continue
		}
		if err := s.start(i, q); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return nil
}

func (s *session) start(i int, q *queue) error {
	ring, err := newVring(s.mem, q.size, q.addr, s.features&featEventIdx != 0)
	if err != nil {
		return err
	}
	r := &running{
		dev:  s.dev,
		name: s.name,
		log:  s.log.With("queue", i),
		mem:  s.mem,
		fua:  s.features&featFlush == 0,
		big:  s.big,
		kick: q.kick,
		call: q.call,
		ring: ring,
		fail: func(error) { s.conn.Close() },
	}
	ring.lastAvail = q.base
	var redo []uint16
	if s.flight != nil {
		if r.table, err = s.flight.queue(i, q.size); err != nil {
			return err
		}
		redo = r.table.recover(ring.usedIdx)
		ring.lastAvail = ring.usedIdx + uint16(len(redo))
	}
	if len(redo) > 0 {
		r.log.Info("vhost-user queue goes on", "repeated", len(redo))
	}
	if err := r.start(redo); err != nil {
		return err
	}
	q.run = r
	s.tellSize()
	return nil
}
