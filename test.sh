#!/usr/bin/env bash
# Runs every check and test: servers, format, lints, tests. Needs Rust; downloads what else it can use.
#
#   ./test.sh [FILTER]           only the tests whose name contains FILTER (format and lints are checked all the same)
#   KEYFERRY_FULL=1 ./test.sh    the large sizes: every pair of the matrix with 200,000 keys (an hour)
#   KEYFERRY_SEED=n              what random choices follow from, also which server a test gets that takes any
#   KEYFERRY_ANY=redis-7.0       the server for every test that takes any
#   KEYFERRY_FUZZ="source=redis-7.0 target=redis-8.0-cluster plan=skip seconds=600 seed=7" ./test.sh as_asked
#                                a run of the stream's fuzz; its words are in tests/support/fuzz/asked.rs
#   CI=true ./test.sh            runs ./demo.sh first, in README's order
#   KEYFERRY_TEST_THREADS=n      how many tests at a time (default: two more than processors, at most 6)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

started=$SECONDS
log=$(mktemp)
KEYFERRY_SKIPPED=$(mktemp)
export KEYFERRY_SKIPPED
export KEYFERRY_SEED=${KEYFERRY_SEED:-$(date +%s)}
trap 'rm -f "$log" "$KEYFERRY_SKIPPED"' EXIT

# In continuous integration each build is the first and the last: nothing to be incremental for.
if [ -n "${CI:-}" ]; then export CARGO_INCREMENTAL=0; fi

say() { printf '\n== %s (at %s s)\n' "$*" $((SECONDS - started)); }

if ! command -v cargo >/dev/null 2>&1; then
    echo "cargo is not here: install Rust first (https://rustup.rs)" >&2
    exit 2
fi

# As in the README: the demo comes first, and leaves a server behind that the tests may draw.
if [ -n "${CI:-}" ]; then
    say "demo"
    ./demo.sh
fi

say "servers"
tests/servers.sh
servers=${KEYFERRY_SERVERS:-.servers}
if [ -s "$servers/MISSING" ]; then
    sed 's/^/SKIPPED: the server /' "$servers/MISSING" >>"$KEYFERRY_SKIPPED"
fi

say "format"
if cargo fmt --version >/dev/null 2>&1; then
    cargo fmt --check
else
    echo "SKIPPED: format: rustfmt is not here (rustup component add rustfmt)" | tee -a "$KEYFERRY_SKIPPED"
fi

say "lints"
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --all-targets -- -D warnings
    # Sums of what peers say must say what happens at the end of the range (src/lib.rs).
    CLIPPY_CONF_DIR="$PWD/.ci" cargo clippy --lib -- -D warnings --cfg peers_numbers
else
    echo "SKIPPED: lints: clippy is not here (rustup component add clippy)" | tee -a "$KEYFERRY_SKIPPED"
fi

say "tests"
echo "KEYFERRY_SEED=$KEYFERRY_SEED${KEYFERRY_ANY:+ KEYFERRY_ANY=$KEYFERRY_ANY}"
# Tests wait half of their time, for expiries, failovers and leases.
threads=${KEYFERRY_TEST_THREADS:-$(($(nproc 2>/dev/null || echo 2) + 2))}
if [ "$threads" -gt 6 ] && [ -z "${KEYFERRY_TEST_THREADS:-}" ]; then threads=6; fi
code=0
run() { cargo test --no-fail-fast "$@" 2>&1 | tee -a "$log" || code=$?; }
if [ $# -gt 0 ]; then
    run -- --test-threads "$threads" "$@"
else
    run -- --test-threads "$threads" --skip latency::
    # What measures latency wants the processors for itself.
    run latency:: -- --test-threads 2
fi

say "skipped"
if [ -s "$KEYFERRY_SKIPPED" ]; then sort -u "$KEYFERRY_SKIPPED"; else echo "nothing"; fi

say "result"
if [ "$code" -ne 0 ]; then
    sed -n 's/^test \(.*\) \.\.\. FAILED$/FAILED: \1/p' "$log"
    echo "The same servers again: KEYFERRY_SEED=$KEYFERRY_SEED ./test.sh FILTER"
fi
# One line for all test programs together.
awk '/^test result:/ { passed += $4; failed += $6 } END { printf "%d passed, %d failed\n", passed, failed }' "$log"
exit "$code"
