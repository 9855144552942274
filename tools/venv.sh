#!/usr/bin/env bash
# Makes the Python environment from the lock file: venv.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "abide needs Python 3.11 or newer; set PYTHON=/path/to/python3.11 (found: $("$python" --version 2>&1))" >&2; exit 2; }
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "abide needs Python's venv module; install it, for example with: apt-get install python3-venv" >&2; exit 2
fi
[ -x "$venv/bin/python" ] || { echo "making $venv"; "$python" -m venv "$venv"; }
echo "installing the locked Python packages into $venv (about a minute the first time)"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -e .
