package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// debugTape are the flags of a tape of the wire. They stand in no configuration file: a
// tape ends with the process it was asked of, and is never made by the next one unasked.
type debugTape struct {
	file    string
	payload bool
	limit   config.Size
}

const defaultTapeLimit = config.Size(1 << 30)

func (d *debugTape) flags(flags *flag.FlagSet) {
	d.limit = defaultTapeLimit
	flags.StringVar(&d.file, "debug-tape", "", "for debugging: list what passes on the wire in a new `file`, which wiredump reads; without what guests wrote")
	flags.BoolVar(&d.payload, "debug-tape-payload", false, "what guests wrote goes on the tape too: treat it as you treat their disks")
	flags.Func("debug-tape-limit", "the tape ends at this `size`, by default "+d.limit.Text(), func(s string) (err error) {
		d.limit, err = config.ParseSize(s)
		return err
	})
}

// check says what cannot be meant.
func (d *debugTape) check() error {
	switch {
	case d.file == "" && (d.payload || d.limit != defaultTapeLimit):
		return errors.New("--debug-tape-payload and --debug-tape-limit need --debug-tape")
	case d.limit < 1<<20:
		return fmt.Errorf("--debug-tape-limit %v: at least 1MiB", d.limit)
	}
	return nil
}

// open begins the tape in a file that was not there; nil where none is asked for. The
// returned function ends it.
func (d *debugTape) open(log *slog.Logger) (*tape.Tape, func() error, error) {
	if d.file == "" {
		return nil, func() error { return nil }, nil
	}
	f, err := os.OpenFile(d.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, nil, fmt.Errorf("--debug-tape %s: there is such a file; name another, or remove it", d.file)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("--debug-tape: %w", err)
	}
	log.Warn("DEBUGGING: what passes on the wire is written to a file", "tape", d.file, "with_guest_data", d.payload, "limit", d.limit.Text())
	t := tape.New(f, tape.Options{Payload: d.payload, Limit: int64(d.limit), Log: log})
	return t, func() error {
		t.Close()
		return f.Close()
	}, nil
}
