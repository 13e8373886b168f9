#!/usr/bin/env bash
# keyferry next to the server's own ways of moving data: the same data, the same minutes, one after the other.
#
#   benches/side-by-side.sh [OPTIONS]
#     --set A|B|C|P|R   A: small strings, a fifth with an expiry (default)
#                       B: strings 64 B–4 KB, hashes of 20 fields, sorted sets of 100, lists of 200, sets of 50, and two
#                          keys of many elements
#                       C: session hashes, all with an expiry
#                       P: strings of 100 bytes that compress well, by DEBUG POPULATE
#                       R: strings of 100 bytes that do not, numbers at random
#     --keys N          how many keys (default 1000000; the issue's figures are for A with 5000000)
#     --rounds N        how often each way is measured; medians are told (default 3)
#     --ways LIST       of: diskless disk pipe benchmark keyferry cluster (default: all of them)
#     --server NAME     a server of .servers (default: redis-7.0)
#     --tls             servers and keyferry speak TLS to each other (pipe and benchmark do not)
#     --json FILE       where to write all single measurements (default: none)
#
# Ways, each from the moment it is told to begin until the target has every key:
#   diskless   REPLICAOF, no file on either side (repl-diskless-sync, repl-diskless-load)
#   disk       REPLICAOF with the file on disk, as servers are set up by default
#   pipe       redis-cli --pipe of the same data as commands, which were made ready beforehand
#   benchmark  redis-benchmark -P 64 writing as many strings of 100 bytes: what the target takes at most
#   keyferry   keyferry migrate --until caught-up to one server
#   cluster    the same into a cluster of three masters
#
# CPU seconds are those of all threads, user and system: of the moving program, of the source (with the child that
# writes its snapshot) and of the target. Peak memory is that of the moving program.
# Everything runs on ports of 127.0.0.1 and is ended at the end. Needs a release build: cargo build --release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

set=A keys=1000000 rounds=3 ways="diskless disk pipe benchmark keyferry cluster" name=redis-7.0 json= tls=
while [ $# -gt 0 ]; do
    case $1 in
        --tls) tls=yes; shift; continue ;;
        --set) set=$2 ;; --keys) keys=$2 ;; --rounds) rounds=$2 ;; --ways) ways=$2 ;;
        --server) name=$2 ;; --json) json=$2 ;;
        *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
    shift 2
done
. benches/servers.sh

# One way, once: prints seconds, CPU of the mover, of the source, of the target, peak memory of the mover in MiB.
one() {
    local way=$1 targets=(target) from mover=0 memory=0 source_before target_before took what
    case $way in
        cluster) targets=(node0 node1 node2); start_cluster node 3 ;;
        diskless) start target --repl-diskless-sync yes --repl-diskless-load on-empty-db; ask source config set repl-diskless-sync yes >/dev/null ;;
        disk) start target --repl-diskless-load disabled; ask source config set repl-diskless-sync no >/dev/null ;;
        *) start target; ask source config set repl-diskless-sync yes >/dev/null ;;
    esac
    local wanted
    wanted=$(ask source dbsize)
    source_before=$(cpu source)
    target_before=0
    for what in "${targets[@]}"; do target_before=$(awk -v a="$target_before" -v b="$(cpu "$what")" 'BEGIN { print a + b }'); done
    from=$(now)
    case $way in
        diskless | disk) replicate target source ;;
        pipe)
            TIMEFORMAT='%U %S'
            { time ask target --pipe <"$dir/commands" >/dev/null; } 2>"$dir/times"
            mover=$(awk 'END { print $1 + $2 }' "$dir/times")
            ;;
        benchmark)
            TIMEFORMAT='%U %S'
            { time LD_LIBRARY_PATH=$libraries "$benchmark" -p "${port_of[target]}" -t set -n "$keys" -r "$keys" -d 100 -P 64 -c 8 -q >/dev/null 2>&1; } 2>"$dir/times"
            mover=$(awk 'END { print $1 + $2 }' "$dir/times")
            ;;
        keyferry | cluster)
            case $way in cluster) ferry source node0 standalone cluster ;; *) ferry source target standalone standalone ;; esac
            ;;
    esac
    took=$(minus "$(now)" "$from")
    # The child that wrote the snapshot is counted when it has ended.
    sleep 0.3
    local has=0 target_after=0
    for what in "${targets[@]}"; do
        has=$((has + $(ask "$what" dbsize)))
        target_after=$(awk -v a="$target_after" -v b="$(cpu "$what")" 'BEGIN { print a + b }')
    done
    if [ "$has" -ne "$wanted" ] && [ "$way" != benchmark ]; then
        echo "$way: the target has $has keys of $wanted" >&2
        exit 3
    fi
    echo "$took $mover $(minus "$(cpu source)" "$source_before") $(minus "$target_after" "$target_before") ${memory:-0}"
    stop "${targets[@]}"
}

echo "data set $set${tls:+, TLS}, $keys keys, $("$server" --version | sed 's/ sha.*//'), $(nproc) cores, $rounds rounds" >&2
start source --enable-debug-command yes
fill_source "$set"
bytes=$(ask source info memory | sed -n 's/^used_memory:\([0-9]*\).*/\1/p')
echo "the source holds $(ask source dbsize) keys in $((bytes >> 20)) MiB" >&2
case " $ways " in
    *" pipe "*)
        ask source --rdb "$dir/dump.rdb" >/dev/null 2>&1
        "$keyferry" rdb resp "$dir/dump.rdb" >"$dir/commands"
        ;;
esac
if [ -z "$benchmark" ]; then ways=${ways/benchmark/}; fi

: >"$dir/all"
for round in $(seq "$rounds"); do
    for way in $ways; do
        figures=$(one "$way")
        echo "$way $figures" >>"$dir/all"
        echo "round $round, $way: $figures (s, mover CPU s, source CPU s, target CPU s, mover MiB)" >&2
    done
done

of() { awk -v w="$1" -v c="$2" '$1 == w { print $c }' "$dir/all" | median; }
base_way=diskless
case " $ways " in *" diskless "*) ;; *) base_way=${ways%% *} ;; esac
against=$(of "$base_way" 2)
printf '%-10s %9s %12s %12s %14s %14s %14s %10s\n' way seconds "ratio to" "mover CPU s" "µs for a key" "source CPU s" "target CPU s" "peak MiB"
printf '%-10s %9s %12s\n' "" "" "$base_way"
for way in $ways; do
    awk -v w="$way" -v s="$(of "$way" 2)" -v b="$against" -v m="$(of "$way" 3)" -v k="$keys" -v a="$(of "$way" 4)" -v t="$(of "$way" 5)" -v mem="$(of "$way" 6)" \
        'BEGIN { printf "%-10s %9.2f %12.2f %12.2f %14.2f %14.2f %14.2f %10s\n", w, s, s / b, m, m * 1e6 / k, a, t, (mem > 0 ? mem : "-") }'
done
if [ -n "$json" ]; then
    awk -v set="$set" -v keys="$keys" -v tls="$tls" 'BEGIN { printf "{\"set\": \"%s\", \"keys\": %d, \"tls\": %s, \"measurements\": [", set, keys, (tls == "" ? "false" : "true") }
        { printf "%s\n  {\"way\": \"%s\", \"seconds\": %s, \"mover_cpu_s\": %s, \"source_cpu_s\": %s, \"target_cpu_s\": %s, \"mover_peak_mib\": %s}", (NR > 1 ? "," : ""), $1, $2, $3, $4, $5, $6 }
        END { print "\n]}" }' "$dir/all" >"$json.new" && mv "$json.new" "$json"
fi
