package nbd

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a server on a unix socket, for the length of a test.
type site struct {
	*Server
	socket string
	stop   func() // and wait
}

func serve(t testing.TB, exports ...Export) *site {
	t.Helper()
	s := &site{Server: &Server{}, socket: filepath.Join(t.TempDir(), "s")}
	for _, e := range exports {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	s.stop = s.listen(t, "unix", s.socket, nil)
	t.Cleanup(s.stop)
	return s
}

// listen serves one more address, which it tells to addr.
func (s *site) listen(t testing.TB, network, address string, addr *string) (stop func()) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if addr != nil {
		*addr = l.Addr().String()
	}
	return s.serveOn(t, l)
}

func (s *site) serveOn(t testing.TB, l net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	done := false
	return func() {
		if done {
			return
		}
		done = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Serve does not end")
		}
	}
}

func (s *site) uri(name string) string {
	return URI{Network: "unix", Address: s.socket, Export: name}.String()
}

func (s *site) dial(t testing.TB, name string) *Client {
	t.Helper()
	return s.dialAsking(t, name, asking{structured: true, info: true})
}

func (s *site) dialAsking(t testing.TB, name string, ask asking) *Client {
	t.Helper()
	c, err := dial(t.Context(), s.uri(name), ask)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func memory(name string, size int64) (Export, *memdisk.Disk) {
	d := memdisk.New(size)
	return Export{Name: name, Description: fmt.Sprintf("%d bytes in memory", size), Device: d}, d
}

var _ front.Device = (*memdisk.Disk)(nil)
