package nbd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/ioengine"
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
	return serveLogged(t, nil, exports...)
}

func serveLogged(t testing.TB, log *slog.Logger, exports ...Export) *site {
	t.Helper()
	s := &site{Server: &Server{Log: log}, socket: filepath.Join(t.TempDir(), "s")}
	for _, e := range exports {
		e.Device = served(t, e.Device)
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

// byLanes says that the servers of the tests have devices with lanes; both has a test run either way.
var byLanes bool

func both(t *testing.T, f func(t *testing.T)) {
	t.Run("threads", f)
	byLanes = true
	defer func() { byLanes = false }()
	t.Run("lanes", f)
}

// served is the device as the server gets it.
func served(t testing.TB, d front.Device) front.Device {
	if !byLanes {
		return d
	}
	f, err := ioengine.OS().Open(filepath.Join(t.TempDir(), "f"), ioengine.Create)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &laneDevice{d, f}
}

// laneDevice has lanes that carry each request out on a goroutine of its own.
type laneDevice struct {
	front.Device
	file ioengine.File // any, for loops
}

// Connected and Refused tell d.Device, if it wants to know.
func (d *laneDevice) Connected(c front.Connection) (left func()) {
	if w, is := d.Device.(front.Watched); is {
		return w.Connected(c)
	}
	return func() {}
}

func (d *laneDevice) Refused(why error) {
	if w, is := d.Device.(front.Watched); is {
		w.Refused(why)
	}
}

func (d *laneDevice) Lane(requests int) (front.Lane, error) {
	loop, err := ioengine.NewLoop(d.file, requests)
	return &goLane{d, loop}, err
}

type goLane struct {
	dev  *laneDevice
	loop *ioengine.Loop
}

func (l *goLane) Loop() *ioengine.Loop { return l.loop }
func (l *goLane) Close()               { l.loop.Close() }
func (l *goLane) Looks() bool          { return false }
func (l *goLane) Told()                {}

func (l *goLane) Pass([][]byte, int64, func(error)) bool { return false }

func (l *goLane) Write(w front.Write, done func(error)) {
	go func() { done(w.Commit(false)) }()
}

// Read leaves what is not aligned to the device.
func (l *goLane) Read(parts [][]byte, off int64, done func(error)) bool {
	if off%512 != 0 || len(parts) != 1 {
		return false
	}
	go func() { done(l.dev.ReadAt(parts[0], off)) }()
	return true
}

func memory(name string, size int64) (Export, *memdisk.Disk) {
	d := memdisk.New(size)
	return Export{Name: name, Description: fmt.Sprintf("%d bytes in memory", size), Device: d}, d
}

var _ front.Device = (*memdisk.Disk)(nil)
