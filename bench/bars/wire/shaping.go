package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/gate"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

const (
	readEvery = 10 * time.Millisecond
	warmUp    = 3 * time.Second
)

// measured is what a source tells of one measurement; parts are of 1.
type measured struct {
	Over              float64       // by how much the fullest second exceeds the cap
	Use               float64       // of the cap
	High, Medium, Low float64       // of what was sent
	Late              time.Duration // the longest time between two readings, beyond 10 ms
}

// shapedArgs say what the source is held to, and for how long.
type shapedArgs struct {
	Certs  string
	Cap    shape.Rate
	Length time.Duration
}

// shapedLength is how long a cap is watched.
const shapedLength = time.Minute

// shaping measures one cap.
func (b *bench) shaping(mbit int) error {
	row := fmt.Sprintf("cap-%d", mbit)
	length, note := b.lasts(shapedLength)
	a := shapedArgs{b.memory, shape.Rate(mbit) * 1e6, length}
	for i := range b.times {
		var m measured
		foreign, err := b.Pair(i, func() (foreign float64, err error) {
			m, foreign, err = linked[measured](b, 2*a.Cap, "shaped-target", "shaped-source", a, length+time.Minute)
			return foreign, err
		})
		if err != nil {
			return err
		}
		sample := func(row string, part float64, note string) {
			b.Sample(bars.Sample{Row: row, Value: 100 * part, Foreign: foreign, Note: note})
		}
		sample(row, m.Over, fmt.Sprintf("%s; a reading came %s late", note, m.Late.Round(time.Millisecond)))
		sample(fmt.Sprintf("use-%d", mbit), m.Use, note)
		sample("share-high", m.High, fmt.Sprintf("%s, %s; medium %.1f %%", row, note, 100*m.Medium))
		sample("share-low", m.Low, row+", "+note)
	}
	return nil
}

// shapedTargetPart throws records away until its input ends.
func shapedTargetPart(ctx context.Context, a shapedArgs) (done bool, err error) {
	c, err := credentials(a.Certs, "target", "source")
	if err != nil {
		return false, err
	}
	s, err := wire.Listen(wire.ServerConfig{ListenControl: ":" + controlPort, ListenData: ":" + dataPort, Credentials: c})
	if err != nil {
		return false, err
	}
	fmt.Println(s.ControlAddr())
	ctx, stop := untilInputEnds(ctx)
	defer stop()
	return true, s.Serve(ctx, sink{})
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

// shapedSourcePart sends under a cap, and reads the interface's counter.
func shapedSourcePart(ctx context.Context, a shapedArgs) (m measured, err error) {
	c, err := credentials(a.Certs, "source", "target")
	if err != nil {
		return m, err
	}
	r := a.Cap
	g, err := gate.Open(fixed{Cap: r, Priorities: map[string]shape.Priority{"high": shape.High, "low": shape.Low}},
		func(string) (*time.Location, error) { return time.UTC, nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		return m, err
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
		return m, err
	}
	before := o.sent()
	m, err = watch(o, r, a.Length)
	if err != nil {
		return m, err
	}
	after := o.sent()
	sum := 0.0
	for i := range after {
		after[i] -= before[i]
		sum += after[i]
	}
	m.High, m.Medium, m.Low = after[0]/sum, after[1]/sum, after[2]/sum
	return m, nil
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
	data := load.Noise(o.size/512*512, uint64(i))
	b := record.NewBatch(record.Limits{})
	for off := 0; off < len(data); off += 32 << 10 {
		p := data[off:min(off+32<<10, len(data))]
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
func (f fixed) Configure(shape.Policy)           {}
