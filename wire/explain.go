package wire

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// FrameHeaderBytes is the size of the header of every frame.
const FrameHeaderBytes = frameBytes

// FrameRecord, FrameOrdered and FrameChunk are the names of the frames that a tape may
// hold in part. Before the record of an Ordered stand OrderedBytes.
const (
	FrameRecord  = "Record"
	FrameOrdered = "Ordered"
	FrameChunk   = "Chunk"

	OrderedBytes = orderedBytes
)

var frameNames = map[frameType]string{
	typeHello: "Hello", typeWelcome: "Welcome", typeJoin: "Join", typeJoined: "Joined", typeBye: "Bye", typeHeartbeat: "Heartbeat",
	typeRecord: FrameRecord, typeOpenStream: "OpenStream", typeStand: "Stand", typeRefused: "Refused", typeCloseStream: "CloseStream",
	typeDurable: "Durable", typeListed: "Listed", typeLacking: "Lacking", typeEverywhere: "Everywhere", typeTest: "Test",
	typeOrdered: FrameOrdered, typeAttach: "Attach", typeTaken: "Taken", typeGone: "Gone",
	typeCompare: "Compare", typeSums: "Sums", typeFenced: "Fenced",
	typeMeet: "Meet", typeMet: "Met", typeCutWord: "CutWord", typeCutBeat: "CutBeat",
	typePing: "Ping", typePong: "Pong", typePush: "Push", typePull: "Pull", typeMeasured: "Measured", typeChunk: FrameChunk, typeEnd: "End",
}

