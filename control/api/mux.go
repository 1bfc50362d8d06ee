package api

import (
	"context"
	"mime"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Call is one call of a service, as those see it who stand before the handlers.
type Call struct {
	Procedure string // as in /holdfast.v1.StatusService/Get
	Key       string // the idempotency key; empty where there is none
	Group     string // the group it names; empty where it names none
	request   any
}

// JSON is the request, of at most so many bytes; a longer one is cut and ends in "...".
func (c Call) JSON(most int) string {
	m, ok := c.request.(proto.Message)
	if !ok {
		return ""
	}
	text, err := protojson.Marshal(m)
	if err != nil {
		return ""
	}
	if len(text) > most {
		text = append(text[:most], "..."...)
	}
	return string(text)
}

// Around stands around each call that has one answer. It goes on by calling do, or refuses by an
// error; what it returns is what the caller gets.
type Around func(ctx context.Context, c Call, do func() error) error

// Mux is the services as an HTTP handler, for a server that has its own idea of who may call. A request
// has at most maxRequest bytes. It remembers no keys: that is for whoever carries the call out.
func Mux(h Handlers, maxRequest int, around Around) http.Handler {
	return h.mux(maxRequest, func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			c := Call{Procedure: req.Spec().Procedure, request: req.Any()}
			if m, ok := c.request.(interface{ GetIdempotencyKey() string }); ok {
				c.Key = m.GetIdempotencyKey()
			}
			if m, ok := c.request.(interface{ GetGroup() string }); ok {
				c.Group = m.GetGroup()
			}
			var res connect.AnyResponse
			err := around(ctx, c, func() (err error) {
				res, err = next(ctx, req)
				return err
			})
			if err != nil {
				return nil, onWire(err)
			}
			return res, nil
		}
	})
}

// mux mounts the services.
func (h Handlers) mux(maxRequest int, wrap connect.UnaryInterceptorFunc) http.Handler {
	mux := http.NewServeMux()
	opts := []connect.HandlerOption{connect.WithInterceptors(untilEnd{}, wrap), connect.WithReadMaxBytes(maxRequest), inJSON}
	var names []string
	mount := func(name string) func(path string, handler http.Handler) {
		names = append(names, name)
		return mux.Handle
	}
	if h.Status != nil {
		mount(holdfastv1connect.StatusServiceName)(holdfastv1connect.NewStatusServiceHandler(h.Status, opts...))
	}
	if h.Checkpoints != nil {
		mount(holdfastv1connect.CheckpointsServiceName)(holdfastv1connect.NewCheckpointsServiceHandler(h.Checkpoints, opts...))
	}
	if h.Views != nil {
		mount(holdfastv1connect.ViewsServiceName)(holdfastv1connect.NewViewsServiceHandler(h.Views, opts...))
	}
	if h.Stores != nil {
		mount(holdfastv1connect.StoresServiceName)(holdfastv1connect.NewStoresServiceHandler(h.Stores, opts...))
	}
	if h.Shaping != nil {
		mount(holdfastv1connect.ShapingServiceName)(holdfastv1connect.NewShapingServiceHandler(h.Shaping, opts...))
	}
	if h.Groups != nil {
		mount(holdfastv1connect.GroupsServiceName)(holdfastv1connect.NewGroupsServiceHandler(h.Groups, opts...))
	}
	if h.Recovery != nil {
		mount(holdfastv1connect.RecoveryServiceName)(holdfastv1connect.NewRecoveryServiceHandler(h.Recovery, opts...))
	}
	if h.Links != nil {
		mount(holdfastv1connect.LinksServiceName)(holdfastv1connect.NewLinksServiceHandler(streamed{h.Links}, opts...))
	}
	if h.Watch != nil {
		mount(holdfastv1connect.WatchServiceName)(holdfastv1connect.NewWatchServiceHandler(watched{h.Watch}, opts...))
	}
	if h.Logs != nil {
		mount(holdfastv1connect.LogsServiceName)(holdfastv1connect.NewLogsServiceHandler(logged{h.Logs}, opts...))
	}
	if h.Metrics != nil {
		mux.Handle("GET /metrics", h.Metrics)
	}
	if h.Healthy != nil {
		limit := connect.WithHandlerOptions(connect.WithInterceptors(untilEnd{}), connect.WithReadMaxBytes(maxRequest))
		reflector := grpcreflect.NewStaticReflector(append(names, grpchealth.HealthV1ServiceName)...)
		mux.Handle(grpchealth.NewHandler(&health{h.Healthy, names}, limit))
		mux.Handle(grpcreflect.NewHandlerV1(reflector, limit))
		mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector, limit))
	}
	return inPieces(mux)
}

// inPieces refuses with words whoever asks for an answer in pieces in a way that has no pieces, as curl does that is given JSON.
func inPieces(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if streaming()[r.URL.Path] && (kind == "application/json" || kind == "application/proto") {
			Refuse(w, r, Errorf(InvalidArgument, "ask by gRPC, as grpcurl does, or with the content type application/connect+json or application/connect+proto",
				"the answer to %s comes in pieces, which there are none of in %s", r.URL.Path, kind))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// health answers the standard health service: serving, or not while what is behind does not answer.
type health struct {
	ask   func(context.Context) bool
	names []string
}

// Check implements grpchealth.Checker.
func (h *health) Check(ctx context.Context, r *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	known := r.Service == ""
	for _, name := range h.names {
		known = known || name == r.Service
	}
	switch {
	case !known:
		return nil, onWire(Errorf(NotFound, "", "no service %.100q here", r.Service))
	case h.ask(ctx):
		return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
	}
	return &grpchealth.CheckResponse{Status: grpchealth.StatusNotServing}, nil
}

// Refuse answers a request with an error in the words of its own protocol: gRPC, gRPC-Web or Connect, or, where
// it is none of these, as plain text.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	writer := connect.NewErrorWriter()
	if writer.IsSupported(r) {
		writer.Write(w, r, onWire(err)) // its failing is the caller's going away
		return
	}
	status := http.StatusForbidden
	if AsFailure(err).Code == Unavailable {
		status = http.StatusServiceUnavailable
	}
	http.Error(w, AsFailure(err).Error(), status)
}
