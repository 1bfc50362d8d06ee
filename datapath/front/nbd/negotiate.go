package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

var (
	errOldClient = errors.New("client does not speak fixed newstyle")
	errOptions   = errors.New("too many options")
)

// negotiate haggles until the client has chosen an export, to which c is then
// attached, or has ended the talk (nil).
func (c *conn) negotiate() (*export, error) {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(hello); err != nil {
		return nil, err
	}
	p, err := c.in.next(4)
	if err != nil {
		return nil, err
	}
	flags := binary.BigEndian.Uint32(p)
	if flags&flagFixedNewstyle == 0 || flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, fmt.Errorf("%w: flags %#x", errOldClient, flags)
	}
	for range maxOptions {
		option, data, err := c.nextOption()
		if err != nil {
			return nil, err
		}
		switch option {
		case optExportName:
			return c.exportName(string(data), flags&flagNoZeroes != 0)
		case optAbort:
			return nil, c.optReply(option, repAck, nil)
		case optGo, optInfo:
			e, err := c.info(option, data)
			if e != nil || err != nil {
				return e, err
			}
		case optList:
			err = c.list(data)
		case optStructured:
			err = c.structuredReplies(data)
		case optListMeta, optSetMeta:
			err = c.metaContext(option, data)
		default:
			err = c.optError(option, repErrUnsup, "option not supported")
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, errOptions
}

// nextOption reads an option; data is good until the next.
func (c *conn) nextOption() (option uint32, data []byte, err error) {
	p, err := c.in.next(optionBytes)
	if err != nil {
		return 0, nil, err
	}
	if binary.BigEndian.Uint64(p) != magicOption {
		return 0, nil, fmt.Errorf("option: %w", errMagic)
	}
	option = binary.BigEndian.Uint32(p[8:])
	n := binary.BigEndian.Uint32(p[12:])
	if n > maxOption {
		return 0, nil, fmt.Errorf("option %d of %d bytes", option, n)
	}
	data, err = c.in.next(int(n))
	return option, data, err
}

// optReply answers an option.
func (c *conn) optReply(option, kind uint32, data []byte) error {
	_, err := c.nc.Write(appendOptReply(nil, option, kind, data))
	return err
}

func (c *conn) optError(option, kind uint32, text string) error {
	return c.optReply(option, kind, []byte(text))
}

// exportName is the old way to choose: there is no answer but the export itself.
func (c *conn) exportName(name string, noZeroes bool) (*export, error) {
	e := c.srv.lookup(name)
	if len(name) > MaxName || e == nil || !c.use(e) {
		return nil, fmt.Errorf("%w: %q", ErrNoExport, clip(name))
	}
	p := binary.BigEndian.AppendUint64(nil, uint64(c.size))
	p = binary.BigEndian.AppendUint16(p, c.can())
	if !noZeroes {
		p = append(p, make([]byte, exportTailZero)...)
	}
	if _, err := c.nc.Write(p); err != nil {
		c.srv.detach(e, c)
		return nil, err
	}
	return e, nil
}

// info answers INFO and GO. It returns the export when GO succeeded.
func (c *conn) info(option uint32, data []byte) (*export, error) {
	r, err := parseInfo(data)
	if err != nil {
		return nil, c.optError(option, repErrInvalid, err.Error())
	}
	e := c.srv.lookup(r.name)
	if e == nil || option == optGo && !c.use(e) {
		return nil, c.optError(option, repErrUnknown, fmt.Sprintf("no export named %q", clip(r.name)))
	}
	if option == optInfo {
		c.describe(e)
	}
	p := c.appendInfo(nil, option, e, r.kinds)
	if _, err := c.nc.Write(appendOptReply(p, option, repAck, nil)); err != nil {
		if option == optGo {
			c.srv.detach(e, c)
		}
		return nil, err
	}
	if option == optInfo {
		return nil, nil
	}
	return e, nil
}

// appendInfo appends what INFO and GO tell of e. Block sizes are told without being
// asked for: a client that ignores them is served too.
func (c *conn) appendInfo(p []byte, option uint32, e *export, kinds []uint16) []byte {
	d := binary.BigEndian.AppendUint16(nil, infoExport)
	d = binary.BigEndian.AppendUint64(d, uint64(c.size))
	d = binary.BigEndian.AppendUint16(d, c.can())
	p = appendOptReply(p, option, repInfo, d)

	d = binary.BigEndian.AppendUint16(d[:0], infoBlockSize)
	d = binary.BigEndian.AppendUint32(d, 1)
	d = binary.BigEndian.AppendUint32(d, preferredBlock)
	d = binary.BigEndian.AppendUint32(d, front.MaxWrite)
	p = appendOptReply(p, option, repInfo, d)

	if slices.Contains(kinds, infoName) {
		d = append(binary.BigEndian.AppendUint16(d[:0], infoName), e.Name...)
		p = appendOptReply(p, option, repInfo, d)
	}
	if slices.Contains(kinds, infoDescription) && e.Description != "" {
		d = append(binary.BigEndian.AppendUint16(d[:0], infoDescription), e.Description...)
		p = appendOptReply(p, option, repInfo, d)
	}
	return p
}

// use makes e the export of this connection; false when it is gone.
func (c *conn) use(e *export) bool {
	if !c.srv.attach(e, c) {
		return false
	}
	c.describe(e)
	c.allocation = c.structured && c.context == e.Name && c.hasContext
	return true
}

// describe takes over what is told of e.
func (c *conn) describe(e *export) {
	c.dev, c.size, c.readOnly = e.Device, e.Device.Size(), e.Device.ReadOnly()
}

// can is the flags of the export.
func (c *conn) can() uint16 {
	flags := uint16(canFlags | canFlush | canFUA | canMultiConn)
	if c.readOnly {
		flags |= canReadOnly
	} else {
		flags |= canTrim | canWriteZeroes | canFastZero
	}
	if c.structured {
		flags |= canDF
	}
	return flags
}

func (c *conn) list(data []byte) error {
	if len(data) != 0 {
		return c.optError(optList, repErrInvalid, "a list takes no data")
	}
	all := c.srv.exports()
	slices.SortFunc(all, func(a, b Export) int { return strings.Compare(a.Name, b.Name) })
	var p, d []byte
	for _, e := range all {
		d = append(appendString(d[:0], e.Name), e.Description...)
		p = appendOptReply(p, optList, repServer, d)
	}
	_, err := c.nc.Write(appendOptReply(p, optList, repAck, nil))
	return err
}

func (c *conn) structuredReplies(data []byte) error {
	if len(data) != 0 {
		return c.optError(optStructured, repErrInvalid, "structured replies take no data")
	}
	c.structured = true
	return c.optReply(optStructured, repAck, nil)
}

func (c *conn) metaContext(option uint32, data []byte) error {
	r, err := parseMeta(data)
	set := option == optSetMeta
	if set {
		c.hasContext = false // whatever comes of it, what was set before is void
	}
	switch {
	case err != nil:
		return c.optError(option, repErrInvalid, err.Error())
	case set && !c.structured:
		return c.optError(option, repErrInvalid, "structured replies come first")
	case c.srv.lookup(r.name) == nil:
		return c.optError(option, repErrUnknown, fmt.Sprintf("no export named %q", clip(r.name)))
	}
	var p []byte
	if r.wants(!set) {
		id := uint32(0)
		if set {
			id, c.hasContext, c.context = contextID, true, r.name
		}
		d := binary.BigEndian.AppendUint32(nil, id)
		p = appendOptReply(p, option, repMeta, append(d, contextName...))
	}
	_, err = c.nc.Write(appendOptReply(p, option, repAck, nil))
	return err
}

// clip shortens a name that a client made up.
func clip(name string) string {
	const enough = 64
	if len(name) > enough {
		return name[:enough] + "..."
	}
	return name
}
