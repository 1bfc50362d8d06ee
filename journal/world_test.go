package journal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The tests' world: a source that knows every write it ever made, and what each of its
// cuts must give back.

const (
	testGroup   = record.GroupID(7)
	testStream  = record.StreamID(70)
	testLineage = 700
	volumeBytes = 96<<10 + 512 // three lines and a bit, the last block not whole
)

var testVolumes = []VolumeInfo{{ID: 1, Name: "one", Bytes: volumeBytes}, {ID: 2, Name: "two", Bytes: volumeBytes}}

func seeded(seed int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 17)) }

// source makes the records of one stream, and remembers them.
type source struct {
	rng     *rand.Rand
	id      record.Identity // of the last record
	ticket  record.Ticket
	clock   record.Time
	cut     uint64
	resync  bool
	limit   uint64 // the newest checkpoint that the source knows to be listed
	volumes map[record.VolumeID][]byte
	records []record.Record                       // record i has seq i+1
	images  map[uint64]map[record.VolumeID][]byte // by checkpoint, of cuts that must be listed
	vital   int64                                 // where in the first segment bytes stand that checkpoints need
}

func newSource(seed int) *source {
	s := &source{rng: seeded(seed), id: record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1},
		volumes: map[record.VolumeID][]byte{}, images: map[uint64]map[record.VolumeID][]byte{}, clock: 1000}
	for _, v := range testVolumes {
		s.volumes[v.ID] = make([]byte, v.Bytes)
	}
	return s
}

func (s *source) next() (record.Identity, record.Time) {
	s.id.Seq++
	s.clock++
	return s.id, s.clock
}

func (s *source) add(p []byte) {
	mem := buf.Aligned(len(p)) // as the wire gives it
	copy(mem, p)
	p = mem
	r, err := record.Parse(p)
	if err != nil {
		panic(err)
	}
	s.records = append(s.records, r)
}

func (s *source) open(initial bool) {
	id, now := s.next()
	s.ticket++
	s.resync = true
	s.add(record.AppendResyncOpen(nil, id, now, s.ticket, record.Resync{Initial: initial, Reason: "test"}))
}

func (s *source) close() {
	id, now := s.next()
	s.ticket++
	s.resync = false
	s.add(record.AppendResyncClose(nil, id, now, s.ticket, record.Resync{Initial: true}))
}

// write makes one record of n random writes: data, zeros, long zeros, overlapping.
func (s *source) write(n int) {
	b := record.NewBatch(record.Limits{})
	for range n {
		vol := record.VolumeID(1 + s.rng.IntN(2))
		s.ticket++
		off := s.rng.Int64N(volumeBytes/512) * 512
		length := min(512*(1+s.rng.Int64N(40)), volumeBytes-off)
		if s.rng.IntN(4) == 0 {
			off, length = off/4096*4096, min(4096, volumeBytes-off/4096*4096)
		}
		p := record.Piece{Volume: vol, Off: off, Len: length, Ticket: s.ticket}
		if s.rng.IntN(5) != 0 {
			p.Data = make([]byte, length)
			for i := range p.Data { // compressible, and each write unlike any other
				p.Data[i] = byte(int(s.ticket)*31 + i/64)
			}
		}
		if !b.Add(p) {
			break
		}
		if p.Data == nil {
			clear(s.volumes[vol][off : off+length])
		} else {
			copy(s.volumes[vol][off:], p.Data)
		}
	}
	id, now := s.next()
	s.add(b.Seal(nil, id, now, record.NewCompressor()))
}

// checkpoint makes a cut, which must be listed unless a resync is open.
func (s *source) checkpoint() uint64 {
	s.cut++
	s.ticket++
	id, now := s.next()
	var sizes []record.VolumeSize
	for _, v := range testVolumes {
		sizes = append(sizes, record.VolumeSize{ID: v.ID, Bytes: v.Bytes})
	}
	s.add(record.AppendCut(nil, id, now, s.ticket, record.Cut{Checkpoint: s.cut, Wall: int64(s.cut), Tag: fmt.Sprint("cut ", s.cut), Listed: s.limit, Solo: true, Volumes: sizes}))
	if !s.resync {
		s.images[s.cut] = s.image()
	}
	return s.cut
}

func (s *source) image() map[record.VolumeID][]byte {
	m := map[record.VolumeID][]byte{}
	for id, p := range s.volumes {
		m[id] = slices.Clone(p)
	}
	return m
}

// clone is a source that goes on by itself from here.
func (s *source) clone() *source {
	c := *s
	c.rng, c.volumes, c.records, c.images = seeded(int(s.id.Seq)), s.image(), slices.Clone(s.records), maps.Clone(s.images)
	return &c
}

// newLife draws an incarnation; the next record must be an opening boundary.
func (s *source) newLife() { s.id.Incarnation++ }

