package api

import (
	"context"
	"log/slog"
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
	file struct {
		sync.Mutex
		*keys // nil: what is answered is remembered as long as the process lives
	}
}

// answer is a call under way or done. ready is closed when res and err are set.
type answer struct {
	ready chan struct{}
	res   connect.AnyResponse
	err   error
	line  []byte // in the file; nil: it is not there
}

func newOnce() *once {
	o := &once{}
	o.mu.answers = make(map[string]*answer)
	return o
}

// keep has the answers remembered in a file, and repeats those that are there already.
func (o *once) keep(path string, log *slog.Logger) error {
	k := &keys{path: path, log: log}
	err := k.read(func(one keyed, res connect.AnyResponse) {
		a, first := o.claim(one.Procedure + keySeparator + one.Key)
		if !first {
			return
		}
		a.res = res
		a.line, _ = line(one.Procedure, one.Key, res) // it was one
		close(a.ready)
	})
	o.file.keys = k
	return err
}

// note writes an answer down, before it goes out.
func (o *once) note(procedure, key string, a *answer) {
	o.file.Lock()
	defer o.file.Unlock()
	if o.file.keys == nil {
		return
	}
	text, err := line(procedure, key, a.res)
	if err != nil || text == nil {
		o.file.log.Warn("the answer to an idempotency key is too long to be kept: a repetition would be carried out once this process has ended", "procedure", procedure, "error", err)
		return
	}
	o.mu.Lock()
	a.line = text
	o.mu.Unlock()
	o.file.add(text, o.lines)
}

// lines are those of all answers that are remembered, the oldest first.
func (o *once) lines() (all [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range o.mu.order {
		if text := o.mu.answers[key].line; text != nil {
			all = append(all, text)
		}
	}
	return all
}

// close lets go of the file.
func (o *once) close() error {
	o.file.Lock()
	defer o.file.Unlock()
	if o.file.keys == nil {
		return nil
	}
	return o.file.close()
}

const keySeparator = "\x00" // between a procedure and a key

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
		return o.do(ctx, req.Spec().Procedure, key, func() (connect.AnyResponse, error) {
			res, err := next(ctx, req)
			return res, onWire(err)
		})
	}
}

// do runs call, or waits for the one with this key that runs or ran. When the first
// caller fails (it may only have given up), the next in line runs its own call.
func (o *once) do(ctx context.Context, procedure, key string, call func() (connect.AnyResponse, error)) (connect.AnyResponse, error) {
	name := procedure + keySeparator + key
	for {
		a, first := o.claim(name)
		if first {
			a.res, a.err = call()
			if a.err == nil {
				o.note(procedure, key, a)
			} else if !invariant.Planted("api/remember-failure") {
				o.forget(name)
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
