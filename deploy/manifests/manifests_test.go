package manifests

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
)

var options = Options{Namespace: "berth", Image: "registry.example/berth-cluster:1.2.3", Version: "1.2.3", LogLevel: "info", Direct: "NodePort", ExcludeEnv: "AWS_*,TOKEN"}

// The chart's file is what Chart generates, and Helm's rendering of it is what
// Render gives: the chart uses nothing but text/template.
func TestChartIsTheManifests(t *testing.T) {
	file, err := os.ReadFile(filepath.Join("..", "chart", "templates", "berth.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	chart, err := Chart()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(file, chart) {
		t.Fatal("deploy/chart/templates/berth.yaml is stale: go generate ./...")
	}
	tmpl, err := template.New("").Option("missingkey=error").Parse(string(file))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err = tmpl.Execute(&got, map[string]any{
		"Release": map[string]string{"Namespace": options.Namespace},
		"Chart":   map[string]string{"AppVersion": options.Version},
		"Values":  map[string]string{"image": options.Image, "logLevel": options.LogLevel, "direct": options.Direct, "excludeEnv": options.ExcludeEnv},
	})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Render(options)
	if err != nil {
		t.Fatal(err)
	}
	_, afterNamespace, _ := strings.Cut(string(plain), "\n---\n")
	if got.String() != afterNamespace {
		t.Error("the chart renders other objects than Render")
	}
}

func TestEveryObjectIsLabelled(t *testing.T) {
	plain, err := Render(options)
	if err != nil {
		t.Fatal(err)
	}
	docs := strings.Split(string(plain), "\n---\n")
	if len(docs) < 15 {
		t.Fatalf("only %d objects", len(docs))
	}
	for _, d := range docs {
		metadata, _, _ := strings.Cut(d, "\nspec:")
		for _, l := range []string{"app.kubernetes.io/part-of: berth", "app.kubernetes.io/managed-by: berth"} {
			if !strings.Contains(metadata, "    "+l) {
				t.Errorf("no label %s in:\n%s", l, metadata)
			}
		}
	}
}

func TestRefusesWhatWouldBreakTheYAML(t *testing.T) {
	for _, o := range []Options{
		{Namespace: "a\nb", Image: "i", Version: "1"},
		{Namespace: "default", Image: "i", Version: "1"},
		{Image: `i"`, Version: "1"},
		{Image: "", Version: "1"},
		{Image: "i", Version: "1 2"},
		{Image: "i", Version: "1", ExcludeEnv: "AWS_*,TOKEN", LogLevel: "loud"},
	} {
		if _, err := Render(o); err == nil {
			t.Errorf("rendered %+v", o)
		}
	}
}
