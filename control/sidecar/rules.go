package sidecar

import (
	"slices"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Port is one of the places where the sidecar listens.
type Port uint8

// The ports. On Local, the unix socket, everything is offered.
const (
	Commands Port = 1 << iota
	Checkpoints
	Logs
	Local

	everywhere = Commands | Checkpoints | Logs
)

func (p Port) String() string {
	switch p {
	case Commands:
		return "commands"
	case Checkpoints:
		return "checkpoints"
	case Logs:
		return "logs"
	}
	return "local"
}

// rule says who may call something, where, and whether it changes anything.
type rule struct {
	ports   Port
	roles   []string
	changes bool
}

// Who may do what: look; work with what is there; change how things are kept and sent.
var (
	look = []string{api.RoleManager, api.RoleAdmin, api.RoleOperator, api.RoleMonitor}
	work = []string{api.RoleManager, api.RoleAdmin, api.RoleOperator}
	own  = []string{api.RoleManager, api.RoleAdmin}
)

// rules is all there is, by the path of its requests.
var rules = map[string]rule{
	"/holdfast.v1.StatusService/Get":   {Commands, look, false},
	"/holdfast.v1.StatusService/About": {everywhere, look, false},
	"/holdfast.v1.WatchService/Watch":  {Commands, look, false},

	"/holdfast.v1.CheckpointsService/List":    {Checkpoints, look, false},
	"/holdfast.v1.CheckpointsService/Get":     {Checkpoints, look, false},
	"/holdfast.v1.CheckpointsService/Create":  {Checkpoints, work, true},
	"/holdfast.v1.CheckpointsService/LeadCut": {Checkpoints, work, true},
	"/holdfast.v1.CheckpointsService/Tag":     {Checkpoints, work, true},
	"/holdfast.v1.CheckpointsService/Pin":     {Checkpoints, work, true},
	// To let a checkpoint go is to shorten history.
	"/holdfast.v1.CheckpointsService/Unpin": {Checkpoints, own, true},

	"/holdfast.v1.ViewsService/List":  {Commands, look, false},
	"/holdfast.v1.ViewsService/Open":  {Commands, work, true},
	"/holdfast.v1.ViewsService/Close": {Commands, work, true},

	"/holdfast.v1.GroupsService/GetRetention": {Commands, look, false},
	"/holdfast.v1.GroupsService/SetRetention": {Commands, own, true},
	"/holdfast.v1.GroupsService/Verify":       {Commands, work, true},
	"/holdfast.v1.GroupsService/GetMembers":   {Commands, look, false},
	"/holdfast.v1.GroupsService/Pause":        {Commands, work, true},
	"/holdfast.v1.GroupsService/Resume":       {Commands, work, true},
	"/holdfast.v1.GroupsService/Sync":         {Commands, work, true},
	"/holdfast.v1.GroupsService/Adopt":        {Commands, own, true},
	"/holdfast.v1.GroupsService/AddVolume":    {Commands, own, true},
	"/holdfast.v1.GroupsService/RemoveVolume": {Commands, own, true},
	"/holdfast.v1.GroupsService/Unprotect":    {Commands, own, true},
	"/holdfast.v1.GroupsService/Remove":       {Commands, own, true},

	// They name the failover, and again they change nothing: they need no other key.
	"/holdfast.v1.RecoveryService/Get":      {Commands, look, false},
	"/holdfast.v1.RecoveryService/Begin":    {Commands, own, true},
	"/holdfast.v1.RecoveryService/Commit":   {Commands, own, true},
	"/holdfast.v1.RecoveryService/Rollback": {Commands, own, true},
	"/holdfast.v1.RecoveryService/Adopt":    {Commands, own, true},
	"/holdfast.v1.RecoveryService/HandOver": {Commands, own, true},
	"/holdfast.v1.RecoveryService/MoveOn":   {Commands, own, true},
	"/holdfast.v1.RecoveryService/LetGo":    {Commands, own, true},

	"/holdfast.v1.ShapingService/Get": {Commands, look, false},
	"/holdfast.v1.ShapingService/Set": {Commands, own, true},

	"/holdfast.v1.StoresService/List":   {Commands, look, false},
	"/holdfast.v1.StoresService/Add":    {Commands, own, true},
	"/holdfast.v1.StoresService/Retire": {Commands, own, true},

	// It changes nothing, but takes a share of the link.
	"/holdfast.v1.LinksService/Test": {Commands, work, false},

	"/holdfast.v1.LogsService/List":   {Logs, work, false},
	"/holdfast.v1.LogsService/Read":   {Logs, work, false},
	"/holdfast.v1.LogsService/Bundle": {Logs, own, false},

	"/grpc.health.v1.Health/Check": {everywhere, look, false},
	"/grpc.health.v1.Health/Watch": {everywhere, look, false},

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {everywhere, look, false},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {everywhere, look, false},

	"/metrics": {Commands, look, false},
}

// offered says whether something can be asked at a port at all.
func offered(path string, at Port) (rule, bool) {
	r, ok := rules[path]
	if !ok || at != Local && r.ports&at == 0 && !invariant.Planted("control/sidecar/any-port") {
		return rule{}, false
	}
	return r, true
}

// allows says whether a role may ask it.
func (r rule) allows(role string) bool {
	return slices.Contains(r.roles, role) || invariant.Planted("control/sidecar/any-role")
}

// rolesAt are all that have anything to ask for at a port: who has none is refused before it can ask.
func rolesAt(at Port) (roles []string) {
	for _, r := range rules {
		if r.ports&at == 0 {
			continue
		}
		for _, role := range r.roles {
			if !slices.Contains(roles, role) {
				roles = append(roles, role)
			}
		}
	}
	return roles
}
