// Package sidecar speaks for the vra of its machine to whoever may ask: over mutual TLS on three ports,
// commands and status (4006), checkpoints (4009) and logs (4005), and on a unix socket. It knows no data
// path, no store and no hypervisor; what it is asked it asks the vra's unix socket, whose words are the same.
//
// What a caller may rely on:
//   - Who may call what stands in one table (rules.go). What is not in it is not offered.
//   - A certificate that is not good is refused in the handshake, and the log names it and says why. So it is on a connection that is
//     there already: when the certificate ends, and when Reload reads another authority.
//   - Each call that changes something is written down, synced, before it is passed on, and once more with
//     its result before it is answered (audit.go). If that cannot be written, the call is refused.
//   - Idempotency keys are passed through: it is the vra that remembers them, so that a sidecar that was
//     killed forgets none, and a repeated call may come over another way.
//   - The vra may be away: status, checkpoints and the like are then answered with unavailable and what to do;
//     watchers are told, and told again when it is back. A vra of another major version is refused with words.
//   - Nothing that guests wrote passes: no message but those of LogsService carries bytes at all.
//
// What it costs: nothing runs while nobody asks. One caller has at most limits.concurrent calls under way and
// limits.rate a second on each port; a port has at most maxConns connections, maxPerHost of a host and maxPerName of a name. An answer of the vra of at most
// 16 MiB is held once a call.
package sidecar
