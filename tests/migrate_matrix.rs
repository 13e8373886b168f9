//! The main job on every kind of source into every kind of target, under traffic, proved twice.
//!
//! By default each source form meets one target, at a small size; `KEYFERRY_FULL=1` runs all 36 pairs with
//! 200,000 keys.

use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::wait_until;
use std::time::Duration;

#[derive(Clone, Copy)]
enum Form {
    Disk,
    Diskless,
    Cluster,
}

impl Form {
    fn start(self, name: &str) -> Endpoint {
        match self {
            Form::Disk => Endpoint::alone(Setup::new(name).diskless(false)),
            Form::Diskless => Endpoint::alone(Setup::new(name).diskless(true)),
            Form::Cluster => Endpoint::cluster(Setup::new(name)),
        }
    }
}

fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}

fn tell(source: &str, form: Form, target: &str, to_cluster: bool) {
    let Some([source, target]) = need([source, target]) else {
        return;
    };
    let to = if to_cluster {
        Endpoint::cluster(Setup::new(&target))
    } else {
        Endpoint::alone(Setup::new(&target))
    };
    let story = Story::new(form.start(&source), to);
    let (keys, follow) = if full() { (200_000, 10) } else { (10_000, 3) };
    let report = story.tell(keys, Duration::from_secs(follow));
    assert!(
        report.total() > 3_000,
        "the traffic was too small to prove anything: {report:?}"
    );
}

/// One test for a source in one form; the first target is the one of the short run.
macro_rules! matrix {
    ($($test:ident: $source:literal $form:ident -> $first:expr;)*) => { $(
        #[test]
        fn $test() {
            let targets = [("valkey-8.1", true), ("redis-8.0", true), ("redis-8.0", false)];
            for (n, (target, cluster)) in targets.into_iter().enumerate() {
                if n == $first || full() {
                    println!("{} -> {target}, cluster {cluster}", $source);
                    tell($source, Form::$form, target, cluster);
                }
            }
        }
    )* };
}

matrix! {
    from_redis_7_disk: "redis-7.0" Disk -> 0;
    from_redis_7_diskless: "redis-7.0" Diskless -> 1;
    from_redis_7_cluster: "redis-7.0" Cluster -> 2;
    from_redis_8_disk: "redis-8.0" Disk -> 0;
    from_redis_8_diskless: "redis-8.0" Diskless -> 2;
    from_redis_8_cluster: "redis-8.0" Cluster -> 1;
    from_valkey_8_disk: "valkey-8.1" Disk -> 2;
    from_valkey_8_diskless: "valkey-8.1" Diskless -> 0;
    from_valkey_8_cluster: "valkey-8.1" Cluster -> 1;
    from_valkey_9_disk: "valkey-9.1" Disk -> 1;
    from_valkey_9_diskless: "valkey-9.1" Diskless -> 0;
    from_valkey_9_cluster: "valkey-9.1" Cluster -> 2;
}

/// What every machine can run: whatever server there is, into a cluster of the same.
#[test]
fn from_any_server_to_a_cluster_of_the_same() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.tell(10_000, Duration::from_secs(3));
}

/// A source that is itself a replica serves as well.
#[test]
fn from_a_replica() {
    let Some([name]) = need(["any"]) else { return };
    let master = Endpoint::alone(Setup::new(&name));
    let replica = Endpoint::alone(Setup::new(&name).replica_of(&master.nodes()[0]));
    let mut story = Story::new(master, Endpoint::alone(Setup::new(&name)));
    story.plan.set("/source/url", replica.url().into());
    story.fill(5_000);
    // What the replica does not have yet would not be in its snapshot.
    let size = |end: &Endpoint| end.nodes()[0].run("DBSIZE").int();
    wait_until("the replica has it all", Duration::from_secs(30), || {
        size(&replica) == size(&story.source)
    });
    story.follow(Duration::from_secs(2));
}
