package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
)

func TestBuild(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		r := &rig{t, r.conn, r.cfg}
		tag := "berth-builder-test:" + newID("t")
		dir := r.dir(map[string]string{
			"sub/My.Dockerfile": "FROM scratch AS one\nARG WHO\nLABEL who=$WHO\nCOPY a /a\nFROM scratch AS two\nCOPY a /b\n",
			"a":                 builder,
		})
		if err := os.Symlink("/etc/passwd", filepath.Join(dir, "out")); err != nil {
			t.Fatal(err)
		}
		b := &order{rig: r, dir: dir, builder: builder, key: dir,
			options: []string{"tag=" + tag, "build-arg=WHO=me", "target=one", "label=l=v", "file=sub/My.Dockerfile"}}
		f, in := b.ok()
		if f.Builder != builder || !slices.Equal(f.Tags, []string{tag}) || len(f.Phases) != 3 || in.ID != f.ImageID {
			t.Errorf("%+v, image %s", f, in.ID)
		}
		if in.Config.Labels["who"] != "me" || in.Config.Labels["l"] != "v" || !slices.Contains(in.RepoTags, tag) {
			t.Errorf("labels %v, tags %v", in.Config.Labels, in.RepoTags)
		}
		if body, _, err := content(t, f.ImageID, "/a"); body != builder || err != nil {
			t.Errorf("/a is %q, %v", body, err)
		}
		if _, _, err := content(t, f.ImageID, "/b"); err == nil {
			t.Error("the other stage was built")
		}
		for _, want := range []string{"COPY a /a", "DONE"} {
			if !strings.Contains(b.plain.String(), want) {
				t.Errorf("no %q in\n%s", want, b.plain.String())
			}
		}
		var types []string
		for _, e := range b.facts() {
			types = append(types, strings.TrimPrefix(e.Type, "dev.berth.build.builder."))
		}
		if types[0] != "started.v1" || !slices.Contains(types, "step.v1") {
			t.Errorf("facts: %q", types)
		}
		// The output is on the bus as well.
		tail, err := r.conn.TailBuildOutput(t.Context(), b.id)
		if err != nil {
			t.Fatal(err)
		}
		defer tail.Stop()
		var out strings.Builder
		for {
			p, err := tail.Next(t.Context())
			if err != nil {
				break
			}
			out.Write(p.Data)
		}
		if out.String() != b.plain.String() {
			t.Errorf("on the bus\n%s\nto the caller\n%s", out.String(), b.plain.String())
		}
	})
}

func TestSymlinkOutStaysALink(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		r := &rig{t, r.conn, r.cfg}
		dir := r.dir(map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/x": "x"})
		if err := os.Symlink("/etc/passwd", filepath.Join(dir, "d/out")); err != nil {
			t.Fatal(err)
		}
		f, _ := (&order{rig: r, dir: dir, builder: builder}).ok()
		if body, link, err := content(t, f.ImageID, "/d/out"); link != "/etc/passwd" || body != "" || err != nil {
			t.Errorf("%q -> %q, %v", body, link, err)
		}
		// And what it points to cannot be copied.
		bad := r.dir(map[string]string{"Dockerfile": "FROM scratch\nCOPY out /x\n"})
		if err := os.Symlink("/etc/passwd", filepath.Join(bad, "out")); err != nil {
			t.Fatal(err)
		}
		b := &order{rig: r, dir: bad, builder: builder}
		if err := b.begin(); err != nil {
			t.Fatal(err)
		}
		if f, ok := event.Decode[event.BuildFinished](b.end()); ok {
			t.Cleanup(func() { remove(f.ImageID) })
			if body, _, _ := content(t, f.ImageID, "/x"); strings.Contains(body, "root:") {
				t.Error("the file outside was copied")
			}
		}
	})
}

// 500 MB that are ignored do not travel, and what is unchanged travels once
// where the builder is BuildKit.
func TestOnlyWhatIsNeededTravels(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		r := &rig{t, r.conn, r.cfg}
		dir := r.dir(map[string]string{"Dockerfile": "FROM scratch\nCOPY . /\n", "ignored": "", "big": strings.Repeat("0123456789abcdef", 1<<16), "small": "1" + newID("x")})
		if err := os.Truncate(filepath.Join(dir, "ignored"), 500<<20); err != nil {
			t.Fatal(err)
		}
		first := &order{rig: r, dir: dir, builder: builder, key: dir}
		f, in := first.ok()
		if n := first.wire.Load(); n < 1<<20 || n > 2<<20 {
			t.Errorf("%d bytes travelled first", n)
		}
		if in.Size > 3<<20 {
			t.Errorf("the image has %d bytes", in.Size)
		}
		if err := os.WriteFile(filepath.Join(dir, "small"), []byte("2"), 0o644); err != nil {
			t.Fatal(err)
		}
		second := &order{rig: r, dir: dir, builder: builder, key: dir}
		g, _ := second.ok()
		if body, _, err := content(t, g.ImageID, "/small"); body != "2" || err != nil || g.ImageID == f.ImageID {
			t.Errorf("small is %q, %v", body, err)
		}
		t.Logf("bytes first %d, then %d; phases %v, %v", first.wire.Load(), second.wire.Load(), f.Phases, g.Phases)
		if n := second.wire.Load(); builder == "buildkit" && n > 8<<10 {
			t.Errorf("%d bytes travelled for a file of one", n)
		}
	})
}

