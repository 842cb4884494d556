package service

import (
	"context"
	"strings"
	"sync"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/deploy/manifests"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/connections"
	"berth.dev/services/connector/internal/install"
)

// installations runs the installs and uninstalls, one after another: two at once
// on one cluster would undo each other.
type installations struct {
	o      Options
	life   context.Context
	cancel context.CancelFunc
	turn   chan struct{}
	wg     sync.WaitGroup

	mu   sync.Mutex
	seen map[string]bool // ids, so that a command sent again is recognised
}

func newInstallations(o Options) *installations {
	i := &installations{o: o, turn: make(chan struct{}, 1), seen: map[string]bool{}}
	i.life, i.cancel = context.WithCancel(context.Background())
	return i
}

// stop cancels what runs and waits until its terminal fact is stated.
func (i *installations) stop() {
	i.cancel()
	i.wg.Wait()
}

func (i *installations) install(_ context.Context, req command.InstallCluster) (command.Accepted, error) {
	return i.begin(req, func(ctx context.Context, in *install.Installer) (event.Data, error) {
		image := req.Image
		if image == "" {
			image = i.o.Image
		}
		done, err := in.Install(ctx, manifests.Options{Namespace: req.Namespace, Image: image, Version: i.o.Version, Direct: req.Direct, ExcludeEnv: strings.Join(req.ExcludeEnv, ",")}, image != i.o.Image)
		return done, err
	})
}

func (i *installations) uninstall(_ context.Context, req command.InstallCluster) (command.Accepted, error) {
	return i.begin(req, func(ctx context.Context, in *install.Installer) (event.Data, error) {
		return event.Uninstalled{Namespace: req.Namespace}, in.Uninstall(ctx, req.Namespace, i.o.Version)
	})
}

// begin accepts the command and does it beside; facts tell the rest.
func (i *installations) begin(req command.InstallCluster, do func(context.Context, *install.Installer) (event.Data, error)) (command.Accepted, error) {
	if err := idFault("installation", req.ID); err != nil {
		return command.Accepted{}, err
	}
	if req.Namespace == "" {
		req.Namespace = lease.DefaultNamespace
	}
	c, err := i.o.Open(req.Kubeconfig, "")
	if err != nil {
		return command.Accepted{}, err
	}
	i.mu.Lock()
	already := i.seen[req.ID]
	i.seen[req.ID] = true
	i.mu.Unlock()
	if already {
		return command.Accepted{ID: req.ID, Already: true}, nil
	}
	log := i.o.Log.With("installation", req.ID)
	say := func(d event.Data) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := i.o.Bus.State(ctx, req.ID, d); err != nil {
			log.Error("a fact could not be stated", "fact", event.TypeOf(d), "err", err)
		}
	}
	i.wg.Go(func() {
		last, err := func() (event.Data, error) {
			select {
			case i.turn <- struct{}{}:
				defer func() { <-i.turn }()
			case <-i.life.Done():
				return nil, i.life.Err()
			}
			if err := connections.JoinNetworks(i.life, i.o.Bus, req.Networks); err != nil {
				return nil, fault.At(string(event.StageAPIServer), err)
			}
			if _, err := c.Reach(i.life, 5*time.Second); err != nil {
				return nil, fault.At(string(event.StageAPIServer), err)
			}
			in, err := install.New(c, say)
			if err != nil {
				return nil, err
			}
			return do(i.life, in)
		}()
		switch {
		case err == nil:
			say(last)
		case i.life.Err() != nil:
			say(event.InstallationFailed{Error: *fault.New(fault.Unavailable, "ctl install", "connector was told to end meanwhile; the command can be repeated")})
		default:
			log.Warn("the installation failed", "err", err)
			say(event.InstallationFailed{Error: *fault.From(err)})
		}
	})
	return command.Accepted{ID: req.ID}, nil
}
