package wire

type frameType uint8
type encoder struct{}

func (*OpenStream) kind() frameType  { return 0 }
func (*Stand) kind() frameType       { return 0 }
func (*Refused) kind() frameType     { return 0 }
func (*CloseStream) kind() frameType { return 0 }
func (*Durable) kind() frameType     { return 0 }
func (*Listed) kind() frameType      { return 0 }

func (*OpenStream) check() error  { return nil }
func (*Stand) check() error       { return nil }
func (*Refused) check() error     { return nil }
func (*CloseStream) check() error { return nil }
func (*Durable) check() error     { return nil }
func (*Listed) check() error      { return nil }

func (*OpenStream) encode(*encoder)  {}
func (*Stand) encode(*encoder)       {}
func (*Refused) encode(*encoder)     {}
func (*CloseStream) encode(*encoder) {}
func (*Durable) encode(*encoder)     {}
func (*Listed) encode(*encoder)      {}
