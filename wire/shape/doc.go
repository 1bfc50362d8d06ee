// Package shape decides when which group may send how much, so that what leaves a VRA
// stays under its cap and the groups that matter most go first. It holds no clock, no
// goroutine and no socket: the time comes with each call, and whoever sends asks Next.
//
// What a user of a Shaper may rely on:
//   - Bytes are those of the interface: TLS, and the headers of Ethernet, IP and TCP of
//     every segment (Framing), acknowledgements and retransmissions too (Charge).
//   - In any second no more than the cap and one quantum is granted. A quantum is 20 ms of
//     the cap, at least one Ethernet frame: 12.5 kB at 5 Mbit. So any second holds at most
//     2 % too much, and nothing longer than a quantum leaves in one burst, not even after
//     an hour of silence. (Below 606 kbit the quantum is one frame: MinCap keeps that below 3 %.)
//   - Of the time in which a group had something to send and came late for it (a busy
//     machine wakes a sender late), 250 ms are made up for, at no more than twice the
//     cap and within the cap of each second. What silence did not use is gone.
//   - What cannot wait (acknowledgements, heartbeats, what TCP sends again) is charged and
//     never held up; groups pay for it afterwards.
//   - While all three priorities have something to send, they share 12:4:1: high gets 70 %,
//     low 5.9 %. Within a priority, groups share alike, however large their records are.
//     What one does not use, the others get. Idle time gains nobody a claim.
//   - A connection carries whole records, one after the other, so that choice is made
//     anew when one is through. Until then a connection competes with the claim of the
//     best group that waits for it.
//
// A Shaper is not safe for concurrent use. Next looks at every group that has something
// to send, and allocates nothing.
package shape
