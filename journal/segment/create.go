package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	suffix    = ".seg"
	newSuffix = ".seg.new" // not yet a segment
)

func fileName(number uint64) string { return fmt.Sprintf("%016d%s", number, suffix) }

// fileNumber is fileName's inverse.
func fileNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && err == nil && fileName(n) == name
}

// create makes a segment that begins with what fill writes, which may be nil, as one
// round. It has its name only once all that is durable; it takes the name from an
// older file of that number. So a file with the name of a segment is one, always.
func (l *Log) create(h header, fill func(*writer) error) (*writer, error) {
	name := path.Join(l.dir, fileName(h.Number))
	temp := strings.TrimSuffix(name, suffix) + newSuffix
	if err := l.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	file, err := l.fs.Open(temp, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	if err != nil {
		return nil, err
	}
	w := newWriter(file, h, l.opt.Stages)
	if err := l.begin(w, h, fill); err != nil {
		w.drop()
		return nil, errors.Join(err, file.Close())
	}
	err = l.fs.Rename(temp, name)
	if err == nil && !invariant.Planted("journal/segment/no-syncdir") {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return w, nil
}

func (l *Log) begin(w *writer, h header, fill func(*writer) error) error {
	page := buf.Aligned(pageBytes)
	h.put(page)
	if _, err := w.file.WriteAt(page, 0); err != nil {
		return err
	}
	if fill != nil {
		if err := fill(w); err != nil {
			return err
		}
		if err := w.finish(); err != nil {
			return err
		}
	}
	return w.file.Sync()
}
