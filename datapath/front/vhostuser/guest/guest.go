// Package guest is a virtual machine that is nothing but a virtio-blk driver: the front
// end of vhost-user-blk, for tests and measurements without a hypervisor. It drives any back
// end, at the machine's own speed.
//
// Its memory, its queues and the table in flight outlive a connection, as a virtual machine
// outlives the process that serves its disk: after Connect to a successor the
// requests under way are answered by that one.
package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

var le = binary.LittleEndian

// Options say what the machine is like. Zero values are sensible.
type Options struct {
	Queues    int  // default 1
	Slots     int  // requests under way in each queue; default 32
	SlotBytes int  // of the longest payload, whole pages; default 64 KiB
	Scatter   int  // payload in pieces of that many bytes, behind an indirect table; 0: in one, directly
	NoEvents  bool // without EVENT_IDX
	NoFlush   bool // without FLUSH: writes must be durable when they are answered
	NoTable   bool // without the table in flight
	Regions   int  // pieces the memory comes in; default 1
}

// Guest is the machine.
type Guest struct {
	o        Options
	mem      []byte
	fd       int
	queues   []*queue
	flight   int // the table in flight, -1: none yet
	info     [20]byte
	features uint64
	protocol uint64

	mu   sync.Mutex
	conn *net.UnixConn
}

// Messages and features, as the protocol and virtio have them.
const (
	GetFeatures         = 1
	SetFeatures         = 2
	SetOwner            = 3
	SetMemTable         = 5
	SetVringNum         = 8
	SetVringAddr        = 9
	SetVringBase        = 10
	GetVringBase        = 11
	SetVringKick        = 12
	SetVringCall        = 13
	GetProtocolFeatures = 15
	SetProtocolFeatures = 16
	GetQueueNum         = 17
	SetVringEnable      = 18
	GetConfig           = 24
	GetInflight         = 31
	SetInflight         = 32

	featFlush    = 1 << 9
	featIndirect = 1 << 28
	featEventIdx = 1 << 29
	featProtocol = 1 << 30
	featVersion1 = 1 << 32

	protoReplyAck = 1 << 3
	protoConfig   = 1 << 9
	protoInflight = 1 << 12
)

// Base is where the guest's memory begins, by its own addresses.
const Base = 1 << 32

// New makes a machine that is connected to nothing.
func New(o Options) (*Guest, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.Slots == 0 {
		o.Slots = 32
	}
	if o.SlotBytes == 0 {
		o.SlotBytes = 64 << 10
	}
	if o.Regions == 0 {
		o.Regions = 1
	}
	g := &Guest{o: o, flight: -1}
	per := queueBytes(o)
	bytes := (int64(per*o.Queues)/int64(o.Regions) + 4096) &^ 4095 * int64(o.Regions)
	var err error
	if g.fd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err != nil {
		return nil, err
	}
	if err = unix.Ftruncate(g.fd, bytes); err == nil {
		g.mem, err = unix.Mmap(g.fd, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(g.fd))
	}
	for i := range o.Queues {
		q, err := newQueue(g, g.mem[i*per:(i+1)*per], uint64(i*per))
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.queues = append(g.queues, q)
	}
	return g, nil
}

// Close ends the machine; nothing of it may be in use.
func (g *Guest) Close() error {
	err := g.Disconnect()
	for _, q := range g.queues {
		err = errors.Join(err, q.close())
	}
	if g.flight >= 0 {
		err = errors.Join(err, unix.Close(g.flight))
	}
	return errors.Join(err, unix.Munmap(g.mem), unix.Close(g.fd))
}

// Memory is all the machine has, and File the file that it lies in: a hostile one cuts that.
func (g *Guest) Memory() []byte { return g.mem }

// File is the descriptor of the memory's file.
func (g *Guest) File() int { return g.fd }

// Disconnect hangs up, as a machine does that is ended, or whose back end is gone.
func (g *Guest) Disconnect() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn == nil {
		return nil
	}
	err := g.conn.Close()
	g.conn = nil
	return err
}

