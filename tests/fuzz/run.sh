#!/usr/bin/env bash
# Fuzzes every target for some seconds, from seeds that real servers wrote.
#
#   tests/fuzz/run.sh [SECONDS] [TARGET...]      default: 600 seconds, all targets
#
# Needs a nightly toolchain and cargo-fuzz (`cargo install cargo-fuzz`). The corpus lies in target/fuzz-corpus; what is
# found lies in tests/fuzz/artifacts and goes, once mended, into the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(file payload encodings resp handshake)

corpus=target/fuzz-corpus
for target in "${targets[@]}"; do mkdir -p "$corpus/$target"; done

# Seeds: small snapshots as they are, and the values out of them as the payload target wants them.
for file in tests/fixtures/rdb/*.rdb; do
    [ "$(stat -c %s "$file")" -gt 20000 ] || cp "$file" "$corpus/file/" 2>/dev/null || true
    name=$(basename "$file" .rdb)
    if [ -d "$corpus/payload" ]; then
        # Pieces of the large ones hold every encoding; two bytes before them are the version.
        for skip in 400 2000 9000 40000 100000 200000 300000; do
            { printf '\013\000'; head -c $((skip + 3000)) "$file" | tail -c 3000; } >"$corpus/payload/$name-$skip"
        done
    fi
    if [ -d "$corpus/encodings" ]; then
        for skip in 500 3000 10000 50000 150000; do
            head -c $((skip + 800)) "$file" | tail -c 800 >"$corpus/encodings/$name-$skip"
        done
    fi
done
if [ -d "$corpus/resp" ]; then
    printf '*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n' >"$corpus/resp/set"
    printf '*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n' >"$corpus/resp/mset"
    printf '*6\r\n$6\r\nMSETEX\r\n$1\r\n2\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n' >"$corpus/resp/msetex"
    printf 'select 3\r\n*1\r\n$4\r\nPING\r\n' >"$corpus/resp/inline"
    printf '*2\r\n+OK\r\n*2\r\n:1\r\n$-1\r\n' >"$corpus/resp/reply"
    printf '%%1\r\n+k\r\n,1.5\r\n' >"$corpus/resp/resp3"
fi
if [ -d "$corpus/handshake" ]; then
    id=0123456789abcdef0123456789abcdef01234567
    printf '+FULLRESYNC %s 100\n' $id >"$corpus/handshake/full"
    printf '+CONTINUE %s\n' $id >"$corpus/handshake/continue"
    printf -- '-NOMASTERLINK no\n' >"$corpus/handshake/nomaster"
    printf '$EOF:%s\nREDIS0011%s*1\r\n' $id $id >"$corpus/handshake/eof"
    printf '$9\nREDIS0011*1\r\n' >"$corpus/handshake/sized"
fi

for target in "${targets[@]}"; do
    echo "== $target for $seconds s"
    # Twice the input and then some: what an input of 64 KiB may take.
    cargo +nightly fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz "$target" "$corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=512 -malloc_limit_mb=64 -max_len=65536 -timeout=10 -print_final_stats=1
done
