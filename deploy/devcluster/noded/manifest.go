package main

import _ "embed"

// manifest is what every cluster has besides Kubernetes itself: CoreDNS.
//
//go:embed manifest.yaml
var manifest string