// Connect meets the back end at the socket and starts the queues there.
func (g *Guest) Connect(socket string) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	g.mu.Lock()
	if g.conn != nil {
		g.conn.Close()
	}
	g.conn = conn
	g.mu.Unlock()
	if err := g.setUp(); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", socket, err), g.Disconnect())
	}
	return nil
}

// Gone returns when the back end has hung up.
func (g *Guest) Gone() error {
	g.mu.Lock()
	conn := g.conn
	g.mu.Unlock()
	if conn == nil {
		return nil
	}
	var p [1]byte
	if _, err := conn.Read(p[:]); err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the back end did not hang up: %v", err)
	}
	return nil
}

func words(w ...uint64) (p []byte) {
	for _, v := range w {
		p = le.AppendUint64(p, v)
	}
	return p
}

// setUp is what a hypervisor says when a driver has started.
func (g *Guest) setUp() error {
	v, err := g.AskWord(GetFeatures)
	if err != nil {
		return err
	}
	g.features = v & (featFlush | featIndirect | featEventIdx | featProtocol | featVersion1)
	if g.o.NoEvents {
		g.features &^= featEventIdx
	}
	if g.o.NoFlush {
		g.features &^= featFlush
	}
	if g.protocol, err = g.AskWord(GetProtocolFeatures); err != nil {
		return err
	}
	g.protocol &= protoReplyAck | protoConfig | protoInflight
	if g.o.NoTable {
		g.protocol &^= protoInflight
	}
	if err := g.Tell(SetProtocolFeatures, words(g.protocol)); err != nil {
		return err
	}
	if err := g.Tell(SetOwner, nil); err != nil {
		return err
	}
	if err := g.Tell(SetFeatures, words(g.features)); err != nil {
		return err
	}
	if g.protocol&protoInflight != 0 {
		if err := g.table(); err != nil {
			return err
		}
	}
	if err := g.ShareMemory(); err != nil {
		return err
	}
	for i, q := range g.queues {
		if err := g.startQueue(uint64(i), q); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return nil
}

// table asks for a table in flight once, and gives the same to every back end.
func (g *Guest) table() error {
	if g.flight < 0 {
		le.PutUint16(g.info[16:], uint16(g.o.Queues))
		le.PutUint16(g.info[18:], uint16(g.queues[0].size))
		body, fd, err := g.Ask(GetInflight, g.info[:])
		if err != nil {
			return err
		}
		if fd < 0 || len(body) < len(g.info) {
			return errors.New("no table in flight")
		}
		g.flight = fd
		copy(g.info[:], body)
	}
	return g.Tell(SetInflight, g.info[:], g.flight)
}

// ShareMemory tells where the memory is.
func (g *Guest) ShareMemory() error {
	n := uint64(len(g.mem) / g.o.Regions)
	body := words(uint64(g.o.Regions))
	var fds []int
	for i := range uint64(g.o.Regions) {
		body = append(body, words(Base+i*n, n, g.user(i*n), i*n)...)
		fds = append(fds, g.fd)
	}
	return g.Tell(SetMemTable, body, fds...)
}

// user is the front end's own address of a place in the memory.
func (g *Guest) user(off uint64) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(g.mem)))) + off
}

func (g *Guest) startQueue(i uint64, q *queue) error {
	if err := g.Tell(SetVringNum, words(i|uint64(q.size)<<32)); err != nil {
		return err
	}
	base := i
	if g.protocol&protoInflight == 0 {
		base |= uint64(q.usedIndex()) << 32
	}
	if err := g.Tell(SetVringBase, words(base)); err != nil {
		return err
	}
	u := g.user(q.at)
	if err := g.Tell(SetVringAddr, words(i, u, u+q.usedAt, u+q.availAt, 0)); err != nil {
		return err
	}
	if err := g.Tell(SetVringCall, words(i), q.call); err != nil {
		return err
	}
	if err := g.Tell(SetVringKick, words(i), q.kick); err != nil {
		return err
	}
	return g.Tell(SetVringEnable, words(i|1<<32))
}

