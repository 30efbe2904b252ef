#!/bin/sh
# Makes a Python environment, or brings one up to date:  env.sh DIRECTORY LOCK
#
# Needs a Python 3.11 to 3.14 and nothing else: no compiler, no pip, no ensurepip (Debian ships
# Python without it). pip runs out of its wheel, which lies beside this script and is checked
# against the hash in the lock; so every machine takes the same way, whatever its Python came with.
# PYTHON=/path/to/python chooses the interpreter of a new environment.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=$1
lock=$2
minimum='(3, 11) <= sys.version_info < (3, 15) and sys.implementation.name == "cpython"'

# A name in PATH proves nothing (pyenv has shims for versions that are not active, distributions
# split the standard library): only a Python that runs this is taken.
fits() {
    "$1" -c "import ctypes, sqlite3, ssl, sys, venv; sys.exit(not ($minimum))" >/dev/null 2>&1
}

newest_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.14 python3.13 python3.12 python3.11 python3 python; do
        if fits "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        if [ "$candidate" = "${PYTHON:-}" ]; then
            break
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        echo "p2pstore needs Python 3.11 to 3.14 with ssl, sqlite3 and venv; $PYTHON is none." >&2
    else
        echo "p2pstore needs Python 3.11 to 3.14 (with ssl, sqlite3 and venv) and found none: install python3, or name one with PYTHON=/path/to/python3." >&2
    fi
    return 1
}

if ! { [ -x "$venv/bin/python" ] && fits "$venv/bin/python"; }; then
    python=$(newest_python)
    echo "Making $venv with $("$python" --version) ..." >&2
    rm -rf -- "$venv"
    "$python" -m venv --without-pip "$venv"
fi

python=$venv/bin/python
wheel=$(ls "$here"/pip-*-py3-none-any.whl)
"$python" - "$wheel" "$here/requirements.lock" <<'CHECK'
import hashlib, pathlib, sys
wheel, lock = map(pathlib.Path, sys.argv[1:])
digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
if f"--hash=sha256:{digest}" not in lock.read_text():
    sys.exit(f"{wheel.name} is not the file that {lock.name} names; fetch the checkout anew.")
CHECK

stamp=$venv/.p2pstore-lock
if [ ! -f "$stamp" ] || ! cmp -s -- "$lock" "$stamp"; then
    echo "Installing the packages of $lock ..." >&2
    "$python" "$wheel/pip" install --quiet --disable-pip-version-check --no-input \
        --require-hashes --only-binary :all: --requirement "$lock"
    cp -- "$lock" "$stamp"
fi
