package wire

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A frame is a header and a body:
//
//	0 magic u32   4 type u8   5 zero u24   8 length u32, of the body   12 CRC32C u32, of bytes 0 to 11
const (
	atFrameMagic  = 0
	atFrameType   = 4
	atFrameZero   = 5
	atFrameLength = 8
	atFrameCRC    = 12
	frameBytes    = 16

	frameMagic = 0x31574648 // "HFW1": the frame itself; what may be in it, Hello and Welcome settle
)

var _ [frameBytes]byte = [atFrameCRC + 4]byte{}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameType says what a frame's body is.
type frameType uint8

// The types. Numbers are never given out twice.
const (
	typeHello       frameType = 1
	typeWelcome     frameType = 2
	typeJoin        frameType = 3
	typeJoined      frameType = 4
	typeBye         frameType = 5
	typeHeartbeat   frameType = 6
	typeRecord      frameType = 16
	typeOrdered     frameType = 17
	typeOpenStream  frameType = 32
	typeStand       frameType = 33
	typeRefused     frameType = 34
	typeCloseStream frameType = 35
	typeDurable     frameType = 36
	typeListed      frameType = 37
	typeLacking     frameType = 38
	typeEverywhere  frameType = 39
	typeTaken       frameType = 40
	typeGone        frameType = 41
	typeCompare     frameType = 42
	typeSums        frameType = 43
	typeFenced      frameType = 44

	// First on a further data connection.
	typeAttach frameType = 8

	// Between source VRAs that share groups.
	typeMeet    frameType = 9
	typeMet     frameType = 10
	typeCutWord frameType = 64
	typeCutBeat frameType = 65

	// Of link tests only.
	typeTest     frameType = 7
	typePing     frameType = 48
	typePong     frameType = 49
	typePush     frameType = 50
	typePull     frameType = 51
	typeMeasured frameType = 52
	typeChunk    frameType = 53
	typeEnd      frameType = 54
)

// bodyLimit is the longest body of a type, -1 for an unknown type.
func bodyLimit(t frameType) int {
	switch t {
	case typeHello, typeMeet, typeMet:
		return helloBytes
	case typeCutWord:
		return maxCutWord
	case typeCutBeat:
		return 0
	case typeWelcome:
		return welcomeBytes
	case typeJoin:
		return tokenBytes
	case typeJoined:
		return 0
	case typeBye, typeRefused, typeFenced:
		return 64 + MaxText
	case typeHeartbeat:
		return heartbeatBytes
	case typeRecord:
		return record.MaxRecordBytes
	case typeOrdered:
		return orderedBytes + record.MaxRecordBytes
	case typeTaken:
		return 1 + maxLines*takenLineBytes
	case typeGone:
		return 4
	case typeAttach:
		return attachBytes
	case typeOpenStream:
		return 128 + MaxVolumes*(volumeFixedBytes+MaxName)
	case typeStand, typeCloseStream, typeDurable, typeEverywhere:
		return 64
	case typeListed:
		return 64 + MaxTag
	case typeLacking:
		return 64 + MaxLacks*lackBytes
	case typeCompare:
		return compareBytes
	case typeSums:
		return compareBytes + maxSums
	case typeTest:
		return tokenBytes
	case typePing:
		return pingBytes
	case typePong:
		return pongBytes
	case typePush, typePull:
		return bulkBytes
	case typeMeasured:
		return measuredBytes
	case typeChunk:
		return testChunk
	case typeEnd:
		return 0
	}
	return -1
}

// putFrame fills in the header of a frame whose body has n bytes.
func putFrame(p []byte, t frameType, n int) {
	_ = p[frameBytes-1]
	clear(p[:frameBytes])
	binary.LittleEndian.PutUint32(p[atFrameMagic:], frameMagic)
	p[atFrameType] = byte(t)
	binary.LittleEndian.PutUint32(p[atFrameLength:], uint32(n))
	binary.LittleEndian.PutUint32(p[atFrameCRC:], crc32.Checksum(p[:atFrameCRC], castagnoli))
}

// appendFrame appends a whole frame whose body is what body appends.
func appendFrame(dst []byte, t frameType, body func([]byte) []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, frameBytes)...)
	if body != nil {
		dst = body(dst)
	}
	putFrame(dst[at:], t, len(dst)-at-frameBytes)
	return dst
}

// parseFrame checks a frame's header, of frameBytes, and returns its type and the
// length of its body, which is within the type's limit.
func parseFrame(p []byte) (frameType, int, error) {
	if binary.LittleEndian.Uint32(p[atFrameMagic:]) != frameMagic {
		return 0, 0, badFrame(BadHeader, "no magic")
	}
	if binary.LittleEndian.Uint32(p[atFrameCRC:]) != crc32.Checksum(p[:atFrameCRC], castagnoli) {
		return 0, 0, badFrame(BadHeader, "header checksum")
	}
	if p[atFrameZero] != 0 || p[atFrameZero+1] != 0 || p[atFrameZero+2] != 0 {
		return 0, 0, badFrame(BadHeader, "reserved bytes are not zero")
	}
	t := frameType(p[atFrameType])
	limit, n := bodyLimit(t), binary.LittleEndian.Uint32(p[atFrameLength:])
	if limit < 0 {
		return 0, 0, badFrame(BadType, "unknown type %d", t)
	}
	if int64(n) > int64(limit) && !invariant.Planted("wire/no-length-cap") {
		return 0, 0, badFrame(BadLength, "%d bytes of type %d, at most %d", n, t, limit)
	}
	return t, int(n), nil
}
