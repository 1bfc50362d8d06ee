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

// WriteAt writes the pages that are not zero. Nothing here is ever written twice.
func (f hollowFile) WriteAt(p []byte, off int64) (int, error) {
	if off%page != 0 || len(p)%page != 0 {
		return f.File.WriteAt(p, off)
	}
	for at := 0; at < len(p); {
		n := 0
		for at+n < len(p) && bytes.Equal(p[at+n:at+n+page], zeroPage[:]) {
			n += page
		}
		at += n
		n = 0
		for at+n < len(p) && !bytes.Equal(p[at+n:at+n+page], zeroPage[:]) {
			n += page
		}
		if n > 0 {
			if _, err := f.File.WriteAt(p[at:at+n], off+int64(at)); err != nil {
				return 0, err
			}
		}
		at += n
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
