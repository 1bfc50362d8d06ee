package segment

import (
	"errors"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// part is a run of records whose tables are read at once.
type part struct {
	entries []entry
	off     int64 // in the file, aligned
	n       int   // bytes, whole pages
	mem     []byte
	err     error
	done    chan struct{}
}

const (
	// partBytes bounds a part, readAhead the parts in memory: 8 MiB a Replay.
	partBytes = 256 << 10
	readAhead = 32
	// tableBytes is what is read of a record at first: header and tables of up to some
	// 100 extents.
	tableBytes = 4 << 10
)

// divide plans the reads: what lies near is read at once, with what lies between.
func divide(first Pos, entries []entry) (parts []*part) {
	var last *part
	for i, e := range entries {
		begin := offset(first, e.Pos)
		page := begin &^ (pageBytes - 1)
		end := int64(buf.RoundUp(int(begin) + int(min(e.Size, tableBytes))))
		if last == nil || page-(last.off+int64(last.n)) >= nearBytes || end-last.off > partBytes {
			// A header alone on the page is enough, where the tables end there too.
			last = &part{off: page, done: make(chan struct{}), entries: entries[i:i]}
			parts = append(parts, last)
			if end-begin > pageBytes && begin-page+record.HeaderBytes+shortTables <= pageBytes {
				end = page + pageBytes
			}
		}
		last.entries = append(last.entries, e)
		last.n = max(last.n, int(end-last.off))
	}
	return parts
}

// shortTables is what the tables of a record of 64 KiB with few extents take.
const shortTables = 256

// start reads the part, in a goroutine of its own if asked to.
func (x *part) start(file ioengine.File, alone bool) {
	read := func() {
		defer close(x.done)
		x.mem = buf.Aligned(x.n)
		n, err := file.ReadAt(x.mem, x.off)
		if n < x.n {
			if err == nil || errors.Is(err, io.EOF) {
				err = corrupt("the file ends")
			}
			x.err = err
		}
	}
	if alone {
		go read()
	} else {
		read()
	}
}
