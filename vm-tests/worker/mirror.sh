#!/bin/sh
# mirror.sh main|security: the URI from which this host's own apt takes Debian's archive, so that what is built
# here comes from the same place as the system itself.
set -eu

case "${1:-}" in
    main) label=Debian path=debian ;;
    security) label=Debian-Security path=debian-security ;;
    *)
        echo "usage: mirror.sh main|security" >&2
        exit 2
        ;;
esac

uri=$(apt-get indextargets --format '$(LABEL) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v label="$label" '$1 == label && $2 == "main" { print $3; exit }')
if [ -z "$uri" ]; then
    echo "mirror.sh: apt has no package list of Debian's '$path' archive here: run 'apt-get update'" >&2
    exit 1
fi
echo "$uri"
