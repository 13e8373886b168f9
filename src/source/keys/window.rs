//! Keys that are read at a time, and what their values may take.

use super::side::Side;
use crate::error::{Error, ErrorKind};
use std::collections::VecDeque;
use tokio::sync::MutexGuard;

/// What the values of a window may take, and a single one that is more than a window should be. Sizes at the server are
/// estimates, or not told at all: what proves to be more is read in smaller windows, and in parts in the end.
const WINDOW_ROOM: usize = 4 << 20;
const WIDE_ROOM: usize = 12 << 20;

/// Keys that are read at a time: some, or one too large for one DUMP.
#[derive(Clone)]
pub struct Window<'k> {
    pub keys: Vec<&'k [u8]>,
    pub large: bool,
    /// One that is read by DUMP, but is more than a window should be.
    pub(super) wide: bool,
}

impl<'k> Window<'k> {
    pub(super) fn room(&self) -> usize {
        match self.wide {
            true => WIDE_ROOM,
            false => WINDOW_ROOM,
        }
    }

    /// One whose value is more than a window should be.
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    /// Whether what has failed may be done in smaller windows.
    pub fn shrinks(&self, e: &Error) -> bool {
        e.kind() == ErrorKind::Oversized && !self.large
    }

    /// What is read instead when the values take more than there is room for.
    pub fn smaller(&self) -> Vec<Window<'k>> {
        let part = |keys: &[&'k [u8]]| Window {
            keys: keys.to_vec(),
            large: keys.len() == 1 && self.wide,
            wide: keys.len() == 1 && !self.wide,
        };
        let half = self.keys.len().div_ceil(2);
        self.keys.chunks(half.max(1)).map(part).collect()
    }

    /// Waits while another reader of a side holds a value that is more than a window should be.
    pub(super) async fn turn<'s>(&self, side: &'s Side) -> Option<MutexGuard<'s, ()>> {
        match self.wide {
            true => Some(side.wide.lock().await),
            false => None,
        }
    }
}

/// Puts windows before all others.
pub fn first<'k>(windows: &mut VecDeque<Window<'k>>, before: Vec<Window<'k>>) {
    for window in before.into_iter().rev() {
        windows.push_front(window);
    }
}
