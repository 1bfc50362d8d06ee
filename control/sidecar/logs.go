package sidecar

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Bounds of reading logs over the API: bytes of lines in a message, what a call may ask for; calls that look
// through logs at once, follow them, and bundles that are made at once, of all callers and of each; and how long a caller may take to
// take in what was found, or a bundle.
const (
	pieceBytes   = 32 << 10
	readDefault  = 1 << 20
	readMost     = 8 << 20
	maxScanning  = 4
	eachScanning = 2
	maxFollowing = 16
	eachFollows  = 4
	maxBundling  = 1
	tellWait     = time.Minute
	bundleWait   = 5 * time.Minute
)

// logs implements api.LogsHandler over the files that the configuration names, and no others.
type logs struct {
	files     []config.SidecarLog
	bundle    *bundler
	scanning  *places
	bundling  *places
	following *places
}

func newLogs(files []config.SidecarLog, b *bundler) *logs {
	return &logs{files: files, bundle: b, scanning: newPlaces(maxScanning, eachScanning), bundling: newPlaces(maxBundling, maxBundling), following: newPlaces(maxFollowing, eachFollows)}
}

// List implements api.LogsHandler.
func (l *logs) List(context.Context, *holdfastv1.LogsServiceListRequest) (*holdfastv1.LogsServiceListResponse, error) {
	res := &holdfastv1.LogsServiceListResponse{}
	for _, f := range l.files {
		one := &holdfastv1.Log{Name: f.Name}
		for _, name := range rotated(f.Path) {
			info, err := os.Stat(name)
			if err != nil {
				continue // rotated away meanwhile
			}
			one.Bytes += info.Size()
			one.Files++
			one.Changed = api.Timestamp(info.ModTime())
		}
		if c, err := openFile(f.Path); err != nil {
			one.Problem = problem(err)
		} else {
			c.Close()
		}
		res.Logs = append(res.Logs, one)
	}
	return res, nil
}

// problem is an error of a file without its path, which is not the caller's to know.
func problem(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return err.Error()
}

// named finds a log.
func (l *logs) named(name string) (config.SidecarLog, error) {
	if name == "" && len(l.files) == 1 {
		return l.files[0], nil
	}
	for _, f := range l.files {
		if f.Name == name {
			return f, nil
		}
	}
	if name == "" {
		return config.SidecarLog{}, api.Errorf(api.InvalidArgument, "name one of those that List tells", "which log is not said, and there is not exactly one")
	}
	return config.SidecarLog{}, api.Errorf(api.NotFound, "name one of those that List tells; logs stands in the sidecar's file", "no log %.100q here", name)
}

// places are for what only so many calls may do at once, of all callers and of each.
type places struct {
	most, each int

	mu struct {
		sync.Mutex
		taken int
		by    map[string]int // without zeroes
	}
}

func newPlaces(most, each int) *places {
	p := &places{most: most, each: each}
	p.mu.by = make(map[string]int)
	return p
}

// take takes a place for a caller, or says that there is none.
func (p *places) take(who, what string) (free func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.mu.by[who] >= p.each && !invariant.Planted("control/sidecar/one-reader"):
		return nil, api.Errorf(api.Exhausted, "end one of them, or wait for its end", "%s has %d calls that %s already", who, p.each, what)
	case p.mu.taken >= p.most:
		return nil, api.Errorf(api.Exhausted, "try again in a while", "%d calls %s already", p.most, what)
	}
	p.mu.taken++
	p.mu.by[who]++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.mu.taken--
		less(p.mu.by, who)
	}), nil
}

// within bounds how long a caller may take to take in all of an answer: what it holds others wait for. The bound holds between
// two pieces; that of the port ends one that is not taken in.
func within[T any](most time.Duration, tell func(T) error) func(T) error {
	began := time.Now()
	return func(m T) error {
		if took := time.Since(began); took > most {
			return api.Errorf(api.Exhausted, "ask for less, or for a shorter time", "the answer was not taken in within %v", most)
		}
		return tell(m)
	}
}

