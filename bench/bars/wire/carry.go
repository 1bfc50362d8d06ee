package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/deliver"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// targetPart is a target until its input ends: a session, deliver and the journal.
func targetPart(ctx context.Context, a durableArgs) (done bool, err error) {
	c, err := credentials(a.Certs, "target", "source")
	if err != nil {
		return false, err
	}
	store, err := journal.Open(journal.Config{FS: ioengine.OS(), Dir: a.Store})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	server, err := wire.Listen(wire.ServerConfig{ListenControl: "127.0.0.1:0", Credentials: c})
	if err != nil {
		return false, err
	}
	fmt.Println(server.ControlAddr())
	ctx, stop := untilInputEnds(ctx)
	defer stop()
	end := clock()
	err = server.Serve(ctx, deliver.New(store, slog.New(slog.DiscardHandler)))
	end(0)
	return err == nil, err
}

// carrier is the source's end: what it has in flight until the target says that it is durable.
type carrier struct {
	size   int64
	stands chan *wire.Session
	listed chan uint64
	ended  chan error

	mu struct {
		sync.Mutex
		under  *reorder.Source
		flying []*pack.Job
		free   chan *pack.Job
		seq    record.Seq    // durable
		moved  chan struct{} // closed when seq rose
	}
}

func (c *carrier) Opened(s *wire.Session) error {
	return s.Send(&wire.OpenStream{Group: groupID, GroupName: "bars", Lineage: 1, Stream: streamID, Epoch: 1, Incarnation: 1,
		Volumes: []wire.Volume{{ID: volumeID, Name: "disk", Bytes: c.size}}})
}

func (c *carrier) Message(s *wire.Session, m wire.Message) error {
	switch m := m.(type) {
	case *wire.Stand:
		c.stands <- s
	case *wire.Refused:
		c.ended <- errors.New(m.Text)
	case *wire.Listed:
		c.listed <- m.Checkpoint
	case *wire.Durable:
		c.mu.Lock()
		defer c.mu.Unlock()
		for len(c.mu.flying) > 0 && c.mu.flying[0].ID.Seq <= m.Seq {
			c.mu.free <- c.mu.flying[0]
			c.mu.flying = c.mu.flying[1:]
		}
		c.mu.seq = m.Seq
		c.mu.under.Acked(m.Seq)
		close(c.mu.moved)
		c.mu.moved = make(chan struct{})
	}
	return nil
}
func (c *carrier) Record(*wire.Session, *wire.Received) error {
	return errors.New("a record at the source")
}
func (c *carrier) Lost(*wire.Session, uint32)        { c.ended <- errors.New("a data connection is lost") }
func (c *carrier) Closed(_ *wire.Session, err error) { c.ended <- err }

// lent is a record that stays where it is until it is acknowledged.
type lent []byte

func (l lent) Bytes() []byte { return l }
func (lent) Return()         {}

// freely lets a record go at once.
type freely struct{}

func (freely) Next(left int) (int, error) { return left, nil }

// send sends the next record, when the target's window has room for it.
func (c *carrier) send(ctx context.Context, s *wire.Session, seq record.Seq, rec []byte) error {
	for {
		how := wire.Sending{Opening: s.Opening(streamID), Pace: freely{}}
		line, sole := s.Sole()
		c.mu.Lock()
		how.Line, how.Sole = line, sole && c.mu.under.Only(line)
		may, moved := how.Sole || c.mu.under.May(seq, len(rec)), c.mu.moved
		c.mu.Unlock()
		if !may {
			select {
			case <-moved:
				continue
			case err := <-c.ended:
				return err
			}
		}
		line, err := s.SendOrdered(ctx, lent(rec), how)
		if errors.Is(err, wire.ErrMoved) {
			continue
		}
		if err == nil {
			c.mu.Lock()
			c.mu.under.Sent(seq, line, len(rec))
			c.mu.Unlock()
		}
		return err
	}
}

// until waits for a record to be durable.
func (c *carrier) until(seq record.Seq) error {
	for {
		c.mu.Lock()
		have, moved := c.mu.seq, c.mu.moved
		c.mu.Unlock()
		if have >= seq {
			return nil
		}
		select {
		case <-moved:
		case err := <-c.ended:
			return err
		}
	}
}

// windowRecords is how many records a source has that are not durable yet, at most: 128 MiB of raw ones.
const windowRecords = 128

