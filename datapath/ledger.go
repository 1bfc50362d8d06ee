package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// ledger is what a source keeps of a group over restarts of its process, beside the
// marks: it lives and dies with the run directory, as they do.
//
//	0 magic "HFL1"  4 flags u32  8 acked u64  16 whole i64  24 zero u32  28 crc32c of 0..28
//
// Flag bit 0: the initial sync was begun and no checkpoint was listed since. whole
// is the monotonic time of this boot, in ns, up to which every captured write was
// known to be durable; 0 when that is not known. A ledger that does not verify is
// none: it is written in one piece of 32 bytes, and a torn one only follows a power
// loss, which ends the run directory.
type ledger struct {
	Acked      record.Seq // the highest seq that the target ever acknowledged
	Whole      int64
	Unfinished bool
}

const (
	ledgerBytes = 32
	ledgerMagic = 0x314c4648 // "HFL1"
)

func (l ledger) encode() []byte {
	p := make([]byte, ledgerBytes)
	binary.LittleEndian.PutUint32(p, ledgerMagic)
	if l.Unfinished {
		p[4] = 1
	}
	binary.LittleEndian.PutUint64(p[8:], uint64(l.Acked))
	binary.LittleEndian.PutUint64(p[16:], uint64(l.Whole))
	binary.LittleEndian.PutUint32(p[28:], crc32.Checksum(p[:28], crc32.MakeTable(crc32.Castagnoli)))
	return p
}

func decodeLedger(p []byte) (ledger, bool) {
	if len(p) != ledgerBytes || binary.LittleEndian.Uint32(p) != ledgerMagic || p[4] > 1 ||
		p[5]|p[6]|p[7]|p[24]|p[25]|p[26]|p[27] != 0 ||
		binary.LittleEndian.Uint32(p[28:]) != crc32.Checksum(p[:28], crc32.MakeTable(crc32.Castagnoli)) {
		return ledger{}, false
	}
	return ledger{
		Unfinished: p[4] == 1,
		Acked:      record.Seq(binary.LittleEndian.Uint64(p[8:])),
		Whole:      int64(binary.LittleEndian.Uint64(p[16:])),
	}, true
}

// ledgerFile keeps one ledger.
type ledgerFile struct {
	f *os.File
}

func openLedger(dir string, stream record.StreamID) (ledgerFile, ledger, error) {
	f, err := os.OpenFile(filepath.Join(dir, "ledger-"+stream.String()), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return ledgerFile{}, ledger{}, err
	}
	p := make([]byte, ledgerBytes)
	n, _ := f.ReadAt(p, 0)
	l, _ := decodeLedger(p[:n])
	return ledgerFile{f}, l, nil
}

func (f ledgerFile) put(l ledger) error {
	_, err := f.f.WriteAt(l.encode(), 0)
	return err
}

// epochs keeps the epoch that a stream's records are of, on disk. A target whose failover was rolled
// back grants a higher one; a source that has forgotten it is told again.
type epochs struct{ name string }

func openEpochs(dir string, stream record.StreamID) epochs {
	return epochs{filepath.Join(dir, "epoch-"+stream.String())}
}

// get is 1 when none was ever granted.
func (e epochs) get() (record.Epoch, error) {
	p, err := os.ReadFile(e.name)
	if errors.Is(err, os.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	var n record.Epoch
	if _, err := fmt.Sscanf(string(p), "holdfast epoch %d\n", &n); err != nil || n == 0 {
		return 0, fmt.Errorf("%s: %q is not an epoch", e.name, p)
	}
	return n, nil
}

// put makes n durable.
func (e epochs) put(n record.Epoch) error {
	return writeDurably(e.name, fmt.Appendf(nil, "holdfast epoch %d\n", n))
}
