package api

import (
	"context"
	"reflect"
	"slices"
	"sync"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Limits of what once remembers: at most onceKeys answers, by keys of at most maxKey
// bytes. An answer is a few hundred bytes, so the whole stays below a few MiB.
const (
	onceKeys = 1024
	maxKey   = 128
)

// once makes calls with an idempotency key happen once. Only successes are kept: a
// call that failed may be tried again with the same key.
type once struct {
	mu struct {
		sync.Mutex
		answers map[string]*answer // by procedure and key
		order   []string           // the keys in answers, oldest first
	}
}

// answer is a call under way or done. ready is closed when res and err are set.
type answer struct {
	ready chan struct{}
	res   connect.AnyResponse
	err   error
}

func newOnce() *once {
	o := &once{}
	o.mu.answers = make(map[string]*answer)
	return o
}

// wrap is the interceptor: it turns errors into Connect's and repeats answers.
func (o *once) wrap(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		key := ""
		if m, ok := req.Any().(interface{ GetIdempotencyKey() string }); ok {
			key = m.GetIdempotencyKey()
		}
		if len(key) > maxKey {
			return nil, onWire(Errorf(InvalidArgument, "use a shorter one", "idempotency key: %d bytes, at most %d", len(key), maxKey))
		}
		if key == "" || invariant.Planted("api/twice") {
			res, err := next(ctx, req)
			return res, onWire(err)
		}
		return o.do(ctx, req.Spec().Procedure+"\x00"+key, func() (connect.AnyResponse, error) {
			res, err := next(ctx, req)
			return res, onWire(err)
		})
	}
}

// do runs call, or waits for the one with this key that runs or ran. When the first
// caller fails (it may only have given up), the next in line runs its own call.
func (o *once) do(ctx context.Context, key string, call func() (connect.AnyResponse, error)) (connect.AnyResponse, error) {
	for {
		a, first := o.claim(key)
		if first {
			a.res, a.err = call()
			if a.err != nil && !invariant.Planted("api/remember-failure") {
				o.forget(key)
			}
			close(a.ready)
			return a.res, a.err
		}
		select {
		case <-a.ready:
			if a.err == nil || invariant.Planted("api/remember-failure") {
				return sameMessage(a.res), a.err
			}
		case <-ctx.Done():
			return nil, onWire(ctx.Err())
		}
	}
}

// sameMessage makes another response of the same message: Connect writes headers into
// each response it sends, so two calls must not share one. A message being sent is
// only read.
func sameMessage(res connect.AnyResponse) connect.AnyResponse {
	if res == nil {
		return nil
	}
	v := reflect.ValueOf(res).Elem() // of a connect.Response[T]
	another := reflect.New(v.Type())
	another.Elem().FieldByName("Msg").Set(v.FieldByName("Msg"))
	return another.Interface().(connect.AnyResponse)
}

// claim returns the answer of a key, and whether the caller is the one to make it.
func (o *once) claim(key string) (*answer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if a, ok := o.mu.answers[key]; ok {
		return a, false
	}
	if len(o.mu.order) >= onceKeys {
		delete(o.mu.answers, o.mu.order[0])
		o.mu.order = slices.Delete(o.mu.order, 0, 1)
	}
	a := &answer{ready: make(chan struct{})}
	o.mu.answers[key] = a
	o.mu.order = append(o.mu.order, key)
	return a, true
}

func (o *once) forget(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.mu.answers, key)
	if i := slices.Index(o.mu.order, key); i >= 0 {
		o.mu.order = slices.Delete(o.mu.order, i, i+1)
	}
}
