#!/usr/bin/env bash
# The stream next to a native replica: how far each falls behind a source at full speed, and how late 5,000 writes/s arrive.
#
#   benches/stream.sh [--tls] [SECONDS] [ROUNDS] [LATE]
#
# By default 30 seconds of full speed, 3 rounds of it, 5 of lateness; with --tls both followers have TLS on all their lines.
#
# Prints medians. The followers take turns, as two at once would share the cores.
# Full speed: redis-benchmark -P 16 with SET, INCR and LPUSH, a third of the time each; then one more key is written, and
# the time until the follower has it is its backlog.
# Lateness: a key is written and looked for at the follower while the `traffic` example writes, first SET, INCR and LPUSH
# (plain), then everything that it knows (mixed).
# Needs release builds: cargo build --release --bin keyferry --example traffic.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tls=
if [ "${1:-}" = --tls ]; then tls=yes; shift; fi
seconds=${1:-30} rounds=${2:-3} late=${3:-5}

name=${KEYFERRY_BENCH_SERVER:-redis-7.0}
. benches/servers.sh
for needed in "$benchmark" "$traffic"; do [ -x "$needed" ] || { echo "run tests/servers.sh and cargo build --release --example traffic first" >&2; exit 2; }; done

follow() { # the follower's name; returns when it follows
    case $1 in
        replica) start replica; ask replica replicaof 127.0.0.1 "$(door source)" >/dev/null ;;
        target) start target; begin_ferry source target standalone standalone ;;
    esac
    ask source set follows yes >/dev/null
    until [ "$(ask "$1" exists follows)" = 1 ]; do sleep 0.02; done
}

one() { # follower -> writes of the source, seconds behind
    start source --repl-backlog-size 256mb
    follow "$1"
    local kind from
    for kind in set incr lpush; do
        LD_LIBRARY_PATH=$libraries timeout $((seconds / 3)) "$benchmark" -p "${port_of[source]}" -t "$kind" -P 16 -c 16 -n 1000000000 -r 200000 -q >/dev/null 2>&1 || true
    done
    local writes
    writes=$(ask source info stats | sed -n 's/^total_commands_processed:\([0-9]*\).*/\1/p')
    ask source set sentinel "$1" >/dev/null
    from=$(now)
    until [ "$(ask "$1" exists sentinel)" = 1 ]; do sleep 0.01; done
    echo "$writes $(awk -v a="$(now)" -v b="$from" 'BEGIN { printf "%.2f", a - b }')"
    if [ "$1" = target ]; then end_ferry; fi
    stop source "$1"
}

: >"$dir/behind"
for round in $(seq "$rounds"); do
    for who in replica target; do
        figures=$(one "$who")
        echo "$who $figures" >>"$dir/behind"
        echo "round $round, $who: $figures (writes of the source, seconds behind at the end)" >&2
    done
done
for who in replica target; do
    [ "$rounds" -gt 0 ] || break
    printf '%-8s %12s writes/s at the source, %6s s behind after %s s\n' "$who" \
        "$(awk -v w=$who -v s="$seconds" '$1 == w { printf "%.0f\n", $2 / s }' "$dir/behind" | median)" \
        "$(awk -v w=$who '$1 == w { print $3 }' "$dir/behind" | median)" "$seconds"
done

late() { # follower, mix -> p50 and p99 in microseconds
    start source --repl-backlog-size 256mb
    follow "$1"
    "$traffic" run --url "redis://127.0.0.1:${port_of[source]}" --rate 5000 --seconds 30 --mix "$2" >/dev/null 2>&1 &
    pid_of[traffic]=$!
    sleep 1
    "$traffic" lag --source "redis://127.0.0.1:${port_of[source]}" --to "redis://127.0.0.1:${port_of[$1]}" --probes 2000 |
        sed -n 's/.* p50 \([0-9]*\) .* p99 \([0-9]*\) .*/\1 \2/p'
    kill -INT "${pid_of[traffic]}"; wait "${pid_of[traffic]}" || true; unset "pid_of[traffic]"
    if [ "$1" = target ]; then end_ferry; fi
    stop source "$1"
}

for mix in plain mixed; do
    : >"$dir/late"
    for _ in $(seq "$late"); do
        for who in replica target; do
            echo "$who $(late $who $mix)" | tee -a "$dir/late" >&2
        done
    done
    for who in replica target; do
        printf '%-8s %-6s at 5,000 writes/s: p50 %5s, p99 %5s us\n' "$who" "$mix" \
            "$(awk -v w=$who '$1 == w { print $2 }' "$dir/late" | median)" "$(awk -v w=$who '$1 == w { print $3 }' "$dir/late" | median)"
    done
done
