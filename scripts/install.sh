#!/bin/sh
# Makes the virtual environment named by $1, or brings it up to date; does nothing when it is.
# Needs Python 3.10 or newer with its venv module, which Debian packages as python3-venv.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}

# What the environment is made from. When any of it changes, the environment is stale.
wanted() { printf '%s\n%s\n%s\n' "$(pwd -P)" "$("$venv/bin/python" -V)" "$(cat pyproject.toml constraints.txt | cksum)"; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

say() { printf 'neoxkit: %s\n' "$*" >&2; }

find_python() {
    # First the versions that are tested, then whatever `python3` is.
    for python in python3.11 python3.12 python3.10 python3; do
        if new_enough "$python"; then
            if "$python" -c 'import venv, ensurepip' 2>/dev/null; then echo "$python"; return; fi
            incomplete=$python
        fi
    done
    if [ -n "${incomplete:-}" ]; then
        say "$incomplete has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)"
    else
        say "Python 3.10 or newer is needed, and python3 is $(python3 -V 2>/dev/null || echo missing)"
    fi
    return 1
}

if [ -f "$venv/.made-from" ] && [ "$(cat "$venv/.made-from")" = "$(wanted 2>/dev/null)" ]; then exit 0; fi

# Scripts in an environment name its folder, so one that was moved is made anew.
moved() { [ -f "$venv/.made-from" ] && [ "$(head -n 1 "$venv/.made-from")" != "$(pwd -P)" ]; }

if ! new_enough "$venv/bin/python" || moved; then
    python=$(find_python)
    say "making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi
rm -f "$venv/.made-from"

# On a terminal pip's own progress bars are shown; in a log, only these lines.
pip() {
    if [ -t 1 ]; then quiet=; else quiet=--quiet; fi
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check --constraint constraints.txt "$@"
}
say "installing torch, step 1 of 2 (the first time this can take minutes)"
pip "pip>=23.1" "$(grep '^torch==' constraints.txt)"
say "installing neoxkit and its tests, step 2 of 2"
pip --editable '.[test]'
wanted >"$venv/.made-from"
say "$venv is ready"
