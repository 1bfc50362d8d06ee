package stripe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// TestSetBesideItself makes files, seals and reads them, and takes stores in and out, all at
// once: every file reads as it was written. The race detector sees who shares what.
func TestSetBesideItself(t *testing.T) {
	g := Geometry{2, 1}
	w := newWorld(t, 3)
	fresh := []string{w.disk(t, "/n0"), w.disk(t, "/n1")}
	s := mustOpen(t, w, g)
	const makers, files = 2, 6
	var making, all sync.WaitGroup
	over := make(chan struct{})
	going := func() bool {
		select {
		case <-over:
			return false
		default:
			return true
		}
	}
	sealed := make(chan string, makers*files)
	for m := range makers {
		making.Go(func() {
			for i := range files {
				name := fmt.Sprintf("/f%d.%d", m, i)
				if err := sealBesideReader(s, name, noise(i, buf4(sealedBytes))); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				sealed <- name
			}
		})
	}
	all.Go(func() { // small files come and go
		for i := 0; going(); i++ {
			f, err := s.Open("/new", ioengine.Create|ioengine.Exclusive)
			if err == nil {
				_, err = f.WriteAt(noise(i, 512), 0)
				err = errors.Join(err, f.Sync(), f.Close(), s.Rename("/new", "/small"), s.SyncDir("/"))
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	all.Go(func() { // handles come and go
		for name := range sealed {
			for range 4 {
				if err := readWhole(s, name, buf4(sealedBytes)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	})
	all.Go(func() { // stores come and go
		out := []string{w.dirs[0], w.dirs[1]}
		for i := 0; going(); i++ {
			in := i % 2
			err := errors.Join(s.Add(fresh[in]), s.Retire(out[in]))
			for left := true; left && err == nil; {
				if err = mend(s); errors.Is(err, errMoved) || errors.Is(err, ErrBusy) {
					err = nil // the next time
				}
				left = false
				for _, st := range s.State().Stores {
					left = left || st.Dir == out[in]
					err = errors.Join(err, st.Err) // none has failed
				}
			}
			if _, free := s.Free("/"); err != nil || free != nil {
				t.Errorf("%v, %v: %+v", err, free, s.State())
				return
			}
			fresh[in], out[in] = out[in], fresh[in]
		}
	})
	making.Wait()
	close(sealed)
	close(over)
	all.Wait()
	ok(t, s.Close())
}

// sealBesideReader makes a file and seals it while one that was opened before reads it.
func sealBesideReader(s *Set, name string, content []byte) error {
	f, err := s.Open(name, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err = errors.Join(err, f.Sync(), f.Close(), s.SyncDir("/")); err != nil {
		return err
	}
	before, err := s.Open(name, ioengine.ReadOnly)
	if err != nil {
		return err
	}
	read := make(chan error)
	go func() {
		p := make([]byte, len(content))
		for range 20 {
			if n, err := before.ReadAt(p, 0); n < len(p) || err != nil && err != io.EOF || !bytes.Equal(p, content) {
				read <- errors.Join(err, fmt.Errorf("%d bytes of %d, or others, were read beside sealing", n, len(p)))
				return
			}
		}
		read <- nil
	}()
	err = s.Seal(name, nil)
	for errors.Is(err, ErrBusy) {
		err = s.Seal(name, nil)
	}
	return errors.Join(err, <-read, before.Close())
}

func readWhole(s *Set, name string, size int) error {
	f, err := s.Open(name, ioengine.ReadOnly)
	if err != nil {
		return err
	}
	n, err := f.Size()
	if err == nil && int(n) != size {
		err = fmt.Errorf("it has %d bytes, not %d", n, size)
	}
	if err == nil {
		f.WillRead(0, int64(size))
		_, _, err = f.NextData(int64(size) - 1)
	}
	p := make([]byte, 700)
	if _, rerr := f.ReadAt(p, int64(size)-int64(len(p))); rerr != nil && rerr != io.EOF {
		err = errors.Join(err, rerr)
	}
	return errors.Join(err, f.Close())
}
