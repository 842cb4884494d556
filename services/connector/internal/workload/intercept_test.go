package workload

import (
	"fmt"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestIntercept(t *testing.T) {
	w := Workload{Kind: lease.Deployment, Name: "web", Containers: []corev1.Container{
		{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "dns", ContainerPort: 53, Protocol: "UDP"}, {Name: "dns-tcp", ContainerPort: 53}}},
		{Name: "metrics", Ports: []corev1.ContainerPort{{ContainerPort: 9100}}},
	}}
	twins := Workload{Kind: lease.Deployment, Name: "twins", Containers: []corev1.Container{
		{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}, {Name: "proxy", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 15001}}},
	}}
	meshed := Workload{Kind: lease.Deployment, Name: "meshed", Containers: []corev1.Container{{Name: "app"}},
		Sidecars: []corev1.Container{{Name: "proxy", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 15001}}}}}
	bare := Workload{Kind: lease.Deployment, Name: "bare", Containers: []corev1.Container{{Name: "app"}}}
	service := func(name string, ports ...corev1.ServicePort) corev1.Service {
		return corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: ports}}
	}
	str, num := intstr.FromString, intstr.FromInt32
	web := service("web", corev1.ServicePort{Name: "http", Port: 80, TargetPort: str("http")}, corev1.ServicePort{Name: "stats", Port: 9000, TargetPort: num(9100)})
	single := service("single", corev1.ServicePort{Port: 80, TargetPort: str("http")})
	headless := service("headless", corev1.ServicePort{Name: "http", Port: 8080}) // its target is its port
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	dns := service("dns", corev1.ServicePort{Name: "dns", Port: 53, Protocol: "UDP", TargetPort: str("dns")}, corev1.ServicePort{Name: "dns-tcp", Port: 53, TargetPort: str("dns-tcp")})
	other := service("other", corev1.ServicePort{Name: "http", Port: 80, TargetPort: num(9100)})
	dangling := service("dangling", corev1.ServicePort{Name: "x", Port: 81, TargetPort: str("gone")})
	undeclared := service("undeclared", corev1.ServicePort{Port: 80, TargetPort: num(7777)})

	for _, tc := range []struct {
		w         Workload
		services  []corev1.Service
		service   string
		container string
		given     string // comma-separated
		want      string // container handler:port/protocol(symbol) …
		err       string
	}{
		{w: w, services: []corev1.Service{web}, given: "3000:http", want: "app 3000:8080/TCP(http)"},
		{w: w, services: []corev1.Service{web}, given: "3000:80", want: "app 3000:8080/TCP(http)"},
		{w: w, services: []corev1.Service{web}, given: "3000:stats", want: "metrics 3000:9100/TCP()"},
		{w: w, services: []corev1.Service{web}, given: "80", want: "app 80:8080/TCP(http)"},
		{w: w, services: []corev1.Service{web}, given: "80,9000", want: "app 80:8080/TCP(http) 9000:9100/TCP()"},
		{w: w, services: []corev1.Service{web}, given: "3000:8080", want: "app 3000:8080/TCP()"}, // the container's number
		{w: w, services: []corev1.Service{web}, given: "3000:9100", container: "app", want: "app 3000:9100/TCP()"},
		{w: w, services: []corev1.Service{single}, given: "3000", want: "app 3000:8080/TCP(http)"}, // the only port
		{w: w, services: []corev1.Service{single, headless}, given: "3000", want: "app 3000:8080/TCP(http)"},
		{w: w, services: []corev1.Service{headless}, given: "3000:http", want: "app 3000:8080/TCP()"},
		{w: w, services: []corev1.Service{dns}, given: "5353:53/UDP", want: "app 5353:53/UDP(dns)"},
		{w: w, services: []corev1.Service{dns}, given: "5353:53", want: "app 5353:53/TCP(dns-tcp)"},
		{w: w, services: []corev1.Service{dns}, given: "5353:dns", want: "app 5353:53/UDP(dns)"},
		{w: w, services: []corev1.Service{dns}, given: "5353:53/udp,5353:53/tcp", want: "app 5353:53/UDP(dns) 5353:53/TCP(dns-tcp)"},
		{w: w, services: []corev1.Service{dns}, given: "5353/UDP", want: "app 5353:53/UDP(dns)"}, // the only one by UDP
		{w: w, services: []corev1.Service{web, other}, given: "3000:80", err: "ambiguous: port 80 of service web leads to 8080/TCP, port 80 of service other leads to 9100/TCP"},
		{w: w, services: []corev1.Service{web, other}, service: "other", given: "3000:80", want: "metrics 3000:9100/TCP()"},
		{w: w, services: []corev1.Service{web}, service: "nope", given: "3000:80", err: "no service nope selects the pods of Deployment/web; these do: web"},
		{w: w, services: []corev1.Service{web, dangling}, given: "3000:x", err: `leads to the port named "gone", which no container`},
		{w: w, services: []corev1.Service{web}, given: "3000:grpc", err: `a port named "grpc"; there are http (80/TCP) of service web, stats (9000/TCP) of service web`},
		{w: w, services: []corev1.Service{web}, given: "3000:81", err: "no service and no container has the port 81"},
		{w: w, services: []corev1.Service{web}, given: "3000:http,3001:80", err: "intercepted twice"},
		{w: w, services: []corev1.Service{web}, given: "http", err: "not a number"},
		{w: w, services: []corev1.Service{web}, given: "80/ICMP", err: "neither TCP nor UDP"},
		{w: w, services: []corev1.Service{web}, given: "", err: "no port is given; there are http (80/TCP) of service web"},
		{w: w, services: []corev1.Service{web}, container: "nope", given: "80", err: "has no container nope"},
		{w: w, services: []corev1.Service{service("both", corev1.ServicePort{Name: "udp", Port: 9100, Protocol: "UDP"})}, given: "1:udp", want: "metrics 1:9100/UDP()"}, // declared by TCP only
		{w: bare, given: "8080", want: "app 8080:8080/TCP()"},                                                                                                           // no service at all
		{w: bare, given: "3000:8080/UDP", want: "app 3000:8080/UDP()"},
		{w: bare, given: "3000:http", err: `named "http"; no service selects its pods; the container app declares no ports`},
		{w: bare, services: []corev1.Service{undeclared}, given: "3000", want: "app 3000:7777/TCP()"}, // a missing container port
		{w: w, services: []corev1.Service{undeclared}, given: "3000", err: "has 2 containers, name the one to engage"},
		{w: w, services: []corev1.Service{undeclared}, container: "app", given: "3000", want: "app 3000:7777/TCP()"},
		// Of two containers that have a port of one name a Service leads to the first's.
		{w: twins, services: []corev1.Service{single}, given: "3000", want: "app 3000:8080/TCP(http)"},
		{w: twins, services: []corev1.Service{single}, container: "proxy", given: "3000", want: "proxy 3000:8080/TCP(http)"},
		{w: meshed, services: []corev1.Service{single}, given: "3000", want: "app 3000:15001/TCP(http)"},
	} {
		var given []string
		if tc.given != "" {
			given = strings.Split(tc.given, ",")
		}
		c, ports, err := tc.w.Intercept(tc.container, given, tc.services, tc.service)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || fault.From(err).Code == fault.Internal {
				t.Errorf("%q: %v, want %q", tc.given, err, tc.err)
			}
			continue
		}
		got := c.Name
		for _, p := range ports {
			got += fmt.Sprintf(" %d:%d/%s(%s)", p.Handler, p.Container, p.Protocol, p.Name)
		}
		if err != nil || got != tc.want {
			t.Errorf("%q of %s: %s, %v; want %s", tc.given, tc.w.Name, got, err, tc.want)
		}
	}
}
