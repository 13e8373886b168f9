//! The charts of the HTML report as SVG, drawn by plotters.

use crate::store::PhaseSpan;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::fmt::Write as _;
use std::ops::Range;

const SIZE: (u32, u32) = (900, 340);
const SOURCE: RGBColor = RGBColor(37, 99, 201);
const TARGET: RGBColor = RGBColor(217, 115, 13);
/// Slots in a row of the map.
const ROW: u16 = 256;

/// Both curves over the percentiles, `(quantile, µs)`; `None` when there are no points.
pub fn percentiles(source: &[(f64, f64)], target: &[(f64, f64)]) -> Option<String> {
    let all = || source.iter().chain(target);
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min).max(1.0) * 0.8;
    let high = all().map(|p| p.1).fold(0.0, f64::max) * 1.25;
    if !low.is_finite() || high <= low {
        return None;
    }
    // Equal distances for each further nine.
    let x = |q: f64| -(1.0 - q).log10();
    let last = all().map(|p| x(p.0)).fold(1.0, f64::max) + 0.1;
    let line = |points: &[(f64, f64)]| points.iter().map(|(q, us)| (x(*q), *us)).collect();
    let nines = |v: &f64| match (v - v.round()).abs() < 0.01 {
        // 1 is 90 %, 2 is 99 %, and so on.
        true => {
            let nines = format!("{:.4}", 100.0 * (1.0 - 10f64.powf(-v.round())));
            format!("{} %", nines.trim_end_matches('0').trim_end_matches('.'))
        }
        false => String::new(),
    };
    curves(
        (0.25..last, 6, &nines),
        ((low..high).log_scale(), &round_time),
        3,
        [line(source), line(target)],
    )
}

/// A value of each block, in µs.
pub fn blocks(source: &[f64], target: &[f64]) -> Option<String> {
    let high = source.iter().chain(target).copied().fold(0.0, f64::max) * 1.15;
    let n = source.len().max(target.len());
    if n < 2 || high <= 0.0 {
        return None;
    }
    let line = |values: &[f64]| (1..).map(f64::from).zip(values.iter().copied()).collect();
    curves(
        (0.5..n as f64 + 0.5, n.min(12), &|v| format!("{v:.0}")),
        (0.0..high, &time),
        2,
        [line(source), line(target)],
    )
}

/// An axis: its range, how many labels, and what they say.
type Axis<'a> = (Range<f64>, usize, &'a dyn Fn(&f64) -> String);

/// Times by the rate of requests; `None` when a side has fewer than two rates.
pub fn loads(source: Vec<(f64, f64)>, target: Vec<(f64, f64)>) -> Option<String> {
    if source.len() < 2 && target.len() < 2 {
        return None;
    }
    let all = || source.iter().chain(&target);
    let span = |of: fn(&(f64, f64)) -> f64| {
        let low = all().map(of).fold(f64::INFINITY, f64::min).max(1.0);
        (low * 0.8, all().map(of).fold(1.0, f64::max) * 1.25)
    };
    let ((left, right), (low, high)) = (span(|p| p.0), span(|p| p.1));
    let line = |points: &[(f64, f64)]| points.iter().map(|p| (p.0.log10(), p.1)).collect();
    let lines = [line(&source), line(&target)];
    let rate = |v: &f64| match 10f64.powf(*v) {
        rate if rate < 10_000.0 => format!("{rate:.0}/s"),
        rate => format!("{:.0} k/s", rate / 1000.0),
    };
    curves(
        (left.log10()..right.log10(), 8, &rate),
        ((low..high).log_scale(), &round_time),
        3,
        lines,
    )
}

/// Two curves of times, the source's and the target's.
fn curves<Y>(
    x: Axis,
    y: (Y, &dyn Fn(f64) -> String),
    width: u32,
    [source, target]: [Vec<(f64, f64)>; 2],
) -> Option<String>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let ((range, labels, label), (scale, y_label)) = (x, y);
    draw(|root| {
        let mut chart = ChartBuilder::on(root)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(100)
            .build_cartesian_2d(range, scale)
            .ok()?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(128, 128, 128).mix(0.25))
            .x_labels(labels)
            .x_label_formatter(label)
            .y_label_formatter(&|v| y_label(*v))
            .draw()
            .ok()?;
        for (line, color) in [(source, SOURCE), (target, TARGET)] {
            let points = line
                .clone()
                .into_iter()
                .map(|p| Circle::new(p, 4, color.filled()));
            chart
                .draw_series(LineSeries::new(line, color.stroke_width(width)))
                .ok()?;
            chart.draw_series(points).ok()?;
        }
        Some(())
    })
}

