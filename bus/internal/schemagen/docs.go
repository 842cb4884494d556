package schemagen

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
)

// docs are comments: of a type under its name, of a field under Type.Field.
type docs map[string]string

func readDocs(dir string, packages ...string) (docs, error) {
	d := docs{}
	for _, p := range packages {
		entries, err := os.ReadDir(filepath.Join(dir, p))
		if err != nil {
			return nil, fmt.Errorf("read comments: %w", err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, p, e.Name()), nil, parser.ParseComments)
			if err != nil {
				return nil, fmt.Errorf("read comments: %w", err)
			}
			d.file(f)
		}
	}
	return d, nil
}

func (d docs) file(f *ast.File) {
	for _, decl := range f.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		for _, spec := range g.Specs {
			t := spec.(*ast.TypeSpec) // of a GenDecl of types
			d[t.Name.Name] = text(g.Doc)
			s, ok := t.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, field := range s.Fields.List {
				doc := text(field.Doc)
				if doc == "" {
					doc = text(field.Comment)
				}
				for _, n := range field.Names {
					d[t.Name.Name+"."+n.Name] = doc
				}
			}
		}
	}
}

// text is a comment on one line.
func text(c *ast.CommentGroup) string {
	if c == nil {
		return ""
	}
	return strings.Join(strings.Fields(c.Text()), " ")
}
