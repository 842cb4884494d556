package engagement

import (
	"strconv"
	"time"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// podsIn are the namespace's pods as the informer has them, or newer where our
// own last write of a pod is newer: the next plan must not be made from what
// the last one has already changed.
func (v *View) podsIn(namespace string) []*corev1.Pod {
	list, err := v.pods.Pods(namespace).List(labels.Everything())
	if err != nil {
		return nil
	}
	v.overlayMu.Lock()
	defer v.overlayMu.Unlock()
	out := make([]*corev1.Pod, 0, len(list))
	for _, p := range list {
		if o := v.overlay[string(p.UID)]; o != nil {
			if newer(o.ResourceVersion, p.ResourceVersion) {
				p = o
			} else {
				delete(v.overlay, string(p.UID))
			}
		}
		out = append(out, p)
	}
	return out
}

// newer compares resource versions, which are numbers (KEP-5504 makes it a
// promise; etcd's revisions always were).
func newer(a, b string) bool {
	x, errA := strconv.ParseUint(a, 10, 64)
	y, errB := strconv.ParseUint(b, 10, 64)
	return errA == nil && errB == nil && x > y
}

func (v *View) wrote(p *corev1.Pod) {
	v.overlayMu.Lock()
	defer v.overlayMu.Unlock()
	v.overlay[string(p.UID)] = p
}

// deleted remembers that we asked for the pod's deletion. Its resource version
// is the one that was deleted, so any later event replaces it.
func (v *View) deleted(p *corev1.Pod) {
	c := p.DeepCopy()
	now := metav1.NewTime(time.Now())
	c.DeletionTimestamp = &now
	if n, err := strconv.ParseUint(c.ResourceVersion, 10, 64); err == nil {
		c.ResourceVersion = strconv.FormatUint(n+1, 10)
	}
	v.wrote(c)
}

func (v *View) wroteStatus(uid string, s lease.EngagementStatus) {
	v.overlayMu.Lock()
	defer v.overlayMu.Unlock()
	v.statuses[uid] = s
}

// forget drops what is remembered of a pod or Lease that is gone.
func (v *View) forget(uid string) {
	v.tracker.Forget(uid)
	v.overlayMu.Lock()
	defer v.overlayMu.Unlock()
	delete(v.overlay, uid)
	delete(v.statuses, uid)
}
