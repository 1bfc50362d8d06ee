package main

import (
	"bytes"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// hollow is a file system in which pages of zeros take no space, so that a journal of
// 100 GiB fits: headers and tables are real, the payload is holes.
type hollow struct{ ioengine.FS }

type hollowFile struct{ ioengine.File }

func (h hollow) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := h.FS.Open(name, flags)
	if err != nil {
		return nil, err
	}
	return hollowFile{f}, nil
}

func (h hollow) SyncFiles(files []ioengine.File) error {
	under := make([]ioengine.File, len(files))
	for i, f := range files {
		under[i] = f.(hollowFile).File
	}
	return h.FS.SyncFiles(under)
}

// Allocate only makes the file as long: space would be taken for the holes too.
func (f hollowFile) Allocate(off, n int64) error {
	size, err := f.Size()
	if err != nil || size >= off+n {
		return err
	}
	return f.Truncate(off + n)
}

const page = 4096

// WriteAt writes the pages of the file that are not zero; of one that p has a part of, that. Nothing here
// is ever written twice.
func (f hollowFile) WriteAt(p []byte, off int64) (int, error) {
	// upTo is where, from at on, the pages end that are zero, or that are not.
	upTo := func(at int, zero bool) int {
		for at < len(p) {
			end := min(len(p), at+page-int((off+int64(at))%page))
			if bytes.Equal(p[at:end], zeroPage[:end-at]) != zero {
				break
			}
			at = end
		}
		return at
	}
	for at := upTo(0, true); at < len(p); {
		end := upTo(at, false)
		if _, err := f.File.WriteAt(p[at:end], off+int64(at)); err != nil {
			return 0, err
		}
		at = upTo(end, true)
	}
	size, err := f.Size()
	if end := off + int64(len(p)); err == nil && size < end {
		err = f.Truncate(end)
	}
	return len(p), err
}

// WriteStart writes at once.
func (f hollowFile) WriteStart(parts [][]byte, off int64, done func(error)) {
	err := f.WriteParts(parts, off)
	go done(err)
}

func (f hollowFile) WriteParts(parts [][]byte, off int64) (err error) {
	for _, p := range parts {
		if err == nil {
			_, err = f.WriteAt(p, off)
			off += int64(len(p))
		}
	}
	return err
}

var zeroPage [page]byte
