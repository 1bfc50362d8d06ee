package api

import (
	"context"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
)

// LinksHandler looks into links, as a VRA implements it. Test tells how far it is by
// tell, which fails when nobody listens any more; the last message has the report.
type LinksHandler interface {
	Test(ctx context.Context, r *holdfastv1.LinksServiceTestRequest, tell func(*holdfastv1.LinksServiceTestResponse) error) error
}

// LinksClient asks for the same; tell is called for each message as it comes.
type LinksClient struct {
	c holdfastv1connect.LinksServiceClient
}

// Test runs a link test to its end. An error of tell ends it.
func (l LinksClient) Test(ctx context.Context, r *holdfastv1.LinksServiceTestRequest, tell func(*holdfastv1.LinksServiceTestResponse) error) error {
	return receive(ctx, r, l.c.Test, tell)
}

// streamed makes a LinksHandler what Connect wants.
type streamed struct{ h LinksHandler }

func (s streamed) Test(ctx context.Context, r *holdfastv1.LinksServiceTestRequest, to *connect.ServerStream[holdfastv1.LinksServiceTestResponse]) error {
	return onWire(s.h.Test(ctx, r, to.Send))
}
