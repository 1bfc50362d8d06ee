package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"reflect"
	"slices"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

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
	request []byte // requestSum of it; nil: not known, as of an answer that an older release wrote down
	ready   chan struct{}
	res     connect.AnyResponse
	err     error
	line    []byte // in the file; nil: it is not there
}

// done says whether ready is closed.
func (a *answer) done() bool {
	select {
	case <-a.ready:
		return true
	default:
		return false
	}
}

// requestSum tells a request from others that come with its key.
func requestSum(m any) []byte {
	p, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(text)
	return sum[:16]
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
		a, first := o.claim(one.Procedure+keySeparator+one.Key, one.Request)
		if !first {
			return
		}
		a.res = res
		a.line, _ = line(one.Procedure, one.Key, a) // it was one
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
	text, err := line(procedure, key, a)
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
		if changing()[req.Spec().Procedure] {
			if err := understood(req.Any()); err != nil {
				return nil, onWire(err)
			}
		}
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
		return o.do(ctx, req.Spec().Procedure, key, requestSum(req.Any()), func() (connect.AnyResponse, error) {
			res, err := next(ctx, req)
			return res, onWire(err)
		})
	}
}

// do runs call, or waits for the one with this key that runs or ran. When the first
// caller fails (it may only have given up), the next in line runs its own call. Another request with the key is refused: its caller would
// take what was done for what was asked.
func (o *once) do(ctx context.Context, procedure, key string, request []byte, call func() (connect.AnyResponse, error)) (connect.AnyResponse, error) {
	name := procedure + keySeparator + key
	for {
		a, first := o.claim(name, request)
		if !first && len(a.request) > 0 && !bytes.Equal(a.request, request) && !invariant.Planted("api/any-request") {
			return nil, onWire(Errorf(InvalidArgument, "draw a new key for each request, and send it again only with the same one", "the idempotency key %.128q came with another request before", key))
		}
		if first {
			a.res, a.err = call()
			if a.err == nil {
				o.note(procedure, key, a)
			} else if !invariant.Planted("api/remember-failure") {
				o.forget(name, a)
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

// claim returns the answer of a key, and whether the caller is the one to make it, to this request.
func (o *once) claim(key string, request []byte) (*answer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if a, ok := o.mu.answers[key]; ok {
		return a, false
	}
	if len(o.mu.order) >= onceKeys {
		// The oldest, but no call that is under way, or its repetition would run beside it: of these there are as many as callers, and no more.
		if i := slices.IndexFunc(o.mu.order, func(key string) bool { return o.mu.answers[key].done() }); i >= 0 {
			delete(o.mu.answers, o.mu.order[i])
			o.mu.order = slices.Delete(o.mu.order, i, i+1)
		}
	}
	a := &answer{request: request, ready: make(chan struct{})}
	o.mu.answers[key] = a
	o.mu.order = append(o.mu.order, key)
	return a, true
}

// forget lets go of a key whose answer is a.
func (o *once) forget(key string, a *answer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.answers[key] != a {
		return
	}
	delete(o.mu.answers, key)
	if i := slices.Index(o.mu.order, key); i >= 0 {
		o.mu.order = slices.Delete(o.mu.order, i, i+1)
	}
}
