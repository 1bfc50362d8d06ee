package activity

import (
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity/regions"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Found is what an earlier filter left in the file of a log.
type Found struct {
	header
	err     error // why it says nothing
	Active  regions.Set
	Marks   []uint64 // a bit a block; those of Active are not in it by that
	Damaged int      // sectors that do not verify: all they are of counts as marked
	smaller bool     // the disk has grown since: what is new is marked
}

// Read reads the log at path, if there is one. What cannot be read, or is another disk's, says nothing; the disk's own
// from when it was smaller does, and then all that is new counts as marked.
func Read(fsys ioengine.FS, path string, id Identity) *Found {
	f := &Found{}
	if f.err = f.read(fsys, path, id); f.err != nil {
		f.err = fmt.Errorf("%s: %w", path, f.err)
	}
	return f
}

func (f *Found) read(fsys ioengine.FS, path string, id Identity) error {
	file, err := fsys.Open(path, ioengine.ReadOnly)
	if err != nil {
		return err
	}
	defer file.Close()
	p := buf.Aligned(pageBytes)
	if err := fill(file, p, 0); err != nil {
		return err
	}
	if f.header, err = parseHeader(p[:sectorBytes], id); err != nil {
		return err
	}
	log, marks := f.parts()
	f.Active, f.Marks = regions.NewSet(id.regions()), make([]uint64, id.Words())
	for pt, words := range map[part][]uint64{log: f.Active, marks: f.Marks} {
		p := buf.Aligned(int(pt.bytes()))
		if err := fill(file, p, pt.at); err != nil {
			return err
		}
		f.Damaged += f.decodePart(pt, p, words)
	}
	if f.smaller = f.Bytes < id.Bytes; f.smaller && !invariant.Planted("activity/grown-unmarked") {
		for b := f.Bytes / BlockBytes; b < id.blocks(); b++ {
			f.Marks[b/64] |= 1 << (b % 64)
		}
	}
	return nil
}

func fill(file ioengine.File, p []byte, off int64) error {
	n, err := file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = fmt.Errorf("ends early: %w", ErrCorrupt)
	}
	return err
}

var (
	errWrittenPast = errors.New("the disk was written to since it was closed")
	errMarksGone   = errors.New("the marks of this boot are gone")
)

// Tells says whether the file tells all that may have changed, in this boot in which there are no marks yet;
// else why not. mtime is the disk's.
func (f *Found) Tells(boot [16]byte, mtime uint64) error {
	switch {
	case f.err != nil:
		return f.err
	case f.clean && f.mtime != mtime:
		return errWrittenPast
	case !f.clean && f.Boot == boot && !invariant.Planted("activity/boot-ignored"):
		return errMarksGone
	}
	return nil
}

// Follows says whether the file is that of the marks of this boot, so that it can be gone on with.
func (f *Found) Follows(boot [16]byte, mtime uint64) bool {
	return f.err == nil && !f.smaller && f.Boot == boot && (!f.clean || f.mtime == mtime)
}

// Elsewhere says that the file is of another boot: of one before this, or of another host that has served the disk since.
func (f *Found) Elsewhere(boot [16]byte) bool { return f.err == nil && f.Boot != boot }

// Err is why the file says nothing; nil: it does.
func (f *Found) Err() error { return f.err }

// Add sets in words all that the file says may differ.
func (f *Found) Add(words []uint64, blocks int64) {
	for i, w := range f.Marks {
		words[i] |= w
	}
	f.Active.Each(func(r int) {
		const per = RegionBytes / BlockBytes
		for b := int64(r) * per; b < min(int64(r+1)*per, blocks); b++ {
			words[b/64] |= 1 << (b % 64)
		}
	})
}
