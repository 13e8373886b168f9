//! Many plans on one page: a row for each service, the totals, and what got worse first.

use super::markdown::text;
use super::view::{Card, Table, render_page, table};
use super::{Report, grouped, instant, price_text};
use crate::error::Result;
use crate::store::Stage;
use crate::types::SLOTS;
use askama::Template;
use serde::Serialize;
use serde_json::{Value, json};

/// What one plan has come to.
#[derive(Debug, Clone, Serialize)]
pub struct Service {
    pub plan: String,
    pub keys: u64,
    /// `equal`, `equal in part` (not all slots were compared), `different`, or `not proven`.
    pub proof: &'static str,
    pub keys_apart: u64,
    pub phase: String,
    /// The clients are at the target.
    pub switched: bool,
    /// How long writers were paused by the last switch.
    pub pause_ms: Option<f64>,
    /// The verdict of the measurement, and the workload it is about.
    pub verdict: Option<String>,
    pub workload: Option<String>,
    pub p50: Option<Change>,
    pub p99: Option<Change>,
    /// For a month: source, target, currency.
    pub price: Option<(f64, f64, String)>,
}

/// A percentile on both sides, in µs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Change {
    pub source_us: f64,
    pub target_us: f64,
    /// Target divided by source, with its 95 % interval.
    pub ratio: f64,
    pub ratio_low: f64,
    pub ratio_high: f64,
}

impl Service {
    pub fn of(report: &Report) -> Service {
        let (proof, keys_apart) = match &report.verify {
            None => ("not proven", 0),
            Some(v) => {
                let n = |key: &str| v.run.answer[key].as_u64().unwrap_or(0);
                let apart = n("missing_count") + n("extra_count") + n("different_count");
                let proof = match v.run.equal {
                    true if v.slot_states.values().sum::<u64>() == SLOTS as u64 => "equal",
                    true => "equal in part",
                    false => "different",
                };
                (proof, apart)
            }
        };
        let result = report.told_result();
        let change = |name: &str| {
            let result = result?;
            let of = |side: &str| result["endpoints"][side]["response"][name].as_f64();
            let ratio = &result["ratio"][name];
            Some(Change {
                source_us: of("source")?,
                target_us: of("target")?,
                ratio: ratio["value"].as_f64()?,
                ratio_low: ratio["low"].as_f64()?,
                ratio_high: ratio["high"].as_f64()?,
            })
        };
        let word = |key: &str| Some(result?[key].as_str()?.to_owned());
        Service {
            plan: report.job.name.clone(),
            keys: report.status.snapshot.keys_written,
            proof,
            keys_apart,
            phase: report.status.phase.to_string(),
            switched: matches!(report.stage(), Some(Stage::Switched | Stage::Committed)),
            pause_ms: report.pause().map(|(ms, _)| ms),
            verdict: word("verdict"),
            workload: word("workload"),
            p50: change("p50_us"),
            p99: change("p99_us"),
            price: (report.job.price.as_ref()).map(|p| (p.source, p.target, p.currency.clone())),
        }
    }

    /// What got worse comes first, what is not known last.
    fn order(&self) -> (u8, f64) {
        let rank = match self.verdict.as_deref() {
            _ if self.proof == "different" => 0,
            Some("slower") => 1,
            Some("mixed") => 2,
            Some("no verdict") => 3,
            Some("no detectable difference") => 4,
            Some("faster") => 5,
            _ => 6,
        };
        // Within them, the worst tail first.
        (rank, -self.p99.map_or(0.0, |c| c.ratio))
    }
}

/// All services, in the order in which they are shown.
pub fn services(reports: &[Report]) -> Vec<Service> {
    let mut list: Vec<Service> = reports.iter().map(Service::of).collect();
    list.sort_by(|a, b| {
        let (x, y) = (a.order(), b.order());
        x.0.cmp(&y.0)
            .then(x.1.total_cmp(&y.1))
            .then(a.plan.cmp(&b.plan))
    });
    list
}

pub fn as_json(services: &[Service], now_ms: i64) -> Value {
    json!({
        "generated_at": now_ms,
        "keyferry": env!("CARGO_PKG_VERSION"),
        "services": services.len(),
        "keys": services.iter().map(|s| s.keys).sum::<u64>(),
        "equal": count(services, |s| s.proof == "equal"),
        "switched": count(services, |s| s.switched),
        "verdicts": verdicts(services).into_iter().map(|(name, n)| (name.to_owned(), json!(n))).collect::<serde_json::Map<_, _>>(),
        "p99_ratio": quartiles(services, |s| s.p99),
        "p50_ratio": quartiles(services, |s| s.p50),
        "price": prices(services).into_iter().map(|(currency, source, target)| json!({
            "currency": currency, "source": source, "target": target,
        })).collect::<Vec<_>>(),
        "by_service": services,
    })
}

fn count(services: &[Service], which: impl Fn(&Service) -> bool) -> usize {
    services.iter().filter(|s| which(s)).count()
}

const VERDICTS: [&str; 5] = [
    "slower",
    "mixed",
    "no verdict",
    "no detectable difference",
    "faster",
];

fn verdicts(services: &[Service]) -> Vec<(&'static str, usize)> {
    let of = |name: &&'static str| {
        (
            *name,
            count(services, |s| s.verdict.as_deref() == Some(name)),
        )
    };
    let mut list: Vec<_> = VERDICTS.iter().map(of).collect();
    list.push(("not measured", count(services, |s| s.verdict.is_none())));
    list
}

