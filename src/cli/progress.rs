//! The only file that draws: a line for each source shard, or plain lines where there is no terminal.

use super::human_bytes;
use crate::migrate::progress::{Progress, ShardView};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REDRAW: Duration = Duration::from_millis(250);
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Shows the progress until it is aborted.
pub async fn draw(progress: Arc<Progress>, plain: bool) {
    if plain || !std::io::stderr().is_terminal() {
        lines(&progress).await
    } else {
        bars(&progress).await
    }
}

/// Rates need two looks at the same numbers.
#[derive(Default)]
struct Rate {
    last: Option<(Instant, u64, u64)>,
    bytes_per_s: f64,
    keys_per_s: f64,
}

impl Rate {
    fn look(&mut self, view: &ShardView) {
        let now = Instant::now();
        if let Some((at, bytes, keys)) = self.last {
            let seconds = (now - at).as_secs_f64().max(0.001);
            let smooth = |old: f64, new: f64| {
                if old == 0.0 {
                    new
                } else {
                    0.7 * old + 0.3 * new
                }
            };
            self.bytes_per_s = smooth(
                self.bytes_per_s,
                view.bytes_done.saturating_sub(bytes) as f64 / seconds,
            );
            self.keys_per_s = smooth(
                self.keys_per_s,
                (view.keys + view.commands).saturating_sub(keys) as f64 / seconds,
            );
        }
        self.last = Some((now, view.bytes_done, view.keys + view.commands));
    }

    fn text(&self, v: &ShardView) -> String {
        let mut text = match v.phase {
            "snapshot" => {
                let left = v.bytes_total.saturating_sub(v.bytes_done) as f64;
                let eta = if v.bytes_total > 0 && self.bytes_per_s > 1.0 {
                    format!(", {:.0} s left", left / self.bytes_per_s)
                } else {
                    String::new()
                };
                let total = if v.bytes_total > 0 {
                    human_bytes(v.bytes_total)
                } else {
                    "?".into()
                };
                format!(
                    "{} of {total}, {} keys, {:.0} keys/s{eta}",
                    human_bytes(v.bytes_done),
                    v.keys,
                    self.keys_per_s
                )
            }
            "stream" => format!(
                "{} commands, {:.0}/s, lag {} / {} ms",
                v.commands,
                self.keys_per_s,
                human_bytes(v.lag_bytes),
                v.lag_ms
            ),
            _ => String::new(),
        };
        if !v.note.is_empty() {
            text.push_str(" · ");
            text.push_str(&v.note);
        }
        text
    }
}

async fn lines(progress: &Progress) {
    let mut rates: Vec<Rate> = Vec::new();
    loop {
        tokio::time::sleep(PLAIN_EVERY).await;
        let views = progress.views();
        rates.resize_with(views.len(), Rate::default);
        for (view, rate) in views.iter().zip(&mut rates) {
            rate.look(view);
            eprintln!("{} {}: {}", view.address, view.phase, rate.text(view));
        }
    }
}

async fn bars(progress: &Progress) {
    let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4));
    let style = |template: &str| {
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
    };
    let (load, follow) = (
        style("{prefix} {bar:24} {msg}"),
        style("{prefix} {spinner} {msg}"),
    );
    let mut drawn: Vec<(ProgressBar, Rate)> = Vec::new();
    loop {
        let views = progress.views();
        while drawn.len() < views.len() {
            drawn.push((all.add(ProgressBar::new(1)), Rate::default()));
        }
        for (view, (bar, rate)) in views.iter().zip(&mut drawn) {
            rate.look(view);
            bar.set_style(if view.phase == "snapshot" {
                load.clone()
            } else {
                follow.clone()
            });
            bar.set_prefix(format!("{} {}", view.address, view.phase));
            bar.set_length(view.bytes_total.max(1));
            bar.set_position(view.bytes_done);
            bar.set_message(rate.text(view));
            bar.tick();
        }
        tokio::time::sleep(REDRAW).await;
    }
}
