#!/bin/sh
# The lowest versions that requirements.txt allows, in an environment of their own: imports, and the tests of pages.
#
#     tests/lowest.sh [FOLDER]        the environment is made in FOLDER, or in a temporary one that is removed
#
# Once a release; it takes minutes, and some gigabytes.
set -eu
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then place=$1; else place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; fi
python3 -m venv "$place"
sed -n 's/>=\([0-9.]*\).*/==\1/p' requirements.txt >"$place/lowest.txt"
cat "$place/lowest.txt"
"$place/bin/pip" install --quiet -r "$place/lowest.txt" pytest pytest-timeout
"$place/bin/python" -c "import upvit_core.cli, upvit_core.api, upvit_core.runs.train"
"$place/bin/python" -m upvit_core --help >/dev/null
"$place/bin/python" -m pytest -q tests/pages
