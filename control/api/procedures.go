package api

import (
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
)

// Procedure is a call that these services have.
type Procedure struct {
	Path    string // as in /holdfast.v1.StatusService/Get
	Streams bool   // its answer comes in pieces
	Keyed   bool   // it takes an idempotency key
	Changes bool   // it changes something
	Bytes   bool   // its request or its answer can carry bytes that are no text
}

// named are the calls that change something and take no key: they name the failover, and again they change nothing.
var named = []string{
	holdfastv1connect.RecoveryServiceBeginProcedure, holdfastv1connect.RecoveryServiceCommitProcedure, holdfastv1connect.RecoveryServiceRollbackProcedure,
	holdfastv1connect.RecoveryServiceAdoptProcedure, holdfastv1connect.RecoveryServiceHandOverProcedure, holdfastv1connect.RecoveryServiceMoveOnProcedure,
	holdfastv1connect.RecoveryServiceLetGoProcedure,
}

// changing are the paths of the calls that change something, and streaming those of the ones whose answers come in pieces.
var (
	changing  = sync.OnceValue(func() map[string]bool { return paths(func(p Procedure) bool { return p.Changes }) })
	streaming = sync.OnceValue(func() map[string]bool { return paths(func(p Procedure) bool { return p.Streams }) })
)

func paths(of func(Procedure) bool) map[string]bool {
	all := make(map[string]bool)
	for _, p := range Procedures() {
		all[p.Path] = of(p)
	}
	return all
}

// Procedures are all calls of all services, as the generated code describes them.
func Procedures() (all []Procedure) {
	protoregistry.GlobalFiles.RangeFilesByPackage("holdfast.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				seen := map[protoreflect.FullName]bool{}
				path, keyed := "/"+string(s.FullName())+"/"+string(m.Name()), m.Input().Fields().ByName("idempotency_key") != nil
				all = append(all, Procedure{
					Path:    path,
					Streams: m.IsStreamingServer() || m.IsStreamingClient(),
					Keyed:   keyed,
					Changes: keyed || slices.Contains(named, path),
					Bytes:   carriesBytes(m.Input(), seen) || carriesBytes(m.Output(), seen),
				})
			}
		}
		return true
	})
	return all
}

// carriesBytes looks through a message and those inside of it.
func carriesBytes(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) bool {
	if seen[m.FullName()] {
		return false
	}
	seen[m.FullName()] = true
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if f.Kind() == protoreflect.BytesKind || f.Message() != nil && carriesBytes(f.Message(), seen) {
			return true
		}
	}
	return false
}

// SameGroup says whether nothing changed between two views of a group that an operator would want to hear of at
// once: its state, its volumes, how it is sent. With all, whether nothing changed.
func SameGroup(a, b *holdfastv1.Group, all bool) bool {
	if all {
		return proto.Equal(a, b)
	}
	same := a.GetState() == b.GetState() && a.GetReason() == b.GetReason() && proto.Equal(a.GetSince(), b.GetSince()) &&
		a.GetRole() == b.GetRole() && a.GetId() == b.GetId() && (a.GetSync() == nil) == (b.GetSync() == nil) &&
		(a.LagSeconds == nil) == (b.LagSeconds == nil) && (a.BytesBehind == nil) == (b.BytesBehind == nil) &&
		a.GetPriority() == b.GetPriority() && a.GetHeldByCap() == b.GetHeldByCap() && a.GetCompression() == b.GetCompression() &&
		len(a.GetVolumes()) == len(b.GetVolumes())
	for i := 0; same && i < len(a.GetVolumes()); i++ {
		v, w := a.GetVolumes()[i], b.GetVolumes()[i]
		same = v.GetName() == w.GetName() && v.GetId() == w.GetId() && v.GetBytes() == w.GetBytes()
	}
	return same
}

// StatusJSON is a status as JSON for people to read.
func StatusJSON(r *holdfastv1.StatusServiceGetResponse) ([]byte, error) {
	return protojson.MarshalOptions{Multiline: true}.Marshal(r)
}