// script is a whole story: initial sync beside writes, checkpoints, a resync in a new
// life with cuts that are void, checkpoints again.
func (s *source) script() {
	s.open(true)
	for range 3 {
		s.write(6)
	}
	s.checkpoint() // void
	s.write(6)
	s.close()
	for range 3 {
		s.write(4)
		s.checkpoint()
	}
	s.newLife()
	s.open(false)
	s.write(5)
	s.checkpoint() // void
	s.write(5)
	s.close()
	for range 2 {
		s.write(4)
		s.checkpoint()
	}
}

// target is a store on a disk of its own, and what it promised.
type target struct {
	store *Store
	group *Group

	mu     sync.Mutex
	acked  record.Seq
	listed []uint64
}

// config has buffers of a quarter of what a store's are: a test opens thousands of stores,
// and no round of it is larger.
func config(disk *faultdisk.Disk) Config {
	catalogue := new(index.Memory)
	return Config{FS: disk, Dir: "/store", SegmentBytes: 64 << 10, IndexMemory: 8 << 10, AckDelay: -1, stageBytes: 256 << 10, lendBytes: 4 << 10, Log: slog.New(slog.DiscardHandler),
		OpenCatalogue: func() (index.Map, error) { return catalogue, nil }}
}

// openTarget opens the store and the group on the disk.
func openTarget(disk *faultdisk.Disk) (*target, error) { return openWith(config(disk)) }

func openWith(cfg Config) (*target, error) {
	store, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	t := &target{store: store}
	t.group, err = store.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage})
	if err == nil {
		err = t.group.SetVolumes(testVolumes)
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	t.group.OnListed(func(cp Checkpoint) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.listed = append(t.listed, cp.Number)
	})
	return t, nil
}

// send appends the records one by one, waiting for each batch of up to size.
func (t *target) send(records []record.Record, size int) error {
	for len(records) > 0 {
		n := min(size, len(records))
		errs := make(chan error, n)
		for i, r := range records[:n] {
			err := t.group.Append(r, func(err error) {
				if err == nil {
					t.mu.Lock()
					t.acked = max(t.acked, r.Seq)
					t.mu.Unlock()
				}
				errs <- err
			})
			if err != nil {
				for range i { // one that failed may be why this one does not follow
					err = errors.Join(err, <-errs)
				}
				return err
			}
		}
		for range n {
			if err := <-errs; err != nil {
				return err
			}
		}
		records = records[n:]
	}
	return nil
}

// settle waits until what was acknowledged is also listed: until the round after.
func (t *target) settle(l life) error {
	_, err := t.group.Admit(testStream, l.epoch, l.inc)
	return err
}

// feed sends everything the target does not hold yet, life by life.
func (t *target) feed(s *source, size int) error {
	for {
		from := t.group.Durable(testStream)
		rest := s.records[from:]
		if len(rest) == 0 {
			return t.settle(life{s.id.Epoch, s.id.Incarnation})
		}
		l := life{rest[0].Epoch, rest[0].Incarnation}
		end := slices.IndexFunc(rest, func(r record.Record) bool { return r.Incarnation != l.inc })
		if end >= 0 {
			rest = rest[:end]
		}
		if _, err := t.group.Admit(testStream, l.epoch, l.inc); err != nil {
			return err
		}
		if err := t.send(rest, size); err != nil {
			return err
		}
	}
}

func (t *target) promised() (acked record.Seq, listed []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.acked, slices.Clone(t.listed)
}

// check compares every listed checkpoint with the source, byte for byte, and returns
// their numbers.
func (t *target) check(s *source) ([]uint64, error) {
	cps, err := t.group.Checkpoints(0, 1000)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, cp := range cps {
		numbers = append(numbers, cp.Number)
		want, ok := s.images[cp.Number]
		if !ok {
			return nil, fmt.Errorf("checkpoint %d is listed and never was one", cp.Number)
		}
		if cp.State != index.Good || cp.Tag != fmt.Sprint("cut ", cp.Number) {
			return nil, fmt.Errorf("checkpoint %+v", cp)
		}
		if err := t.compare(cp.Number, want); err != nil {
			return nil, err
		}
	}
	return numbers, nil
}

func (t *target) compare(number uint64, want map[record.VolumeID][]byte) error {
	v, err := t.group.OpenView(number, ViewOptions{Live: true}) // it gives way to nothing
	if err != nil {
		return err
	}
	defer v.Close()
	for id, image := range want {
		d, ok := v.Device(id)
		if !ok {
			return fmt.Errorf("checkpoint %d has no volume %d", number, id)
		}
		got := make([]byte, d.Size())
		if err := d.ReadAt(got, 0); err != nil {
			return err
		}
		if !bytes.Equal(got, image) {
			return fmt.Errorf("checkpoint %d, volume %d: %w at %d", number, id, errDiffers, firstDifference(got, image))
		}
	}
	return nil
}

var errDiffers = errors.New("image differs")

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
