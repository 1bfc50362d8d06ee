package api

import (
	"context"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
)

// WatchHandler tells of changes, as a sidecar implements it. tell fails when nobody listens any more.
type WatchHandler interface {
	Watch(ctx context.Context, r *holdfastv1.WatchServiceWatchRequest, tell func(*holdfastv1.WatchServiceWatchResponse) error) error
}

// LogsHandler tells what was logged, as a sidecar implements it. tell fails when nobody listens any more.
type LogsHandler interface {
	List(ctx context.Context, r *holdfastv1.LogsServiceListRequest) (*holdfastv1.LogsServiceListResponse, error)
	Read(ctx context.Context, r *holdfastv1.LogsServiceReadRequest, tell func(*holdfastv1.LogsServiceReadResponse) error) error
	Bundle(ctx context.Context, r *holdfastv1.LogsServiceBundleRequest, tell func(*holdfastv1.LogsServiceBundleResponse) error) error
}

// WatchClient asks for changes; tell is called for each message as it comes, and an error of it ends the call.
type WatchClient struct {
	c holdfastv1connect.WatchServiceClient
}

// Watch goes on until ctx ends, tell fails or the server ends it.
func (w WatchClient) Watch(ctx context.Context, r *holdfastv1.WatchServiceWatchRequest, tell func(*holdfastv1.WatchServiceWatchResponse) error) error {
	return receive(ctx, r, w.c.Watch, tell)
}

// LogsClient asks for what was logged; tell is called as in WatchClient.
type LogsClient struct {
	c holdfastv1connect.LogsServiceClient
}

// List tells which logs there are.
func (l LogsClient) List(ctx context.Context, r *holdfastv1.LogsServiceListRequest) (*holdfastv1.LogsServiceListResponse, error) {
	return l.c.List(ctx, r)
}

// Read tells the lines of a log.
func (l LogsClient) Read(ctx context.Context, r *holdfastv1.LogsServiceReadRequest, tell func(*holdfastv1.LogsServiceReadResponse) error) error {
	return receive(ctx, r, l.c.Read, tell)
}

// Bundle tells a support bundle, piece by piece.
func (l LogsClient) Bundle(ctx context.Context, r *holdfastv1.LogsServiceBundleRequest, tell func(*holdfastv1.LogsServiceBundleResponse) error) error {
	return receive(ctx, r, l.c.Bundle, tell)
}

// receive makes a call with many answers, and tells each.
func receive[Request, Response any](ctx context.Context, r *Request,
	call func(context.Context, *Request) (*connect.ServerStreamForClient[Response], error), tell func(*Response) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := call(ctx, r)
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if err := tell(stream.Msg()); err != nil {
			return err
		}
	}
	return stream.Err()
}

// watched and logged make handlers what Connect wants.
type (
	watched struct{ h WatchHandler }
	logged  struct{ h LogsHandler }
)

func (w watched) Watch(ctx context.Context, r *holdfastv1.WatchServiceWatchRequest, to *connect.ServerStream[holdfastv1.WatchServiceWatchResponse]) error {
	return onWire(w.h.Watch(ctx, r, to.Send))
}

func (l logged) List(ctx context.Context, r *holdfastv1.LogsServiceListRequest) (*holdfastv1.LogsServiceListResponse, error) {
	return l.h.List(ctx, r)
}

func (l logged) Read(ctx context.Context, r *holdfastv1.LogsServiceReadRequest, to *connect.ServerStream[holdfastv1.LogsServiceReadResponse]) error {
	return onWire(l.h.Read(ctx, r, to.Send))
}

func (l logged) Bundle(ctx context.Context, r *holdfastv1.LogsServiceBundleRequest, to *connect.ServerStream[holdfastv1.LogsServiceBundleResponse]) error {
	return onWire(l.h.Bundle(ctx, r, to.Send))
}
