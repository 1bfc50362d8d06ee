package nbd

// MaxName is the longest export name or description, in bytes, as in the protocol.
const MaxName = 4096
