// Package identity is who this installation is: the key by which clients and
// agents know the manager, and the ConfigMap in which it is published.
//
// The key is made once and kept in a Secret, so that a restarted manager is the
// same one to everybody who has pinned it.
package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"

	"berth.dev/lease"
	"berth.dev/tunnel"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// KeySecret holds the tunnel key under keyField.
const (
	KeySecret = "berth-manager-key"
	keyField  = "key.pem"
)

// Labels are on every object that the manager creates.
func Labels() map[string]string {
	return map[string]string{
		"app.kubernetes.io/name":       "berth-manager",
		"app.kubernetes.io/part-of":    "berth",
		"app.kubernetes.io/managed-by": "berth",
	}
}

// Load returns the installation's key, which it makes if there is none.
func Load(ctx context.Context, c kubernetes.Interface, namespace string) (*tunnel.Identity, error) {
	data, err := Secret(ctx, c, namespace, KeySecret, func() (map[string][]byte, error) {
		id, err := tunnel.NewIdentity()
		if err != nil {
			return nil, err
		}
		pem, err := id.MarshalPEM()
		return map[string][]byte{keyField: pem}, err
	})
	if err != nil {
		return nil, err
	}
	return tunnel.ParseIdentity(data[keyField])
}

// Secret returns the content of a Secret, which it creates with what make
// returns if there is none. Of two that create it at once one wins, and both
// return the winner's.
func Secret(ctx context.Context, c kubernetes.Interface, namespace, name string, make func() (map[string][]byte, error)) (map[string][]byte, error) {
	for {
		s, err := c.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return s.Data, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read secret %s: %w", name, err)
		}
		data, err := make()
		if err != nil {
			return nil, err
		}
		_, err = c.CoreV1().Secrets(namespace).Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: Labels()}, Data: data,
		}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create secret %s: %w", name, err)
		}
	}
}

// InstallationID is the UID of the manager's namespace.
func InstallationID(ctx context.Context, c kubernetes.Interface, namespace string) (string, error) {
	ns, err := c.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read own namespace: %w", err)
	}
	return string(ns.UID), nil
}

// Publish writes info into the ConfigMap if it says something else.
func Publish(ctx context.Context, c kubernetes.Interface, namespace string, info lease.Info) error {
	body, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal info: %w", err)
	}
	want := map[string]string{lease.InfoKey: string(body)}
	maps := c.CoreV1().ConfigMaps(namespace)
	cm, err := maps.Get(ctx, lease.InfoConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: lease.InfoConfigMap, Labels: Labels()}, Data: want}, metav1.CreateOptions{})
	case err == nil && !reflect.DeepEqual(cm.Data, want):
		cm.Data = want
		_, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", lease.InfoConfigMap, err)
	}
	return nil
}
