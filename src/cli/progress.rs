//! The only file that draws: a line per source shard on a terminal, else one plain line every few seconds.
//!
//! It reads a snapshot of numbers four times a second; nothing waits for it.

use super::output;
use crate::error::printable;
use crate::migrate::progress::ShardView;
use crate::report::{bytes, duration, grouped};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
/// More shards than this are shown as one line of totals.
const LINES: usize = 16;

/// Everything drawn belongs to it, so that log lines can step aside.
static SCREEN: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));

/// Draws a running migration to standard error.
pub struct Painter {
    draws: bool,
    bars: Vec<ProgressBar>,
    rates: Vec<Rate>,
    last_plain: Option<Instant>,
}

/// Smoothed speeds of one line.
struct Rate {
    at: Instant,
    bytes: u64,
    writes: u64,
    bytes_per_s: f64,
    writes_per_s: f64,
}

impl Painter {
    /// Draws only when asked to and when there is a terminal.
    pub fn new(plain: bool) -> Painter {
        Painter {
            draws: !plain && std::io::stderr().is_terminal(),
            bars: Vec::new(),
            rates: Vec::new(),
            last_plain: None,
        }
    }

    pub fn draw(&mut self, views: &[ShardView]) {
        if views.is_empty() {
            return;
        }
        let total = total(views);
        let shown: Vec<&ShardView> = if self.draws && views.len() <= LINES {
            views.iter().collect()
        } else {
            vec![&total]
        };
        if self.rates.len() != shown.len() {
            self.rates = shown.iter().map(|v| Rate::new(v)).collect();
        }
        for (rate, view) in self.rates.iter_mut().zip(&shown) {
            rate.update(view);
        }
        if self.draws {
            self.paint(&shown);
        } else if self.last_plain.is_none_or(|t| t.elapsed() >= PLAIN_EVERY) {
            self.last_plain = Some(Instant::now());
            if let (Some(view), Some(rate)) = (shown.first(), self.rates.first()) {
                output::say(&line(view, rate));
            }
        }
    }

    fn paint(&mut self, shown: &[&ShardView]) {
        while self.bars.len() < shown.len() {
            // Without colors, so NO_COLOR has nothing to say here.
            let style = ProgressStyle::with_template("{prefix} {bar:20} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bars
                .push(SCREEN.add(ProgressBar::new(1).with_style(style.progress_chars("=> "))));
        }
        for ((bar, view), rate) in self.bars.iter().zip(shown).zip(&self.rates) {
            bar.set_prefix(view.address.clone());
            let known = view.bytes_total.max(1);
            bar.set_length(known);
            bar.set_position(if loading(view) {
                view.bytes_done.min(known)
            } else {
                known
            });
            bar.set_message(printable(&line(view, rate), "").into_owned());
        }
    }

    /// Leaves the last state on the screen.
    pub fn finish(self) {
        for bar in &self.bars {
            bar.abandon();
        }
    }
}

fn loading(view: &ShardView) -> bool {
    !matches!(view.phase, "stream" | "reconcile")
}

/// One shard, or all of them, in one line.
fn line(view: &ShardView, rate: &Rate) -> String {
    let mut text = view.phase.to_string();
    if loading(view) {
        if view.bytes_total > 0 {
            text += &format!(
                " {} of {} ({} %)",
                bytes(view.bytes_done),
                bytes(view.bytes_total),
                percent(view)
            );
        } else if view.bytes_done > 0 {
            text += &format!(" {}", bytes(view.bytes_done));
        }
        text += &format!(", {} keys", grouped(view.keys));
        text += &format!(", {} keys/s", grouped(rate.writes_per_s as u64));
        if let Some(eta) = rate.eta(view) {
            text += &format!(", {} left", duration(eta));
        }
    } else {
        text += &format!(
            ", {} keys, {} commands",
            grouped(view.keys),
            grouped(view.commands)
        );
        text += &format!(
            ", {}/s, lag {} and {}",
            grouped(rate.writes_per_s as u64),
            bytes(view.lag_bytes),
            duration(view.lag_ms)
        );
    }
    if !view.note.is_empty() {
        text += &format!(" ({})", view.note);
    }
    text
}

fn percent(view: &ShardView) -> u64 {
    (u128::from(view.bytes_done) * 100 / u128::from(view.bytes_total.max(1))).min(100) as u64
}

fn total(views: &[ShardView]) -> ShardView {
    let sum = |of: fn(&ShardView) -> u64| views.iter().map(of).sum();
    // The phase of the one that is furthest behind.
    let behind = views.iter().find(|v| loading(v)).or(views.first());
    ShardView {
        shard: 0,
        address: "all shards".into(),
        phase: behind.map_or("", |v| v.phase),
        bytes_done: sum(|v| v.bytes_done),
        bytes_total: if views.iter().any(|v| v.bytes_total == 0) {
            0
        } else {
            sum(|v| v.bytes_total)
        },
        keys: sum(|v| v.keys),
        commands: sum(|v| v.commands),
        lag_bytes: sum(|v| v.lag_bytes),
        lag_ms: views.iter().map(|v| v.lag_ms).max().unwrap_or(0),
        note: views
            .iter()
            .map(|v| v.note.as_str())
            .find(|n| !n.is_empty())
            .unwrap_or("")
            .to_string(),
    }
}

impl Rate {
    fn new(view: &ShardView) -> Rate {
        Rate {
            at: Instant::now(),
            bytes: view.bytes_done,
            writes: view.keys + view.commands,
            bytes_per_s: 0.0,
            writes_per_s: 0.0,
        }
    }

