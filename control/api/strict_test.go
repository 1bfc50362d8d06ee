package api

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// FuzzRequest reads requests as servers do: what is taken in JSON is understood, and is the same request when it comes again.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"group":"shop","idempotencyKey":"k"}`))
	f.Add([]byte(`{"from":"2026-01-02T03:04:05Z","lastLines":7,"follow":true}`))
	f.Add([]byte{0x0a, 1, 'a', 0xf8, 0xff, 3, 1})
	read := strictJSON("json")
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, m := range []proto.Message{&holdfastv1.LogsServiceReadRequest{}, &holdfastv1.ViewsServiceOpenRequest{}, &holdfastv1.GroupsServiceSetRetentionRequest{}, &holdfastv1.RecoveryServiceAdoptRequest{}} {
			if proto.Unmarshal(p, m) == nil && understood(m) == nil && !bytes.Equal(requestSum(m), requestSum(proto.CloneOf(m))) {
				t.Errorf("%T: its clone is another request", m)
			}
			if proto.Reset(m); read.Unmarshal(p, m) != nil {
				continue
			}
			text, err := read.Marshal(m)
			again := m.ProtoReflect().New().Interface()
			if err != nil || understood(m) != nil || read.Unmarshal(text, again) != nil || !bytes.Equal(requestSum(m), requestSum(again)) {
				t.Errorf("%T: %s, %v, read again is %v", m, text, err, again)
			}
		}
	})
}
