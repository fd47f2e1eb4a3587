#!/bin/sh
# Install what pip cannot: `system-packages.sh COMMAND=PACKAGE …` installs each package whose command is missing,
# `system-packages.sh --always PACKAGE …` whatever the commands. Says what to type where it may not.
set -eu

packages=
if [ "$1" = --always ]; then
    shift
    packages="$*"
else
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null 2>&1 || packages="$packages ${pair#*=}"
    done
fi
[ -n "$packages" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$packages. Install with your system's package manager, then run make again." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "missing:$packages. Run  sudo apt-get install -y$packages  , then make again." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of names on purpose
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 $packages
