//! Which way values go, between versions and products that cannot be had here as well.

use super::*;
use crate::rdb::payload::Target;

const REDIS: Target = Target {
    valkey: false,
    version: (7, 4, 0),
};
const VALKEY: Target = Target {
    valkey: true,
    version: (8, 1, 0),
};

fn loaded(list: &[(&str, u64)]) -> Vec<Loaded> {
    let of = |(name, version): &(&str, u64)| Loaded {
        name: (*name).to_owned(),
        version: Some(*version),
    };
    list.iter().map(of).collect()
}

fn takes(target: &[(&str, u64)]) -> Takes {
    Takes {
        target: Some(loaded(target)),
        ..Takes::default()
    }
}

fn why(way: Way) -> String {
    match way {
        Way::Lost(why) => why,
        other => panic!("{other:?}"),
    }
}

/// RedisJSON before 8.8 panics on encoding version 4: such a payload must never be sent there.
#[test]
fn an_encoding_that_the_module_does_not_load_is_never_restored() {
    let old = takes(&[("ReJSON", 20_803)]);
    assert_eq!(old.way("ReJSON-RL", 3, &REDIS), Way::Restore);
    assert_eq!(old.way("ReJSON-RL", 0, &REDIS), Way::Restore);
    let lost = why(old.way("ReJSON-RL", 4, &REDIS));
    assert!(
        lost.contains("encoding version 4") && lost.contains("ReJSON 2.8.3"),
        "{lost}"
    );
    let new = takes(&[("ReJSON", 80_800)]);
    assert_eq!(new.way("ReJSON-RL", 4, &REDIS), Way::Restore);
    assert_eq!(
        takes(&[("timeseries", 11_202)]).way("TSDB-TYPE", 8, &REDIS),
        Way::Restore
    );
    why(takes(&[("timeseries", 80_400)]).way("TSDB-TYPE", 9, &REDIS));
    assert_eq!(
        takes(&[("timeseries", 80_600)]).way("TSDB-TYPE", 9, &REDIS),
        Way::Restore
    );
    // One that is newer than all that is known.
    why(takes(&[("bf", 20_802)]).way("MBbloom--", 5, &REDIS));
    // RedisJSON 1.0 loads its own version only, and takes the text by its command.
    assert_eq!(
        takes(&[("ReJSON", 10_008)]).way("ReJSON-RL", 3, &REDIS),
        Way::Commands
    );
}

#[test]
fn a_module_that_is_not_older_than_the_source_s_loads_what_that_writes() {
    let mut same = takes(&[("ReJSON", 80_900)]);
    why(same.way("ReJSON-RL", 5, &REDIS));
    same.source = loaded(&[("ReJSON", 80_900)]);
    assert_eq!(same.way("ReJSON-RL", 5, &REDIS), Way::Restore);
    same.source = loaded(&[("ReJSON", 81_000)]);
    why(same.way("ReJSON-RL", 5, &REDIS));
    same.source = loaded(&[("json", 80_900)]);
    same.source_valkey = true;
    why(same.way("ReJSON-RL", 5, &REDIS));
}

#[test]
fn valkey_has_json_alike_and_filters_of_another_kind() {
    let valkey = takes(&[("json", 10_002), ("bf", 10_000), ("search", 10_000)]);
    assert_eq!(valkey.way("ReJSON-RL", 3, &VALKEY), Way::Restore);
    assert_eq!(valkey.way("ReJSON-RL", 2, &VALKEY), Way::Commands);
    let bloom = why(valkey.way("MBbloom--", 4, &VALKEY));
    assert!(bloom.contains("hash otherwise"), "{bloom}");
    assert_eq!(valkey.way("bloomfltr", 1, &VALKEY), Way::Restore);
    why(valkey.way("trietype0", 1, &VALKEY));
    // The name alone does not make Redis' module the other's.
    why(takes(&[("bf", 20_802)]).way("bloomfltr", 1, &REDIS));
}

#[test]
fn where_restore_is_refused_commands_serve_or_the_loss_says_why() {
    let mut none = takes(&[
        ("ReJSON", 20_803),
        ("bf", 20_802),
        ("timeseries", 11_202),
        ("search", 21_005),
    ]);
    none.no_restore = true;
    for (name, version) in [
        ("ReJSON-RL", 3),
        ("ReJSON-RL", 0),
        ("MBbloom--", 4),
        ("MBbloomCF", 4),
        ("TSDB-TYPE", 8),
        ("trietype0", 1),
    ] {
        assert_eq!(none.way(name, version, &REDIS), Way::Commands, "{name}");
    }
    for name in ["CMSk-TYPE", "TopK-TYPE", "TDIS-TYPE"] {
        let lost = why(none.way(name, 0, &REDIS));
        assert!(lost.contains("refuses RESTORE"), "{lost}");
    }
}

#[test]
fn what_is_not_told_is_not_guessed() {
    let untold = Takes::default();
    assert!(why(untold.way("ReJSON-RL", 3, &REDIS)).contains("MODULE LIST"));
    // Known by its commands, of a version that is not told.
    let by_command = Takes {
        target: Some(vec![Loaded {
            name: "ReJSON".into(),
            version: None,
        }]),
        ..Takes::default()
    };
    assert_eq!(by_command.way("ReJSON-RL", 3, &REDIS), Way::Restore);
    why(by_command.way("ReJSON-RL", 4, &REDIS));
    let lacking = why(takes(&[]).way("TSDB-TYPE", 8, &REDIS));
    assert!(lacking.contains("does not have that module"), "{lacking}");
    // Redis 8 has vector sets built in.
    let eight = Target {
        valkey: false,
        version: (8, 0, 0),
    };
    assert_eq!(takes(&[]).way("vectorset", 1, &eight), Way::Restore);
    why(takes(&[]).way("vectorset", 1, &VALKEY));
}
