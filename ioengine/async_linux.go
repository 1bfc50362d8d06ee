package ioengine

import (
	"golang.org/x/sys/unix"
)

// WriteStart begins a write. The file's lock is held until it has ended, so that Close
// waits and no write reaches a descriptor that was given out again.
func (f *osFile) WriteStart(p []byte, off int64, done func(error)) {
	f.open.RLock()
	if f.open.closed {
		f.open.RUnlock()
		go done(pathError("write", f.name, unix.EBADF))
		return
	}
	f.fs.workers.run(func() {
		_, err := f.write(p, off)
		f.open.RUnlock()
		done(err)
	})
}
