package sidecar

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The audit records of a data folder: auditName is being written, and those before it are named by the
// number of their first record, of 16 digits.
const (
	auditName   = "audit.jsonl"
	auditPrefix = "audit-"
	auditSuffix = ".jsonl"
	auditLock   = "audit.lock" // flocked by whoever writes
	maxRecord   = 16 << 10     // bytes of a line
	maxRequest  = 2 << 10      // bytes of a request that are written down
	maxWord     = 128          // bytes of a group or a key that are written down
)

// Events of an audit record.
const (
	auditAsked    = "asked"    // before the call is passed on
	auditAnswered = "answered" // with its result
	auditRefused  = "refused"  // it was not for the caller: it was not passed on
)

// Record is a line of the audit. Each carries the hash of the line before it, over all files, so that
// none can be changed or taken out without its showing.
type Record struct {
	Number  uint64    `json:"n"` // from 1, without a gap
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	Asked   uint64    `json:"asked,omitempty"` // of answered: the number of the record of asked
	Who     string    `json:"who"`             // site/role/id of the certificate, or uid N
	From    string    `json:"from,omitempty"`  // host:port
	Port    string    `json:"port"`
	What    string    `json:"what"` // as in CheckpointsService/Create
	Group   string    `json:"group,omitempty"`
	Key     string    `json:"key,omitempty"`     // the idempotency key
	Request string    `json:"request,omitempty"` // as JSON; a long one is cut
	Result  string    `json:"result,omitempty"`  // ok, or the code of the error
	Error   string    `json:"error,omitempty"`
	Before  string    `json:"before"` // the hash of the line before this; of the first line: empty
}

// auditFile is what records are written to.
type auditFile interface {
	io.Writer
	Sync() error
	Close() error
}

// audit writes records. It is safe for concurrent use.
type audit struct {
	dir  string
	size int64
	keep int
	now  func() time.Time
	open func(path string) (auditFile, error) // for appending
	lock *os.File                             // nil once it is closed

	mu struct {
		sync.Mutex
		file   auditFile // nil after a failure: it is opened anew, and looked at, before the next record
		bytes  int64
		first  uint64 // number of the file's first record
		next   uint64
		before string
	}
}

func openForAppending(path string) (auditFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err // not f: no file at all
	}
	return f, nil
}

