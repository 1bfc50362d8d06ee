package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Bounds of the file of keys, in bytes: of one line, an answer too long for which is forgotten when the process ends; and of all, from
// which on it is written anew with what is still remembered.
const (
	keyLine  = 64 << 10
	keysMost = 4 << 20
)

// keys is the file in which a server remembers what it answered to idempotency keys, so that a repetition is answered the
// same after it was started anew. An answer stands in it, synced, before it goes out. A line each:
//
//	{"procedure":"/holdfast.v1.ViewsService/Close","key":"...","request":"BASE64 of a hash","answer":"BASE64","sum":CRC32 of the others}
//
// What a release wrote that did not know requests is without them: it answers any request.
//
// What is damaged is left out: then a repetition is carried out. So it is when the file cannot be written, which the log tells.
type keys struct {
	path string
	log  *slog.Logger
	file *os.File // nil: the next line begins a new file
	size int64
}

// keyed is a line of the file.
type keyed struct {
	Procedure string `json:"procedure"`
	Key       string `json:"key"`
	Request   []byte `json:"request,omitempty"` // requestSum
	Answer    []byte `json:"answer"`
	Sum       uint32 `json:"sum"`
}

func (k *keyed) sum() uint32 {
	parts := [][]byte{[]byte(k.Procedure), []byte(k.Key), k.Answer}
	if len(k.Request) > 0 {
		parts = append(parts, k.Request)
	}
	return crc32.ChecksumIEEE(bytes.Join(parts, []byte{0}))
}

// read tells each answer of the file, the oldest first.
func (k *keys) read(each func(keyed, connect.AnyResponse)) error {
	f, err := os.Open(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 2*keysMost))
	lines.Buffer(nil, 2*keyLine)
	damaged := 0
	for lines.Scan() {
		var one keyed
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil || one.Sum != one.sum() || len(one.Key) > maxKey {
			damaged++
			continue
		}
		if res, err := one.response(); err == nil { // an older release may not know the call
			each(one, res)
		}
	}
	if damaged > 0 {
		k.log.Warn("answers to idempotency keys are forgotten: a repetition of such a call is carried out", "file", k.path, "damaged_lines", damaged)
	}
	return lines.Err()
}

// response is the answer as it goes out.
func (k *keyed) response() (connect.AnyResponse, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(k.Procedure, "/"), "/", ".")))
	if err != nil {
		return nil, err
	}
	method, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no call", k.Procedure)
	}
	m := dynamicpb.NewMessage(method.Output())
	if err := proto.Unmarshal(k.Answer, m); err != nil {
		return nil, err
	}
	return connect.NewResponse(m), nil
}

// line is what stands in the file of an answer; nil when it is too long.
func line(procedure, key string, a *answer) ([]byte, error) {
	m, ok := a.res.Any().(proto.Message)
	if !ok {
		return nil, fmt.Errorf("BUG: %s answers a %T", procedure, a.res.Any())
	}
	answer, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	one := keyed{Procedure: procedure, Key: key, Request: a.request, Answer: answer}
	one.Sum = one.sum()
	text, err := json.Marshal(one)
	if err != nil || len(text) >= keyLine {
		return nil, err
	}
	return append(text, '\n'), nil
}

// add writes an answer down. all are those that are remembered, it among them, for a new file.
func (k *keys) add(text []byte, all func() [][]byte) {
	if invariant.Planted("api/forgetful") {
		return
	}
	err := k.append(text)
	if err != nil || k.size > keysMost {
		err = k.rewrite(all())
	}
	if err != nil {
		k.log.Warn("the answer to an idempotency key is forgotten when this process ends: a repetition would be carried out", "file", k.path, "error", err)
	}
}

var errNoFile = errors.New("no file yet")

// append adds a line. After an error nothing more goes into that file.
func (k *keys) append(text []byte) error {
	if k.file == nil {
		return errNoFile
	}
	_, err := k.file.Write(text)
	if err == nil {
		err = k.file.Sync()
	}
	if err != nil {
		err = errors.Join(err, k.close())
	}
	k.size += int64(len(text))
	return err
}

// rewrite begins a new file in the place of the old one.
func (k *keys) rewrite(lines [][]byte) (err error) {
	if err := k.close(); err != nil {
		k.log.Warn("the file of idempotency keys does not close", "file", k.path, "error", err)
	}
	f, err := os.OpenFile(k.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	text := bytes.Join(lines, nil)
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), k.path); err != nil {
		return err
	}
	k.file, k.size = f, int64(len(text))
	dir, derr := os.Open(filepath.Dir(k.path))
	if derr == nil {
		derr = errors.Join(dir.Sync(), dir.Close())
	}
	if derr != nil {
		k.log.Warn("a power cut may take back which calls were answered", "file", k.path, "error", derr)
	}
	return nil
}

func (k *keys) close() error {
	if k.file == nil {
		return nil
	}
	f := k.file
	k.file = nil
	return f.Close()
}