// FrameNames are the names of all frames, as PROTOCOL.md has them.
func FrameNames() (names []string) {
	for t := range 256 {
		if name := frameNames[frameType(t)]; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// FrameHeader checks the header of a frame, of FrameHeaderBytes, and tells the frame's
// name and the length of its body. Errors are of ErrProtocol.
func FrameHeader(p []byte) (name string, bytes int, err error) {
	t, n, err := parseFrame(p)
	if err != nil {
		return "", 0, err
	}
	return frameNames[t], n, nil
}

// Explained is what a frame says, for people.
type Explained struct {
	Stream record.StreamID // 0: it is about none
	Group  record.GroupID  // as well
	Seq    record.Seq      // as well; of OpenStream and Stand where that end stands
	Text   string          // the rest, in words
}

// Explain takes a whole frame apart that is neither a Record, an Ordered nor a Chunk. Nothing of p is
// kept. What only the other end may know, as tokens, is not told. Errors are of ErrProtocol.
func Explain(p []byte) (e Explained, err error) {
	if len(p) < frameBytes {
		return e, badFrame(BadHeader, "%d bytes", len(p))
	}
	t, n, err := parseFrame(p[:frameBytes])
	if err != nil {
		return e, err
	}
	body := p[frameBytes:]
	if n != len(body) {
		return e, badFrame(BadLength, "%d bytes in a frame of %d", len(body), n)
	}
	switch t {
	case typeCutWord:
		w, err := parseCutWord(body)
		return Explained{Group: w.Group, Text: fmt.Sprintf("%v checkpoint %d of leader %s, term %d %s", w.Kind, w.ID.Number, w.ID.Leader, w.ID.Term, w.Why)}, err
	case typeHello, typeMeet, typeMet:
		h, err := parseHello(body)
		return Explained{Text: fmt.Sprintf("speaks versions %v", h.speaks)}, err
	case typeWelcome:
		w, err := parseWelcome(body)
		e.Text = fmt.Sprintf("version %d; speaks %v", w.version, w.speaks)
		if w.version == 0 {
			e.Text = fmt.Sprintf("no version in common; speaks %v", w.speaks)
		}
		return e, err
	case typeJoin, typeTest:
		if n != tokenBytes {
			return e, badFrame(BadBody, "a token of %d bytes", n)
		}
		return e, nil
	case typeJoined, typeEnd, typeCutBeat, typeChunk, typeRecord, typeOrdered:
		return e, nil
	case typeAttach:
		a, err := parseAttach(body)
		return Explained{Text: fmt.Sprint("number ", a.number)}, err
	case typeGone:
		number, err := parseGone(body)
		return Explained{Text: fmt.Sprint("number ", number)}, err
	case typeTaken:
		r, err := parseTaken(body)
		for i, l := range r.lines {
			if i > 0 {
				e.Text += "; "
			}
			e.Text += fmt.Sprintf("%d: taken %d, held up %v", l.number, l.taken, time.Duration(l.held))
			if l.busy {
				e.Text += ", busy"
			}
		}
		return e, err
	case typeBye:
		b, err := parseBye(body)
		return Explained{Text: fmt.Sprintf("%v: %s", b.code, b.text)}, err
	case typeHeartbeat:
		h, err := parseHeartbeat(body)
		e.Text = fmt.Sprintf("clock %v, taken %d", time.Duration(h.sent), h.taken)
		if h.echo > 0 {
			e.Text += fmt.Sprintf(", answers %v after %v", time.Duration(h.echo), time.Duration(h.held))
		}
		if h.busy {
			e.Text += ", busy"
		}
		return e, err
	case typePing, typePong, typePush, typePull, typeMeasured:
		return explainTest(t, body)
	}
	m, err := decodeMessage(t, body)
	if err != nil {
		return e, err
	}
	return explainMessage(m), nil
}

func explainTest(t frameType, body []byte) (e Explained, err error) {
	switch t {
	case typePing:
		p, err := parsePing(body)
		return Explained{Text: fmt.Sprint("number ", p.number)}, err
	case typePong:
		p, err := parsePong(body)
		return Explained{Text: fmt.Sprintf("number %d, clock there %s", p.number, time.Unix(0, p.wall).UTC().Format(time.RFC3339Nano))}, err
	case typePush, typePull:
		k, err := parseBulk(body)
		return Explained{Text: fmt.Sprintf("%v, %d bytes, %d bit/s", k.lasts, k.bytes, k.rate)}, err
	}
	m, err := parseMeasured(body)
	e.Text = fmt.Sprintf("%d bytes in %v", m.bytes, m.took)
	if m.last {
		e.Text += fmt.Sprintf(", the last; %d segments, %d sent again, round trip %v, mss %d, path MTU %d",
			m.tcp.Segments, m.tcp.Retransmitted, m.tcp.RTT, m.tcp.MSS, m.tcp.PathMTU)
	}
	return e, err
}

func explainMessage(m Message) Explained {
	switch m := m.(type) {
	case *OpenStream:
		e := Explained{m.Stream, m.Group, m.Acked, fmt.Sprintf("group %s, lineage %x, epoch %d, incarnation %d, volumes", m.GroupName, m.Lineage, m.Epoch, m.Incarnation)}
		for i, v := range m.Volumes {
			if i == 8 {
				e.Text += fmt.Sprintf(" and %d more", len(m.Volumes)-i)
				break
			}
			e.Text += fmt.Sprintf(" %d=%s(%d bytes)", v.ID, v.Name, v.Bytes)
		}
		return e
	case *Stand:
		e := Explained{m.Stream, 0, m.Durable, fmt.Sprintf("epoch %d, incarnation %d", m.Epoch, m.Incarnation)}
		if m.NeedOpen {
			e.Text += ", a resync must open next"
		}
		return e
	case *Refused:
		return Explained{Stream: m.Stream, Text: fmt.Sprintf("%v: %s", m.Code, m.Text)}
	case *Fenced:
		return Explained{Stream: m.Stream, Text: fmt.Sprintf("epoch %d, granted %v: %s", m.Epoch, m.Granted, m.Text)}
	case *CloseStream:
		return Explained{Stream: m.Stream}
	case *Durable:
		return Explained{Stream: m.Stream, Seq: m.Seq}
	case *Listed:
		return Explained{Group: m.Group, Text: fmt.Sprintf("checkpoint %d of %s %q", m.Checkpoint, time.Unix(0, m.Wall).UTC().Format(time.RFC3339Nano), m.Tag)}
	case *Everywhere:
		return Explained{Group: m.Group, Text: fmt.Sprintf("checkpoint %d", m.Checkpoint)}
	case *Compare:
		return Explained{Stream: m.Stream, Seq: m.After, Text: fmt.Sprintf("volume %d, %d of %s %d", m.Volume, m.Count, m.Level, m.First)}
	case *Sums:
		return Explained{Stream: m.Stream, Seq: m.After, Text: fmt.Sprintf("volume %d, %d of %s %d", m.Volume, m.Count, m.Level, m.First)}
	case *Lacking:
		l := m.Places[0]
		return Explained{Group: m.Group, Text: fmt.Sprintf("%d places, the first: volume %d, %d bytes at %d", len(m.Places), l.Volume, l.Len, l.Off)}
	}
	panic(fmt.Sprintf("BUG: a message nobody explains: %T", m))
}
