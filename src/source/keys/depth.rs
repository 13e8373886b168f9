//! How much is asked of a side at a time, so that a long round trip leaves neither side idle.

use crate::plan::Limits;
use std::time::Duration;

/// Keys of a page.
pub const PAGE: usize = 1000;
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
/// From this distance on several lists of slots are on their way.
const FAR: Duration = Duration::from_millis(1);
/// Connections that list slots at a time, near and far.
const LISTS: (usize, usize) = (2, 4);
/// With fewer connections than this only one lists.
const FEW_CONNECTIONS: u32 = 40;
/// Slots that are asked for at a time, near and far.
const SLOTS: (usize, usize) = (64, 1024);

/// How many pages are read at a time.
pub fn pages(round_trip: Duration, limits: &Limits) -> usize {
    let far = under_way(round_trip, limits).saturating_mul(TRIPS);
    let far = far.checked_div(PAGE as u64).unwrap_or(0);
    let room = (limits.memory() / SHARE / PAGE_BYTES).clamp(1, MOST);
    // A server that is asked about many pages at once answers others later: about a millisecond for each.
    let patient = limits.latency_ms.map_or(u64::MAX, |ms| {
        let distance = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX);
        ms.saturating_sub(distance)
    });
    usize::try_from(NEAR.saturating_add(far.min(patient)).min(room)).unwrap_or(1)
}

/// How much a listing asks for at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Keys of one answer of SCAN, or of a list of slots.
    pub keys: u32,
    /// Slots of such a list.
    pub slots: usize,
    /// Lists of slots that are on their way at a time.
    pub lists: usize,
}

/// How much a listing asks for at a time. Where the plan bounds how long a server may take to answer, it is not kept
/// from answering for long.
pub fn listed(round_trip: Duration, limits: &Limits) -> Depth {
    let most = match limits.latency_ms {
        None => LONGEST,
        // A key takes about a microsecond.
        Some(ms) => ms.saturating_mul(250).min(LONGEST),
    };
    // Twice, as an answer is looked at before the next one is awaited.
    let keys = (under_way(round_trip, limits).saturating_mul(2)).min(most);
    let (near, far) = LISTS;
    let lists = match limits.connections {
        Some(n) if n < FEW_CONNECTIONS => 1,
        _ if round_trip >= FAR => far,
        _ => near,
    };
    Depth {
        keys: u32::try_from(keys.max(PAGE as u64)).unwrap_or(u32::MAX),
        slots: if round_trip >= FAR { SLOTS.1 } else { SLOTS.0 },
        lists,
    }
}

/// Keys that are told within a round trip.
fn under_way(round_trip: Duration, limits: &Limits) -> u64 {
    let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
    let rate = limits.keys_per_s.unwrap_or(KEYS_PER_S).min(KEYS_PER_S);
    us.saturating_mul(rate) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_the_distance_within_its_limits() {
        let ms = Duration::from_millis;
        let free = Limits::default();
        let of = |ms, limits| {
            let depth = listed(ms, limits);
            (pages(ms, limits), depth.keys, depth.slots, depth.lists)
        };
        assert_eq!(of(ms(0), &free), (4, 1_000, 64, 2));
        assert_eq!(of(ms(3), &free), (6, 1_500, 1024, 4));
        assert_eq!(of(ms(40), &free), (21, 10_000, 1024, 4));
        let bound = Limits {
            memory_bytes: Some(32 << 20),
            latency_ms: Some(8),
            connections: Some(10),
            ..Limits::default()
        };
        assert_eq!(of(ms(40), &bound), (2, 2_000, 1024, 1));
        let slow = Limits {
            keys_per_s: Some(20_000),
            ..Limits::default()
        };
        assert_eq!(of(ms(40), &slow), (6, 1_600, 1024, 4));
        let patient = Limits {
            latency_ms: Some(45),
            ..Limits::default()
        };
        assert_eq!(pages(ms(40), &patient), 9);
    }
}
