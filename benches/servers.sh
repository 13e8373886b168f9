# What the benchmarks share: servers of .servers on free ports of 127.0.0.1, CPU seconds, medians. Sourced, not run.
# Wants `name` (a server of .servers); whatever it starts is ended with the script. With `tls` set, servers speak TLS to
# keyferry and to each other; the scripts' own questions go to their plain ports.

servers=${KEYFERRY_SERVERS:-$PWD/.servers}
server=$servers/$name/redis-server cli=$servers/$name/redis-cli
benchmark=$(find "$servers/$name/root" -name redis-benchmark -type f 2>/dev/null | head -n 1)
libraries=$(find "$servers/$name/root" -type d -path '*/lib/*-linux-gnu' 2>/dev/null | paste -sd:)
keyferry=${KEYFERRY:-target/release/keyferry} traffic=${TRAFFIC:-target/release/examples/traffic}
for needed in "$server" "$cli"; do
    [ -x "$needed" ] || { echo "$needed is not there: run tests/servers.sh first" >&2; exit 2; }
done
[ -x "$keyferry" ] || { echo "$keyferry is not there: run cargo build --release first" >&2; exit 2; }

dir=$(mktemp -d)
declare -A pid_of=() port_of=()
cleanup() {
    stop "${!pid_of[@]}"
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Below what the system gives to outgoing connections, and so is the bus of a cluster, 10,000 above.
next_port=$((12000 + RANDOM % 8000))
is_free() { ! (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

tls=${tls:-}
declare -A tls_port_of=()
# A certificate of 127.0.0.1 and the authority behind it.
make_certificates() {
    [ -e "$dir/ca.crt" ] && return
    {
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=bench CA" -keyout "$dir/ca.key" -out "$dir/ca.crt"
        openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout "$dir/server.key" -out "$dir/server.csr"
        openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days 2 \
            -extfile <(echo subjectAltName=IP:127.0.0.1) -out "$dir/server.crt"
    } 2>"$dir/openssl" || { cat "$dir/openssl" >&2; exit 3; }
}
free_port() { # sets free
    until is_free "$next_port" && is_free $((next_port + 10000)); do next_port=$((next_port + 1)); done
    free=$next_port
    next_port=$((next_port + 1))
}

start() { # name, more lines of configuration
    local what=$1 free; shift
    if [ -z "${port_of[$what]:-}" ]; then
        free_port
        port_of[$what]=$free
        if [ -n "$tls" ]; then free_port; tls_port_of[$what]=$free; fi
    fi
    rm -rf "${dir:?}/$what"; mkdir -p "$dir/$what"
    if [ -n "$tls" ]; then
        make_certificates
        set -- --tls-port "${tls_port_of[$what]}" --tls-cert-file "$dir/server.crt" --tls-key-file "$dir/server.key" \
            --tls-ca-cert-file "$dir/ca.crt" --tls-auth-clients no --tls-replication yes "$@"
    fi
    "$server" --port "${port_of[$what]}" --bind 127.0.0.1 --save "" --appendonly no --dir "$dir/$what" \
        --logfile "$dir/$what/log" --repl-diskless-sync-delay 0 --repl-backlog-size 64mb \
        --client-output-buffer-limit "replica 0 0 0" "$@" >/dev/null 2>&1 &
    pid_of[$what]=$!
    until ask "$what" ping >/dev/null 2>&1; do
        kill -0 "${pid_of[$what]}" 2>/dev/null || { echo "the server $what does not start:" >&2; cat "$dir/$what/log" >&2; exit 3; }
        sleep 0.05
    done
}
stop() {
    for what in "$@"; do
        kill -9 "${pid_of[$what]}" 2>/dev/null || true
        { wait "${pid_of[$what]}"; } 2>/dev/null || true
        unset "pid_of[$what]"
    done
}
ask() { local to=$1; shift; "$cli" -p "${port_of[$to]}" "$@"; }
# Where others than the scripts reach a server.
door() { echo "${tls_port_of[$1]:-${port_of[$1]}}"; }

# A cluster of N masters called NAME0, NAME1, …, with the slots in equal parts.
start_cluster() { # name, masters, more lines of configuration
    local of=$1 n=$2 i
    shift 2
    for i in $(seq 0 $((n - 1))); do
        start "$of$i" --cluster-enabled yes --cluster-require-full-coverage no ${tls:+--tls-cluster yes} "$@"
        ask "$of$i" cluster addslotsrange $((i * 16384 / n)) $(((i + 1) * 16384 / n - 1)) >/dev/null
        [ "$i" = 0 ] || ask "$of$i" cluster meet 127.0.0.1 "$(door "${of}0")" >/dev/null
    done
    for i in $(seq 0 $((n - 1))); do
        until ask "$of$i" cluster info | grep -q "cluster_known_nodes:$n" && ask "$of$i" cluster info | grep -q cluster_slots_ok:16384; do sleep 0.05; done
        until ask "$of$i" cluster info | grep -q cluster_state:ok; do sleep 0.05; done
    done
}

# Fills the source with as many keys of a data set (of A, B, C, P, R) as `keys` says.
fill_source() { # set
    local set=$1
    local at=1 part=50000 script
    case $set in
        A) script='for i=ARGV[1],ARGV[2] do local k="key:"..i; local v=redis.sha1hex(i)..redis.sha1hex(-i)..string.format("%020d",i)
             if i%5==0 then redis.call("set",k,v,"ex",864000+i%1000) else redis.call("set",k,v) end end' ;;
        B) part=5000 script='for i=ARGV[1],ARGV[2] do local n=i%20; local k="b:"..i
             if n<12 then redis.call("set",k,string.rep(string.char(97+i%26),64+(i*37)%4032))
             elseif n<15 then for f=1,20 do redis.call("hset",k,"field:"..f,"value "..i..":"..f) end
             elseif n<16 then for m=1,100 do redis.call("zadd",k,m*1.5,"member:"..i..":"..m) end
             elseif n<18 then for e=1,200 do redis.call("rpush",k,"element "..e) end
             else for m=1,50 do redis.call("sadd",k,"member "..i..":"..m) end end end' ;;
        C) part=20000 script='for i=ARGV[1],ARGV[2] do local k="session:"..i
             redis.call("hset",k,"user",i,"ip","10.0."..(i%256).."."..(i%200),"agent",string.rep("a",80),"csrf",string.format("%032d",i),"seen",1700000000+i)
             redis.call("expire",k,864000+i%1000) end' ;;
        R) script='local pack=struct.pack for i=ARGV[1],ARGV[2] do local r=math.random
             redis.call("set","key:"..i,string.sub(pack("<ddddddddddddddd",r(),r(),r(),r(),r(),r(),r(),r(),r(),r(),r(),r(),r(),r(),r()),1,100)) end' ;;
        P) ask source debug populate "$keys" key 100 >/dev/null; return ;;
        *) echo "no such data set: $set" >&2; exit 2 ;;
    esac
    while [ "$at" -le "$keys" ]; do
        local to=$((at + part - 1))
        [ "$to" -gt "$keys" ] && to=$keys
        ask source eval "$script" 0 "$at" "$to" >/dev/null
        at=$((to + 1))
    done
    if [ "$set" = B ]; then
        for kind in rpush sadd; do
            ask source eval 'for i=1,ARGV[1] do redis.call(ARGV[2],"large:"..ARGV[2],"element "..i) end' 0 $((keys < 1000000 ? keys : 1000000)) "$kind" >/dev/null
        done
    fi
    [ "$(ask source dbsize)" -ge "$keys" ] || { echo "the source has $(ask source dbsize) keys of $keys" >&2; exit 3; }
}

