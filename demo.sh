#!/usr/bin/env bash
# A whole migration before your eyes: a live server moves into a three-shard cluster, and it is proved that it arrived.
#
# Needs Rust only: a Redis or Valkey on PATH is used, else one is downloaded into .servers without touching the system.
# Everything runs on 127.0.0.1 on free ports, and everything is stopped at the end.
#
#   ./demo.sh                     about a minute after the build
#   KEYFERRY_DEMO_DIR=DIR         where plan, state and report go (default: a new folder in /tmp)
#   KEYFERRY_DEMO_KEYS=n          how many keys to begin with (default 50000)
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$repo"

keys=${KEYFERRY_DEMO_KEYS:-50000}
rate=3000
clients_rate=5000
started=$SECONDS
pids=()
servers_dir=''

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { printf '   %s\n' "$*"; }
fail() {
    printf '\ndemo: %s\n' "$*" >&2
    exit 1
}

# stop PID: asks, then insists.
stop() {
    kill "$1" 2>/dev/null || return 0
    for _ in $(seq 50); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

clean_up() {
    local code=$? pid
    trap - EXIT INT TERM
    for pid in ${pids[@]+"${pids[@]}"}; do stop "$pid"; done
    if [ -n "$servers_dir" ]; then rm -rf "$servers_dir"; fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# find_server: the program to start, from PATH or from .servers.
find_server() {
    local found name
    for name in valkey-server redis-server; do
        if command -v "$name" >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    for name in local valkey-8.1 redis-8.0 valkey-9.1 redis-7.0 valkey-8.0 redict-7.3 redis-6.2; do
        found=${KEYFERRY_SERVERS:-$repo/.servers}/$name/redis-server
        if [ -x "$found" ]; then
            echo "$found"
            return
        fi
    done
}

# start_server NAME [CONFIG LINES…]: starts one on a free port; sets $port.
start_server() {
    local name=$1 at try pid
    shift
    for try in 1 2 3 4 5 6 7 8; do
        port=$((12000 + (RANDOM % 10000)))
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue; fi
        at=$servers_dir/$name-$try
        mkdir -p "$at"
        printf '%s\n' "port $port" "bind 127.0.0.1" "dir $at" "logfile $at/log" 'save ""' "appendonly no" \
            "daemonize no" "$@" >"$at/server.conf"
        "$server" "$at/server.conf" >/dev/null 2>&1 &
        pid=$!
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
                pids+=("$pid")
                return 0
            fi
            sleep 0.05
        done
        kill "$pid" 2>/dev/null || true
    done
    fail "a server does not start; see $at/log"
}

# number FIELD: a number out of the status answer, -1 when it is not there.
number() {
    local found
    found=$("$keyferry" status "$plan" --work-dir "$work" --json 2>/dev/null | tr -d ' \n' |
        sed -n "s/.*\"$1\":\(-\{0,1\}[0-9]\{1,\}\).*/\1/p")
    echo "${found:--1}"
}

# done_loading: whether the snapshot is in the target.
done_loading() {
    "$keyferry" status "$plan" --work-dir "$work" --json 2>/dev/null | tr -d ' \n' |
        grep -q '"snapshot":{[^}]*"done":true'
}

# wait_for SECONDS WHAT COMMAND…: asks until the answer is yes.
wait_for() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        if ! kill -0 "$migrate_pid" 2>/dev/null; then
            cat "$dir/migrate.log" >&2
            fail "the migration ended early ($what)"
        fi
        if [ "$SECONDS" -gt "$limit" ]; then fail "not in time: $what; see $dir/migrate.log"; fi
        sleep 0.3
    done
}
caught_up() { [ "$(number lag_bytes)" = 0 ]; }

# run WORDS…: shows a keyferry command and runs it.
run() {
    printf '   $ keyferry %s\n' "$*" | sed "s|$dir|.|g"
    "$keyferry" "$@" --work-dir "$work" 2>&1 | sed 's/^/     /'
}

say "Building"
cargo build --release --quiet --bin keyferry --example traffic
target=${CARGO_TARGET_DIR:-$repo/target}
keyferry=$target/release/keyferry
traffic=$target/release/examples/traffic
note "keyferry $("$keyferry" --version 2>/dev/null | sed 's/^keyferry //')"

say "Finding a server"
server=$(find_server)
if [ -z "$server" ]; then
    note "none on PATH: downloading one into .servers, the system stays as it is"
    tests/servers.sh --one | sed 's/^/   /'
    server=$(find_server)
fi
[ -n "$server" ] || fail "there is no server: apt-get install valkey-server (or redis-server), then run this again"
note "$("$server" --version)"

dir=${KEYFERRY_DEMO_DIR:-$(mktemp -d "${TMPDIR:-/tmp}/keyferry-demo.XXXXXX")}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
work=$dir/work
plan=$dir/demo.json
rm -rf "$work"
servers_dir=$(mktemp -d "${TMPDIR:-/tmp}/keyferry-servers.XXXXXX")
demo_started=$SECONDS

say "The source: one live server"
start_server source
source_url=redis://127.0.0.1:$port
"$traffic" fill --url "$source_url" --keys "$keys" | sed 's/^/   /'
"$traffic" run --url "$source_url" --rate "$rate" --seconds 600 >"$dir/traffic.log" 2>&1 &
traffic_pid=$!
pids+=("$traffic_pid")
note "and $rate writes a second of every kind go on from now on"

say "The target: an empty cluster of three shards"
targets=()
for n in 1 2 3; do
    start_server "shard-$n" "cluster-enabled yes" "cluster-node-timeout 15000"
    targets+=("redis://127.0.0.1:$port")
done
"$traffic" cluster "${targets[@]}"
target_url=${targets[0]}
note "${targets[*]}"

echo source >"$dir/clients-at"
move() { printf '["sh", "-c", "echo %s > %s.new && mv %s.new %s"]' "$1" "$dir/clients-at" "$dir/clients-at" "$dir/clients-at"; }
cat >"$plan" <<PLAN
{
  "name": "demo",
  "source": { "mode": "replica", "url": "$source_url" },
  "target": { "url": "$target_url", "topology": "cluster" },
  "cutover": {
    "watch_s": 3,
    "hooks": {
      "switch": $(move target),
      "switch_back": $(move source)
    }
  },
  "latency": {
    "workloads": ["observed", "session-store", "cache-aside"],
    "rates": [1.0], "blocks": 6, "block_s": 1, "connections": 20, "allow_writes": true,
    "sweep": true
  }
}
PLAN

say "1. The plan"
sed 's/^/   /' "$plan"
printf '   $ keyferry plan validate demo.json\n'
"$keyferry" plan validate "$plan" 2>&1 | sed 's/^/     /'

say "2. Check: what will work, what will be lost, what blocks"
run check "$plan"

say "3. A dry run: everything but the writing"
run migrate "$plan" --dry-run --until caught-up

say "4. The migration, under traffic"
printf '   $ keyferry migrate demo.json &\n'
"$keyferry" migrate "$plan" --work-dir "$work" >"$dir/migrate.log" 2>&1 &
migrate_pid=$!
pids+=("$migrate_pid")
wait_for 120 "loading the snapshot" done_loading
note "loaded; it follows the stream now"
for _ in 1 2 3 4; do
    sleep 1
    note "commands applied: $(number commands_applied), lag: $(number lag_bytes) bytes"
done
kill -INT "$traffic_pid"
wait "$traffic_pid" || true
tail -n 1 "$dir/traffic.log" | sed 's/^/   the writers stop:/'
wait_for 60 "catching up" caught_up
note "lag: 0 bytes"

say "5. The proof: checksums of all 16384 slots on both sides"
run verify "$plan"
note "and an independent comparison, key by key through plain commands:"
"$traffic" compare --a "$source_url" --b "$target_url" --b-cluster | sed 's/^/     /'

say "6. The cutover, under $clients_rate writes a second"
note "20 clients write counters, and go where the file clients-at says; the migration goes on following"
"$traffic" clients --file "$dir/clients-at" --source "$source_url" --target "$target_url" --target-cluster \
    --rate "$clients_rate" >"$dir/clients.log" 2>&1 &
clients_pid=$!
pids+=("$clients_pid")
sleep 2
note "rehearsed on Tuesday:"
run cutover "$plan" --dry-run
note "and run on Sunday:"
run cutover "$plan"
kill -0 "$migrate_pid" 2>/dev/null && fail "the migration goes on after the switch"
sleep 1
kill -INT "$clients_pid"
code=0
wait "$clients_pid" || code=$?
sed 's/^/   the clients: /' "$dir/clients.log"
[ "$code" -eq 0 ] || fail "a client has lost a write"
note "keyferry rollback demo.json would lead them back, with what they have written since"

say "7. Latency: old against new"
note "on one machine, with all servers on the same cores: a rehearsal of the measurement, not a comparison of providers"
run latency "$plan"
note "nothing of what it wrote is left"

say "The report"
run report "$plan" --out "$dir/report"
for file in "$dir"/report/*; do note "$file"; done

say "Done in $((SECONDS - demo_started)) s (with the build $((SECONDS - started)) s)"
note "plan, state, logs and report are in $dir"
