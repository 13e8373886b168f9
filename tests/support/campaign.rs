//! Many cases of one test: each runs, whatever became of those before, and all that failed are named at the end.
//!
//! KEYFERRY_CASE=words runs only the cases whose name contains all of these words.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

#[derive(Default)]
pub struct Campaign {
    cases: usize,
    failed: Vec<String>,
}

impl Campaign {
    pub fn case(&mut self, name: &str, run: impl FnOnce()) {
        let wanted = std::env::var("KEYFERRY_CASE").unwrap_or_default();
        if !wanted.split_ascii_whitespace().all(|w| name.contains(w)) {
            return;
        }
        self.cases += 1;
        let began = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(run));
        let took = began.elapsed().as_secs();
        let how = if ended.is_ok() { "ok" } else { "FAILED" };
        // At once, not when the whole test has ended.
        let _ = writeln!(std::io::stderr(), "CASE {name}: {how} after {took} s");
        if ended.is_err() {
            self.failed.push(name.to_owned());
        }
    }

    #[track_caller]
    pub fn end(self) {
        assert!(
            self.failed.is_empty(),
            "{} of {} cases failed: {}",
            self.failed.len(),
            self.cases,
            self.failed.join("; ")
        );
    }
}

mod tests {
    use super::*;

    #[test]
    fn a_case_that_fails_stops_no_other_and_is_named() {
        let mut campaign = Campaign::default();
        let mut ran = 0;
        campaign.case("good", || ran += 1);
        campaign.case("bad", || panic!("as it should"));
        campaign.case("good again", || ran += 1);
        let end = catch_unwind(AssertUnwindSafe(|| campaign.end()));
        let why = end.expect_err("it fails");
        let why = why.downcast_ref::<String>().expect("a text");
        assert!(
            ran == 2 && why.contains("1 of 3 cases failed: bad"),
            "{why}"
        );
    }
}
