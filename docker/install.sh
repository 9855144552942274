#!/bin/sh
# Install into the image's environment with the build environment's pip and compile to bytecode: install.sh PIP-ARGUMENTS…
# With --root DIR everything lands below DIR, under the paths it has in the image.
set -eu
root=
[ "$1" = --root ] && root=$2
/build/venv/bin/pip --python /opt/abide/bin/python install --quiet --no-compile --no-warn-script-location "$@"
# Unchecked: bytecode stays valid whatever an image builder does to the time stamps of files.
/opt/abide/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$root" "$root/opt/abide"
