package apidial

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"berth.dev/tunnel"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// errNoAnswer is the cause when an attempt is given up for the next.
var errNoAnswer = fmt.Errorf("no answer within %v", attemptTimeout)

// PermissionError says which permission the credentials lack. It wraps the API
// server's answer.
type PermissionError struct {
	Verb      string // "get", "list" or "create"
	Resource  string // "pods", "pods/proxy" or "pods/portforward"
	Namespace string
	Err       error
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("not allowed to %s %s in namespace %s: %v", e.Verb, e.Resource, e.Namespace, e.Err)
}

func (e *PermissionError) Unwrap() error { return e.Err }

// forbidden makes a PermissionError of err if it is about permission.
func forbidden(err error, verb, resource, namespace string) error {
	if apierrors.IsForbidden(err) {
		return &PermissionError{Verb: verb, Resource: resource, Namespace: namespace, Err: err}
	}
	return err
}

// statusError turns an answer other than 101 into the API server's error, or
// an *tunnel.UpgradeError when it has none.
func statusError(status int, body []byte) error {
	var s metav1.Status
	if json.Unmarshal(body, &s) == nil && s.Kind == "Status" && s.Status == metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: s}
	}
	if status == http.StatusForbidden {
		return apierrors.NewForbidden(metav1.SchemeGroupVersion.WithResource("pods").GroupResource(), "", &tunnel.UpgradeError{Status: status, Body: body})
	}
	return &tunnel.UpgradeError{Status: status, Body: body}
}

// isDefinite says that an attempt failed by a decision, or by a silence long
// enough for one, and not by an accident that may be over next time.
func isDefinite(err error) bool {
	var permission *PermissionError
	var upgrade *tunnel.UpgradeError
	var status apierrors.APIStatus
	var refused *refusedUpgrade
	return errors.As(err, &permission) || errors.As(err, &upgrade) || errors.As(err, &status) ||
		errors.As(err, &refused) || errors.Is(err, errNoAnswer)
}
