#!/usr/bin/env bash
# Lint, types, import contract and all tests, in an environment that it makes itself.
#
#   bash tests/run.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/environment.sh

# The end-to-end tests use a browser and, through ns-export, Open3D's system libraries. Without apt
# or the right to install, those tests are skipped with the reason.
packages=()
command -v chromium >/dev/null || packages+=(chromium)
ldconfig -p 2>/dev/null | grep -q 'libusb-1.0.so.0' || packages+=(libusb-1.0-0)
if [ ${#packages[@]} -gt 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing ${packages[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends "${packages[@]}"; } >/dev/null 2>&1 ||
        echo "apt-get could not install ${packages[*]}: the tests that need them are skipped"
fi

make_environment dev
ruff check .
ruff format --check .
pyright --pythonpath "$(command -v python)"
lint-imports
python -m pytest "$@"
