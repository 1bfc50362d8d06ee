package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The services, as a VRA implements them: methods over plain messages.
type (
	StatusHandler      = holdfastv1connect.StatusServiceHandler
	CheckpointsHandler = holdfastv1connect.CheckpointsServiceHandler
	ViewsHandler       = holdfastv1connect.ViewsServiceHandler
	StoresHandler      = holdfastv1connect.StoresServiceHandler
	ShapingHandler     = holdfastv1connect.ShapingServiceHandler
	RecoveryHandler    = holdfastv1connect.RecoveryServiceHandler
	GroupsHandler      = holdfastv1connect.GroupsServiceHandler
)

// Handlers are the services that a server offers. A nil one is answered with
// Unimplemented.
type Handlers struct {
	Status      StatusHandler
	Checkpoints CheckpointsHandler
	Views       ViewsHandler
	Stores      StoresHandler
	Groups      GroupsHandler
	Shaping     ShapingHandler
	Links       LinksHandler
	Recovery    RecoveryHandler
	Metrics     http.Handler // answers GET /metrics, for monitoring systems
}

// Limits of a server, so that a hostile local user cannot fill it: maxRequest is a
// request's size in bytes, headerWait how long its header may take, and idleWait how
// long a silent connection stays.
const (
	maxRequest = 1 << 20
	headerWait = 10 * time.Second
	idleWait   = 2 * time.Minute
	stopWait   = 2 * time.Second // for calls under way when Serve is asked to end
)

// Serve answers on l, a unix socket, until ctx ends; it closes l. Only processes of
// the users in uids get in (root is not implied). The error is nil when ctx ended it.
func Serve(ctx context.Context, l *net.UnixListener, h Handlers, uids []int, log *slog.Logger) error {
	mux := http.NewServeMux()
	opts := []connect.HandlerOption{
		connect.WithInterceptors(connect.UnaryInterceptorFunc(newOnce().wrap)),
		connect.WithReadMaxBytes(maxRequest),
	}
	if h.Status != nil {
		mux.Handle(holdfastv1connect.NewStatusServiceHandler(h.Status, opts...))
	}
	if h.Checkpoints != nil {
		mux.Handle(holdfastv1connect.NewCheckpointsServiceHandler(h.Checkpoints, opts...))
	}
	if h.Views != nil {
		mux.Handle(holdfastv1connect.NewViewsServiceHandler(h.Views, opts...))
	}
	if h.Stores != nil {
		mux.Handle(holdfastv1connect.NewStoresServiceHandler(h.Stores, opts...))
	}
	if h.Shaping != nil {
		mux.Handle(holdfastv1connect.NewShapingServiceHandler(h.Shaping, opts...))
	}
	if h.Groups != nil {
		mux.Handle(holdfastv1connect.NewGroupsServiceHandler(h.Groups, opts...))
	}
	if h.Recovery != nil {
		mux.Handle(holdfastv1connect.NewRecoveryServiceHandler(h.Recovery, opts...))
	}
	if h.Links != nil {
		mux.Handle(holdfastv1connect.NewLinksServiceHandler(streamed{h.Links}, opts...))
	}
	if h.Metrics != nil {
		mux.Handle("GET /metrics", h.Metrics)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler:           mux,
		Protocols:         &protocols,
		ReadHeaderTimeout: headerWait,
		IdleTimeout:       idleWait,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(&ownersOnly{UnixListener: l, uids: uids, log: log}) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// ownersOnly accepts only connections of some users; others are closed at once.
type ownersOnly struct {
	*net.UnixListener
	uids []int
	log  *slog.Logger
}

func (o *ownersOnly) Accept() (net.Conn, error) {
	for {
		c, err := o.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && (slices.Contains(o.uids, uid) || invariant.Planted("api/any-user")) {
			return c, nil
		}
		o.log.Warn("connection refused", "socket", o.Addr(), "uid", uid, "err", err)
		c.Close()
	}
}

// peerUID asks the kernel which user opened the other end; -1 when it cannot tell.
func peerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}
