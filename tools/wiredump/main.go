// Command wiredump lists the frames on a tape: what passed inside the TLS of a VRA's
// connections, written by vra --debug-tape (see wire/tape).
//
//	wiredump [-o json] [-kind KIND] [-stream STREAM] [-n COUNT] TAPE
//
// Each frame's checksum is verified, that of each record's header and tables too, and those
// of its blocks where the tape holds them. Damage is named with its place, and counted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/wire"
)

const usage = `wiredump lists the frames on a tape: what two VRAs said to each other, inside their TLS.

  wiredump [-o json] [-kind KIND] [-stream STREAM] [-n COUNT] TAPE

Make a tape with: vra --config FILE --debug-tape TAPE. It is made for both roles, grows while
vra runs, and may be read meanwhile. TAPE - is the standard input.

A line is a frame: when, connection and its kind, way (> sent, < received, as seen from who
wrote the tape), place of the frame among the bytes of its connection and way, name, bytes of
its body, and what it says. Of a record: stream/epoch/incarnation/seq, kind, tickets, extents,
codec, bytes before and after, ratio, and whether its blocks verify; "left out" where they are
not on the tape. Damage stands in a line of its own, with its place in the file and the stream.
wiredump exits with 1 when anything is damaged.

`

// options are what to show.
type options struct {
	json   bool
	kind   string
	stream string
	count  int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second Ctrl-C ends what waits for a pipe that nobody writes.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, context.Canceled):
		os.Exit(130)
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "wiredump:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "wiredump:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("see wiredump --help")

func run(ctx context.Context, args []string, in io.Reader, out, log io.Writer) (err error) {
	flags := flag.NewFlagSet("wiredump", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is told once, by main
	var o options
	format := flags.String("o", "table", "output: table, or json: one document a line")
	flags.StringVar(&o.kind, "kind", "", "only frames of this name, as in Durable, or: Record (Ordered too), or: damage")
	flags.StringVar(&o.stream, "stream", "", "only frames about this stream, as the list writes it")
	flags.IntVar(&o.count, "n", 0, "at most so many frames (0: all)")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(log, usage)
			flags.SetOutput(log)
			flags.PrintDefaults()
			return err
		}
		return fmt.Errorf("%w: %w", err, errUsage)
	}
	if o.json = *format == "json"; !o.json && *format != "table" {
		return fmt.Errorf("-o %s: table or json: %w", *format, errUsage)
	}
	if o.kind != "" && o.kind != kindDamage && !slices.Contains(wire.FrameNames(), o.kind) {
		return fmt.Errorf("-kind %s: want %s or one of %s: %w", o.kind, kindDamage, strings.Join(wire.FrameNames(), ", "), errUsage)
	}
	if flags.NArg() != 1 || o.count < 0 {
		return fmt.Errorf("one tape is needed: %w", errUsage)
	}
	name := flags.Arg(0)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if err := dump(ctx, in, out, log, o); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
