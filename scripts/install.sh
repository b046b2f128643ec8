#!/bin/sh
# One step of the installation into .venv, from the root of the repository: scripts/install.sh venv|packages|ffcv|dali|docs
# `make install` runs the first four in this order, `make docs` the last. Each creates .venv/.done/STEP, so that it runs once. ffcv and dali are optional: where
# they fail, everything else works, and without their mark the next `make install` tries again.
# PYTHON: the interpreter that creates .venv.
set -eu
cd "$(dirname "$0")/.."
venv=.venv python=.venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore DEBIAN_FRONTEND=noninteractive

done_with() { mkdir -p $venv/.done && touch "$venv/.done/$1"; }
pip_install() { $python -m pip -qq install --constraint constraints.txt "$@"; }
fail() { echo "error: $*" >&2; exit 1; }

# Installs Debian packages where that needs no password, and fails at once where it does.
apt_install() {
  command -v apt-get >/dev/null || return 1
  if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else return 1; fi
  echo "Installing with apt-get: $*"
  {
    $sudo apt-get -qq install -y --no-install-recommends "$@" ||
      { $sudo apt-get -qq update && $sudo apt-get -qq install -y --no-install-recommends "$@"; }
  } >/dev/null 2>&1
}

# The first Python that every pinned package has a build for, else any newer one.
find_python() {
  for newest in 13 99; do
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
      if $candidate -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; then
        echo $candidate
        return
      fi
    done
  done
}

install_venv() {
  base=${PYTHON:-$(find_python)}
  [ -n "$base" ] || fail "no Python 3.11 or newer found; install one (Debian, Ubuntu: apt-get install python3 python3-venv)" \
    "or name it: make PYTHON=/path/to/python3"
  if ! "$base" -c "import ensurepip, venv" 2>/dev/null; then
    version=$("$base" -c "import sys; print('python%d.%d' % sys.version_info[:2])")
    apt_install "$version-venv" || fail "$version cannot make virtual environments; run: apt-get install $version-venv"
  fi
  "$base" -m venv $venv
  pip_install pip
  done_with venv
}

install_packages() {
  echo "Installing the Python packages into $venv (PyTorch alone is a few gigabytes; minutes, once)"
  pip_install --editable ".[dev]"
  done_with packages
}

has_python_h() {
  $python -c "import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))"
}
has_headers() { command -v g++ >/dev/null && pkg-config --exists opencv4 libturbojpeg 2>/dev/null && has_python_h; }

# FFCV is compiled here. Only tests and benchmarks need it, as the other side that reads and writes .beton files.
install_ffcv() {
  needs="g++ pkg-config libopencv-dev libturbojpeg0-dev"
  has_python_h || needs="$needs $($python -c "import sys; print('python%d.%d-dev' % sys.version_info[:2])")"
  # shellcheck disable=SC2086  # a list of packages
  has_headers || apt_install $needs || true
  if ! has_headers; then
    remedy="to build it, install a C++ compiler and the headers of Python, OpenCV 4 and libjpeg-turbo"
    if command -v apt-get >/dev/null; then remedy="to build it: apt-get install $needs; make install"; fi
    echo "FFCV is not built, so the tests that compare with it are skipped; $remedy"
  elif echo "Building FFCV" && pip_install ffcv numba setuptools >$venv/ffcv.log 2>&1 &&
    $python -c "import ffcv" >>$venv/ffcv.log 2>&1; then
    done_with ffcv
  else
    echo "FFCV is not built, so the tests that compare with it are skipped: its build failed (see $venv/ffcv.log)"
  fi
}

# DALI has one wheel per CUDA version, for Linux. All contain the same package, so only one can be installed.
install_dali() {
  [ "$(uname)" = Linux ] || return 0
  cuda=$($python -c "import torch; print('12' if (torch.version.cuda or '').startswith('12.') else '13')")
  echo "Installing DALI for CUDA $cuda"
  if pip_install --editable ".[dali-cuda$cuda]" >$venv/dali.log 2>&1; then
    done_with dali
  else
    echo "The DALI backend is off, all others work: it could not be installed (see $venv/dali.log)"
  fi
}

install_docs() {
  pip_install --editable ".[docs]"
  done_with docs
}

case ${1:-} in
venv | packages | ffcv | dali | docs) "install_$1" ;;
*) fail "usage: scripts/install.sh venv|packages|ffcv|dali|docs" ;;
esac
