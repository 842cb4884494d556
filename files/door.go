package files

// What a volume plugin and the door of a connection (vif) say to each other
// beside the streams themselves, as calls over the tunnel between them.

// MethodToken asks for the token of an engagement: TokenRequest -> TokenAnswer.
const MethodToken = "volume.token"

// TokenRequest names an engagement by id.
type TokenRequest struct {
	Engagement string `json:"engagement"`
}

// TokenAnswer is a secret: never logged, never in a file.
type TokenAnswer struct {
	Token string `json:"token"`
}

// MethodLost says that what was mounted for an engagement is lost, for good, for
// whoever uses it: LostRequest -> LostAnswer, when it has been passed on.
const MethodLost = "volume.lost"

// LostRequest names an engagement by id.
type LostRequest struct {
	Engagement string `json:"engagement"`
	Cause      string `json:"cause"` // what the volume plugin did or suffered: was killed, …
}

// LostAnswer is empty.
type LostAnswer struct{}

// RoleVolumes is the role in the hello of a volume plugin.
const RoleVolumes = "telemount"