// openAudit goes on with the records in dir, which it makes. Until close, dir is nobody else's.
func openAudit(dir string, size int64, keep int, now func() time.Time) (*audit, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockAudit(dir)
	if err != nil {
		return nil, err
	}
	a := &audit{dir: dir, size: size, keep: keep, now: now, open: openForAppending, lock: lock}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.resumeLocked(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return a, nil
}

// lockAudit keeps others from writing into dir until its file is closed: two that write would break each other's chain.
func lockAudit(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, auditLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("another vra-sidecar uses data_dir %s: stop that, or choose another data_dir", dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (a *audit) path() string { return filepath.Join(a.dir, auditName) }

// resumeLocked finds where the records end, cuts off a line that was not written whole (its call was
// never passed on), and opens the file.
func (a *audit) resumeLocked() error {
	end, err := a.last(a.path())
	if err != nil {
		return err
	}
	a.mu.first, a.mu.next, a.mu.before, a.mu.bytes = end.first, end.next, end.before, end.bytes
	if end.next == 0 { // an empty file goes on with the one before it
		a.mu.first, a.mu.next, a.mu.before = 1, 1, ""
		if older, err := a.older(); err != nil {
			return err
		} else if len(older) > 0 {
			prev, err := a.last(older[len(older)-1])
			if err != nil {
				return err
			}
			a.mu.first, a.mu.next, a.mu.before = prev.next, prev.next, prev.before
		}
	}
	if err := os.Truncate(a.path(), end.bytes); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.mu.file, err = a.open(a.path())
	if err != nil {
		return err
	}
	if err := syncDir(a.dir); err != nil {
		return a.failLocked(err)
	}
	return nil
}

// auditEnd is where a file of records ends: after so many bytes of whole lines.
type auditEnd struct {
	first, next uint64 // next is 0 when there is no record
	before      string
	bytes       int64
}

func (a *audit) last(path string) (auditEnd, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return auditEnd{}, nil
	} else if err != nil {
		return auditEnd{}, err
	}
	end, err := checkRecords(text, nil)
	if err != nil {
		return auditEnd{}, fmt.Errorf("%s: %w: move the audit files away and keep them; then start again", path, err)
	}
	return end, nil
}

// older are the files before the one being written, the oldest first.
func (a *audit) older() ([]string, error) {
	names, err := filepath.Glob(filepath.Join(a.dir, auditPrefix+strings.Repeat("[0-9]", 16)+auditSuffix))
	slices.Sort(names)
	return names, err
}

// files are all there are, the oldest first. The last may not be there yet.
func (a *audit) files() ([]string, error) {
	older, err := a.older()
	return append(older, a.path()), err
}

// write numbers the record, and returns its number when it is on the disk.
func (a *audit) write(r Record) (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.file == nil {
		if err := a.resumeLocked(); err != nil {
			return 0, err
		}
	}
	if a.mu.bytes >= a.size {
		if err := a.rotateLocked(); err != nil {
			return 0, a.failLocked(err)
		}
	}
	r.Number, r.Time, r.Before = a.mu.next, a.now().UTC(), a.mu.before
	line, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	if line = append(line, '\n'); len(line) > maxRecord { // or a few callers could push out what all others did
		return 0, fmt.Errorf("a record of %d bytes, and it may have %d", len(line), maxRecord)
	}
	if _, err := a.mu.file.Write(line); err != nil {
		return 0, a.failLocked(err)
	}
	if !invariant.Planted("control/sidecar/unsynced-audit") {
		if err := a.mu.file.Sync(); err != nil {
			return 0, a.failLocked(err)
		}
	}
	a.mu.bytes += int64(len(line))
	a.mu.next, a.mu.before = r.Number+1, lineHash(line)
	return r.Number, nil
}

// failLocked lets go of a file that failed: nobody knows what of the last line is on the disk.
func (a *audit) failLocked(err error) error {
	a.mu.file.Close()
	a.mu.file = nil
	return err
}

// rotateLocked begins a new file, and removes the oldest beyond those that are kept.
func (a *audit) rotateLocked() error {
	to := filepath.Join(a.dir, fmt.Sprintf("%s%016d%s", auditPrefix, a.mu.first, auditSuffix))
	if err := os.Rename(a.path(), to); err != nil {
		return err
	}
	next, err := a.open(a.path())
	if err != nil {
		return err
	}
	a.mu.file.Close() // synced with each record
	a.mu.file, a.mu.bytes, a.mu.first = next, 0, a.mu.next
	older, err := a.older()
	if err != nil {
		return err
	}
	for len(older) > a.keep {
		if err := os.Remove(older[0]); err != nil {
			return err
		}
		older = older[1:]
	}
	return syncDir(a.dir)
}

func (a *audit) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lock == nil {
		return nil
	}
	var err error
	if a.mu.file != nil {
		err = a.mu.file.Close()
	}
	err = errors.Join(err, a.lock.Close())
	a.lock, a.mu.file = nil, nil
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func lineHash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:16])
}

// checkRecords holds a file's lines to each other, and tells each to see, which may be nil. What follows the
// last line end was not written whole, and is no record.
func checkRecords(text []byte, see func(Record)) (end auditEnd, err error) {
	for {
		line, rest, whole := bytes.Cut(text, []byte{'\n'})
		if !whole {
			return end, nil
		}
		var r Record
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			return end, fmt.Errorf("record at byte %d: %w", end.bytes, err)
		}
		line = line[:len(line)+1]
		switch {
		case r.Number == 0:
			return end, fmt.Errorf("record at byte %d has no number", end.bytes)
		case end.next == 0:
			end.first = r.Number
		case r.Number != end.next:
			return end, fmt.Errorf("record %d at byte %d is not %d", r.Number, end.bytes, end.next)
		case r.Before != end.before:
			return end, fmt.Errorf("record %d does not follow the one before it: that was changed", r.Number)
		}
		end.next, end.before = r.Number+1, lineHash(line)
		end.bytes += int64(len(line))
		if see != nil {
			see(r)
		}
		text = rest
	}
}

// CheckAudit holds all records of a data folder to each other, and says how many there are and from which on.
func CheckAudit(dir string) (records, first uint64, err error) {
	a := &audit{dir: dir}
	files, err := a.files()
	if err != nil {
		return 0, 0, err
	}
	var before auditEnd
	for _, path := range files {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && path == a.path() {
			break
		} else if err != nil {
			return 0, 0, err
		}
		begins := true
		var broken error
		end, err := checkRecords(text, func(r Record) {
			if begins && before.next != 0 && (r.Number != before.next || r.Before != before.before) {
				broken = fmt.Errorf("record %d does not follow record %d", r.Number, before.next-1)
			}
			if begins = false; first == 0 {
				first = r.Number
			}
			records++
		})
		if err = errors.Join(err, broken); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", path, err)
		}
		if end.next != 0 {
			before = end
		}
	}
	return records, first, nil
}
