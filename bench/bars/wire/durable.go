package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/deliver"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// durableArgs are those of a source and a target that are processes of their own.
type durableArgs struct {
	Certs       string
	Store       string // of the target
	Data        string // the file in memory that the source sends
	Address     string // of the target
	Compression string
	Checkpoint  uint64 // what verify opens
}

// carried is what a source tells: from the first batch until the target had all of it durable.
type carried struct {
	Bytes      int64
	Stored     int64
	Seconds    float64
	Checkpoint uint64
	Raw        float64 // of the records: how many went uncompressed
}

func (c carried) rate() float64 { return float64(c.Bytes) / c.Seconds }

// run is one run of a side, with the CPU of all its processes.
type run struct {
	carried
	CPU, Foreign float64
}

func (r run) perGiB() float64 { return r.CPU / (float64(r.Bytes) / gib) }

// dataFile makes the file in memory that both sides read, once.
func (b *bench) dataFile(kind load.Kind) (string, error) {
	name := filepath.Join(b.memory, string(kind))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const corpora = 16
	var all [corpora][]byte
	for i := range all {
		all[i] = load.Corpus(kind, uint64(i+1))
	}
	for at, i := int64(0), 0; at < b.bytes; i++ {
		p := all[i%corpora]
		p = p[:min(int64(len(p)), b.bytes-at)]
		if _, err := f.Write(p); err != nil {
			return "", err
		}
		at += int64(len(p))
	}
	return name, nil
}

// durable holds batches of db against lz4 piped through socat.
func (b *bench) durable() error {
	data, err := b.dataFile(load.DB)
	if err != nil {
		return err
	}
	for i := range b.pairs {
		var forced, auto, peer run
		foreign, err := b.pair(i,
			func() (float64, error) { return b.ours(&forced, data, "lz4") },
			func() (float64, error) { return b.piped(&peer, data) },
			func() (float64, error) { return b.ours(&auto, data, "auto") })
		if err != nil {
			return err
		}
		ratio := fmt.Sprintf("stored %.2f of raw", float64(forced.Stored)/float64(forced.Bytes))
		b.sample(bars.Sample{Row: "durable-lz4", Value: forced.rate() / peer.rate(), Ours: forced.rate() / 1e6, Peer: peer.rate() / 1e6, OursUnit: "MB/s", Foreign: foreign, Note: ratio})
		b.sample(bars.Sample{Row: "durable-auto", Value: auto.rate() / peer.rate(), Ours: auto.rate() / 1e6, Peer: peer.rate() / 1e6, OursUnit: "MB/s", Foreign: foreign, Note: fmt.Sprintf("%.0f %% of the records raw", 100*auto.Raw)})
		b.sample(bars.Sample{Row: "durable-cpu", Value: peer.perGiB() / forced.perGiB(), Ours: forced.perGiB(), Peer: peer.perGiB(), OursUnit: "CPU-s/GiB", Foreign: foreign})
	}
	return nil
}

// ours runs a source and a target, and compares what the target kept with what was sent.
func (b *bench) ours(r *run, data, compression string) (foreign float64, err error) {
	dir, err := b.fresh("store")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	a := durableArgs{Certs: b.memory, Store: dir, Data: data, Compression: compression}
	target, err := b.child("target", a)
	if err != nil {
		return 0, err
	}
	in, err := target.StdinPipe() // the target ends with it
	if err != nil {
		return 0, err
	}
	said, err := target.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := look()
	if err := target.Start(); err != nil {
		return 0, err
	}
	defer target.Wait()
	defer in.Close()
	if _, err := fmt.Fscanln(said, &a.Address); err != nil {
		return 0, fmt.Errorf("the target does not listen: %w", err)
	}
	source, err := b.child("source", a)
	if err != nil {
		return 0, err
	}
	var out bytes.Buffer
	source.Stdout = &out
	if err := source.Run(); err != nil {
		return 0, err
	}
	in.Close()
	io.Copy(io.Discard, said)
	if err := target.Wait(); err != nil {
		return 0, fmt.Errorf("target: %w", err)
	}
	*r = run{CPU: cpuOf(source) + cpuOf(target)}
	foreign = began.foreign(r.CPU)
	if err := json.Unmarshal(out.Bytes(), &r.carried); err != nil {
		return 0, err
	}
	a.Checkpoint = r.Checkpoint
	_, _, _, err = alone[int64](b, "verify", a)
	return foreign, err
}

