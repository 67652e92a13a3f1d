#!/usr/bin/env bash
# Look at every page of a built book in headless Chromium:
#
#     tests/browser/check.sh [the book, default site] [a folder for screenshots]
#
# Needs Chromium with its driver and npm (Debian, Ubuntu: apt install chromium chromium-driver npm),
# which fetches axe-core, the checker of accessibility.
set -euo pipefail
AXE=4.14.1  # a newer one may find more
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
book="${1:-$here/../../site}"
[ -f "$book/index.html" ] || { echo "There is no book in $book: run make site first." >&2; exit 2; }
for program in chromium chromedriver npm; do
    command -v "$program" >/dev/null || { echo "$program was not found: install it first." >&2; exit 2; }
done

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work/npm" "axe-core@$AXE"
"$work/venv/bin/python" "$here/check_pages.py" "$book" \
    --axe "$work/npm/node_modules/axe-core/axe.min.js" ${2:+--screenshots "$2"}