    fn update(&mut self, view: &ShardView) {
        let passed = self.at.elapsed().as_secs_f64();
        if passed < 0.2 {
            return;
        }
        // About five seconds of memory.
        let weight = if self.bytes_per_s == 0.0 && self.writes_per_s == 0.0 {
            1.0
        } else {
            (passed / 5.0).min(1.0)
        };
        let writes = view.keys + view.commands;
        let blend = |old: f64, grown: u64| old + weight * (grown as f64 / passed - old);
        self.bytes_per_s = blend(self.bytes_per_s, view.bytes_done.saturating_sub(self.bytes));
        self.writes_per_s = blend(self.writes_per_s, writes.saturating_sub(self.writes));
        (self.at, self.bytes, self.writes) = (Instant::now(), view.bytes_done, writes);
    }

    /// Milliseconds until the snapshot is read, when that can be said.
    fn eta(&self, view: &ShardView) -> Option<u64> {
        let left = view.bytes_total.checked_sub(view.bytes_done)?;
        (view.bytes_total > 0 && self.bytes_per_s >= 1.0)
            .then(|| (left as f64 / self.bytes_per_s * 1000.0) as u64)
    }
}

/// Draws a count that grows to a known total: a verification's keys.
pub struct Meter {
    bar: Option<ProgressBar>,
    begun: Option<(Instant, u64)>,
    last_plain: Instant,
}

impl Meter {
    pub fn new(plain: bool) -> Meter {
        let draws = !plain && std::io::stderr().is_terminal();
        let bar = draws.then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:20} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            SCREEN.add(ProgressBar::new(1).with_style(style.progress_chars("=> ")))
        });
        Meter {
            bar,
            begun: None,
            last_plain: Instant::now(),
        }
    }

    pub fn draw(&mut self, what: &'static str, done: u64, total: u64) {
        let (at, first) = *self.begun.get_or_insert((Instant::now(), done));
        let line = count_line(done, total, done.saturating_sub(first), at.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_prefix(what);
            bar.set_length(total.max(1));
            bar.set_position(done.min(total));
            bar.set_message(line);
        } else if self.last_plain.elapsed() >= PLAIN_EVERY {
            self.last_plain = Instant::now();
            output::say(&format!("{what} {line}"));
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn count_line(done: u64, total: u64, here: u64, passed: Duration) -> String {
    let rate = here as f64 / passed.as_secs_f64().max(0.001);
    let mut text = format!("{} of {} keys", grouped(done), grouped(total.max(done)));
    text += &format!(", {} keys/s", grouped(rate as u64));
    if rate >= 1.0 && total > done {
        let left = (total - done) as f64 / rate * 1000.0;
        text += &format!(", {} left", duration(left as u64));
    }
    text
}

/// Standard error for the log: what is drawn steps aside for each line.
#[derive(Default)]
pub struct Aside;

impl Write for Aside {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        SCREEN
            .suspend(|| std::io::stderr().write_all(line))
            .map(|()| line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(phase: &'static str) -> ShardView {
        ShardView {
            shard: 0,
            address: "h:1".into(),
            phase,
            bytes_done: 1 << 20,
            bytes_total: 4 << 20,
            keys: 1500,
            commands: 7,
            lag_bytes: 2048,
            lag_ms: 30,
            note: String::new(),
        }
    }

    #[test]
    fn a_line_says_how_far_it_is_and_how_long_it_takes() {
        let rate = Rate {
            at: Instant::now(),
            bytes: 0,
            writes: 0,
            bytes_per_s: f64::from(1 << 20),
            writes_per_s: 500.0,
        };
        assert_eq!(
            line(&view("snapshot"), &rate),
            "snapshot 1.0 MiB of 4.0 MiB (25 %), 1 500 keys, 500 keys/s, 3.0 s left"
        );
        assert_eq!(
            line(&view("stream"), &rate),
            "stream, 1 500 keys, 7 commands, 500/s, lag 2.0 KiB and 30 ms"
        );
    }

    #[test]
    fn a_count_says_how_long_it_takes() {
        assert_eq!(
            count_line(3_000, 5_000, 1_000, Duration::from_secs(2)),
            "3 000 of 5 000 keys, 500 keys/s, 4.0 s left"
        );
    }

    #[test]
    fn totals_stand_in_the_phase_of_the_last_shard() {
        let all = total(&[view("stream"), view("snapshot")]);
        assert_eq!(
            (all.phase, all.keys, all.lag_ms, all.bytes_total),
            ("snapshot", 3000, 30, 8 << 20)
        );
    }

    #[test]
    fn no_shards_draw_nothing() {
        Painter::new(true).draw(&[]);
    }
}
