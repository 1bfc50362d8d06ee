// Package testsocket has servers serve on a socket while a test runs.
package testsocket

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// Serve calls serve with a listener of its own, and returns its socket. End, which must be called before the test ends, ends the context and waits
// for serve to return, whose error is the test's.
func Serve(t testing.TB, serve func(context.Context, *net.UnixListener) error) (socket string, end func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- serve(ctx, l) }()
	return socket, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
	})
}