func remove(id string) {
	_, _ = theDocker.api.ImageRemove(bg(), id, image.RemoveOptions{Force: true, PruneChildren: true})
}

func TestDockerfileOutside(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		r := &rig{t, r.conn, r.cfg}
		other := r.dir(map[string]string{"Other": "FROM scratch\nCOPY . /ctx\n"})
		for _, files := range []map[string]string{{"a": "A"}, {"a": "A", ".dockerignore": "nothing\n"}} {
			f, _ := (&order{rig: r, dir: r.dir(files), builder: builder, outside: filepath.Join(other, "Other")}).ok()
			if body, _, err := content(t, f.ImageID, "/ctx/a"); body != "A" || err != nil {
				t.Errorf("%q, %v", body, err)
			}
			c, err := theDocker.api.ContainerCreate(t.Context(), &container.Config{Image: f.ImageID, Cmd: []string{"x"}}, nil, nil, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			names := listing(t, c.ID, "/ctx")
			_ = theDocker.api.ContainerRemove(bg(), c.ID, container.RemoveOptions{Force: true})
			if slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "dockerfile") }) {
				t.Errorf("the Dockerfile is in the image: %q", names)
			}
		}
	})
}

func TestStdin(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		r := &rig{t, r.conn, r.cfg}
		f, _ := (&order{rig: r, builder: builder, stdin: pack(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": "from stdin"})}).ok()
		if body, _, err := content(t, f.ImageID, "/a"); body != "from stdin" || err != nil {
			t.Errorf("%q, %v", body, err)
		}
	})
}

func TestFailingStepTellsItsOutput(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		r := &rig{t, r.conn, r.cfg}
		dir := r.dir(map[string]string{"Dockerfile": "FROM scratch\nCOPY puppet /puppet\nRUN [\"/puppet\",\"print\",\"the last words\",\"exit\",\"7\"]\n", "puppet": ""})
		keepImages(t)
		b := &order{rig: r, dir: dir, builder: builder}
		f := b.fails()
		if f.Cancelled || !strings.Contains(strings.Join(f.Output, "\n"), "the last words") || !strings.Contains(f.Error.Stage, "/puppet") || !strings.Contains(f.Error.Message, "7") || f.Error.Code != fault.FailedPrecondition {
			t.Errorf("%+v", f)
		}
		if !strings.Contains(b.plain.String(), "the last words") {
			t.Errorf("progress:\n%s", b.plain.String())
		}
		nothingRuns(t)
	})
}

func TestMissingDockerfile(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		r := &rig{t, r.conn, r.cfg}
		f := (&order{rig: r, dir: r.dir(map[string]string{"a": ""}), builder: builder}).fails()
		if !strings.Contains(strings.ToLower(f.Error.Message), "dockerfile") {
			t.Errorf("%+v", f)
		}
	})
}

func TestSecret(t *testing.T) {
	r := start(t)
	dir := r.dir(map[string]string{"Dockerfile": "FROM scratch\nCOPY puppet /puppet\nRUN --mount=type=secret,id=s [\"/puppet\",\"cat\",\"/run/secrets/s\"]\n", "puppet": ""})
	b := &order{rig: r, dir: dir, options: []string{"secret=id=s,src=unused", "no-cache"}, secret: map[string]string{"s": "hush"}}
	if f, _ := b.ok(); f.Builder != "buildkit" || !strings.Contains(b.plain.String(), "hush <nil>") {
		t.Errorf("%+v\n%s", f, b.plain.String())
	}
}

func TestUnknownOption(t *testing.T) {
	r := start(t)
	b := &order{rig: r, dir: r.dir(map[string]string{"Dockerfile": "FROM scratch\n"}), options: []string{"tagg=x"}}
	err := b.begin()
	if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), `"tag"`) {
		t.Errorf("%v", err)
	}
}

func TestTwoAtOnce(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		var builds []*order
		for _, word := range []string{"one", "two"} {
			r := &rig{t, r.conn, r.cfg}
			dir := r.dir(map[string]string{"Dockerfile": "FROM scratch\nCOPY puppet a /\nRUN [\"/puppet\",\"sleep\",\"200ms\"]\n", "puppet": "", "a": word + newID("")})
			b := &order{rig: r, dir: dir, builder: builder, key: dir}
			if err := b.begin(); err != nil {
				t.Fatal(err)
			}
			builds = append(builds, b)
		}
		ids := map[string]bool{}
		for n, b := range builds {
			f, ok := event.Decode[event.BuildFinished](b.end())
			if !ok {
				t.Fatal(b.plain.String())
			}
			t.Cleanup(func() { remove(f.ImageID) })
			ids[f.ImageID] = true
			if body, _, _ := content(t, f.ImageID, "/a"); !strings.HasPrefix(body, []string{"one", "two"}[n]) {
				t.Errorf("build %d has %q", n, body)
			}
		}
		if len(ids) != 2 {
			t.Errorf("images %v", ids)
		}
	})
}

