package build

import (
	"context"
	"errors"
	"io"
	"regexp"
	"strings"
	"time"

	"berth.dev/services/builder/internal/remote"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/image"
)

// classic builds with the engine's classic builder, to which the whole context
// goes as a tar, every time.
func (j *job) classic() error {
	opt := j.parsed.Build
	opt.Version = build.BuilderV1
	opt.BuildID = j.req.ID
	j.dockerfile(&opt)
	j.started()
	var body io.Reader
	var packed chan error
	switch j.req.Context {
	case contextRemote:
		opt.RemoteContext = j.req.Remote
	case contextStdin:
		in := j.from.Stdin(j.ctx)
		defer in.Close()
		body = in
	case contextDirectory:
		r, w := io.Pipe()
		packed = make(chan error, 1)
		go func() {
			err := remote.Tar(j.ctx, j.from, j.list, w)
			_ = w.CloseWithError(err)
			packed <- err
		}()
		defer func() {
			_ = r.Close()
			<-packed
		}()
		body = r
	}
	if j.from != nil {
		opt.AuthConfigs = remote.Auths{Of: j.from.Hello.Auths}.Configs()
	}
	resp, err := j.api.ImageBuild(j.ctx, body, opt)
	if err != nil {
		return j.ofContext(err)
	}
	defer resp.Body.Close()
	c := classicAnswer{j: j}
	err = read(j.ctx, resp.Body, c.see)
	c.over(err)
	return j.ofContext(err)
}

// ofContext is err, or the end of the build's own context.
func (j *job) ofContext(err error) error {
	if err != nil && j.ctx.Err() != nil {
		return context.Cause(j.ctx)
	}
	return err
}

// dockerfile names the Dockerfile as the engine will find it.
func (j *job) dockerfile(opt *build.ImageBuildOptions) {
	switch {
	case len(j.list) > 0 && j.list[0].Outside:
		opt.Dockerfile = j.list[0].Path
	case j.req.Dockerfile != "":
		opt.Dockerfile = j.req.Dockerfile
	}
}

// classicAnswer makes steps of the lines that the classic builder writes.
type classicAnswer struct {
	j      *job
	key    string // of the step at work
	cached bool
	ran    bool // a container of the step's own runs or has run
}

var (
	stepLine  = regexp.MustCompile(`^Step (\d+/\d+) : (.*)$`)
	imageLine = regexp.MustCompile(`^ ---> ([0-9a-f]{12,64})$`)
)

func (c *classicAnswer) see(m message) {
	if id := imageID(m.Aux); id != "" {
		c.j.id = id
		return
	}
	if m.Status != "" && len(m.Progress) <= len("{}") { // of a base image that is being pulled
		c.j.tell.line(c.key, strings.TrimSpace(m.ID+" "+m.Status))
	}
	for l := range strings.Lines(m.Stream) {
		c.line(strings.TrimRight(l, "\r\n"))
	}
}

func (c *classicAnswer) line(l string) {
	if s := stepLine.FindStringSubmatch(l); s != nil {
		c.over(nil)
		c.key, c.cached, c.ran = s[1], false, false
		c.j.tell.begin(c.key, "["+s[1]+"] "+s[2])
		return
	}
	switch id := imageLine.FindStringSubmatch(l); {
	case l == " ---> Using cache":
		c.cached = true
	case strings.HasPrefix(l, " ---> Running in "):
		c.ran = true
	case strings.HasPrefix(l, "Removing intermediate container "), l == "":
	case id != nil:
		// The base image is no step's making, and has no tag of ours.
		if !c.cached && !strings.Contains(strings.ToUpper(c.name()), "] FROM ") {
			c.j.made = append(c.j.made, id[1])
		}
	default:
		c.j.tell.line(c.key, l)
	}
}

func (c *classicAnswer) name() string {
	c.j.tell.mu.Lock()
	defer c.j.tell.mu.Unlock()
	if s := c.j.tell.keys[c.key]; s != nil {
		return s.name
	}
	return ""
}

// over ends the step at work.
func (c *classicAnswer) over(err error) {
	if c.key == "" {
		return
	}
	failure := ""
	var b buildError
	switch {
	case errors.As(err, &b):
		failure = b.msg
	case err != nil:
		failure = err.Error()
	}
	c.j.tell.end(c.key, c.cached && err == nil, 0, failure)
	c.key = ""
}

// takeBackWithin bounds the removal of what a cancelled build made.
const takeBackWithin = 3 * time.Second

// takeBack removes the images that steps of a cancelled build made, newest
// first, and no parents: those were here before. One that somebody has tagged
// since stays. The engine may still be removing the container of the step that
// was at work, so it is asked again.
func (j *job) takeBack() {
	ctx, cancel := context.WithTimeout(context.Background(), takeBackWithin)
	defer cancel()
	for i := len(j.made) - 1; i >= 0; i-- {
		for err := j.takeBackOne(ctx, j.made[i]); err != nil; err = j.takeBackOne(ctx, j.made[i]) {
			select {
			case <-ctx.Done():
				j.tell.notice("the image %s stays: %v", j.made[i], err)
				return
			case <-time.After(30 * time.Millisecond):
			}
		}
	}
}

func (j *job) takeBackOne(ctx context.Context, id string) error {
	in, err := j.api.ImageInspect(ctx, id)
	if errdefs.IsNotFound(err) || err == nil && len(in.RepoTags)+len(in.RepoDigests) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = j.api.ImageRemove(ctx, in.ID, image.RemoveOptions{PruneChildren: false})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
