package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"testing"
)

// Records over TLS on loopback, both ends in this process, against the same bytes
// through crypto/tls alone, written 256 KiB at a time.
//
//	go test ./wire -run '^$' -bench Loopback -count 10 >new.txt; benchstat -col /by new.txt
func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
		rec := large(1, size)
		b.Run(fmt.Sprintf("size=%dKiB/by=session", size>>10), func(b *testing.B) { benchSession(b, rec) })
		b.Run(fmt.Sprintf("size=%dKiB/by=tls", size>>10), func(b *testing.B) { benchTLS(b, rec) })
	}
}

// drain takes records and says when it has all.
type drain struct {
	opened chan *Session
	left   int
	done   chan struct{}
}

func (d *drain) Opened(s *Session) error         { d.opened <- s; return nil }
func (d *drain) Message(*Session, Message) error { return nil }
func (d *drain) Lost(*Session, uint32)           {}
func (d *drain) Closed(*Session, error)          {}
func (d *drain) Record(_ *Session, r *Received) error {
	r.Release()
	if d.left--; d.left == 0 {
		close(d.done)
	}
	return nil
}

func benchSession(b *testing.B, rec []byte) {
	target := &drain{opened: make(chan *Session, 1), left: b.N, done: make(chan struct{})}
	source := &drain{opened: make(chan *Session, 1)}
	s, err := Listen(ServerConfig{
		ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0",
		Credentials: Credentials{Certificate: sites().target, Pins: []Pin{sites().east.pin()}},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 2)
	go func() { over <- s.Serve(ctx, target) }()
	go func() {
		over <- Connect(ctx, ClientConfig{Control: s.ControlAddr().String(), Data: s.DataAddr().String(),
			Credentials: sourceCredentials()}, source)
	}()
	session := <-source.opened
	b.SetBytes(int64(len(rec)))
	b.ResetTimer()
	for range b.N {
		if err := session.SendRecord(ctx, rec); err != nil {
			b.Fatal(err)
		}
	}
	<-target.done
	b.StopTimer()
	cancel()
	<-over
	<-over
}

func benchTLS(b *testing.B, rec []byte) {
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer port.Close()
	target := Credentials{Certificate: sites().target, Pins: []Pin{sites().east.pin()}}
	total := int64(b.N) * int64(len(rec))
	done := make(chan error, 1)
	go func() {
		c, err := port.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(tls.Server(c, target.config(x509.ExtKeyUsageClientAuth, Peer{})), total), make([]byte, 256<<10))
		done <- err
	}()
	conn, err := net.Dial("tcp", port.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	credentials := sourceCredentials()
	c := tls.Client(conn, credentials.config(x509.ExtKeyUsageServerAuth, Peer{}))
	if err := c.Handshake(); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 256<<10)
	copy(p, rec)
	b.SetBytes(int64(len(rec)))
	b.ResetTimer()
	for total > 0 {
		n, err := c.Write(p[:min(total, int64(len(p)))])
		if err != nil {
			b.Fatal(err)
		}
		total -= int64(n)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
