#!/usr/bin/env bash
# What durable marks cost: the same stream applied with marks every second and with none, side by side.
#
#   benches/marks.sh [ROUNDS] [COMMANDS]      default: 5 rounds of 400,000 commands; prints medians and their ratio
#
# The target is paused while the commands are written, so the time measured is the streaming alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rounds=${1:-5} commands=${2:-400000}

name=valkey-8.1
. benches/servers.sh

one() { # save interval in ms -> commands per second
    start source --repl-backlog-size 512mb
    start target
    export KEYFERRY_BENCH_SAVE_MS=$1
    begin_ferry source target standalone standalone
    ask source set first 1 >/dev/null
    until [ "$(ask target exists first)" = 1 ]; do sleep 0.05; done
    ask target client pause 600000 write >/dev/null
    seq "$commands" | awk '{print "SET key:" $1 " value:" $1}' | ask source --pipe >/dev/null
    local from
    from=$(now)
    ask target client unpause >/dev/null
    until [ "$(ask target dbsize)" -gt "$commands" ]; do sleep 0.01; done
    awk -v n="$commands" -v a="$(now)" -v b="$from" 'BEGIN { printf "%.0f", n / (a - b) }'
    end_ferry
    stop source target
}

with=() without=()
for _ in $(seq "$rounds"); do
    with+=("$(one 1000)")
    without+=("$(one 3600000)")
    echo "marks every second ${with[-1]}/s, no marks ${without[-1]}/s"
done
a=$(printf '%s\n' "${with[@]}" | median) b=$(printf '%s\n' "${without[@]}" | median)
echo "medians: $a/s with marks, $b/s without; ratio $(awk "BEGIN { printf \"%.3f\", $a / $b }")"