tick=$(getconf CLK_TCK)
# CPU seconds of a process and of its children that have ended.
cpu() { awk -v t="$tick" '{ sub(/^.*\) /, ""); print ($12 + $13 + $14 + $15) / t }' "/proc/${pid_of[$1]}/stat"; }
now() { date +%s.%N; }
minus() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a - b }'; }
median() { sort -n | awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : 0 }'; }

# Native replication from the beginning to caught up. The target takes the snapshot off the wire if it was started with
# --repl-diskless-load on-empty-db.
replicate() { # target, source
    ask "$1" replicaof 127.0.0.1 "$(door "$2")" >/dev/null
    until ask "$1" info replication | grep -q master_link_status:up; do sleep 0.02; done
}

# The plan of a migration, and where its work goes.
plan() { # source, target, topology of the source, of the target
    rm -rf "$dir/work"
    local scheme=redis trust=
    if [ -n "$tls" ]; then scheme=rediss trust=",\"tls\":{\"ca\":\"$dir/ca.crt\"}"; fi
    printf '{"name":"bench","source":{"mode":"replica","url":"%s://127.0.0.1:%s","topology":"%s"%s},"target":{"url":"%s://127.0.0.1:%s","topology":"%s"%s}}' \
        "$scheme" "$(door "$1")" "$3" "$trust" "$scheme" "$(door "$2")" "$4" "$trust" >"$dir/plan.json"
}
# keyferry migrate --until caught-up; sets the seconds that it took, its CPU seconds, and its peak memory in MiB.
ferry() { # as plan
    plan "$@"
    local from
    from=$(now)
    TIMEFORMAT='%U %S'
    { time "$keyferry" migrate "$dir/plan.json" --work-dir "$dir/work" --no-progress --until caught-up --json >"$dir/answer" 2>"$dir/log"; } 2>"$dir/times" ||
        { cat "$dir/log" >&2; exit 3; }
    took=$(minus "$(now)" "$from")
    mover=$(awk 'END { print $1 + $2 }' "$dir/times")
    memory=$(sed -n 's/.*"peak_rss_bytes": *\([0-9]*\).*/\1/p' "$dir/answer" | awk '{ printf "%.0f", $1 / 1048576 }')
    if [ -n "${KEYFERRY_BENCH_LOG:-}" ]; then cat "$dir/log" >>"$KEYFERRY_BENCH_LOG"; fi
}
# The same in the background, until end_ferry.
begin_ferry() { # as plan
    plan "$@"
    "$keyferry" migrate "$dir/plan.json" --work-dir "$dir/work" --no-progress >/dev/null 2>"$dir/log" &
    pid_of[ferry]=$!
}
end_ferry() { kill -INT "${pid_of[ferry]}"; wait "${pid_of[ferry]}" || true; unset "pid_of[ferry]"; }

# Puts the `traffic` example's proxies before servers; one called far-NAME is the way to NAME.
go_far() { # microseconds one way, servers
    local us=$1 what line=0
    shift
    rm -f "$dir/far"
    mkfifo "$dir/far"
    "$traffic" far --one-way-us "$us" $(for what in "$@"; do echo "127.0.0.1:$(door "$what")"; done) <"$dir/far" >"$dir/lines" &
    pid_of[far]=$!
    exec {far_words}>"$dir/far"
    until [ "$(wc -l <"$dir/lines")" -ge $# ]; do sleep 0.02; done
    for what in "$@"; do
        line=$((line + 1))
        port_of[far-$what]=$(sed -n "${line}s/.*://p" "$dir/lines")
    done
}
# Cuts the lines of go_far until "up".
say_far() { echo "$1" >&"$far_words"; } # down or up
come_near() {
    stop far
    exec {far_words}>&-
    local what
    for what in "${!port_of[@]}"; do case $what in far-*) unset "port_of[$what]" ;; esac; done
}