// StopQueue ends the back end's work on a queue, and returns how far it came.
func (g *Guest) StopQueue(i int) (uint16, error) {
	body, _, err := g.Ask(GetVringBase, words(uint64(i)))
	if err != nil {
		return 0, err
	}
	if len(body) != 8 {
		return 0, fmt.Errorf("base of %d bytes", len(body))
	}
	return uint16(le.Uint32(body[4:])), nil
}

// StartQueue starts it again, where it stopped.
func (g *Guest) StartQueue(i int) error { return g.startQueue(uint64(i), g.queues[i]) }

// Capacity is the size of the disk, in bytes.
func (g *Guest) Capacity() (int64, error) {
	p, err := g.Config()
	if err != nil {
		return 0, err
	}
	return int64(le.Uint64(p)) * 512, nil
}

// Config is what a driver is told of the disk: 60 bytes.
func (g *Guest) Config() ([]byte, error) {
	q := make([]byte, 12+60)
	le.PutUint32(q[4:], 60)
	p, _, err := g.Ask(GetConfig, q)
	if err == nil && len(p) != len(q) {
		err = fmt.Errorf("configuration of %d bytes", len(p))
	}
	if err != nil {
		return nil, err
	}
	return p[12:], nil
}

// AskWord asks what is answered by a number.
func (g *Guest) AskWord(ask uint32) (uint64, error) {
	p, _, err := g.Ask(ask, nil)
	if err == nil && len(p) != 8 {
		err = fmt.Errorf("message %d answered by %d bytes", ask, len(p))
	}
	if err != nil {
		return 0, err
	}
	return le.Uint64(p), nil
}

// Tell sends what has no answer, and asks that it be acknowledged when both sides know how.
func (g *Guest) Tell(ask uint32, body []byte, fds ...int) error {
	flags := uint32(1)
	if ack := g.protocol&protoReplyAck != 0; ack && ask != SetProtocolFeatures {
		flags |= 8
	}
	if err := g.Send(ask, flags, body, fds...); err != nil || flags == 1 {
		return err
	}
	p, _, err := g.receive(ask)
	if err == nil && (len(p) != 8 || le.Uint64(p) != 0) {
		err = fmt.Errorf("message %d refused: %x", ask, p)
	}
	return err
}

// Ask sends a question and returns its answer, and a descriptor that came with it, or -1.
func (g *Guest) Ask(ask uint32, body []byte, fds ...int) ([]byte, int, error) {
	if err := g.Send(ask, 1, body, fds...); err != nil {
		return nil, -1, err
	}
	return g.receive(ask)
}

// Send sends any message.
func (g *Guest) Send(ask, flags uint32, body []byte, fds ...int) error {
	p := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, ask), flags), uint32(len(body)))
	return g.Raw(append(p, body...), fds...)
}

// Raw sends any bytes.
func (g *Guest) Raw(p []byte, fds ...int) error {
	g.mu.Lock()
	conn := g.conn
	g.mu.Unlock()
	if conn == nil {
		return net.ErrClosed
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := conn.WriteMsgUnix(p, rights, nil)
	return err
}

func (g *Guest) receive(ask uint32) (body []byte, fd int, err error) {
	g.mu.Lock()
	conn := g.conn
	g.mu.Unlock()
	if conn == nil {
		return nil, -1, net.ErrClosed
	}
	var head [12]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, -1, err
	}
	fd = -1
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			fd = fds[0]
			unix.CloseOnExec(fd)
		}
	}
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return nil, fd, err
	}
	if got := le.Uint32(head[:]); got != ask {
		return nil, fd, fmt.Errorf("message %d answered as %d", ask, got)
	}
	size := le.Uint32(head[8:])
	if size > 4096 {
		return nil, fd, fmt.Errorf("answer of %d bytes", size)
	}
	body = make([]byte, size)
	_, err = io.ReadFull(conn, body)
	return body, fd, err
}

// eventfd makes one whose reads wait in the runtime's poller.
func eventfd() (int, *os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, nil, err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, nil, errors.Join(err, unix.Close(fd))
	}
	return fd, os.NewFile(uintptr(own), "eventfd"), nil
}
