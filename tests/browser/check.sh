#!/usr/bin/env bash
# Look at every page of a built book in headless Chromium:
#
#     tests/browser/check.sh [the book, default site] [a folder for screenshots]
#
# Needs Chromium with its driver (Debian, Ubuntu: apt install chromium chromium-driver).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
book="${1:-$here/../../site}"
[ -f "$book/index.html" ] || { echo "There is no book in $book: run make site first." >&2; exit 2; }
for program in chromium chromedriver; do
    command -v "$program" >/dev/null || { echo "$program was not found: install it first." >&2; exit 2; }
done

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
"$work/venv/bin/python" "$here/check_pages.py" "$book" ${2:+--screenshots "$2"}
