package bars

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Piped is what a pipe took.
type Piped struct {
	Bytes   int64
	Took    time.Duration
	CPU     float64 // seconds of all its processes
	Foreign float64 // cores that others used meanwhile
}

// PipeLZ4 copies a file as people do who have nothing else: lz4 -1 | socat, over TCP of this machine, socat | lz4 -d into a
// file, which is synced before the clock stops. Zeros become holes.
func PipeLZ4(ctx context.Context, from, to string) (p Piped, err error) {
	copied, err := os.Create(to)
	if err != nil {
		return p, err
	}
	defer copied.Close()
	port := fmt.Sprint(20000 + os.Getpid()%20000)
	listen := exec.CommandContext(ctx, "socat", "-u", "TCP-LISTEN:"+port+",bind=127.0.0.1,reuseaddr", "STDOUT")
	unpack := exec.CommandContext(ctx, "lz4", "-d", "-c", "-q", "-q", "--sparse")
	packs := exec.CommandContext(ctx, "lz4", "-1", "-B4", "-c", "-q", "-q", from) // blocks of 64 KiB are its smallest
	dial := exec.CommandContext(ctx, "socat", "-u", "STDIN", "TCP:127.0.0.1:"+port+",retry=50,interval=0.02")
	if unpack.Stdin, err = listen.StdoutPipe(); err != nil {
		return p, err
	}
	unpack.Stdout = copied
	if dial.Stdin, err = packs.StdoutPipe(); err != nil {
		return p, err
	}
	all := []*exec.Cmd{listen, unpack, packs, dial}
	began := Look()
	for _, c := range all {
		c.Stderr = io.Discard // lz4 tells of its block size whatever it is told
		if err := c.Start(); err != nil {
			return p, fmt.Errorf("%s: %w", c.Path, err)
		}
		if c == unpack {
			time.Sleep(100 * time.Millisecond) // socat listens; not part of what is timed
			began = Look()
		}
	}
	for _, c := range []*exec.Cmd{packs, dial, listen, unpack} {
		if err := c.Wait(); err != nil {
			return p, fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	if err := copied.Sync(); err != nil {
		return p, err
	}
	p.Took = time.Since(began.At)
	for _, c := range all {
		p.CPU += CPUOf(c)
	}
	p.Foreign = began.Foreign(p.CPU)
	st, err := copied.Stat()
	if err != nil {
		return p, err
	}
	p.Bytes = st.Size()
	return p, nil
}

// SameFiles says where two files differ.
func SameFiles(ctx context.Context, a, b string) error {
	out, err := exec.CommandContext(ctx, "cmp", a, b).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
