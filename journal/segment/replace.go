package segment

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Replace puts a repaired copy, which build writes from its first byte to its last,
// into the place of a closed segment's file. The copy is a new file: it is synced,
// read back and verified whole against what log and successor know, and only then
// takes the name; a footer that is missing is added. An error or a crash leaves the old
// file or the new one. Who reads the old one reads on. It may be called beside appends
// and reads.
func (l *Log) Replace(number uint64, build func(w io.Writer) error) error {
	l.upkeep.Lock()
	defer l.upkeep.Unlock()
	s, err := l.closed(number)
	if err != nil {
		return err
	}
	defer l.unpin(s)
	k := l.known([]*segment{s})[0]
	temp := strings.TrimSuffix(l.path(number), suffix) + repairSuffix
	records := 0
	err = l.build(temp, func(file ioengine.File) error {
		out := &pageWriter{file: file}
		err := build(out)
		if err == nil {
			err = out.finish()
		}
		if err == nil {
			records, err = l.finishCopy(file, k)
		}
		return err
	})
	if err == nil {
		err = l.rename(temp, s, nil)
	}
	if err != nil {
		return fmt.Errorf("segment %d: replacing it: %w", number, err)
	}
	l.mu.Lock()
	s.state, s.err, s.records, s.restored = StateVerified, nil, records, false
	l.mu.Unlock()
	l.tellVerified(s)
	return nil
}

// tellVerified tells Options.Verified of a file that took the place of another.
func (l *Log) tellVerified(s *segment) {
	if l.opt.Verified != nil {
		l.opt.Verified(l.fileInfo(s))
	}
}

// build makes a new file of that name, by fill, and removes it again if that fails.
func (l *Log) build(temp string, fill func(ioengine.File) error) error {
	if err := l.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := l.fs.Open(temp, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	if err != nil {
		return err
	}
	err = fill(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, l.fs.Remove(temp)) // and the next Open would
	}
	return nil
}

// finishCopy makes a file durable that should hold all of k, verifies it, sees to its
// footer, and returns how many records it has.
func (l *Log) finishCopy(file ioengine.File, k *segment) (records int, err error) {
	if !invariant.Planted("journal/segment/copy-unsynced") {
		if err := file.Sync(); err != nil {
			return 0, err
		}
	}
	sc, err := openScanner(file)
	if err != nil {
		return 0, err
	}
	entries, err := l.verify(sc, k)
	if err != nil && !invariant.Planted("journal/segment/copy-unverified") {
		return 0, err
	}
	if listed, err := sc.footer(k); err == nil && len(listed) == len(entries) {
		return len(entries), nil
	}
	if invariant.Planted("journal/segment/copy-unsynced") {
		return len(entries), nil
	}
	return len(entries), writeFooter(file, k, entries)
}

// rename gives the durable file temp the name of s, which other replaces in the log, if
// not nil, together with all segments up to its last.
func (l *Log) rename(temp string, s, other *segment) error {
	l.names.Lock()
	defer l.names.Unlock()
	if err := l.fs.Rename(temp, l.path(s.Number)); err != nil {
		return errors.Join(err, l.fs.Remove(temp))
	}
	if other != nil {
		l.replaceBy(other)
	} else {
		l.mu.Lock()
		s.edition++
		l.mu.Unlock()
	}
	l.files.forget(s.Life)
	return l.fs.SyncDir(l.dir)
}

// pageWriter writes a file front to back, in whole pages.
type pageWriter struct {
	file ioengine.File
	mem  []byte // aligned; what is not written yet
	n    int
	off  int64
}

func (w *pageWriter) Write(p []byte) (int, error) {
	if w.mem == nil {
		w.mem = buf.Aligned(scanBytes)
	}
	done := 0
	for done < len(p) {
		n := copy(w.mem[w.n:], p[done:])
		done, w.n = done+n, w.n+n
		if w.n == len(w.mem) {
			if err := w.flush(); err != nil {
				return done - n, err
			}
		}
	}
	return done, nil
}

func (w *pageWriter) flush() error {
	if w.n == 0 {
		return nil
	}
	_, err := w.file.WriteAt(w.mem[:w.n], w.off)
	w.off, w.n = w.off+int64(w.n), 0
	return err
}

// finish writes what is left; the file ends where the bytes do.
func (w *pageWriter) finish() error {
	size := w.off + int64(w.n)
	if pad := buf.RoundUp(w.n); pad > w.n {
		clear(w.mem[w.n:pad])
		w.n = pad
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.file.Truncate(size)
}