// query is what a request asks for.
func query(r *holdfastv1.LogsServiceReadRequest) (logQuery, error) {
	q := logQuery{from: api.Time(r.From), to: api.Time(r.To), lines: int(r.LastLines), bytes: r.MaxBytes}
	switch {
	case r.Follow && r.To != nil:
		return q, api.Errorf(api.InvalidArgument, "leave out one of them", "to and follow together: what follows has no end")
	case q.lines < 0 || q.bytes < 0:
		return q, api.Errorf(api.InvalidArgument, "ask for 0 or more", "%d lines, %d bytes", q.lines, q.bytes)
	case q.bytes > readMost:
		return q, api.Errorf(api.InvalidArgument, "ask for less, or for a shorter time", "%d bytes: at most %d", q.bytes, readMost)
	case q.bytes == 0:
		q.bytes = readDefault
	}
	return q, nil
}

// Read implements api.LogsHandler.
func (l *logs) Read(ctx context.Context, r *holdfastv1.LogsServiceReadRequest, tell func(*holdfastv1.LogsServiceReadResponse) error) error {
	file, err := l.named(r.Log)
	if err != nil {
		return err
	}
	q, err := query(r)
	if err != nil {
		return err
	}
	who := callerOf(ctx).who
	if r.Follow {
		free, err := l.following.take(who, "follow logs")
		if err != nil {
			return err
		}
		defer free()
	}
	free, err := l.scanning.take(who, "read logs")
	if err != nil {
		return err
	}
	defer free()
	found, end, err := readLog(ctx, file.Path, q)
	if err == nil && !r.Follow && len(found.kept) == 0 { // no lines, or nothing that could be read?
		err = readable(file.Path)
	}
	if err != nil {
		end.close()
		return unread(file, err)
	}
	clean := found.clean
	give := func(lines []string) error {
		for i := range lines {
			lines[i] = clean.line(lines[i])
		}
		return tell(&holdfastv1.LogsServiceReadResponse{Lines: lines})
	}
	more, first := found.above, within(tellWait, tell)
	for lines := found.kept; len(lines) > 0 && err == nil; {
		n, size := 0, 0
		for n < len(lines) && size < pieceBytes {
			size += len(lines[n])
			n++
		}
		piece := make([]string, n)
		for i := range piece {
			piece[i] = clean.line(lines[i])
		}
		err = first(&holdfastv1.LogsServiceReadResponse{Lines: piece, MoreBefore: more})
		lines, more = lines[n:], false
	}
	free()
	if err != nil || !r.Follow {
		end.close()
		return err
	}
	found = nil // what was told needs no memory
	return unread(file, follow(ctx, file.Path, end, give))
}

// readable says what keeps a file from being read; that it is between two rotations does not.
func readable(path string) error {
	f, err := openFile(path)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, fs.ErrNotExist) && len(rotated(path)) > 0:
		return nil
	}
	return err
}

// unread is an error of reading a log as callers hear it. Others are theirs, or of their way.
func unread(file config.SidecarLog, err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); !ok {
		return err
	}
	return api.Errorf(api.Unavailable, "see that the sidecar may read it", "the log %s: %s", file.Name, problem(err))
}

// Bundle implements api.LogsHandler.
func (l *logs) Bundle(ctx context.Context, r *holdfastv1.LogsServiceBundleRequest, tell func(*holdfastv1.LogsServiceBundleResponse) error) error {
	free, err := l.bundling.take(callerOf(ctx).who, "make a bundle")
	if err != nil {
		return err
	}
	defer free()
	return l.bundle.write(ctx, api.Time(r.From), within(bundleWait, func(p []byte) error { return tell(&holdfastv1.LogsServiceBundleResponse{Tar: p}) }))
}
