//! How much is asked of a side at a time, so that a long round trip leaves neither side idle.

use super::list::PAGE;
use crate::plan::Limits;
use std::time::Duration;

/// Pages read at a time where the servers are near.
const NEAR: u64 = 4;
/// Wherever they are.
const MOST: u64 = 24;
/// What the pages that are read at a time may take of the memory: one in so many bytes.
const SHARE: u64 = 3;
/// What a page takes on both sides at most.
const PAGE_BYTES: u64 = 4 << 20;
/// Keys a second that a far server should not be kept from telling.
const KEYS_PER_S: u64 = 250_000;
/// Questions about a page that wait for each other: types, sizes, values.
const TRIPS: u64 = 3;
/// Keys listed at a time at most: some milliseconds in which the server answers nobody else.
const LONGEST: u64 = 10_000;

/// How many pages are read at a time.
pub fn pages(round_trip: Duration, limits: &Limits) -> usize {
    let far = under_way(round_trip).saturating_mul(TRIPS) / PAGE as u64;
    let room = (limits.memory() / SHARE / PAGE_BYTES).clamp(1, MOST);
    usize::try_from((NEAR + far).min(room)).unwrap_or(1)
}

/// How many keys SCAN is asked for at a time. Where the plan bounds how long a server may take to answer, it is not kept
/// from answering for long.
pub fn listed(round_trip: Duration, limits: &Limits) -> u32 {
    let most = match limits.latency_ms {
        None => LONGEST,
        // A key takes about a microsecond.
        Some(ms) => ms.saturating_mul(250).min(LONGEST),
    };
    let keys = under_way(round_trip).min(most).max(PAGE as u64);
    u32::try_from(keys).unwrap_or(u32::MAX)
}

/// Keys that are told within a round trip.
fn under_way(round_trip: Duration) -> u64 {
    let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
    us.saturating_mul(KEYS_PER_S) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_the_distance_within_its_limits() {
        let ms = Duration::from_millis;
        let free = Limits::default();
        assert_eq!((pages(ms(0), &free), listed(ms(0), &free)), (4, 1_000));
        assert_eq!((pages(ms(2), &free), listed(ms(2), &free)), (5, 1_000));
        assert_eq!((pages(ms(40), &free), listed(ms(40), &free)), (21, 10_000));
        let bound = Limits {
            memory_bytes: Some(32 << 20),
            latency_ms: Some(8),
            ..Limits::default()
        };
        assert_eq!((pages(ms(40), &bound), listed(ms(40), &bound)), (2, 2_000));
    }
}
