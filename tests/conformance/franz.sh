#!/bin/sh
# franz-go, by the Go module proxy: builds franz/main.go in DIR and runs it.
#
# usage: franz.sh DIR BOOTSTRAP
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cp "$here/franz/main.go" "$1/"
cd "$1"
if [ ! -f go.mod ]; then
    go mod init franz
    go get github.com/twmb/franz-go/pkg/kadm@v1.17.1 github.com/twmb/franz-go@v1.20.2
fi
go build -o franz .
exec ./franz "$2"