// piped is the peer: lz4 -1 | socat, and socat | lz4 -d into a file, which is synced before the clock stops.
func (b *bench) piped(r *run, data string) (foreign float64, err error) {
	dir, err := b.fresh("piped")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "copy")
	to, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer to.Close()
	port := fmt.Sprint(20000 + os.Getpid()%20000)
	listen := exec.CommandContext(b.ctx, "socat", "-u", "TCP-LISTEN:"+port+",bind=127.0.0.1,reuseaddr", "STDOUT")
	unpack := exec.CommandContext(b.ctx, "lz4", "-d", "-c", "-q", "-q")
	packs := exec.CommandContext(b.ctx, "lz4", "-1", "-B4", "-c", "-q", "-q", data) // blocks of 64 KiB are its smallest
	dial := exec.CommandContext(b.ctx, "socat", "-u", "STDIN", "TCP:127.0.0.1:"+port+",retry=50,interval=0.02")
	if unpack.Stdin, err = listen.StdoutPipe(); err != nil {
		return 0, err
	}
	unpack.Stdout = to
	if dial.Stdin, err = packs.StdoutPipe(); err != nil {
		return 0, err
	}
	all := []*exec.Cmd{listen, unpack, packs, dial}
	began := look()
	for _, c := range all {
		c.Stderr = io.Discard // lz4 tells of its block size whatever it is told
		if err := c.Start(); err != nil {
			return 0, fmt.Errorf("%s: %w", c.Path, err)
		}
		if c == unpack {
			time.Sleep(100 * time.Millisecond) // socat listens; not part of what is timed
			began = look()
		}
	}
	at := began.at
	for _, c := range []*exec.Cmd{packs, dial, listen, unpack} {
		if err := c.Wait(); err != nil {
			return 0, fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	if err := to.Sync(); err != nil {
		return 0, err
	}
	took := time.Since(at)
	*r = run{}
	for _, c := range all {
		r.CPU += cpuOf(c)
	}
	foreign = began.foreign(r.CPU)
	st, err := to.Stat()
	if err != nil {
		return 0, err
	}
	r.Bytes, r.Seconds = st.Size(), took.Seconds()
	return foreign, sameFiles(name, data)
}

// sameFiles says where two files differ.
func sameFiles(a, b string) error {
	out, err := exec.Command("cmp", a, b).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

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
	ctx, stop := context.WithCancel(ctx)
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	end := clock()
	err = server.Serve(ctx, deliver.New(store, slog.New(slog.DiscardHandler)))
	end(0)
	return err == nil, err
}

const (
	groupID  = record.GroupID(1)
	volumeID = record.VolumeID(1)
	streamID = record.StreamID(1)
)

// carrier is the source's end: what it has in flight until the target says that it is durable.
type carrier struct {
	size   int64
	stands chan *wire.Session
	listed chan uint64
	ended  chan error

	mu struct {
		sync.Mutex
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
		close(c.mu.moved)
		c.mu.moved = make(chan struct{})
	}
	return nil
}
func (c *carrier) Record(*wire.Session, *wire.Received) error {
	return errors.New("a record at the source")
}
func (*carrier) Lost(*wire.Session, uint32)          {}
func (c *carrier) Closed(_ *wire.Session, err error) { c.ended <- err }

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
	c.mu.free, c.mu.moved = make(chan *pack.Job, windowRecords), make(chan struct{})
	for range windowRecords {
		c.mu.free <- &pack.Job{Batch: record.NewBatch(record.Limits{Raw: recordBytes}), Out: make([]byte, 0, 2*recordBytes)}
	}
	ctx, stop := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() {
		over <- wire.Connect(ctx, wire.ClientConfig{Control: a.Address, Credentials: creds, Connections: 1}, c)
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
		return s.SendRecord(ctx, build(record.Identity{Stream: streamID, Epoch: 1, Incarnation: 1, Seq: seq}, record.Time(time.Now().UnixNano())))
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
				failed = s.SendRecord(ctx, j.Out)
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
