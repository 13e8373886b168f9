#!/usr/bin/env bash
# How long it takes to catch up after an outage, next to a native replica over the same line.
#
#   benches/outage.sh [OPTIONS]
#     --seconds N       how long the line is down (default 30)
#     --rate N          writes a second at the source (default 5000)
#     --one-way MS      milliseconds that every byte comes later, in each direction (default 20)
#     --keys N          strings of set A at the source before it (default 200000)
#     --rounds N        medians are told (default 3)
#     --server NAME     a server of .servers (default: redis-7.0)
#
# The source is written to all the time (SET, INCR, LPUSH). The follower's lines are cut, refuse for a while, and are
# there again: then a key is written, and the time until the follower has it is what is told; all that was written during
# the outage comes before it. keyferry has such a line to both sides, and both are cut. The source keeps enough for its
# replicas (repl-backlog-size 256mb).
# Needs release builds: cargo build --release --bin keyferry --example traffic.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=30 rate=5000 one_way=20 keys=200000 rounds=3 name=redis-7.0
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) seconds=$2 ;; --rate) rate=$2 ;; --one-way) one_way=$2 ;;
        --keys) keys=$2 ;; --rounds) rounds=$2 ;; --server) name=$2 ;;
        *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
    shift 2
done
. benches/servers.sh
[ -x "$traffic" ] || { echo "run cargo build --release --example traffic first" >&2; exit 2; }

one() { # follower; sets the seconds that it took to catch up
    start source --repl-backlog-size 256mb --repl-diskless-sync yes
    fill_source A
    start "$1"
    go_far "$(awk -v ms="$one_way" 'BEGIN { printf "%d", ms * 1000 }')" source "$1"
    case $1 in
        replica) replicate replica far-source ;;
        target) begin_ferry far-source far-target standalone standalone ;;
    esac
    ask source set follows yes >/dev/null
    until [ "$(ask "$1" exists follows)" = 1 ]; do sleep 0.02; done
    "$traffic" run --url "redis://127.0.0.1:${port_of[source]}" --rate "$rate" --seconds 600 --mix plain >/dev/null 2>&1 &
    pid_of[writer]=$!
    sleep 5
    say_far down
    sleep "$seconds"
    say_far up
    ask source set sentinel yes >/dev/null
    local from
    from=$(now)
    until [ "$(ask "$1" exists sentinel)" = 1 ]; do
        if [ "$1" = target ]; then kill -0 "${pid_of[ferry]}" 2>/dev/null || { cat "$dir/log" >&2; exit 3; }; fi
        sleep 0.01
    done
    took=$(minus "$(now)" "$from")
    stop writer
    if [ "$1" = target ]; then end_ferry; fi
    come_near
    stop "$1" source
}

echo "$seconds s without a line, $rate writes/s, $one_way ms one way, $keys keys, $("$server" --version | sed 's/ sha.*//'), $(nproc) cores" >&2
: >"$dir/all"
for round in $(seq "$rounds"); do
    for who in replica target; do
        one "$who"
        echo "$who $took" >>"$dir/all"
        echo "round $round, $who: caught up after $took s" >&2
    done
done
for who in replica target; do
    printf '%-8s caught up after %6s s\n' "$who" "$(awk -v w="$who" '$1 == w { print $2 }' "$dir/all" | median)"
done
