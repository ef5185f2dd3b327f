#!/bin/sh
# Installs the Debian packages that some tests use, where that is permitted; otherwise names what is missing.
# The tests that need a missing one are skipped, with the reason.
missing=""
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
command -v chromedriver >/dev/null 2>&1 || missing="$missing chromium-driver"
command -v Xvfb >/dev/null 2>&1 || missing="$missing xvfb"
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "Installing Debian packages for the tests:$missing"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
        >/dev/null 2>&1 && exit 0
    echo "Could not install:$missing (the tests that need them will be skipped)"
else
    echo "Not installed, and not permitted to install them:$missing"
    echo "  sudo apt-get install$missing     (the tests that need them will be skipped)"
fi
