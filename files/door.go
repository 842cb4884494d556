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

// RoleVolumes is the role in the hello of a volume plugin.
const RoleVolumes = "telemount"
