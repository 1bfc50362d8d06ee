// Package wire carries records from a source VRA to a target VRA, and the words
// the two exchange about them, over the TLS 1.3 connections that make one session: one
// for control, and one to eight for data.
// PROTOCOL.md has the bytes.
//
//	source                                target
//	Connect ── control 4007 ── messages, heartbeats, both ways ──► Listen
//	        ── data    4008 ── records, one way ─────────────────►
//
// What both ends may rely on:
//   - Whom they talk to: certificates name site, role and id, and each peer
//     site's CA is pinned for that site alone. Nothing is sent before that check.
//   - A record arrives whole, once and in the order of its stream within its session, or
//     not at all, whichever of the data connections it travels on (package reorder), and
//     whichever of them is cut, while one is left. How many there are package breadth says.
//     What was sent in a session that ended may or may not have arrived: OpenStream
//     and Stand settle it in the next one.
//   - Of one peer only the newest session lives, and the handler has seen the end
//     of the older one before it sees the newer.
//   - A full data connection never delays the control connection, and a target
//     that is slow to store is not taken for a dead one.
//   - A link test (RunLinkTest) has connections of its own: it takes no part in a
//     session, and only its bounded share of the link.
//   - A peer can make this end hold no more than its share of the receive memory
//     (ServerConfig.ReceiveBytes) and one control message.
//
// A Session may be used by several goroutines. Handlers are called as Handler says.
package wire