/// From the beginning to the last phase's.
fn known_span(phases: &[PhaseSpan], first: i64) -> i64 {
    let last = phases.iter().map(|p| p.left_ms.unwrap_or(p.entered_ms));
    last.max().unwrap_or(first) - first
}

/// The phases as bars over time, in seconds since the beginning; the last one is cut short while it lasts.
pub fn timeline(phases: &[PhaseSpan], now_ms: i64) -> Option<String> {
    let first = phases.first()?.entered_ms;
    // One that still lasts would leave no room for those before it.
    let known = phases.iter().map(|p| p.left_ms.unwrap_or(p.entered_ms));
    let shown = now_ms.min(known.max()? + (known_span(phases, first) / 5).max(1_000));
    let end = |p: &PhaseSpan| p.left_ms.unwrap_or(shown.max(p.entered_ms));
    let last = phases.iter().map(end).max()?;
    let seconds = |ms: i64| (ms - first) as f64 / 1000.0;
    let whole = seconds(last).max(0.001);
    let mut names: Vec<&str> = Vec::new();
    for phase in phases {
        if !names.contains(&phase.phase.as_str()) {
            names.push(phase.phase.as_str());
        }
    }
    draw(|root| {
        let rows = names.len() as f64;
        let mut chart = ChartBuilder::on(root)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(130)
            .build_cartesian_2d(0.0..whole, 0.0..rows)
            .ok()?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(128, 128, 128).mix(0.25))
            .y_labels(0)
            .x_label_formatter(&|v| format!("{v:.0} s"))
            .draw()
            .ok()?;
        for phase in phases {
            let row = names.iter().position(|n| *n == phase.phase.as_str())? as f64;
            let (from, to) = (seconds(phase.entered_ms), seconds(end(phase)));
            let bar = [
                (from, rows - row - 0.8),
                (to.max(from + whole / 400.0), rows - row - 0.2),
            ];
            chart
                .draw_series([Rectangle::new(bar, SOURCE.filled())])
                .ok()?;
        }
        for (row, name) in names.iter().enumerate() {
            let y = 10.0 + (row as f64 + 0.5) * f64::from(SIZE.1 - 60) / rows;
            root.draw(&Text::new(
                (*name).to_owned(),
                (8, y as i32 - 6),
                ("sans-serif", 14),
            ))
            .ok()?;
        }
        Some(())
    })
}

/// The map of all slots; `apart` are those that are not equal.
pub fn slots(apart: &[u16], whole: bool) -> String {
    let mut svg =
        String::from("<svg viewBox=\"0 0 768 192\" xmlns=\"http://www.w3.org/2000/svg\">");
    let good = if whole { "#1a7f4b" } else { "#7f8b99" };
    // Writing to a String cannot fail.
    let _ = write!(svg, "<rect width=\"768\" height=\"192\" fill=\"{good}\"/>");
    for slot in apart {
        let (x, y) = (slot % ROW * 3, slot / ROW * 3);
        let _ = write!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"3\" height=\"3\" fill=\"#e5484d\"/>"
        );
    }
    svg + "</svg>"
}

fn draw(
    work: impl FnOnce(&DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Option<()>,
) -> Option<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        work(&root)?;
        root.present().ok()?;
    }
    Some(svg)
}

/// Microseconds as people read them.
/// On a logarithmic scale there is room for 1, 2 and 5 of each decade.
fn round_time(us: f64) -> String {
    let lead = us / 10f64.powf(us.log10().floor());
    match [1.0, 2.0, 5.0, 10.0]
        .iter()
        .any(|n| (lead - n).abs() < 0.01)
    {
        true => time(us),
        false => String::new(),
    }
}

fn time(us: f64) -> String {
    match us {
        v if v >= 1_000_000.0 => format!("{:.1} s", v / 1_000_000.0),
        v if v >= 1_000.0 => format!("{:.1} ms", v / 1_000.0),
        v => format!("{v:.0} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_scale_is_not_crowded() {
        let said: Vec<String> = [90.0, 100.0, 200.0, 300.0, 500.0, 900.0, 1000.0, 5e6]
            .map(round_time)
            .into();
        assert_eq!(
            said,
            ["", "100 µs", "200 µs", "", "500 µs", "", "1.0 ms", "5.0 s"]
        );
    }

    #[test]
    fn charts_hold_what_they_are_given() {
        let svg = percentiles(&[(0.5, 100.0), (0.99, 900.0)], &[(0.5, 80.0)]).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.matches("<circle").count() == 3,
            "{svg}"
        );
        assert!(percentiles(&[], &[]).is_none() && blocks(&[1.0], &[1.0]).is_none());
        assert_eq!(slots(&[0, 16_383], true).matches("#e5484d").count(), 2);
        assert_eq!(
            (time(12.0), time(1_500.0)),
            ("12 µs".into(), "1.5 ms".into())
        );
    }
}
