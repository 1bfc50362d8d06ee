// Package api holds the words in which Holdfast is asked and answers: status,
// checkpoints, views and the like. A vra answers them on its unix socket, and its sidecar
// (control/sidecar) over mutual TLS, with two services of its own: WatchService and LogsService.
//
// The services stand in holdfast/v1/*.proto. The generated messages are package
// holdfastv1, the generated handlers and clients holdfastv1connect, the reference API.md; all are
// committed, and made anew by `make generate` (by protoc,
// protoc-gen-go v1.36.12, protoc-gen-connect-go v1.21.1 and tools/apidoc).
//
// How a program asks is shown by the package's examples.
//
// What a caller may rely on:
//   - Handlers and clients take and give plain messages. Nobody outside this
//     package needs Connect or the protobuf runtime: Timestamp and Time convert
//     times, Errorf makes an error that carries a code and what to do next, and
//     AsFailure reads it back on the other side.
//   - What is not known is absent, never zero.
//   - A mutating call carries an idempotency key, or names its failover, and again changes nothing. Serve
//     remembers the answers of the last onceKeys keys: a repeated call gets the first one's answer, and one
//     that comes while the first still runs waits for it. Errors are not remembered. Another
//     request with the key is refused. ServeKeeping keeps them in a file, over restarts.
//   - A field that is not known is refused in JSON, and in any request that changes something.
//   - Serve speaks HTTP/1.1 and HTTP/2 without TLS, protobuf or JSON, so that
//     `curl --unix-socket S --json '{}' http://vra/holdfast.v1.StatusService/Get` works.
//   - The socket is for the users handed to Serve, whatever the file's mode says:
//     the kernel tells who connects (SO_PEERCRED).
package api

//go:generate protoc -I . --go_out=. --go_opt=module=github.com/holdfast-dr/holdfast/control/api --connect-go_out=. --connect-go_opt=module=github.com/holdfast-dr/holdfast/control/api,simple holdfast/v1/checkpoints.proto holdfast/v1/error.proto holdfast/v1/groups.proto holdfast/v1/links.proto holdfast/v1/logs.proto holdfast/v1/recovery.proto holdfast/v1/shaping.proto holdfast/v1/status.proto holdfast/v1/stores.proto holdfast/v1/views.proto holdfast/v1/watch.proto
