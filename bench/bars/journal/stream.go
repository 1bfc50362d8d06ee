package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// stream makes the records of one group with one volume, as a source does.
type stream struct {
	group      *journal.Group
	id         record.Identity
	ticket     record.Ticket
	volume     int64 // bytes
	rng        *rand.Rand
	batch      *record.Batch
	compressor *record.Compressor
	cuts       uint64
}

const volumeID = record.VolumeID(1)

// openGroups opens n groups with one volume each, at a point where their log takes writes.
func openGroups(s *journal.Store, n int, volume int64) ([]*stream, error) {
	all := make([]*stream, n)
	for i := range all {
		g, err := s.OpenGroup(journal.GroupInfo{ID: record.GroupID(i + 1), Name: fmt.Sprintf("group-%d", i+1), Lineage: 1})
		if err == nil {
			err = g.SetVolumes([]journal.VolumeInfo{{ID: volumeID, Name: "disk", Bytes: volume}})
		}
		if err != nil {
			return nil, err
		}
		st, err := g.Admit(record.StreamID(i+1), 1, 1)
		if err != nil {
			return nil, err
		}
		all[i] = &stream{group: g, volume: volume, rng: rand.New(rand.NewPCG(uint64(i), 3)),
			id:    record.Identity{Stream: record.StreamID(i + 1), Epoch: 1, Incarnation: 1, Seq: st.Durable},
			batch: record.NewBatch(record.Limits{}), compressor: record.NewCompressor(), cuts: st.Checkpoint}
		all[i].compressor.StoreOnly = true
		all[i].ticket = record.Ticket(st.Durable) << 16
	}
	return all, nil
}

// begin is the initial sync, of nothing.
func (s *stream) begin() error {
	if err := s.syncing(); err != nil {
		return err
	}
	return s.synced()
}

// syncing opens the initial sync.
func (s *stream) syncing() error {
	size := []record.VolumeSize{{ID: volumeID, Bytes: s.volume}}
	id, at, ticket := s.next()
	return s.send(record.AppendResyncOpen(nil, id, at, ticket, record.Resync{Initial: true, Reason: "bars", Volumes: size}))
}

// synced closes the initial sync.
func (s *stream) synced() error {
	id, at, ticket := s.next()
	size := []record.VolumeSize{{ID: volumeID, Bytes: s.volume}}
	return s.send(record.AppendResyncClose(nil, id, at, ticket, record.Resync{Initial: true, Volumes: size}))
}

func (s *stream) next() (record.Identity, record.Time, record.Ticket) {
	s.id.Seq++
	s.ticket++
	return s.id, record.Time(time.Now().UnixNano()), s.ticket
}

// send appends one record and waits until it is durable.
func (s *stream) send(p []byte) error {
	r, err := record.Parse(p)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	if err := s.group.Append(r, func(err error) { done <- err }); err != nil {
		return err
	}
	return <-done
}

// write is one write of a record's: where, and the bytes.
type write struct {
	off  int64
	data []byte
}

// seal makes the record of the writes, in dst.
func (s *stream) seal(dst []byte, writes ...write) ([]byte, error) {
	if err := s.fill(writes); err != nil {
		return nil, err
	}
	return s.sealFilled(dst), nil
}

// fill puts the writes into the batch, which reads their bytes when it is sealed.
func (s *stream) fill(writes []write) error {
	s.batch.Reset()
	for _, w := range writes {
		s.ticket++
		if !s.batch.Add(record.Piece{Volume: volumeID, Off: w.off, Len: int64(len(w.data)), Ticket: s.ticket, Data: w.data}) {
			return fmt.Errorf("a batch does not take %d writes of %d bytes", len(writes), len(w.data))
		}
	}
	return nil
}

// sealFilled makes the record of what fill put there.
func (s *stream) sealFilled(dst []byte) []byte {
	id, at, _ := s.next()
	return s.batch.Seal(dst, id, at, s.compressor)
}

// cut makes a checkpoint of what was sent, and waits until it is listed.
func (s *stream) cut() (uint64, error) {
	id, at, ticket := s.next()
	s.cuts = uint64(id.Seq)
	size := []record.VolumeSize{{ID: volumeID, Bytes: s.volume}}
	c := record.Cut{Checkpoint: s.cuts, Wall: time.Now().UnixNano(), Solo: true, Volumes: size}
	if err := s.send(record.AppendCut(nil, id, at, ticket, c)); err != nil {
		return 0, err
	}
	_, err := s.group.Admit(s.id.Stream, 1, 1) // returns after the round that lists it
	return s.cuts, err
}

// openStore opens the store in a folder, making it.
func openStore(dir string) (*journal.Store, error) {
	return journal.Open(journal.Config{FS: ioengine.OS(), Dir: dir})
}
