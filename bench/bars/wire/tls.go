package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// copyBytes are what the bare loop writes at a time.
const copyBytes = 256 << 10

// tlsArgs say where certificates stand and how much to move.
type tlsArgs struct {
	Certs string
	Bytes int64
}

// tls sends records through a session, and as many bytes through crypto/tls alone; both ends
// are in one process, of one connection.
func (b *bench) tls() error {
	return b.contrast("records", "bare", tlsArgs{b.memory, b.bytes}, func(ours, bare moved, foreign float64) {
		b.Sample(bars.Sample{Row: "tls-rate", Value: ours.rate() / bare.rate(), Ours: ours.rate() / 1e6, Peer: bare.rate() / 1e6, OursUnit: "MB/s", Foreign: foreign})
		b.Sample(bars.Sample{Row: "tls-cpu", Value: ours.perGiB() / bare.perGiB(), Ours: ours.perGiB(), Peer: bare.perGiB(), OursUnit: "CPU-s/GiB", Foreign: foreign})
	})
}

// sealed is a record of the data, as writes of 32 KiB.
func sealed(data []byte, seq record.Seq, c *record.Compressor) []byte {
	b := record.NewBatch(record.Limits{})
	for off := 0; off < len(data); off += record.LineBytes {
		p := data[off:min(off+record.LineBytes, len(data))]
		if !b.Add(record.Piece{Volume: 1, Off: int64(off), Len: int64(len(p)), Ticket: 1, Data: p}) {
			panic("BUG: a batch that is too large")
		}
	}
	return b.Seal(nil, record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: seq}, 1, c)
}

// checker verifies each record that comes, and says when it has all.
type checker struct {
	opened chan *wire.Session
	left   int64 // bytes
	done   chan error
}

func (c *checker) Opened(s *wire.Session) error              { c.opened <- s; return nil }
func (c *checker) Message(*wire.Session, wire.Message) error { return nil }
func (*checker) Lost(*wire.Session, uint32)                  {}
func (c *checker) Closed(*wire.Session, error)               {}
func (c *checker) Record(_ *wire.Session, r *wire.Received) error {
	defer r.Release()
	rec, err := r.Record()
	if err == nil {
		err = rec.VerifyPayload()
	}
	c.left -= int64(len(r.Bytes()))
	if err != nil || c.left <= 0 {
		c.done <- err
	}
	return err
}

// joined is a session over loopback, with both ends here; stop ends them.
func joined(ctx context.Context, certs string, target, source wire.Handler, opened chan *wire.Session) (*wire.Session, func(), error) {
	t, err := credentials(certs, "target", "source")
	if err != nil {
		return nil, nil, err
	}
	s, err := credentials(certs, "source", "target")
	if err != nil {
		return nil, nil, err
	}
	server, err := wire.Listen(wire.ServerConfig{ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0", Credentials: t})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 2)
	go func() { over <- server.Serve(ctx, target) }()
	go func() {
		over <- wire.Connect(ctx, wire.ClientConfig{Control: server.ControlAddr().String(), Data: server.DataAddr().String(), Credentials: s, Connections: 1}, source)
	}()
	select {
	case session := <-opened:
		return session, func() { cancel(); <-over; <-over }, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, ctx.Err()
	case <-time.After(10 * time.Second):
		cancel()
		return nil, nil, errors.New("no session")
	}
}

// recordsPart sends records, again and again the same few.
func recordsPart(ctx context.Context, a tlsArgs) (m moved, err error) {
	var records [16][]byte
	c := record.NewCompressor()
	for i := range records {
		records[i] = sealed(load.Noise(recordBytes, uint64(i)), record.Seq(i+1), c)
	}
	count := max(a.Bytes/recordBytes, int64(len(records)))
	size := int64(len(records[0]))
	source := &checker{opened: make(chan *wire.Session, 1)}
	target := &checker{opened: make(chan *wire.Session, 1), left: (count + warmRecords) * size, done: make(chan error, 1)}
	session, stop, err := joined(ctx, a.Certs, target, source, source.opened)
	if err != nil {
		return m, err
	}
	defer stop()
	send := func(n int64) error {
		for i := range n {
			if err := session.SendRecord(ctx, records[i%int64(len(records))]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := send(warmRecords); err != nil {
		return m, err
	}
	done := clock()
	if err := send(count); err != nil {
		return m, err
	}
	err = <-target.done
	return done(count * size), err
}

// warmRecords are sent before the clock starts: buffers are made then, and windows grow.
const warmRecords = 64

// barePart copies over crypto/tls.
func barePart(_ context.Context, a tlsArgs) (m moved, err error) {
	target, err := credentials(a.Certs, "target", "source")
	if err != nil {
		return m, err
	}
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return m, err
	}
	defer port.Close()
	warm := int64(warmRecords * recordBytes)
	total := a.Bytes + warm
	done := make(chan error, 1)
	go func() {
		conn, err := port.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{target.Certificate}, MinVersion: tls.VersionTLS13})
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(c, total), make([]byte, copyBytes))
		done <- err
	}()
	conn, err := net.Dial("tcp", port.Addr().String())
	if err != nil {
		return m, err
	}
	defer conn.Close()
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) // both ends are this process
	if err := c.Handshake(); err != nil {
		return m, err
	}
	if suite := c.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		return m, fmt.Errorf("the connection has cipher suite %#x", suite)
	}
	data := load.Noise(16*recordBytes, 1)
	write := func(n int64) error {
		for at := int64(0); at < n; at += copyBytes {
			p := data[at%int64(len(data)):]
			if _, err := c.Write(p[:min(n-at, copyBytes)]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(warm); err != nil {
		return m, err
	}
	stop := clock()
	if err := write(a.Bytes); err != nil {
		return m, err
	}
	err = <-done
	return stop(a.Bytes), err
}
