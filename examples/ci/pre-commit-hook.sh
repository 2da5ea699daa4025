#!/usr/bin/env bash
# As .git/hooks/pre-commit, or as a local hook of pre-commit: refuse a commit whose last recorded run got worse.
# Usage: pre-commit-hook.sh [RUN] [BASELINE]
set -euo pipefail
run=${1:-runs/now} baseline=${2:-runs/baseline}
[ -d "$run" ] || exit 0
[ -d "$baseline" ] || exit 0
exec lplr audit "$run" --baseline "$baseline" --fail-on never --no-certificate --format markdown >/dev/null
