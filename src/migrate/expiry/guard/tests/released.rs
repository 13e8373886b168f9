//! What was held back is released until a release of it is known to have survived.

use super::*;
use proptest::prelude::*;

#[test]
fn what_was_released_is_kept_until_it_is_stable() {
    let mut bench = Bench::new();
    bench.hold("k");
    assert!(!bench.has_file("held"));
    bench.guard.save().unwrap();
    assert!(bench.has_file("held"));
    assert_eq!(bench.release(100), 1);
    assert_eq!(bench.guard.held(), 0);
    assert!(bench.has_file("held.released") && !bench.has_file("held"));
    bench.guard.stable(ReplOffset(100)).unwrap();
    assert!(bench.has_file("held.released"));
    bench.guard.stable(ReplOffset(101)).unwrap();
    assert!(!bench.has_file("held.released"));
    // A master that is lost later takes nothing of it away.
    bench.guard.target_lost();
    assert!(bench.guard.held() == 0 && bench.guard.is_holding());
    assert_eq!(bench.release(200), 0);
}

#[test]
fn what_was_released_and_lost_is_released_again() {
    let mut bench = Bench::new();
    bench.hold("k");
    assert_eq!(bench.release(100), 1);
    bench.guard.near(applied(100));
    assert!(!bench.guard.is_holding());
    bench.guard.target_lost();
    assert!(bench.guard.held() > 0 && bench.guard.is_holding());
    // Not what was released before is stable, but what is released now.
    bench.guard.stable(ReplOffset(500)).unwrap();
    assert!(bench.has_file("held.released"));
    assert_eq!(bench.guard.on_lag(CLOSE), RELEASE);
    bench.hold("other");
    assert_eq!(bench.release(600), 2);
    // A run that is killed now begins with it as well.
    bench.again();
    assert!(bench.guard.held() > 0);
    assert_eq!(bench.release(700), 2);
    bench.guard.stable(ReplOffset(701)).unwrap();
    assert!(!bench.has_file("held.released"));
    bench.again();
    assert_eq!((bench.guard.held(), bench.release(800)), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Hold,
    Save,
    /// Begun and not finished.
    Begin,
    Release,
    Stable,
    Lost,
    Killed,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever happens in between: what was written down is released until a release of it is known to have survived.
    #[test]
    fn nothing_that_was_held_back_is_forgotten(steps in prop::collection::vec(
        prop_oneof![
            4 => Just(Step::Hold), 2 => Just(Step::Save), 1 => Just(Step::Begin), 2 => Just(Step::Release),
            1 => Just(Step::Stable), 1 => Just(Step::Lost), 1 => Just(Step::Killed),
        ],
        1..40,
    )) {
        let mut bench = Bench::new();
        let (mut fresh, mut kept, mut released) = (0usize, 0usize, 0usize);
        for (at, step) in (1u64..).zip(steps) {
            match step {
                Step::Hold => {
                    bench.guard.holding = true;
                    bench.hold("k");
                    fresh += 1;
                }
                Step::Save => {
                    bench.guard.save().unwrap();
                    kept += std::mem::take(&mut fresh);
                }
                Step::Begin => {
                    let wanted = fresh + kept + released;
                    prop_assert_eq!(bench.held().len(), wanted);
                    (fresh, kept, released) = (0, wanted, 0);
                    // It has failed: another run goes on.
                    bench.again();
                }
                Step::Release => {
                    let wanted = fresh + kept + released;
                    prop_assert_eq!(bench.release(at), wanted);
                    (fresh, kept, released) = (0, 0, wanted);
                }
                Step::Stable => {
                    let known = bench.guard.released_at.is_some();
                    bench.guard.stable(ReplOffset(at)).unwrap();
                    released = if known { 0 } else { released };
                }
                Step::Lost => bench.guard.target_lost(),
                Step::Killed => {
                    bench.again();
                    fresh = 0;
                }
            }
            if fresh + kept > 0 {
                prop_assert!(bench.guard.held() > 0);
            }
        }
        prop_assert_eq!(bench.held().len(), fresh + kept + released);
    }
}
