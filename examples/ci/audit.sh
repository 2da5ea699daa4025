#!/usr/bin/env bash
# A pipeline that trains, judges the run and fails where it should: any shell, any CI.
# Usage: audit.sh [FOLDER]      files go to FOLDER (default: .)
set -euo pipefail
cd "${1:-.}"

lplr train mnist --samples 60 --width 16 --depth 2 --steps 120 --out runs/now --format json >train.json

# The figures that must hold; a failing one sets exit code 1 and is named on one line of stderr.
lplr pl-ratio runs/now --require 'pl_ratio_star.min >= 0.01'
lplr fit-rate runs/now --format json --require 'rate < 1' >rate.json

# The theory's own verdict is a report here, not a gate: --fail-on never.
lplr audit runs/now --fail-on never \
  --require 'H1.holds == true' --require 'sanity.step_size.holds == true' \
  --junit audit.xml --markdown "${GITHUB_STEP_SUMMARY:-summary.md}"

# Against the last good run: PL ratio, rate and drift may not worsen by more than a tenth.
if [ -d runs/baseline ]; then
  lplr audit runs/now --baseline runs/baseline --fail-on never --tolerance 0.1
else
  cp -r runs/now runs/baseline
fi

# Pipes work too: any program that prints JSON lines or CSV.
cat runs/now/log.csv | lplr fit-rate - --format json --require 'points >= 8' >piped.json
