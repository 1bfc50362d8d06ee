// Command journaldump looks into a journal's folder from its files alone: without the
// daemon, without the catalogue, and without changing anything in it.
//
//	journaldump list STORE                        groups, volumes, segments, checkpoints
//	journaldump print STORE GROUP                 the records of a group's log
//	journaldump verify STORE [GROUP]              every record, block and replica checksum
//	journaldump extract STORE GROUP NUMBER DIR    a checkpoint's disks, as raw files under their names
//
// It opens the store as the daemon does, over a layer that keeps all writes in memory,
// with the index and the catalogue hidden: what it shows follows from the log, the
// manifest and the replicas.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const usage = `journaldump looks into a journal's folder from its files alone, and changes nothing in it.

  journaldump [-o json] list STORE                     groups, volumes, segments, checkpoints
  journaldump [-o json] [-from POSITION] [-n COUNT] [-kind KIND] print STORE GROUP
                                                       the records of a group's log
  journaldump [-o json] verify STORE [GROUP]           every record, block and replica checksum
  journaldump extract STORE GROUP NUMBER DIR           a checkpoint's disks, as raw sparse files
                                                       under the volumes' names

STORE is the folder that the daemon calls its store (it holds a file named "format"). Of
several stores (each holds a file named "set.names") it is one, when the others are where they
were, or all that there are, with commas between: as many may be missing as parity makes up for.
GROUP is a group's name or id. No daemon may have the store open: stop it, or look at a copy.
verify exits with 1 when anything is damaged.

`

// options are those of all commands.
type options struct {
	json  bool
	from  int64
	count int
	kind  string
	stale bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "journaldump:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "journaldump:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("see journaldump -h")

func run(ctx context.Context, args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("journaldump", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.Usage = func() { fmt.Fprint(log, usage); flags.PrintDefaults() }
	var o options
	format := flags.String("o", "table", "output: table or json")
	flags.Int64Var(&o.from, "from", 0, "print: the position to begin at")
	flags.IntVar(&o.count, "n", 0, "print: at most so many records (0: all)")
	flags.StringVar(&o.kind, "kind", "", "print: only records of this kind, as print names it")
	flags.BoolVar(&o.stale, "accept-stale", false, "of several stores: show what is there though others that are missing may hold what came later")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", err, errUsage)
	}
	if o.json = *format == "json"; !o.json && *format != "table" {
		return fmt.Errorf("-o %s: table or json: %w", *format, errUsage)
	}
	if err := checkKind(o.kind); err != nil {
		return err
	}
	commands := map[string]struct {
		least, most int
		run         func(context.Context, *dump, []string) error
	}{
		"list":    {1, 1, list},
		"print":   {2, 2, printRecords},
		"verify":  {1, 2, verify},
		"extract": {4, 4, extract},
	}
	rest := flags.Args()
	if len(rest) == 0 {
		flags.Usage()
		return flag.ErrHelp
	}
	c, ok := commands[rest[0]]
	if !ok {
		return fmt.Errorf("no command is called %q: %w", rest[0], errUsage)
	}
	if n := len(rest) - 1; n < c.least || n > c.most {
		return fmt.Errorf("%s: %d arguments are not what it takes: %w", rest[0], n, errUsage)
	}
	d, err := openDump(rest[1], o, out, log)
	if err != nil {
		return err
	}
	return errors.Join(c.run(ctx, d, rest[2:]), d.close())
}
