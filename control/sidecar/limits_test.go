package sidecar

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

func TestLimits(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimits(10, 3, func() time.Time { return now })
	f := func(who string, stream bool, want why) func() {
		t.Helper()
		end, got := l.begin(who, stream)
		if got != want {
			t.Errorf("%s is refused for %q, want %q", who, got, want)
		}
		return end
	}
	for range 10 * burstSeconds {
		if end := f("ann", false, ""); end != nil {
			end()
		}
	}
	f("ann", false, tooFast)
	if end := f("bob", false, ""); end != nil {
		end()
	}
	now = now.Add(100 * time.Millisecond)
	if end := f("ann", false, ""); end != nil {
		end()
		end() // once is enough
	}
	f("ann", false, tooFast)
	now = now.Add(time.Hour)
	var ends []func()
	for range 3 {
		ends = append(ends, f("ann", false, ""))
	}
	f("ann", false, tooMany)
	for range maxStreams {
		ends = append(ends, f("ann", true, ""))
	}
	f("ann", true, tooStreams)
	for _, end := range ends {
		if end != nil {
			end()
		}
	}
	f("ann", true, "")
	for i := range maxCallers {
		if end, _ := l.begin(fmt.Sprint("caller ", i), false); end != nil {
			end()
		}
	}
	f("one more", false, tooCallers)
	now = now.Add(2 * callerLife)
	f("one more", false, "")
	if len(l.mu.callers) > 3 {
		t.Errorf("%d callers are remembered", len(l.mu.callers))
	}
}

// TestLimitsHold: over the wire, with words; other callers are not held up.
func TestLimitsHold(t *testing.T) {
	w := open(t, func(c *config.Sidecar) { c.Limits.Rate = 1 })
	c := w.client(api.RoleOperator)
	for range burstSeconds {
		if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	failure(t, "too fast", err, api.Exhausted, "west/operator/ann is over its limit of rate", "call again in a second")
	if _, err := c.Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{}); err != nil {
		t.Errorf("the port of checkpoints is held up by that of commands: %v", err)
	}
	if _, err := w.client(api.RoleMonitor).Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("another caller is held up: %v", err)
	}
}

// TestAuditIsNotFilledByTheDenied: who may not change anything cannot push what others changed out of the audit.
func TestAuditIsNotFilledByTheDenied(t *testing.T) {
	w := open(t, nil)
	c := w.client(api.RoleMonitor)
	for range 50 {
		_, err := c.Checkpoints.Pin(t.Context(), &holdfastv1.CheckpointsServicePinRequest{})
		failure(t, "a monitor's pin", err, api.PermissionDenied)
	}
	if n := len(w.records()); n < burstSeconds || n > 3*burstSeconds {
		t.Errorf("%d records of 50 calls", n)
	}
}

// TestConnectionsAreLimited at each port by itself; one that ends makes room.
func TestConnectionsAreLimited(t *testing.T) {
	w := open(t, nil)
	dial := func(address string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var held []net.Conn
	for range maxConns {
		held = append(held, dial(w.addresses().Commands))
	}
	one := dial(w.addresses().Commands)
	one.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := one.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more stays: %v", err)
	}
	if _, err := w.client(api.RoleMonitor).Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{}); err != nil {
		t.Errorf("another port: %v", err)
	}
	for _, c := range held {
		c.Close()
	}
	c := w.client(api.RoleMonitor)
	for range 100 { // until the sidecar has seen that they ended
		if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err == nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Error("the connections that ended leave no room")
}
