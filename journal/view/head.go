package view

import (
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// head is what the data file says about the map, so that a map that is gone, cut or old is
// found out. It has two copies, of which one is written at a time.
type head struct {
	file ioengine.File
	next int64 // the copy that is written next
}

// create writes that there is no map yet.
func (d *head) create(h mapHeader) error {
	h.life = 0
	_, err := d.file.WriteAt(h.appendHead(h.appendHead(nil, 0), 0), 0)
	return err
}

// read returns the newer copy.
func (d *head) read() (h mapHeader, marked uint64, err error) {
	p := make([]byte, 2*headBytes)
	if n, err := d.file.ReadAt(p, 0); n < len(p) && err != io.EOF {
		return h, 0, err
	}
	h, marked, err = parseHead(p)
	h2, marked2, err2 := parseHead(p[headBytes:])
	switch {
	case err2 != nil:
		d.next = 1
		return h, marked, err
	case err != nil || h2.life > h.life || h2.life == h.life && marked2 > marked:
		return h2, marked2, nil
	}
	d.next = 1
	return h, marked, nil
}

// note says which mark of the map is durable. What does not succeed lets less be found out,
// and nothing else.
func (d *head) note(h mapHeader, marked uint64) {
	if _, err := d.file.WriteAt(h.appendHead(nil, marked), d.next*headBytes); err == nil {
		d.next = 1 - d.next
	}
}

// agrees says whether the map is the one that the head knows. h is that of the map.
func (d *head) agrees(h mapHeader, r replayed) error {
	have, marked, err := d.read()
	switch {
	case err != nil:
		return err
	case !have.same(h):
		return fmt.Errorf("another view's data: %w", ErrCorrupt)
	case invariant.Planted("journal/view/cut-map"):
		return nil
	case have.life > h.life:
		return fmt.Errorf("the map is life %d of the file, and life %d was durable: %w", h.life, have.life, ErrCorrupt)
	case have.life == h.life && marked > r.marked:
		return fmt.Errorf("the map ends at entry %d, and %d was durable: %w", r.last, marked, ErrCorrupt)
	}
	return nil
}
