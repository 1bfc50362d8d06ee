package stripe

import (
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// Found is what Check and Repair found amiss.
type Found struct {
	Blocks  []int // of the protected file, by number, that are not what was written
	Parity  []int // of the parity file
	Tables  int   // copies of the table that are damaged, of two
	Resized bool  // the protected file has another length than it had
}

// Well says that nothing is amiss.
func (f Found) Well() bool {
	return len(f.Blocks) == 0 && len(f.Parity) == 0 && f.Tables == 0 && !f.Resized
}

func (f Found) String() string {
	return fmt.Sprintf("%d blocks, %d parity blocks, %d tables damaged", len(f.Blocks), len(f.Parity), f.Tables)
}

// protected is a file and its parity, open.
type protected struct {
	*table
	code  *code
	src   ioengine.File
	par   ioengine.File
	found Found
}

func openProtected(fsys ioengine.FS, name string, id Identity) (p *protected, err error) {
	p = &protected{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.src, err = fsys.Open(name, ioengine.ReadOnly|ioengine.Direct); err != nil {
		return p, err
	}
	if p.par, err = fsys.Open(ParityName(name), ioengine.ReadOnly|ioengine.Direct); err != nil {
		return p, err
	}
	if p.code, err = newCode(local); err != nil {
		return p, err
	}
	if err = p.tables(); err != nil {
		return p, err
	}
	if p.id != id {
		return p, corrupt("the parity is of another file: group %x, number %d", p.id.Group, p.id.Number)
	}
	size, err := p.src.Size()
	p.found.Resized = err == nil && size != p.length
	return p, err
}

func (p *protected) close() (err error) {
	for _, f := range []ioengine.File{p.src, p.par} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// tables reads the table from the front, or failing that from the back.
func (p *protected) tables() error {
	size, err := p.par.Size()
	if err != nil {
		return err
	}
	front, frontErr := readTable(p.par, 0)
	if front != nil {
		p.table = front
		back, err := readTable(p.par, int64(front.bytes())+int64(front.stripes()*front.M)*BlockBytes)
		if back == nil || err != nil || back.id != front.id {
			p.found.Tables++
		}
	} else if errors.Is(frontErr, ErrVersion) {
		return frontErr
	} else {
		p.found.Tables++
		if p.table, err = backTable(p.par, size); err != nil {
			return errors.Join(frontErr, err)
		}
	}
	if p.shard != localShard || p.Geometry != local {
		return corrupt("no table of local parity")
	}
	return nil
}

// readTable reads the table at a place.
func readTable(f ioengine.File, at int64) (*table, error) {
	head := buf.Aligned(buf.Align)
	if _, err := f.ReadAt(head, at); err != nil && err != io.EOF {
		return nil, err
	}
	_, n, err := parseTableHeader(head)
	if err != nil {
		return nil, err
	}
	p := buf.Aligned(tableBytes(n))
	if k, err := f.ReadAt(p, at); err != nil && err != io.EOF || k < len(p) {
		return nil, errors.Join(err, corrupt("table is cut short"))
	}
	return parseTable(p)
}

// backTable finds the second copy of a table by the size of the file alone: a table of s
// stripes takes a known number of pages, and so do the tables and parity of s stripes.
func backTable(f ioengine.File, size int64) (*table, error) {
	stripeBytes := int64(local.M) * BlockBytes
	for s := size / stripeBytes; s > 0 && s >= size/stripeBytes-8; s-- {
		n := int64(tableBytes(int(s) * local.width()))
		if 2*n+s*stripeBytes == size {
			return readTable(f, size-n)
		}
	}
	return nil, corrupt("parity file of %d bytes", size)
}

// Check reads a protected file and its parity, and says what of them is damaged. The error
// is not nil when they could not be read, or nothing can be said.
func Check(fsys ioengine.FS, name string, id Identity, pace Pace) (Found, error) {
	p, err := openProtected(fsys, name, id)
	if err != nil {
		return p.found, fmt.Errorf("check %s: %w", name, err)
	}
	if err = errors.Join(p.check(pace), p.close()); err != nil {
		return p.found, fmt.Errorf("check %s: %w", name, err)
	}
	return p.found, nil
}

func (p *protected) check(pace Pace) error {
	b := buf.Aligned(BlockBytes)
	for _, z := range zonesOf(p.Geometry, p.length) {
		for j := range z.blocks {
			stripe, shard := z.at(j)
			if !p.readBlock(b, z, stripe, shard) {
				p.found.Blocks = append(p.found.Blocks, z.first+j)
			}
			if err := pace.spend(len(b)); err != nil {
				return err
			}
		}
		if err := p.checkParity(b, z, pace); err != nil {
			return err
		}
	}
	return nil
}

// checkParity reads the parity of a zone, a block at a time into b.
func (p *protected) checkParity(b []byte, z zone, pace Pace) error {
	for i := range z.stripes * p.M {
		if !p.readBlock(b, z, i/p.M, p.K+i%p.M) {
			p.found.Parity = append(p.found.Parity, z.stripe*p.M+i)
		}
		if err := pace.spend(len(b)); err != nil {
			return err
		}
	}
	return nil
}

// readBlock reads the block of a stripe of the zone and says whether it is what was written.
func (p *protected) readBlock(b []byte, z zone, stripe, shard int) bool {
	var err error
	switch j := z.block(stripe, shard); {
	case shard >= p.K:
		at := int64(p.table.bytes()) + int64((z.stripe+stripe)*p.M+shard-p.K)*BlockBytes
		err = readPadded(p.par, b, at, at+BlockBytes)
	case j < z.blocks:
		err = readPadded(p.src, b, int64(z.first+j)*BlockBytes, p.length)
	default:
		clear(b)
	}
	return err == nil && p.id.sum(z.stripe+stripe, shard, b) == p.of(z.stripe + stripe)[shard]
}

// Repair writes the protected file as it was to w, every block of it verified, the damaged
// ones computed from parity; the file itself is left alone. ErrLost: it cannot be done;
// what w then got is worth nothing. It holds the damaged blocks in memory, up to 16 MiB
// for each 256 MiB.
func Repair(fsys ioengine.FS, name string, id Identity, w io.Writer, pace Pace) (Found, error) {
	p, err := openProtected(fsys, name, id)
	if err != nil {
		return p.found, fmt.Errorf("repair %s: %w", name, err)
	}
	if err = errors.Join(p.repair(w, pace), p.close()); err != nil {
		return p.found, fmt.Errorf("repair %s: %w", name, err)
	}
	return p.found, nil
}

func (p *protected) repair(w io.Writer, pace Pace) error {
	b := buf.Aligned(BlockBytes)
	for _, z := range zonesOf(p.Geometry, p.length) {
		mended, err := p.mendZone(z, pace)
		if err != nil {
			return err
		}
		for j := range z.blocks {
			stripe, shard := z.at(j)
			block := mended[j]
			if block == nil {
				if !p.readBlock(b, z, stripe, shard) {
					return fmt.Errorf("block %d changed while it was repaired: %w", z.first+j, ErrLost)
				}
				block = b
			}
			n := min(BlockBytes, p.length-int64(z.first+j)*BlockBytes)
			if _, err := w.Write(block[:n]); err != nil {
				return err
			}
			if err := pace.spend(int(n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// mendZone returns the zone's damaged blocks as they were.
func (p *protected) mendZone(z zone, pace Pace) (map[int][]byte, error) {
	b := buf.Aligned(BlockBytes)
	hit := map[int]bool{} // stripes
	for j := range z.blocks {
		if stripe, shard := z.at(j); !p.readBlock(b, z, stripe, shard) {
			p.found.Blocks = append(p.found.Blocks, z.first+j)
			hit[stripe] = true
		}
		if err := pace.spend(len(b)); err != nil {
			return nil, err
		}
	}
	mended := map[int][]byte{}
	for stripe := range z.stripes {
		if !hit[stripe] {
			continue
		}
		blocks := make([][]byte, p.width())
		for i := range blocks {
			blocks[i] = buf.Aligned(BlockBytes)
			if !p.readBlock(blocks[i], z, stripe, i) {
				blocks[i] = blocks[i][:0]
			}
		}
		missing, err := p.code.mend(p.id, z.stripe+stripe, blocks, p.of(z.stripe+stripe), nil)
		if err != nil {
			return nil, err
		}
		for _, i := range missing {
			if j := z.block(stripe, i); i < p.K && j < z.blocks {
				mended[j] = blocks[i]
			}
		}
	}
	return mended, nil
}
