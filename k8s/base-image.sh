#!/usr/bin/env bash
# A base image of Debian 12 with its own Python 3.11, for where no image registry is in reach: base-image.sh NAME [MIRROR]
# MIRROR is the address of a mirror, or a sources.list; without it, Debian's own with the security updates.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io --include=ca-certificates,python3-venv \
	bookworm "$folder/base.tar" "${@:2}"
"${ENGINE:-podman}" import --change 'CMD ["bash"]' "$folder/base.tar" "$1"
