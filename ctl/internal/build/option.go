package build

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"berth.dev/bus/fault"
)

// own is what of the build options is ctl's to do, since it is about this
// machine; builder is given the rest, and knows which there are.
type own struct {
	file    string
	iidfile string
	quiet   bool
	plain   bool
	secrets map[string]func() ([]byte, error)
	agents  map[string]string // sockets
	rest    []string
}

// split takes ctl's own options out.
func split(options []string) (*own, error) {
	o := &own{secrets: map[string]func() ([]byte, error){}, agents: map[string]string{}}
	for _, opt := range options {
		key, value, given := strings.Cut(opt, "=")
		key = strings.TrimLeft(key, "-")
		pass := opt
		switch key {
		case "file", "f":
			if o.file = value; value == "" {
				return nil, fault.New(fault.InvalidArgument, "", "the build option %q needs a value: file=PATH", key)
			}
			continue
		case "iidfile":
			o.iidfile = value
		case "quiet", "q":
			o.quiet = !given || value == "true" || value == "1"
		case "progress":
			o.plain = value == "plain"
			o.quiet = o.quiet || value == "quiet"
		case "build-arg":
			// A name alone is that variable of ours, if it is set.
			if name, _, has := strings.Cut(value, "="); !has && name != "" {
				if v, ok := os.LookupEnv(name); ok {
					pass = opt + "=" + v
				}
			}
		case "secret":
			id, read, err := secret(value)
			if err != nil {
				return nil, err
			}
			o.secrets[id] = read
			pass = "secret=id=" + id
		case "ssh":
			id, socket, err := agent(value)
			if err != nil {
				return nil, err
			}
			o.agents[id] = socket
			pass = "ssh=" + id
		}
		o.rest = append(o.rest, pass)
	}
	return o, nil
}

// secret reads id=…[,src=…|,env=…], as docker build does: a secret without a
// source is the variable of that name, else the file.
func secret(v string) (id string, read func() ([]byte, error), err error) {
	var src, env, kind string
	for f := range strings.SplitSeq(v, ",") {
		switch k, val, _ := strings.Cut(f, "="); k {
		case "id":
			id = val
		case "src", "source":
			src = val
		case "env":
			env = val
		case "type":
			kind = val
		default:
			return "", nil, fault.New(fault.InvalidArgument, "", "the build option \"secret\" knows id, src and env, not %q", k)
		}
	}
	if id == "" {
		return "", nil, fault.New(fault.InvalidArgument, "", "the build option \"secret\" is of the form id=NAME,src=FILE or id=NAME,env=VARIABLE")
	}
	if kind == "env" && env == "" {
		env, src = src, ""
	}
	if env == "" && src == "" {
		if _, ok := os.LookupEnv(id); ok {
			env = id
		} else {
			src = id
		}
	}
	if env != "" {
		if _, ok := os.LookupEnv(env); !ok {
			return "", nil, fault.New(fault.InvalidArgument, "", "the secret %s: there is no variable %s", id, env)
		}
		return id, func() ([]byte, error) { return []byte(os.Getenv(env)), nil }, nil
	}
	if src, err = filepath.Abs(src); err != nil {
		return "", nil, fmt.Errorf("make %s absolute: %w", src, err)
	}
	if info, err := os.Stat(src); err != nil {
		return "", nil, fault.New(fault.InvalidArgument, "", "the secret %s: %v", id, err)
	} else if info.IsDir() {
		return "", nil, fault.New(fault.InvalidArgument, "", "the secret %s: %s is a directory", id, src)
	}
	return id, func() ([]byte, error) { return os.ReadFile(src) }, nil
}

// agent reads default or NAME[=SOCKET]. A key file is not read: that is an
// agent's work.
func agent(v string) (id, socket string, err error) {
	id, socket, _ = strings.Cut(v, "=")
	if socket == "" {
		if socket = os.Getenv("SSH_AUTH_SOCK"); socket == "" {
			return "", "", fault.New(fault.FailedPrecondition, "eval $(ssh-agent) && ssh-add", "the build option ssh=%s needs an ssh agent, and SSH_AUTH_SOCK names none", v)
		}
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return "", "", fault.New(fault.InvalidArgument, "ssh-add "+socket, "the build option ssh=%s: %s is not the socket of an ssh agent", v, socket)
	}
	return id, socket, nil
}

func (o *own) secret(id string) ([]byte, error) {
	if read := o.secrets[id]; read != nil {
		return read()
	}
	return nil, fmt.Errorf("no secret %q was given", id)
}

func (o *own) agent(name string) (net.Conn, error) {
	socket, ok := o.agents[name]
	if !ok {
		return nil, fmt.Errorf("no ssh agent %q was given", name)
	}
	return net.Dial("unix", socket)
}
