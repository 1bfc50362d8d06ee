package capture

import (
	"net"
	"path/filepath"
	"testing"
)

// TestRepliesAreOnesOwn: what one asker was answered is not written over by the answer to another.
func TestRepliesAreOnesOwn(t *testing.T) {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.DialUnix("unixpacket", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c := &filterConn{conn: near}
	c.mu.open = map[uint64]chan reply{}
	var asked []chan reply
	for id, body := range []string{"one", "two", ""} {
		ch := make(chan reply, 1)
		asked = append(asked, ch)
		c.mu.open[uint64(id)] = ch
		if _, err := far.Write(reply{id: uint64(id), body: []byte(body)}.bytes()); err != nil {
			t.Fatal(err)
		}
	}
	far.Close()
	if c.read() == nil {
		t.Fatal("the connection never ends")
	}
	for id, body := range []string{"one", "two", ""} {
		if r := <-asked[id]; r.id != uint64(id) || string(r.body) != body {
			t.Errorf("question %d was answered %q", id, r.body)
		}
	}
}
