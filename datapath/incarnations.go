package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// incarnations keeps which incarnations were drawn for a stream, on disk: a host that restarted must
// not draw one again that its target has seen, and must know its own. A process draws its first at
// random from the next drawMost numbers, so that a clone of this VRA, or one that was restored from an
// older state, draws another: whichever the target has seen is strange to the other.
type incarnations struct{ name string }

// drawn is what is known of them.
type drawn struct {
	last  record.Incarnation   // the highest; 0: none was ever drawn here
	floor record.Incarnation   // up to it all count as ours: which were is not known any more
	ours  []record.Incarnation // above it, rising; at most maxDrawn
}

const (
	maxDrawn = 64
	drawMost = 4096
)

// own says whether the incarnation was drawn here.
func (d drawn) own(n record.Incarnation) bool {
	return n <= d.floor || slices.Contains(d.ours, n) || invariant.Planted("datapath/anybody-is-me")
}

// with adds one that was drawn, above all before.
func (d drawn) with(n record.Incarnation) drawn {
	d.last, d.ours = n, append(slices.Clone(d.ours), n)
	if len(d.ours) > maxDrawn {
		d.floor, d.ours = d.ours[0], d.ours[1:]
	}
	return d
}

// adopting counts one as drawn here that was not.
func (d drawn) adopting(n record.Incarnation) drawn {
	if d.own(n) {
		return d
	}
	d.ours = append(slices.Clone(d.ours), n)
	slices.Sort(d.ours)
	if len(d.ours) > maxDrawn {
		d.floor, d.ours = d.ours[0], d.ours[1:]
	}
	d.last = d.ours[len(d.ours)-1]
	return d
}

// jump is how many numbers the first draw of a process leaves out.
func jump() record.Incarnation { return record.Incarnation(rand.Uint32N(drawMost)) }

func openIncarnations(dir string, stream record.StreamID) incarnations {
	return incarnations{incarnationsName(dir, stream.String())}
}

// incarnationsName is of a file that is there once one was drawn for the stream.
func incarnationsName(dir, stream string) string { return filepath.Join(dir, "incarnation-"+stream) }

// get reads what was kept. A file of an older release has the last one only: all up to it are ours.
func (i incarnations) get() (d drawn, err error) {
	p, err := os.ReadFile(i.name)
	if errors.Is(err, os.ErrNotExist) {
		return drawn{}, nil
	}
	if err != nil {
		return drawn{}, err
	}
	bad := func() (drawn, error) { return drawn{}, fmt.Errorf("%s: %q is not an incarnation", i.name, p) }
	if _, err := fmt.Sscanf(string(p), "holdfast incarnation %d\n", &d.last); err != nil {
		return bad()
	}
	_, more, _ := bytes.Cut(p, []byte("\n"))
	if len(more) == 0 {
		d.floor = d.last
		return d, nil
	}
	fields := bytes.Fields(more)
	if string(fields[0]) != "drawn" || len(fields) > maxDrawn+2 || len(fields) < 3 {
		return bad()
	}
	for k, f := range fields[1:] {
		var n record.Incarnation
		if _, err := fmt.Sscanf(string(f), "%d", &n); err != nil || k > 0 && (n <= d.floor || len(d.ours) > 0 && n <= d.ours[len(d.ours)-1]) {
			return bad()
		}
		if k == 0 {
			d.floor = n
			continue
		}
		d.ours = append(d.ours, n)
	}
	if d.ours[len(d.ours)-1] != d.last {
		return bad()
	}
	return d, nil
}

// put makes d durable. An older release reads the first line.
func (i incarnations) put(d drawn) error {
	p := fmt.Appendf(nil, "holdfast incarnation %d\ndrawn %d", d.last, d.floor)
	for _, n := range d.ours {
		p = fmt.Appendf(p, " %d", n)
	}
	return writeDurably(i.name, append(p, '\n'))
}
