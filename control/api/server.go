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
	GroupsHandler      = holdfastv1connect.GroupsServiceHandler
	RecoveryHandler    = holdfastv1connect.RecoveryServiceHandler
)

// Handlers are the services that a server offers. A nil one is answered with
// Unimplemented.
type Handlers struct {
	Status      StatusHandler
	Checkpoints CheckpointsHandler
	Views       ViewsHandler
	Stores      StoresHandler
	Groups      GroupsHandler
	Recovery    RecoveryHandler
	Shaping     ShapingHandler
	Links       LinksHandler
	Watch       WatchHandler
	Logs        LogsHandler
	Metrics     http.Handler // answers GET /metrics, for monitoring systems
	// Healthy says whether a service can be used; it adds the standard health service of gRPC, and
	// reflection, by which grpcurl finds out what there is.
	Healthy func(ctx context.Context) bool
}

// Limits of a server, so that a hostile local user cannot fill it: maxRequest is a
// request's size in bytes, headerWait how long its header may take, and idleWait how
// long a silent connection stays.
const (
	maxRequest = 1 << 20
	headerWait = 10 * time.Second
	idleWait   = 2 * time.Minute
	stopWait   = 2 * time.Second        // for calls under way when Serve is asked to end
	lastWait   = 500 * time.Millisecond // for the answers of those that were then told to
)

// Serve answers on l, a unix socket, until ctx ends; it closes l. Only processes of
// the users in uids get in (root is not implied). The error is nil when ctx ended it.
func Serve(ctx context.Context, l *net.UnixListener, h Handlers, uids []int, log *slog.Logger) error {
	return ServeKeeping(ctx, l, h, uids, "", log)
}

// ServeKeeping is Serve with the answers to idempotency keys kept in a file, so that they hold also when the process is started
// anew. Where the file cannot be used the log says so, and they hold as long as the process lives.
func ServeKeeping(ctx context.Context, l *net.UnixListener, h Handlers, uids []int, file string, log *slog.Logger) error {
	o := newOnce()
	if file != "" {
		if err := o.keep(file, log); err != nil {
			log.Warn("answers to idempotency keys of before are not known: a repetition is carried out", "file", file, "error", err)
		}
	}
	err := ServeHTTP(ctx, OwnersOnly(l, uids, log), &http.Server{Handler: h.mux(maxRequest, o.wrap)}, log)
	return errors.Join(err, o.close())
}

// ServeHTTP answers on l until ctx ends; it closes l. srv says what answers, and may say how; it is
// held to what no caller may exceed. With a TLS configuration it speaks TLS. The error is nil when ctx ended it.
//
// When ctx ends new calls are refused, streams end at once, and calls have stopWait to come to their own end: the context that
// handlers get lasts so long. Whoever is not answered any more is told to connect again.
func ServeHTTP(ctx context.Context, l net.Listener, srv *http.Server, log *slog.Logger) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(srv.TLSConfig == nil)
	protocols.SetHTTP2(srv.TLSConfig != nil)
	srv.Protocols = &protocols
	srv.ReadHeaderTimeout, srv.IdleTimeout = headerWait, idleWait
	srv.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	calls, giveUp := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), servingKey{}, ctx))
	defer giveUp()
	srv.BaseContext = func(net.Listener) context.Context { return calls }
	srv.Handler = refusing(srv.Handler)
	served := make(chan error, 1)
	go func() {
		if srv.TLSConfig != nil {
			served <- srv.ServeTLS(l, "", "")
		} else {
			served <- srv.Serve(l)
		}
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	if shutdown(srv, stopWait) != nil {
		giveUp()
		if shutdown(srv, lastWait) != nil {
			srv.Close()
		}
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// shutdown waits until no call is under way any more, but no longer than wait.
func shutdown(srv *http.Server, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return srv.Shutdown(ctx)
}

// OwnersOnly accepts only connections of the users in uids; others are closed at once.
func OwnersOnly(l *net.UnixListener, uids []int, log *slog.Logger) net.Listener {
	return &ownersOnly{UnixListener: l, uids: uids, log: log}
}

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
		uid, err := PeerUID(c)
		if err == nil && (slices.Contains(o.uids, uid) || invariant.Planted("api/any-user")) {
			return c, nil
		}
		o.log.Warn("connection refused", "socket", o.Addr(), "uid", uid, "err", err)
		c.Close()
	}
}

// PeerUID asks the kernel which user opened the other end; -1 when it cannot tell.
func PeerUID(c *net.UnixConn) (int, error) {
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
