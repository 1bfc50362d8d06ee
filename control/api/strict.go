package api

import (
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// strictJSON reads requests in JSON and refuses fields that they do not have: whoever mistypes "volumes" would else
// have all of them synchronised. What it is called is the content type's last part.
type strictJSON string

// inJSON are the ways in which a request says that it is JSON.
var inJSON = connect.WithHandlerOptions(connect.WithCodec(strictJSON("json")), connect.WithCodec(strictJSON("json; charset=utf-8")))

// Name implements connect.Codec.
func (s strictJSON) Name() string { return string(s) }

// Marshal implements connect.Codec.
func (s strictJSON) Marshal(m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, errNoMessage
	}
	return protojson.Marshal(p)
}

// Unmarshal implements connect.Codec.
func (s strictJSON) Unmarshal(text []byte, m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		return errNoMessage
	}
	if len(text) == 0 {
		return errors.New("nothing, where an empty request is {}")
	}
	return protojson.UnmarshalOptions{DiscardUnknown: invariant.Planted("api/any-field")}.Unmarshal(text, p)
}

var errNoMessage = errors.New("BUG: this is no message")

// understood refuses a request that says more than is known here: its caller is newer than we are, and may mean something
// else than what we would do.
func understood(m any) error {
	if p, ok := m.(proto.Message); ok && unknown(p.ProtoReflect()) && !invariant.Planted("api/unknown-fields") {
		return Errorf(Precondition, "update the vra, or leave out what its release does not have", "the request has fields that this vra does not know (services %d.%d)", Major, Minor)
	}
	return nil
}

// unknown looks through a message and those inside of it for fields that were not read.
func unknown(m protoreflect.Message) (found bool) {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					found = unknown(v.Message())
					return !found
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				found = found || unknown(v.List().Get(i).Message())
			}
		default:
			found = unknown(v.Message())
		}
		return !found
	})
	return found
}