// A build is cancelled by command and by the caller's death; the engine's build
// ends and nothing is left.
func TestCancel(t *testing.T) {
	r := start(t)
	both(t, func(t *testing.T, builder string) {
		for _, how := range []string{"command", "caller gone"} {
			t.Run(how, func(t *testing.T) {
				r := &rig{t, r.conn, r.cfg}
				before := images(t)
				dir := r.dir(map[string]string{"Dockerfile": "FROM scratch\nCOPY puppet a /\nRUN [\"/puppet\",\"print\",\"working\",\"sleep\",\"5m\"]\n", "puppet": "", "a": newID("a")})
				b := &order{rig: r, dir: dir, builder: builder}
				if err := b.begin(); err != nil {
					t.Fatal(err)
				}
				until(t, "the step runs", func() bool { return running(t) > 0 })
				began := time.Now()
				if how == "command" {
					if _, err := bus.Call(t.Context(), r.conn, command.BuildCancel, "", command.BuildRef{ID: b.id}); err != nil {
						t.Fatal(err)
					}
				} else {
					b.cancel()
				}
				if f := b.failed(); !f.Cancelled {
					t.Errorf("%+v", f)
				}
				until(t, "the step is stopped", func() bool { return running(t) == 0 })
				t.Logf("stopped after %v", time.Since(began))
				nothingRuns(t)
				if after := images(t); !slices.Equal(before, after) {
					t.Errorf("images before %q, after %q", before, after)
				}
			})
		}
	})
}

func TestStreamNeedsItsToken(t *testing.T) {
	r := start(t)
	b := &order{rig: r, id: newID("b"), dir: r.dir(map[string]string{"Dockerfile": "FROM scratch\n"})}
	rep, err := bus.Call(t.Context(), r.conn, command.BuildStart, "", b.request())
	if err != nil || rep.Token == "" {
		t.Fatal(rep, err)
	}
	knock(t, r, b.id, "wrong")
	knock(t, r, "b-nobody", rep.Token)
	if _, err := bus.Call(t.Context(), r.conn, command.BuildCancel, "", command.BuildRef{ID: b.id}); err != nil {
		t.Fatal(err)
	}
	if f := b.failed(); !f.Cancelled {
		t.Errorf("%+v", f)
	}
	knock(t, r, b.id, rep.Token) // too late
}

// A repeated command builds once.
func TestRepeat(t *testing.T) {
	r := start(t)
	b := &order{rig: r, id: newID("b"), remote: "http://127.0.0.1:9/none.tar"}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := bus.Call(t.Context(), r.conn, command.BuildStart, "", b.request()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f := b.failed()
	if f.Cancelled {
		t.Errorf("%+v", f)
	}
	n := 0
	for _, e := range b.facts() {
		if event.Terminal(e) {
			n++
		}
	}
	if body, _ := json.Marshal(f); n != 1 {
		t.Errorf("%d ends: %s", n, body)
	}
}

// running is how many puppets run, on this machine's engine.
func running(t *testing.T) int { t.Helper(); return len(processes(t, "/puppet\x00print\x00working")) }

func nothingRuns(t *testing.T) {
	t.Helper()
	until(t, "no container of a build is left", func() bool {
		l, err := theDocker.api.ContainerList(t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("status", "created"), filters.Arg("status", "running"), filters.Arg("status", "exited"))})
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(l, func(c container.Summary) bool { return strings.HasPrefix(c.Command, "/puppet") })
	})
}

// keepImages removes after the test what dangles since: the classic builder's
// cache of a build that failed.
func keepImages(t *testing.T) {
	before := images(t)
	t.Cleanup(func() {
		l, _ := theDocker.api.ImageList(bg(), image.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("dangling", "true"))})
		for _, i := range l {
			h, err := theDocker.api.ImageHistory(bg(), i.ID)
			if !slices.Contains(before, i.ID) && err == nil && len(h) > 0 && strings.Contains(h[0].CreatedBy, "/puppet") {
				remove(i.ID)
			}
		}
	})
}

// images are the dangling ones that a COPY made, as these tests' do: others may
// build on this engine meanwhile.
func images(t *testing.T) []string {
	t.Helper()
	l, err := theDocker.api.ImageList(t.Context(), image.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("dangling", "true"))})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, i := range l {
		if h, err := theDocker.api.ImageHistory(t.Context(), i.ID); err == nil && len(h) > 0 && strings.Contains(h[0].CreatedBy, " COPY ") {
			ids = append(ids, i.ID)
		}
	}
	slices.Sort(ids)
	return ids
}
