package api

import (
	"context"
	"net/http"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// servingKey is where the context of a call holds the one that ends when its server is asked to.
type servingKey struct{}

// serving is the context that ends when the server of a call is asked to end; nil where nobody asks it.
func serving(call context.Context) context.Context {
	s, _ := call.Value(servingKey{}).(context.Context)
	return s
}

// ends says whether the server of a call was asked to end.
func ends(call context.Context) bool {
	s := serving(call)
	return s != nil && s.Err() != nil
}

// ending is what callers hear of a server that ends.
func ending() error {
	return Errorf(Unavailable, "connect again in a moment, and call with the same idempotency key", "this server is ending")
}

// refusing lets no call begin once the server was asked to end.
func refusing(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ends(r.Context()) && !invariant.Planted("api/late-calls") {
			w.Header().Set("Connection", "close")
			Refuse(w, r, ending())
			return
		}
		next.ServeHTTP(w, r)
	})
}

// untilEnd ends streams when their server is asked to end, and says of all calls that were given up because of it why they were. It
// implements connect.Interceptor.
type untilEnd struct{}

// WrapUnary implements connect.Interceptor.
func (untilEnd) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, givenUp(ctx, err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (untilEnd) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (untilEnd) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		run, cancel := context.WithCancel(ctx)
		defer cancel()
		if s := serving(ctx); s != nil && !invariant.Planted("api/endless-streams") {
			defer context.AfterFunc(s, cancel)()
		}
		return givenUp(ctx, next(run, conn))
	}
}

// givenUp is the error of a call, with the reason where the server's end is what it was given up for.
func givenUp(call context.Context, err error) error {
	if f := AsFailure(onWire(err)); f != nil && f.Code == Canceled && ends(call) {
		return onWire(ending())
	}
	return err
}
