package wire

// Role is what a peer is allowed to be: a certificate carries one.
type Role string

// RoleVRA is the only role that speaks this protocol.
const RoleVRA Role = "vra"

// Peer names who is at the other end, as its certificate says.
type Peer struct {
	Site string
	Role Role
	ID   string
}

// URI is the name in the certificate: holdfast://site/role/id.
func (p Peer) URI() string { return "holdfast://" + p.Site + "/" + string(p.Role) + "/" + p.ID }

func (p Peer) String() string { return p.Site + "/" + string(p.Role) + "/" + p.ID }
