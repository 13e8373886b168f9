//! The words of servers' own sentences: what of an error reply may be shown, as users' values are made of others.

use crate::command;

/// Of the error replies of Redis 6.0 to 8.2, Valkey 8.0 to 9.1, Redict and the services around them; sorted.
const WORDS: &str = "\
    a able aborted aborting about above accepted accepting accepts access accessible accumulated acl acls across \
    action add added adding addr address addresses adopt after again against all allkeys allow allowed allowing \
    already also alternatively an and another any aof append apply applying are args argument arguments as ask \
    asked asking assigned at attempt attempted auth authenticate authenticated authentication authorization \
    available back background bad bandwidth base be because before begin beginning being between bgsave big \
    bigger bind bit bitfield bits block blocked blocking boolean both buffer bulk busy busygroup busykey but by \
    byte bytes call callback called can can't cancel cannot certificate ch change changed changes changing \
    channel channels character characters check checksum client clients close closed cluster clusterdown code \
    cold combination command command's commands compatible compile compiling config configuration configure \
    configured connect connected connecting connection connections consumer contain container contains context \
    continue control coordinated copy corrupted could count create creating crossslot currently cursor data \
    database databases dataset db debug debugger debugging decode default delete denied description destination \
    details detected different directory disable disabled discarded disk do does don't double down during each \
    either element elements else empty enable enabled encoding end endoff engine enough entra entriesread entry \
    environment epoch equal err error errors establish eval event evict evicted eviction exactly exceeded \
    exceeds exclusive exec execabort execute executed executing execution exist existing exists exit exiting \
    expected expects expire expired expiry expression external failed failing failover fails fatal fd field \
    fields file files filter find finished first flag flags float flushslots following for forbidden force fork \
    format found fractional freq from fsync full function functions future generate get given global good got \
    greater group groups gt handshake hard has hash hashed have height hello help hexadecimal history hll hold \
    holding holds host hostname however id identity idle idletime ids if ignored immutable import imported \
    importing in including inclusive incr index info information initial initialized inprog input insert inside \
    instance instances instead integer integers internal interval into invalid invalidated invalidobj ioerr ip \
    ipv is it it's its job joined just key key's keys keyspace keyword kill killed kind last later latitude lease least \
    len length less level libraries library licence license limit limited line lines link list listening load \
    loading local locale locked log logs long longer longitude loop loopback lower lowercase lt lua main make \
    malformed managed manifest manually mask master masterdown match matching max maxage maximum maxlen \
    maxmemory may mbulk member members memory mentioned message metadata method migrating migration milliseconds \
    min minid misconf mismatch missing mode modifier modifiers modify module more moved multi multibulk multiple \
    must mutually my nack name names nan near nearly need needs negative nested new next nil no noauth node \
    nodes nogoodprimary nogoodslave nogroup nomasterlink non none nonexistent noperm noproto nor noreplicas \
    nosave noscript not notbusy note nothing now null number numbers numfields numkeys nx object objects \
    obtained of off offset on one online only oom open opening operation operations option or order otherwise \
    out output outside over overflow owned owner packet pair parameter parameters params parse partial pass \
    passed password path pattern patterns pause paused payload peer pel pending percent percentage performed \
    period permanent permission permissions permitted persist persistence pid plan please policy port positive \
    posix possible pre precision previous primary private process progress promote propagated protected proto \
    protocol provided proxy psync pub pubsub queue queued quorum quota radius range ranges rank rate rdb read \
    readable reading readonly ready reason received redict redis refused region register registered registering \
    rehashing release remain remove rename repeated replaced replica replicaof replicas replicated replication \
    replies reply report representing request requested requests require required requires reset resolve \
    resource resources resp response restart restarting restored restoring restricted result retry return \
    returned returns revoked rewrite right rights role roles row rules run running same save saved saving \
    schedule scheduled scheme scope score scores script scripting scripts search second seconds select selected \
    send sending sent sequence serve served server service session set sets setting settings setup sha shard \
    sharded shards shebang should shutdown side simultaneously since single size sizes skipped slave slot slots \
    small snapshot snapshots snapshotting so socket something sorted sorting source space spec special \
    specification specified specify specifying specs stack stale start started state static status step still \
    stop store strategy stream streams string strings sub subcommand subscribed successful such suitable \
    supplied support supported sure sync synchronization syncslots syntax system table target task tcp temp \
    temporarily temporary tenant termination than that the then there this throttled throttling tier time timed \
    timeout timestamp tls to together too total tracking transaction transfer trimming try tryagain trying ttl \
    two type types unable unassigned unauthorized unavailable unbalanced unblock unblocked unbound undeclared \
    undefined under underlying unexpected unicode unit unix unkillable unknown unlicensed unload unrecognized \
    unsupported up update updating use used useful user username usernames users using valid valkey variable value values \
    version via wait want warning was way we weight were when where which while wide width window with within \
    without withscores worker would writable write writes writing wrong wrongpass wrongtype xclaim xreadgroup xx \
    xxf yes you your zero zone";

/// Commands that `command::lookup` does not know, as they write nothing; sorted.
const COMMANDS: &str = "\
    acl append asking auth bgrewriteaof bgsave bitcount bitpos client cluster command config dbsize debug \
    discard dump echo eval eval_ro evalsha evalsha_ro exec exists expiretime failover fcall fcall_ro function \
    geodist geohash geopos get getbit getrange hello hexists hexpiretime hget hgetall hkeys hlen hmget \
    hpexpiretime hpttl hrandfield hscan hstrlen httl hvals info keys lastsave latency lcs lindex llen lolwut \
    lpos lrange memory mget migrate module monitor multi object pexpiretime pfcount ping psubscribe psync pttl \
    publish punsubscribe quit randomkey readonly readwrite replconf replicaof reset role save scan scard script \
    sdiff select shutdown sinter sintercard sismember slaveof slowlog smembers smismember spublish srandmember \
    sscan ssubscribe strlen subscribe substr sunion sunsubscribe swapdb sync time touch ttl type unsubscribe \
    unwatch vcard vdim vemb vinfo vlinks vrandmember vsim wait waitaof watch xinfo xlen xpending xrange xread \
    xrevrange zcard zcount zdiff zinter zintercard zlexcount zmscore zrandmember zrange zrangebylex \
    zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion";

/// What servers quote of their own.
const QUOTED: [&str; 8] = [
    "maxmemory",
    "no",
    "no-writes",
    "allow-stale",
    "allow-oom",
    "xinfo help",
    "lua-replicate-commands",
    "replica-serve-stale-data",
];

fn has(sorted: &str, word: &str) -> bool {
    sorted
        .split_ascii_whitespace()
        .any(|known| known.eq_ignore_ascii_case(word))
}

/// Whether a word is one that servers use; of several that are joined, whether each is.
pub(super) fn is_known(word: &str) -> bool {
    word.split(['-', '|', '/', '_', ','])
        .all(|part| has(WORDS, part) || is_command(part))
}

/// Whether what stands between quotes names a command or something of the server's own.
pub(super) fn is_quotable(text: &str) -> bool {
    let mut parts = text.split('|');
    let command = parts.next().is_some_and(is_command);
    (command && parts.all(|part| has(WORDS, part) || is_command(part))) || QUOTED.contains(&text)
}

fn is_command(word: &str) -> bool {
    has(COMMANDS, word) || command::lookup(word.as_bytes()).is_some()
}
