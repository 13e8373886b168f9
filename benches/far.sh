#!/usr/bin/env bash
# How much distance costs: migrate, verify, scan copy and cutover with a delaying proxy before both sides.
#
#   benches/far.sh [OPTIONS]
#     --keys N          strings of set A at the source (default 300000)
#     --one-way LIST    milliseconds that every byte comes later, in each direction (default "0 1 5 20")
#     --ways LIST       of: migrate verify scan cutover (default: all of them)
#     --rounds N        how often each is measured; medians are told (default 3)
#     --server NAME     a server of .servers (default: redis-7.0)
#     --json FILE       where to write all single measurements (default: none)
#
#   migrate   keyferry migrate --until caught-up, by replication
#   verify    keyferry verify of both sides, every key read
#   scan      mode "scan", from the start until the target has every key
#   cutover   under 1,000 writes/s at the source: how long its full comparison before the pause takes, and the pause
#
# Distance 0 goes through the proxy as well, which takes its share of the cores. A connection of the proxy holds 4 MiB
# each way. Needs release builds: cargo build --release --bin keyferry --example traffic.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

keys=300000 distances="0 1 5 20" ways="migrate verify scan cutover" rounds=3 name=redis-7.0 json=
while [ $# -gt 0 ]; do
    case $1 in
        --keys) keys=$2 ;; --one-way) distances=$2 ;; --ways) ways=$2 ;; --rounds) rounds=$2 ;;
        --server) name=$2 ;; --json) json=$2 ;;
        *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
    shift 2
done
. benches/servers.sh
[ -x "$traffic" ] || { echo "run cargo build --release --example traffic first" >&2; exit 2; }

# A plan of benches/servers.sh between the proxies, changed by sed.
far_plan() { plan far-source far-target standalone standalone; sed -i "${1:-}" "$dir/plan.json"; }

one() { # way -> seconds (cutover: seconds of the comparison, and of the pause)
    local from wanted
    # The writers of an earlier cutover have left keys of their own.
    wanted=$(ask source dbsize)
    case $1 in
        migrate)
            ferry far-source far-target standalone standalone
            echo "$took"
            ;;
        verify)
            replicate target source
            ask target replicaof no one >/dev/null
            far_plan
            from=$(now)
            "$keyferry" verify "$dir/plan.json" --work-dir "$dir/work" --no-progress --json >"$dir/answer" 2>"$dir/log" ||
                { cat "$dir/log" >&2; exit 3; }
            minus "$(now)" "$from"
            ;;
        scan)
            far_plan 's/"mode":"replica"/"mode":"scan"/'
            from=$(now)
            "$keyferry" migrate "$dir/plan.json" --work-dir "$dir/work" --no-progress >/dev/null 2>"$dir/log" &
            pid_of[ferry]=$!
            until [ "$(ask target dbsize)" -ge "$wanted" ]; do
                kill -0 "${pid_of[ferry]}" 2>/dev/null || { cat "$dir/log" >&2; exit 3; }
                sleep 0.02
            done
            minus "$(now)" "$from"
            end_ferry
            ;;
        cutover)
            far_plan 's/}$/,"cutover":{"hooks":{"switch":["true"]}}}/'
            "$keyferry" migrate "$dir/plan.json" --work-dir "$dir/work" --no-progress >/dev/null 2>"$dir/log" &
            pid_of[ferry]=$!
            until [ "$(ask target dbsize)" -ge "$wanted" ]; do sleep 0.1; done
            "$traffic" run --url "redis://127.0.0.1:${port_of[source]}" --rate 1000 --seconds 600 --mix plain >/dev/null 2>&1 &
            pid_of[writer]=$!
            sleep 2
            "$keyferry" cutover "$dir/plan.json" --work-dir "$dir/work" --no-progress --json --dry-run --freeze-for 2s >"$dir/answer" 2>"$dir/cutlog" ||
                { cat "$dir/cutlog" "$dir/answer" >&2; exit 3; }
            stop writer
            end_ferry
            tr -d ' \n' <"$dir/answer" | sed 's/{"step"/\n&/g' | awk '
                /"step":"warm-up"/ { if (match($0, /"took_us":[0-9]+/)) warm = substr($0, RSTART + 10, RLENGTH - 10) }
                match($0, /"pause_ms":[0-9.]+/) { pause = substr($0, RSTART + 11, RLENGTH - 11) }
                END { printf "%.2f %.3f\n", warm / 1e6, pause / 1e3 }'
            ;;
    esac
}

start source --enable-debug-command yes --repl-diskless-sync yes
fill_source A
echo "set A, $keys keys, $("$server" --version | sed 's/ sha.*//'), $(nproc) cores, $rounds rounds" >&2

: >"$dir/all"
for round in $(seq "$rounds"); do
    for distance in $distances; do
        for way in $ways; do
            start target
            go_far "$(awk -v ms="$distance" 'BEGIN { printf "%d", ms * 1000 }')" source target
            figures=$(one "$way")
            come_near
            stop target
            echo "$way $distance $figures" >>"$dir/all"
            echo "round $round, $distance ms one way, $way: $figures s" >&2
        done
    done
done

of() { awk -v w="$1" -v d="$2" -v c="$3" '$1 == w && $2 == d { print $c }' "$dir/all" | median; }
line() { # what, way, column
    printf '%-22s' "$1"
    for distance in $distances; do printf '%12s' "$(of "$2" "$distance" "$3") s"; done
    echo
}
printf '%-22s' "one way"
for distance in $distances; do printf '%12s' "$distance ms"; done
echo
for way in $ways; do
    case $way in
        cutover) line "cutover: comparison" cutover 3; line "cutover: pause" cutover 4 ;;
        scan) line "scan copy" scan 3 ;;
        *) line "$way" "$way" 3 ;;
    esac
done
if [ -n "$json" ]; then
    awk -v keys="$keys" 'BEGIN { printf "{\"set\": \"A\", \"keys\": %d, \"measurements\": [", keys }
        { printf "%s\n  {\"way\": \"%s\", \"one_way_ms\": %s, \"seconds\": %s", (NR > 1 ? "," : ""), $1, $2, $3
          if (NF > 3) printf ", \"pause_s\": %s", $4
          printf "}" }
        END { print "\n]}" }' "$dir/all" >"$json.new" && mv "$json.new" "$json"
fi
