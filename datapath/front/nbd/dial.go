package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

// asking says what a client asks of a server; all of it is no, for the old ways.
type asking struct {
	structured bool // structured replies, and base:allocation or the bitmap
	info       bool // GO; else EXPORT_NAME
	bitmap     string
}

// Dial connects to the export that uri names (see ParseURI). The context bounds the
// handshake alone.
func Dial(ctx context.Context, uri string) (*Client, error) {
	return dial(ctx, uri, asking{structured: true, info: true})
}

// DialBitmap is Dial of an export of QEMU's whose BlockStatus is to tell what the dirty bitmap of that name has: "hole" is then what is
// dirty. A server that does not show it is an error.
func DialBitmap(ctx context.Context, uri, bitmap string) (*Client, error) {
	c, err := dial(ctx, uri, asking{structured: true, info: true, bitmap: bitmap})
	if err == nil && !c.h.allocation {
		err = errors.Join(fmt.Errorf("nbd: %s: the server shows no bitmap %q", uri, bitmap), c.Close())
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func dial(ctx context.Context, uri string, ask asking) (*Client, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, u.Network, u.Address)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	cancel := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	h := handshake{nc: nc, in: newReceiver(nc, func() {}), context: contextName, hole: stateZero}
	if ask.bitmap != "" {
		h.context, h.hole = contextBitmap+ask.bitmap, stateDirty
	}
	err = h.run(u.Export, ask)
	if !cancel() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("nbd: export %q at %s: %w", clip(u.Export), u.Address, err)
	}
	return newClient(h), nil
}

// handshake is the client's side of the talk before the requests.
type handshake struct {
	nc         net.Conn
	in         *receiver
	size       int64
	flags      uint16
	structured bool
	context    string // the metadata context that is asked for
	hole       uint32 // the bit of its states that BlockStatus tells of
	allocation bool   // the server has it
	contextID  uint32 // the server's number for it
	minBlock   int
	maxBlock   int // longest payload the server takes
}

var (
	errNotNBD    = errors.New("no NBD server (or an old one) answers there")
	errRefused   = errors.New("the server refuses")
	errUnsup     = errors.New("the server does not know the option")
	errImpolite  = errors.New("the server does not keep to the protocol")
	errUnrelated = errors.New("answer to another option")
)

func (h *handshake) run(name string, ask asking) error {
	p, err := h.in.next(greetingBytes)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint16(p[16:])
	if binary.BigEndian.Uint64(p) != magicServer || binary.BigEndian.Uint64(p[8:]) != magicOption ||
		flags&flagFixedNewstyle == 0 {
		return errNotNBD
	}
	if _, err := h.nc.Write(binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))); err != nil {
		return err
	}
	if ask.structured {
		if err := h.askStructured(name); err != nil {
			return err
		}
	}
	if ask.info {
		err := h.choose(name)
		if !errors.Is(err, errUnsup) {
			return err
		}
	}
	return h.exportName(name, flags&flagNoZeroes != 0)
}

// askStructured asks for structured replies and the context; a no is an answer too.
func (h *handshake) askStructured(name string) error {
	err := h.option(optStructured, nil, nil)
	if errors.Is(err, errRefused) {
		return nil
	}
	if err != nil {
		return err
	}
	h.structured = true
	query := metaRequest{name: name, queries: []string{h.context}}
	err = h.option(optSetMeta, query.appendTo(nil), func(kind uint32, p []byte) error {
		if kind != repMeta || len(p) < 4 {
			return errImpolite
		}
		if string(p[4:]) == h.context {
			h.allocation, h.contextID = true, binary.BigEndian.Uint32(p)
		}
		return nil
	})
	if errors.Is(err, errRefused) {
		return nil // an unknown export says so again when it is chosen
	}
	return err
}

// choose asks for the export by GO.
func (h *handshake) choose(name string) error {
	h.minBlock, h.maxBlock = 1, front.MaxWrite
	told := false
	ask := infoRequest{name: name, kinds: []uint16{infoBlockSize}}
	err := h.option(optGo, ask.appendTo(nil), func(kind uint32, p []byte) error {
		if kind != repInfo || len(p) < 2 {
			return errImpolite
		}
		switch what, p := binary.BigEndian.Uint16(p), p[2:]; {
		case what == infoExport && len(p) == 10:
			told = true
			return h.told(p)
		case what == infoBlockSize && len(p) == 12:
			h.minBlock = int(binary.BigEndian.Uint32(p))
			h.maxBlock = int(min(binary.BigEndian.Uint32(p[8:]), front.MaxWrite))
			if h.minBlock < 1 || h.minBlock > 64<<10 || h.maxBlock < h.minBlock {
				return errImpolite
			}
			h.maxBlock -= h.maxBlock % h.minBlock
		}
		return nil
	})
	if err == nil && !told {
		err = errImpolite
	}
	return err
}

// exportName asks for the export in the old way.
func (h *handshake) exportName(name string, noZeroes bool) error {
	h.minBlock, h.maxBlock = 1, front.MaxWrite
	if _, err := h.nc.Write(appendOption(nil, optExportName, []byte(name))); err != nil {
		return err
	}
	n := 10
	if !noZeroes {
		n += exportTailZero
	}
	p, err := h.in.next(n)
	if err == io.EOF {
		return fmt.Errorf("%w: no such export, it seems", errRefused)
	}
	if err != nil {
		return err
	}
	return h.told(p[:10])
}

// told takes over size and flags.
func (h *handshake) told(p []byte) error {
	size := binary.BigEndian.Uint64(p)
	if size > 1<<63-1 {
		return fmt.Errorf("%w: size %d", errImpolite, size)
	}
	h.size, h.flags = int64(size), binary.BigEndian.Uint16(p[8:])
	return nil
}

// option sends an option and gives each answer before the last to each.
func (h *handshake) option(option uint32, data []byte, each func(kind uint32, p []byte) error) error {
	if _, err := h.nc.Write(appendOption(nil, option, data)); err != nil {
		return err
	}
	for range maxOptions {
		p, err := h.in.next(optReplyBytes)
		if err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(p[12:]), binary.BigEndian.Uint32(p[16:])
		switch {
		case binary.BigEndian.Uint64(p) != magicOptReply:
			return errNotNBD
		case binary.BigEndian.Uint32(p[8:]) != option:
			return errUnrelated
		case n > maxOption:
			return errImpolite
		}
		if p, err = h.in.next(int(n)); err != nil {
			return err
		}
		switch {
		case kind == repErrUnsup:
			return fmt.Errorf("%w: %w", errRefused, errUnsup)
		case kind&repError != 0:
			return refusal(kind, p)
		case kind == repAck:
			return nil
		case each == nil:
			return errImpolite
		}
		if err := each(kind, p); err != nil {
			return err
		}
	}
	return errImpolite
}

// refusal is a server's error to an option, in its own words if it has any.
func refusal(kind uint32, text []byte) error {
	switch {
	case len(text) > 0:
		return fmt.Errorf("%w: %s", errRefused, clip(string(text)))
	case kind == repErrUnknown:
		return fmt.Errorf("%w: no such export", errRefused)
	default:
		return fmt.Errorf("%w: error %d", errRefused, kind&^repError)
	}
}