// sourcePart sends the file as batches of 1 MiB, as datapath does: packed on all cores, in order.
func sourcePart(ctx context.Context, a durableArgs) (r carried, err error) {
	mode, err := pack.ParseCompression(a.Compression)
	if err != nil {
		return r, err
	}
	f, err := os.Open(a.Data)
	if err != nil {
		return r, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return r, err
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED|syscall.MAP_POPULATE) // as slots are mapped
	if err != nil {
		return r, err
	}
	creds, err := credentials(a.Certs, "source", "target")
	if err != nil {
		return r, err
	}
	c := &carrier{size: st.Size(), stands: make(chan *wire.Session, 1), listed: make(chan uint64, 1), ended: make(chan error, 4)}
	c.mu.under = reorder.NewSource(1)
	c.mu.free, c.mu.moved = make(chan *pack.Job, windowRecords), make(chan struct{})
	for range windowRecords {
		c.mu.free <- &pack.Job{Batch: record.NewBatch(record.Limits{Raw: recordBytes}), Out: make([]byte, 0, 2*recordBytes)}
	}
	ctx, stop := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() {
		over <- wire.Connect(ctx, wire.ClientConfig{Control: a.Address, Credentials: creds, Connections: a.Connections}, c)
	}()
	defer func() { stop(); <-over }()
	var s *wire.Session
	select {
	case s = <-c.stands:
	case err := <-c.ended:
		return r, err
	}
	sizes := []record.VolumeSize{{ID: volumeID, Bytes: c.size}}
	seq, ticket := record.Seq(0), record.Ticket(0)
	control := func(build func(id record.Identity, t record.Time) []byte) error {
		seq++
		ticket++
		return c.send(ctx, s, seq, build(record.Identity{Stream: streamID, Epoch: 1, Incarnation: 1, Seq: seq}, record.Time(time.Now().UnixNano())))
	}
	sync := record.Resync{Initial: true, Reason: "bars", Volumes: sizes}
	err = errors.Join(
		control(func(id record.Identity, t record.Time) []byte {
			return record.AppendResyncOpen(nil, id, t, ticket, sync)
		}),
		control(func(id record.Identity, t record.Time) []byte {
			return record.AppendResyncClose(nil, id, t, ticket, sync)
		}))
	if err == nil {
		err = c.until(seq)
	}
	if err != nil {
		return r, err
	}
	done := clock()
	if r, err = c.carry(ctx, s, data, mode, &seq, &ticket); err != nil {
		return r, err
	}
	r.Seconds = done(r.Bytes).Seconds
	err = control(func(id record.Identity, t record.Time) []byte {
		r.Checkpoint = uint64(id.Seq)
		return record.AppendCut(nil, id, t, ticket, record.Cut{Checkpoint: r.Checkpoint, Wall: time.Now().UnixNano(), Solo: true, Volumes: sizes})
	})
	if err != nil {
		return r, err
	}
	select {
	case <-c.listed:
	case err = <-c.ended:
	}
	return r, err
}

// carry sends the data and waits until all of it is durable.
func (c *carrier) carry(ctx context.Context, s *wire.Session, data []byte, mode pack.Compression, seq *record.Seq, ticket *record.Ticket) (r carried, err error) {
	in, out, line := make(chan *pack.Job), make(chan *pack.Job), make(chan *pack.Job, windowRecords)
	go pack.Run(ctx, in, out)
	var totals struct {
		sync.Mutex
		pack.Totals
	}
	sent := make(chan error, 1)
	go func() {
		var failed error
		for j := range line {
			c.mu.Lock()
			c.mu.flying = append(c.mu.flying, j)
			c.mu.Unlock()
			if failed == nil {
				failed = c.send(ctx, s, j.ID.Seq, j.Out)
			}
			totals.Lock()
			totals.Sent += int64(len(j.Out))
			totals.Unlock()
		}
		sent <- failed
	}()
	stowed := make(chan struct{})
	go func() {
		defer close(stowed)
		for j := range out {
			totals.Lock()
			totals.Batches++
			totals.Raw += int64(j.Batch.Raw())
			totals.Stored += int64(len(j.Out))
			totals.Packing += j.Took
			totals.Unlock()
			if j.StoreOnly {
				r.Raw++
			}
			r.Stored += int64(len(j.Out))
			line <- j
		}
		close(line)
	}()
	effort := pack.Effort{Mode: mode, Workers: pack.Workers()}
	for at := 0; at < len(data); at += recordBytes {
		j := <-c.mu.free
		j.Batch.Reset()
		for off := 0; off < recordBytes && at+off < len(data); off += 64 << 10 {
			p := data[at+off : min(at+off+64<<10, len(data))]
			*ticket++
			j.Batch.Add(record.Piece{Volume: volumeID, Off: int64(at + off), Len: int64(len(p)), Ticket: *ticket, Data: p})
		}
		*seq++
		j.ID, j.Time = record.Identity{Stream: streamID, Epoch: 1, Incarnation: 1, Seq: *seq}, record.Time(time.Now().UnixNano())
		totals.Lock()
		t := totals.Totals
		totals.Unlock()
		t.Unsent = len(line)
		j.StoreOnly = effort.Step(time.Now(), t)
		in <- j
	}
	close(in)
	<-stowed
	if err := <-sent; err != nil {
		return r, err
	}
	r.Raw /= float64(totals.Batches)
	r.Bytes = int64(len(data))
	return r, c.until(*seq)
}

// verifyPart compares what a view of the store shows with the file that was sent.
func verifyPart(_ context.Context, a durableArgs) (n int64, err error) {
	store, err := journal.Open(journal.Config{FS: ioengine.OS(), Dir: a.Store})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	g, ok := store.Group(groupID)
	if !ok {
		return 0, errors.New("no group")
	}
	v, err := g.OpenView(a.Checkpoint, journal.ViewOptions{})
	if err != nil {
		return 0, err
	}
	defer v.Close()
	d, ok := v.Device(volumeID)
	if !ok {
		return 0, errors.New("no volume")
	}
	f, err := os.Open(a.Data)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	want, got := make([]byte, recordBytes), make([]byte, recordBytes)
	for {
		k, err := f.ReadAt(want, n)
		if k == 0 && err == io.EOF {
			return n, nil
		}
		if err != nil && err != io.EOF {
			return n, err
		}
		if err := d.ReadAt(got[:k], n); err != nil {
			return n, err
		}
		if !bytes.Equal(got[:k], want[:k]) {
			return n, fmt.Errorf("the view differs within 1 MiB from %d", n)
		}
		n += int64(k)
	}
}
