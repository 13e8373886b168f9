#!/usr/bin/env bash
# What durable marks cost: the same stream applied with marks every second and with none, side by side.
#
#   benches/marks.sh [ROUNDS] [COMMANDS]      default: 5 rounds of 400,000 commands; prints medians and their ratio
#
# The target is paused while the commands are written, so the time measured is the streaming alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rounds=${1:-5} commands=${2:-400000}

servers=${KEYFERRY_SERVERS:-$PWD/.servers}
server=$servers/valkey-8.1/redis-server cli=$servers/valkey-8.1/redis-cli
[ -x "$server" ] || { echo "run tests/servers.sh first" >&2; exit 2; }
keyferry=${KEYFERRY:-target/release/keyferry}
[ -x "$keyferry" ] || { echo "run cargo build --release first" >&2; exit 2; }

dir=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT

start() { # name port
    mkdir -p "$dir/$1"
    "$server" --port "$2" --bind 127.0.0.1 --save "" --dir "$dir/$1" --logfile "$dir/$1/log" \
        --repl-diskless-sync-delay 0 --repl-backlog-size 512mb >/dev/null 2>&1 &
    pids+=($!)
    until "$cli" -p "$2" ping >/dev/null 2>&1; do sleep 0.05; done
}

one() { # save interval in ms -> commands per second
    local base=$((20000 + RANDOM % 9000)) source target took
    source=$base target=$((base + 1))
    rm -rf "$dir/s" "$dir/t" "$dir/work"
    start s "$source"
    start t "$target"
    echo '{"name":"marks","source":{"mode":"replica","url":"redis://127.0.0.1:'"$source"'"},"target":{"url":"redis://127.0.0.1:'"$target"'"}}' >"$dir/plan.json"
    KEYFERRY_BENCH_SAVE_MS=$1 "$keyferry" migrate "$dir/plan.json" --work-dir "$dir/work" --no-progress >/dev/null 2>"$dir/log" &
    local ferry=$!
    pids+=("$ferry")
    "$cli" -p "$source" set first 1 >/dev/null
    until [ "$("$cli" -p "$target" exists first)" = 1 ]; do sleep 0.05; done
    "$cli" -p "$target" client pause 600000 write >/dev/null
    seq "$commands" | awk '{print "SET key:" $1 " value:" $1}' | "$cli" -p "$source" --pipe >/dev/null
    local from
    from=$(date +%s%N)
    "$cli" -p "$target" client unpause >/dev/null
    until [ "$("$cli" -p "$target" dbsize)" -gt "$commands" ]; do sleep 0.01; done
    took=$((($(date +%s%N) - from) / 1000000))
    kill -INT "$ferry"
    wait "$ferry" || true
    kill -9 "${pids[@]}" 2>/dev/null || true
    pids=()
    echo $((commands * 1000 / took))
}

with=() without=()
for _ in $(seq "$rounds"); do
    with+=("$(one 1000)")
    without+=("$(one 3600000)")
    echo "marks every second ${with[-1]}/s, no marks ${without[-1]}/s"
done
median() { printf "%s\n" "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
a=$(median "${with[@]}") b=$(median "${without[@]}")
echo "medians: $a/s with marks, $b/s without; ratio $(awk "BEGIN { printf \"%.3f\", $a / $b }")"
