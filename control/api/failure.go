package api

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// Code says what kind of error it is, for programs.
type Code string

// The codes. Their text is what Connect puts on the wire.
const (
	Canceled         Code = "canceled"
	InvalidArgument  Code = "invalid_argument"    // the request alone shows it
	NotFound         Code = "not_found"           // no such group, checkpoint or view
	Precondition     Code = "failed_precondition" // right request, wrong state of things
	Exhausted        Code = "resource_exhausted"  // no space, too many views
	Unavailable      Code = "unavailable"         // try again
	TimedOut         Code = "deadline_exceeded"
	PermissionDenied Code = "permission_denied"
	Unimplemented    Code = "unimplemented"
	Internal         Code = "internal"
	DataLoss         Code = "data_loss" // corruption was found
)

var connectCodes = map[Code]connect.Code{
	Canceled:         connect.CodeCanceled,
	InvalidArgument:  connect.CodeInvalidArgument,
	NotFound:         connect.CodeNotFound,
	Precondition:     connect.CodeFailedPrecondition,
	Exhausted:        connect.CodeResourceExhausted,
	Unavailable:      connect.CodeUnavailable,
	TimedOut:         connect.CodeDeadlineExceeded,
	PermissionDenied: connect.CodePermissionDenied,
	Unimplemented:    connect.CodeUnimplemented,
	Internal:         connect.CodeInternal,
	DataLoss:         connect.CodeDataLoss,
}

// Failure is an error that crosses the API. A handler returns one (see Errorf); a
// client's caller gets it back by AsFailure.
type Failure struct {
	Code    Code
	Message string // what happened
	Next    string // what to do about it; may be empty
}

func (f *Failure) Error() string {
	if f.Next == "" {
		return f.Message
	}
	return f.Message + "; " + f.Next
}

// Errorf makes an error for a handler to return. next says what the user can do
// about it, as a sentence that begins with a verb, or is empty.
func Errorf(code Code, next, format string, args ...any) error {
	return &Failure{Code: code, Message: fmt.Sprintf(format, args...), Next: next}
}

// AsFailure reads err, which a client's call returned, as a Failure. An error that
// never reached the server, or did not come from it, is Unavailable or TimedOut. It is
// nil for nil.
func AsFailure(err error) *Failure {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	f := &Failure{Code: Unavailable, Message: err.Error()}
	switch {
	case errors.Is(err, context.Canceled):
		f.Code = Canceled
	case errors.Is(err, context.DeadlineExceeded):
		f.Code = TimedOut
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return f
	}
	f.Code, f.Message = Code(ce.Code().String()), ce.Message()
	if !Said(err) && errors.Is(err, io.ErrUnexpectedEOF) { // the connection ended within a message, which is no fault of the request
		f.Code = Unavailable
	}
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if info, ok := m.(*holdfastv1.ErrorInfo); ok {
				f.Next = info.GetNext()
			}
		}
	}
	return f
}

// onWire turns what a handler returned into what Connect sends. An error that is no
// Failure is Internal, or says that the call was given up.
func onWire(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*connect.Error](err); ok {
		return err
	}
	f, ok := errors.AsType[*Failure](err)
	if !ok {
		f = &Failure{Code: Internal, Message: err.Error()}
		switch {
		case errors.Is(err, context.Canceled):
			f.Code = Canceled
		case errors.Is(err, context.DeadlineExceeded):
			f.Code = TimedOut
		}
	}
	code, ok := connectCodes[f.Code]
	if !ok {
		code = connect.CodeInternal
	}
	ce := connect.NewError(code, errors.New(f.Message))
	if f.Next != "" {
		if d, err := connect.NewErrorDetail(&holdfastv1.ErrorInfo{Next: f.Next}); err == nil {
			ce.AddDetail(d)
		}
	}
	return ce
}

// Said says whether an error of a client's call is what the server answered, and not that it could not be asked.
func Said(err error) bool { return connect.IsWireError(err) }
