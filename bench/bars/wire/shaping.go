package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/gate"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

const (
	controlPort, dataPort = "4007", "4008"
	readEvery             = 10 * time.Millisecond
	warmUp                = 3 * time.Second
)

func credentials(dir, site, peer string) (wire.Credentials, error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	return wire.LoadCredentials(at(site+"-cert"), at(site+"-key"), at(peer+"-ca"))
}

// runTarget throws records away until its standard input ends.
func runTarget(ctx context.Context, dir string) error {
	c, err := credentials(dir, "target", "source")
	if err != nil {
		return err
	}
	s, err := wire.Listen(wire.ServerConfig{ListenControl: ":" + controlPort, ListenData: ":" + dataPort, Credentials: c})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	return s.Serve(ctx, sink{})
}

// sink acknowledges each record, as a target does.
type sink struct{}

func (sink) Opened(*wire.Session) error                { return nil }
func (sink) Message(*wire.Session, wire.Message) error { return nil }
func (sink) Lost(*wire.Session, uint32)                {}
func (sink) Closed(*wire.Session, error)               {}
func (sink) Record(s *wire.Session, r *wire.Received) error {
	h := r.Header()
	r.Release()
	return s.Send(&wire.Durable{Stream: h.Stream, Seq: h.Seq})
}

// runSource sends under a cap, reads the interface's counter, and prints what it measured.
func runSource(ctx context.Context, dir, capText string, length time.Duration) error {
	c, err := credentials(dir, "source", "target")
	if err != nil {
		return err
	}
	r, err := shape.ParseRate(capText)
	if err != nil {
		return err
	}
	g, err := gate.Open(fixed{Cap: r, Priorities: map[string]shape.Priority{"high": shape.High, "low": shape.Low}},
		func(string) (*time.Location, error) { return time.UTC, nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	o := &origin{gate: g, ctx: ctx, size: int(min(r.BytesPerSecond()/10, 1<<20)), failed: make(chan error, 3)}
	for i := range o.groups {
		o.groups[i].name = [...]string{"high", "medium", "low"}[i]
		o.groups[i].turn = g.Turn(o.groups[i].name)
	}
	go g.Run(ctx)
	go wire.Connect(ctx, wire.ClientConfig{Control: net.JoinHostPort(targetAddress, controlPort), Data: net.JoinHostPort(targetAddress, dataPort), Credentials: c, Connections: 1}, o)
	if err := o.wait(warmUp); err != nil {
		return err
	}
	before := o.sent()
	m, err := watch(o, r, length)
	if err != nil {
		return err
	}
	after := o.sent()
	sum := 0.0
	for i := range after {
		after[i] -= before[i]
		sum += after[i]
	}
	m.High, m.Medium, m.Low = after[0]/sum, after[1]/sum, after[2]/sum
	return json.NewEncoder(os.Stdout).Encode(m)
}

// watch reads the counter of the interface for the given time.
func watch(o *origin, r shape.Rate, length time.Duration) (m measured, err error) {
	type reading struct {
		at    time.Duration
		bytes int64
	}
	var all []reading
	began := time.Now()
	for len(all) == 0 || all[len(all)-1].at < length {
		n, err := transmitted()
		if err != nil {
			return m, err
		}
		now := time.Since(began)
		if len(all) > 0 {
			m.Late = max(m.Late, now-all[len(all)-1].at-readEvery)
		}
		all = append(all, reading{now, n})
		if err := o.wait(readEvery); err != nil {
			return m, err
		}
	}
	last := all[len(all)-1]
	m.Use = float64(last.bytes-all[0].bytes) / (r.BytesPerSecond() * last.at.Seconds())
	j, most := 0, int64(0)
	for _, a := range all {
		for j+1 < len(all) && all[j+1].at-a.at <= time.Second {
			j++
		}
		most = max(most, all[j].bytes-a.bytes)
	}
	m.Over = float64(most)/r.BytesPerSecond() - 1
	return m, nil
}

func transmitted() (int64, error) {
	b, err := os.ReadFile("/sys/class/net/" + device + "/statistics/tx_bytes")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// origin has three groups with a backlog, which it sends in the first session.
type origin struct {
	gate   *gate.Gate
	ctx    context.Context
	size   int
	failed chan error
	groups [3]struct {
		name string
		turn *gate.Turn
		sent atomic.Int64
	}
	once sync.Once
}

func (o *origin) wait(d time.Duration) error {
	select {
	case err := <-o.failed:
		return err
	case <-time.After(d):
		return nil
	}
}

func (o *origin) sent() (n [3]float64) {
	for i := range n {
		n[i] = float64(o.groups[i].sent.Load())
	}
	return n
}

func (o *origin) Opened(s *wire.Session) error {
	o.gate.Enter(s)
	o.once.Do(func() {
		for i := range o.groups {
			go func() { o.failed <- o.send(s, i) }()
		}
	})
	return nil
}
func (o *origin) Message(*wire.Session, wire.Message) error { return nil }
func (o *origin) Lost(*wire.Session, uint32)                {}
func (o *origin) Closed(s *wire.Session, err error) {
	o.gate.Leave(s)
	o.failed <- err
}
func (o *origin) Record(*wire.Session, *wire.Received) error {
	return errors.New("a record at the source")
}

// send sends records of one group without end.
func (o *origin) send(s *wire.Session, i int) error {
	g := &o.groups[i]
	noise := make([]byte, o.size/512*512)
	rng := rand.New(rand.NewPCG(1, uint64(i)))
	for j := range noise {
		noise[j] = byte(rng.Uint32())
	}
	b := record.NewBatch(record.Limits{})
	for off := 0; off < len(noise); off += 32 << 10 {
		p := noise[off:min(off+32<<10, len(noise))]
		b.Add(record.Piece{Volume: 1, Off: int64(off), Len: int64(len(p)), Ticket: 1, Data: p})
	}
	rec := b.Seal(nil, record.Identity{Stream: record.StreamID(i + 1), Epoch: 1, Incarnation: 1, Seq: 1}, 1, record.NewCompressor())
	for {
		g.turn.Offer(s, len(rec))
		if err := g.turn.Wait(o.ctx); err != nil {
			return err
		}
		if err := s.SendPaced(o.ctx, rec, g.turn); err != nil {
			return err
		}
		g.sent.Add(int64(len(rec)))
		g.turn.Done(0, len(rec))
	}
}

// fixed is a policy that is not kept.
type fixed shape.Policy

func (f fixed) Get() (shape.Policy, bool, error) { return shape.Policy(f), false, nil }
func (f fixed) Put(shape.Policy) error           { return errors.ErrUnsupported }
func (f fixed) Clear() error                     { return nil }
func (f fixed) Configured() shape.Policy         { return shape.Policy(f) }
