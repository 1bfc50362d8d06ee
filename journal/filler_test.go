package journal

import (
	"bytes"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const fillerBytes = 4 << 20

// fillRecords are records of an initial sync beside guests that write: long rows, and among them what writes the same
// blocks again, parts of blocks, and zeros; and what each of two volumes holds after them.
func fillRecords(t *testing.T) (records []record.Record, after [2][]byte) {
	t.Helper()
	rng := seeded(11)
	after = [2][]byte{make([]byte, fillerBytes), make([]byte, fillerBytes)}
	id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: 1}
	ticket := record.Ticket(0)
	for off := int64(0); off < fillerBytes; {
		b := record.NewBatch(record.Limits{})
		for range 8 {
			p := record.Piece{Volume: 1, Off: off, Len: min(32<<10, fillerBytes-off)}
			switch rng.IntN(40) {
			case 0, 1, 2: // whole blocks that were just written
				p.Off, p.Len = max(0, off-4096*(1+rng.Int64N(8))), 4096
			case 3: // of the other volume
				p.Volume, p.Off, p.Len = 2, rng.Int64N(fillerBytes/4096-16)*4096, 12<<10
			case 4: // a part of a block that was just written
				p.Off, p.Len = max(0, off-4096)+512*rng.Int64N(4), 512*(1+rng.Int64N(3))
			case 5: // zeros there
				p.Off, p.Len = max(0, off-16<<10), 8<<10
			default:
				off += p.Len
			}
			zero := p.Len == 8<<10
			if p.Len == 0 {
				break
			}
			ticket++
			p.Ticket = ticket
			part := after[p.Volume-1][p.Off : p.Off+p.Len]
			clear(part)
			if !zero {
				for i := range part {
					part[i] = byte(int(ticket)*37 + i/48 + 1)
				}
				p.Data = bytes.Clone(part)
			}
			if !b.Add(p) {
				t.Fatal("a batch is full")
			}
		}
		if b.Empty() {
			continue
		}
		r, err := record.Parse(b.Seal(nil, id, record.Time(id.Seq), record.NewCompressor()))
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
		id.Seq++
	}
	return records, after
}

// fillRig is two replicas on a disk, and a filler for them.
func fillRig(t *testing.T) (f *filler, volumes [2]*replica.Volume, disk *faultdisk.Disk) {
	t.Helper()
	disk = faultdisk.New(512)
	for i := range volumes {
		var err error
		if volumes[i], err = replica.Create(disk, "/", replica.Place{Group: testGroup, Volume: record.VolumeID(i + 1)}, fillerBytes); err != nil {
			t.Fatal(err)
		}
	}
	return &filler{
		pool: buf.NewPool(1<<20+256<<10, fillCount), touched: map[*replica.Volume]struct{}{},
		replica: func(id record.VolumeID) *replica.Volume { return volumes[id-1] },
	}, volumes, disk
}

func (f *filler) addAll(records []record.Record) error {
	for _, r := range records {
		if err := f.add(r); err != nil {
			return err
		}
	}
	if err := f.settle(); err != nil {
		return err
	}
	return syncAll(f.touched)
}

// What is written at once has each block once, and what comes later stands in the end.
func TestFillerKeepsOrder(t *testing.T) {
	records, after := fillRecords(t)
	f, volumes, _ := fillRig(t)
	defer f.end()
	for _, r := range records {
		if err := f.add(r); err != nil {
			t.Fatal(err)
		}
		seen := map[int64]bool{}
		for _, c := range f.at.changes {
			for b := c.Off; b < c.Off+c.Len; b += replica.BlockBytes {
				if seen[b] {
					t.Fatalf("record %d: the block at %d stands twice in what is written at once", r.Seq, b)
				}
				seen[b] = true
			}
		}
	}
	if err := f.addAll(nil); err != nil {
		t.Fatal(err)
	}
	for i, v := range volumes {
		got := make([]byte, fillerBytes)
		if err := v.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, after[i]) {
			t.Errorf("volume %d holds something else", i+1)
		}
	}
	if f.pool.Out() != 0 {
		t.Errorf("%d buffers are out", f.pool.Out())
	}
}

// An error of any write is told, and leaves nothing under way.
func TestFillerTellsErrors(t *testing.T) {
	records, _ := fillRecords(t)
	failed := 0
	for at := 1; ; at += 5 {
		f, _, disk := fillRig(t)
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating &^ faultdisk.OpAllocate, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		err := f.addAll(records)
		f.end()
		hit := seen >= at
		if f.pool.Out() != 0 || f.writing != nil {
			t.Fatalf("operation %d: %d buffers are out", at, f.pool.Out())
		}
		if hit != (err != nil) {
			t.Fatalf("operation %d failed: %v; told %v", at, hit, err)
		}
		if !hit {
			break
		}
		failed++
	}
	if failed < 10 {
		t.Errorf("only %d errors", failed)
	}
}
