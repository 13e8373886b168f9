#!/usr/bin/env bash
# How time and memory grow with the number of keys (next to native replication), and with the number of shards.
#
#   benches/scale.sh [OPTIONS]
#     --keys LIST        how many small strings, from one server to another (default "1000000 4000000 5000000 16000000 20000000")
#     --shards LIST      from a cluster of so many masters to another of as many (default "1 3 9 30")
#     --shard-keys N     how many keys all of those shards hold together (default 2000000)
#     --expiry SECONDS   gives all keys one (default: none)
#     --rounds N         how often each is measured; medians are told (default 3)
#     --server NAME      a server of .servers (default: redis-7.0)
#
# Prints seconds, keys/s, CPU microseconds of keyferry for a key, its peak memory, and how long native diskless
# replication of the same keys took in the same minutes. 20 million keys want 8 GiB of memory for the two servers, and
# the snapshot's 1.6 GB on the disk of /tmp. Give an empty LIST to leave one part out.
#
# A server's table of keys doubles at each power of two, and then moves every key to the new one, a step with each
# command: between 2^24 keys and 20 million a key costs the target more than twice what it costs before and after. Native
# replication spares it that, since a snapshot says beforehand how many keys will come. So compare counts that lie
# equally far from a power of two: 1,000,000, 4,000,000 and 16,000,000 just short of one, 5,000,000 and 20,000,000 where
# the move has just ended or nearly so.
# Needs a release build: cargo build --release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

key_counts="1000000 4000000 5000000 16000000 20000000" shard_counts="1 3 9 30" shard_keys=2000000 expiry= rounds=3 name=redis-7.0
while [ $# -gt 0 ]; do
    case $1 in
        --keys) key_counts=$2 ;; --shards) shard_counts=$2 ;; --shard-keys) shard_keys=$2 ;;
        --expiry) expiry=$2 ;; --rounds) rounds=$2 ;; --server) name=$2 ;;
        *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
    shift 2
done
. benches/servers.sh

# Keys of 100 bytes with (nearly all) distinct names, spread over the nodes by the slots of their names.
fill() { # a server, keys, --cluster or nothing
    local to=$1 n=$2 in=${3:-} value
    value=$(for i in 1 2 3; do echo "$i" | sha1sum | cut -c 1-40; done | tr -d '\n' | cut -c 1-100)
    # In a cluster a connection keeps to one node, so there are more than nodes, and each names slots of its node by {tag}.
    LD_LIBRARY_PATH=$libraries "$benchmark" -p "${port_of[$to]}" -n "$n" -r 2000000000 -P 64 -c 90 -q $in \
        set "key${in:+:{tag\}}:__rand_int__" "$value" ${expiry:+ex "$expiry"} >"$dir/fill" 2>&1 ||
        { cat "$dir/fill" >&2; exit 3; }
}
keys_of() { local what sum=0; for what in "$@"; do sum=$((sum + $(ask "$what" dbsize))); done; echo "$sum"; }
line() { # what, how many, keys
    awk -v w="$1" -v n="$2" -v k="$3" -v s="$(awk '{ print $1 }' "$dir/all" | median)" -v c="$(awk '{ print $2 }' "$dir/all" | median)" \
        -v m="$(awk '{ print $3 }' "$dir/all" | median)" \
        'BEGIN { printf "%-7s %9d %10d keys %8.2f s %9.0f keys/s %6.2f us/key %5d MiB", w, n, k, s, k / s, c * 1e6 / k, m }'
    if [ -s "$dir/native" ]; then median <"$dir/native" | awk '{ printf "   native %8.2f s", $1 }'; fi
    echo
}
measure() { # source names, target names, topology of both -> a line of seconds, CPU, memory
    local -a from=() to=()
    read -ra from <<<"$1"; read -ra to <<<"$2"
    ferry "${from[0]}" "${to[0]}" "$3" "$3"
    local has wanted
    has=$(keys_of "${to[@]}") wanted=$(keys_of "${from[@]}")
    [ "$has" = "$wanted" ] || { echo "the target has $has keys of $wanted" >&2; exit 3; }
    echo "$took $mover $memory" | tee -a "$dir/all" >&2
}

for n in $key_counts; do
    : >"$dir/all" >"$dir/native"
    start source --repl-diskless-sync yes
    fill source "$n"
    for _ in $(seq "$rounds"); do
        start target --repl-diskless-load on-empty-db
        from=$(now)
        replicate target source
        echo "$(minus "$(now)" "$from")" | tee -a "$dir/native" >&2
        stop target
        start target
        measure source target standalone
        stop target
    done
    line keys "$n" "$(keys_of source)"
    stop source
done
for n in $shard_counts; do
    : >"$dir/all" >"$dir/native"
    start_cluster source "$n"
    sources=() targets=()
    for i in $(seq 0 $((n - 1))); do sources+=("source$i"); targets+=("target$i"); done
    # It takes one master for no cluster.
    case $n in 1) fill source0 "$shard_keys" ;; *) fill source0 "$shard_keys" --cluster ;; esac
    for _ in $(seq "$rounds"); do
        start_cluster target "$n"
        measure "${sources[*]}" "${targets[*]}" cluster
        stop "${targets[@]}"
    done
    line shards "$n" "$(keys_of "${sources[@]}")"
    stop "${sources[@]}"
done
