#!/usr/bin/env bash
# How many keys keyferry verify compares in a second, and which process the CPU goes to.
#
#   benches/verify.sh [SET] [KEYS] [ROUNDS] [TOPOLOGY]    default: A 5000000 3 standalone
#
# SET is one of side-by-side.sh. TOPOLOGY is the target's: standalone (copied there by REPLICAOF) or cluster (three
# masters, filled by keyferry migrate). Every key is read on both sides. Prints each round, then medians; shares are of
# one core. Needs a release build: cargo build --release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
set=${1:-A} keys=${2:-5000000} rounds=${3:-3} topology=${4:-standalone} name=${KEYFERRY_BENCH_SERVER:-redis-7.0}
. benches/servers.sh

start source --enable-debug-command yes --repl-diskless-sync yes
fill_source "$set"
case $topology in
    standalone)
        targets=(target)
        start target --repl-diskless-load on-empty-db
        replicate target source
        ask target replicaof no one >/dev/null
        plan source target standalone standalone
        ;;
    cluster)
        targets=(node0 node1 node2)
        start_cluster node 3
        ferry source node0 standalone cluster
        ;;
    *) echo "no such topology: $topology" >&2; exit 2 ;;
esac
wanted=$(ask source dbsize)
echo "data set $set, $wanted keys, $("$server" --version | sed 's/ sha.*//'), $(nproc) cores, target: $topology" >&2

cpu_of_targets() { for what in "${targets[@]}"; do cpu "$what"; done | awk '{ s += $1 } END { print s }'; }
for round in $(seq "$rounds"); do
    source_before=$(cpu source) target_before=$(cpu_of_targets) from=$(now)
    TIMEFORMAT='%U %S'
    { time "$keyferry" verify "$dir/plan.json" --work-dir "$dir/work" --no-progress --fresh --json >"$dir/answer" 2>"$dir/log"; } 2>"$dir/times" ||
        { cat "$dir/log" "$dir/answer" >&2; exit 3; }
    took=$(minus "$(now)" "$from")
    awk -v k="$wanted" -v t="$took" -v ours="$(awk 'END { print $1 + $2 }' "$dir/times")" \
        -v s="$(minus "$(cpu source)" "$source_before")" -v g="$(minus "$(cpu_of_targets)" "$target_before")" \
        -v m="$(sed -n 's/.*"peak_rss_bytes": *\([0-9]*\).*/\1/p' "$dir/answer")" \
        'BEGIN { printf "%.0f %.2f %.0f %.0f %.0f %.2f %.0f\n", k / t, t, 100 * s / t, 100 * g / t, 100 * ours / t, ours * 1e6 / k, m / 1048576 }' | tee -a "$dir/all" |
        sed "s/^/round $round: /" >&2
done
printf '%10s %9s %9s %9s %9s %13s %9s\n' keys/s seconds "source %" "target %" "ours %" "µs for a key" "peak MiB"
for column in 1 2 3 4 5 6 7; do awk -v c="$column" '{ print $c }' "$dir/all" | median; done | paste -sd' ' |
    awk '{ printf "%10s %9s %9s %9s %9s %13s %9s\n", $1, $2, $3, $4, $5, $6, $7 }'
