package vhostuser

import (
	"net"
	"sync"
	"time"
)

// channel is where a front end hears from us without having asked; there may be none.
type channel struct {
	mu struct {
		sync.Mutex
		conn net.Conn // nil: none
	}
}

// set makes conn the channel, which it is to close then; nil: there is none any more.
func (c *channel) set(conn net.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.mu.conn
	if c.mu.conn = conn; was != nil {
		return was.Close()
	}
	return nil
}

// tell says what; false: there is nobody to hear it. Nothing is waited for but room to say it in.
func (c *channel) tell(what uint32) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.conn == nil {
		return false, nil
	}
	if err := c.mu.conn.SetWriteDeadline(time.Now().Add(replyTime)); err != nil {
		return false, err
	}
	_, err := c.mu.conn.Write(appendTold(nil, what))
	return err == nil, err
}
