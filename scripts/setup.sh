#!/usr/bin/env bash
# Makes .venv with torch (pinned), the project and all of its extras, and sees to the software-GL library that the real
# Memory Maze renders with where there is no GPU, and to Chromium, in which the tests open a page. `make` runs this when
# .venv is older than pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.13.0

say() { echo "setup: $*" >&2; }

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# apt_install WHY PACKAGE...: installs through apt when we are root, else says in one sentence what to install, and stops.
apt_install() {
    local why=$1
    shift
    if ! can_apt; then
        say "$why; install it first, on Debian with: sudo apt-get install $*"
        exit 1
    fi
    say "$why: installing $* through apt"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

# The first Python that is new enough; $PYTHON, when given, is the only candidate.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# As the environment chooses: EGL beside an NVIDIA GPU or when MUJOCO_GL says so, else OSMesa.
has_renderer() {
    [ "${MUJOCO_GL:-osmesa}" != osmesa ] || .venv/bin/python -c '
import glob, os, sys
from ctypes.util import find_library
egl = "MUJOCO_GL" not in os.environ and glob.glob("/dev/nvidia[0-9]*") and find_library("EGL")
sys.exit(not (egl or find_library("OSMesa")))'
}

if [ ! -x .venv/bin/pip ]; then
    python=$(find_python)
    if [ -z "$python" ] || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install "Python 3.11 or newer with its venv module is missing" python3 python3-venv
        python=$(find_python)
        [ -n "$python" ] || { say "Python 3.11 or newer is needed; set PYTHON to its path"; exit 1; }
    fi
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
fi

pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input install -q)
say "installing torch $torch_version (the first time this takes minutes)"
"${pip[@]}" "torch==$torch_version"
say "installing wm-gym and its extras"
"${pip[@]}" "torch==$torch_version" -e ".[all]"
has_renderer || apt_install "libOSMesa, with which MuJoCo renders without a GPU, is missing" libosmesa6
# Only the tests of wm-gym play's page need it, so setting up goes on without.
if ! command -v chromium >/dev/null; then
    without="the tests of wm-gym play's page will be left out; on Debian: sudo apt-get install chromium"
    if can_apt; then
        apt_install "Chromium, in which the page of wm-gym play is tested, is missing" chromium || say "$without"
    else
        say "Chromium is missing: $without"
    fi
fi
say "done"