/// The distribution of a ratio: lowest, quartiles, highest.
fn quartiles(services: &[Service], of: impl Fn(&Service) -> Option<Change>) -> Option<[f64; 5]> {
    let mut ratios: Vec<f64> = services.iter().filter_map(|s| Some(of(s)?.ratio)).collect();
    ratios.sort_by(f64::total_cmp);
    let last = ratios.len().checked_sub(1)?;
    let at = |share: f64| ratios.get((share * last as f64).round() as usize).copied();
    Some([at(0.0)?, at(0.25)?, at(0.5)?, at(0.75)?, at(1.0)?])
}

/// Sums by currency.
fn prices(services: &[Service]) -> Vec<(String, f64, f64)> {
    let mut sums: Vec<(String, f64, f64)> = Vec::new();
    for (source, target, currency) in services.iter().filter_map(|s| s.price.as_ref()) {
        match sums.iter_mut().find(|(c, ..)| c == currency) {
            Some(sum) => (sum.1, sum.2) = (sum.1 + source, sum.2 + target),
            None => sums.push((currency.clone(), *source, *target)),
        }
    }
    sums
}

#[derive(Template)]
#[template(path = "fleet.html", config = "src/report/page/askama.toml")]
struct Page {
    version: &'static str,
    written: String,
    services: usize,
    cards: Vec<Card>,
    tables: Vec<Table>,
}

pub fn render(services: &[Service], now_ms: i64) -> Result<String> {
    render_page(&Page {
        version: env!("CARGO_PKG_VERSION"),
        written: instant(now_ms),
        services: services.len(),
        cards: cards(services),
        tables: vec![by_service(services), distribution(services)],
    })
}

fn cards(services: &[Service]) -> Vec<Card> {
    let all = services.len();
    let equal = count(services, |s| s.proof == "equal");
    let apart = count(services, |s| s.proof == "different");
    let slower = count(services, |s| {
        matches!(s.verdict.as_deref(), Some("slower" | "mixed"))
    });
    let faster = count(services, |s| s.verdict.as_deref() == Some("faster"));
    let pauses = services.iter().filter_map(|s| s.pause_ms);
    let mut cards = vec![
        Card {
            title: "Proof",
            value: format!("{equal} of {all} equal"),
            text: format!(
                "{apart} with differences, {} not proven",
                all - equal - apart
            ),
            mood: match (apart, equal == all) {
                (0, true) => "good",
                (0, false) => "warn",
                _ => "bad",
            },
        },
        Card {
            title: "Moved",
            value: format!("{} keys", grouped(services.iter().map(|s| s.keys).sum())),
            text: format!("{} switched", count(services, |s| s.switched)),
            mood: "",
        },
        Card {
            title: "Longest pause of writers",
            value: match pauses.fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b)))) {
                Some(ms) => format!("{ms:.0} ms"),
                None => "no cutover yet".into(),
            },
            text: String::new(),
            mood: "",
        },
        Card {
            title: "Latency",
            value: format!("{faster} faster, {slower} slower"),
            text: match quartiles(services, |s| s.p99) {
                Some([_, _, middle, ..]) => {
                    format!("p99, median over services: {}", percent(middle))
                }
                None => "not measured".into(),
            },
            mood: match (slower, faster) {
                (0, 0) => "",
                (0, _) => "good",
                _ => "warn",
            },
        },
    ];
    for (currency, source, target) in prices(services) {
        cards.push(Card {
            title: "Price of a month",
            value: price_text(source, target, &currency),
            text: "as the plans say".into(),
            mood: "",
        });
    }
    cards
}

/// A ratio as a change.
fn percent(ratio: f64) -> String {
    format!("{:+.0} %", (ratio - 1.0) * 100.0)
}

fn by_service(services: &[Service]) -> Table {
    let rows = services.iter().map(|s| {
        let change = |c: Option<Change>| {
            c.map_or("-".into(), |c| {
                format!(
                    "{:.0} → {:.0} µs ({})",
                    c.source_us,
                    c.target_us,
                    percent(c.ratio)
                )
            })
        };
        vec![
            s.plan.clone(),
            s.verdict.clone().unwrap_or_else(|| "not measured".into()),
            change(s.p50),
            change(s.p99),
            match s.keys_apart {
                0 => s.proof.to_owned(),
                n => format!("{} keys differ", grouped(n)),
            },
            grouped(s.keys),
            s.pause_ms.map_or("-".into(), |ms| format!("{ms:.0} ms")),
            s.phase.clone(),
            (s.price.as_ref()).map_or("-".into(), |(a, b, c)| price_text(*a, *b, c)),
        ]
    });
    let head = [
        "service",
        "latency",
        "p50",
        "p99",
        "proof",
        "keys",
        "pause",
        "phase",
        "price of a month",
    ];
    table("By service, what got worse first", &head, rows.collect())
}

fn distribution(services: &[Service]) -> Table {
    let row = |name: &str, of: fn(&Service) -> Option<Change>| {
        let all = quartiles(services, of);
        let mut row = vec![name.to_owned()];
        row.extend((0..5).map(|i| {
            let value = all.as_ref().and_then(|all| all.get(i));
            value.map_or("-".into(), |r| percent(*r))
        }));
        row
    };
    let head = [
        "",
        "most improved",
        "a quarter up to",
        "median",
        "three quarters up to",
        "worst",
    ];
    table(
        "How the services' response times have changed (each against its own source)",
        &head,
        vec![row("p50", |s| s.p50), row("p99", |s| s.p99)],
    )
}

pub fn markdown(services: &[Service], now_ms: i64) -> String {
    let mut page = format!(
        "# {} migrations\n\nWritten {}.\n",
        services.len(),
        instant(now_ms)
    );
    for card in cards(services) {
        page += &format!(
            "\n- {}: **{}** {}",
            card.title,
            text(&card.value),
            text(&card.text)
        );
    }
    page.push('\n');
    for table in [by_service(services), distribution(services)] {
        page += &table.markdown();
    }
    page
}
