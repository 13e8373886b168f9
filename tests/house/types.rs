//! Where a type's `impl` may lie, and how many fields a struct may have.

use super::{code, is_test, word};
use std::collections::BTreeMap;

const MAX_FIELDS: usize = 15;

/// Structs that may have more fields: the file, the struct, and why.
const WIDE: &[(&str, &str, &str)] = &[
    (
        "src/check/probe.rs",
        "Facts",
        "one side in the answer of `check --json`, field by field",
    ),
    (
        "src/plan/document.rs",
        "Plan",
        "the keys of a plan, as they are typed",
    ),
    (
        "src/plan/job.rs",
        "Job",
        "the plan's own parts, after validation",
    ),
    (
        "src/report/status.rs",
        "Status",
        "the answer of `status --json`, field by field",
    ),
    (
        "src/report/html.rs",
        "Page",
        "the places of the template, which knows no other names",
    ),
    (
        "src/store/record.rs",
        "ShardState",
        "a row of the table of shards",
    ),
    (
        "src/verify/answer.rs",
        "Summary",
        "the answer of `verify --json`, field by field",
    ),
];

/// Each `impl` outside the folder of the file that defines its type, or for a trait's outside of that of the trait too.
pub fn strangers(files: &[(String, String)]) -> Vec<String> {
    let mut homes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (path, text) in files {
        for (_, line) in code(text) {
            if let Some(name) = defined(line, &["struct ", "enum ", "trait "]) {
                homes.entry(name).or_default().push(path);
            }
        }
    }
    let mut complaints = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| !is_test(path)) {
        for (n, of, name) in impls(text) {
            let Some(own) = homes.get(&name) else {
                continue;
            };
            let traits = of.and_then(|of| homes.get(&of)).into_iter().flatten();
            if !own.iter().chain(traits).any(|home| at_home(path, home)) {
                let own = own.join(", ");
                complaints.push(format!("{path}:{n}: impl of {name}, which is of {own}"));
            }
        }
    }
    complaints
}

/// Whether a file lies in the folder of another, or below it.
fn at_home(path: &str, home: &str) -> bool {
    let stem = home.trim_end_matches(".rs");
    let folder = match home.rsplit_once('/') {
        // Every file lies below src/: a file there has the folder of its own name.
        Some(("src", _)) | None => stem,
        Some((folder, _)) => folder,
    };
    path == home || path.starts_with(&format!("{folder}/"))
}

/// The name of the type that a line begins to define.
fn defined(line: &str, kinds: &[&str]) -> Option<String> {
    let mut line = line.trim_start();
    if let Some(rest) = line.strip_prefix("pub") {
        line = rest;
        if line.starts_with('(') {
            line = &line[line.find(')')? + 1..];
        }
        line = line.trim_start();
    }
    kinds
        .iter()
        .find_map(|kind| line.strip_prefix(kind))
        .map(word)
}

/// The type that each `impl` of a file is for, with the line and the trait.
fn impls(text: &str) -> Vec<(usize, Option<String>, String)> {
    let lines: Vec<(usize, &str)> = code(text).collect();
    let mut found = Vec::new();
    for (at, (n, line)) in lines.iter().enumerate() {
        if !line.trim_start().starts_with("impl ") && !line.trim_start().starts_with("impl<") {
            continue;
        }
        let head: Vec<&str> = lines[at..].iter().map(|(_, line)| line.trim()).collect();
        let head = head.join(" ");
        let head = head.split('{').next().unwrap_or_default();
        let head = plain(head.trim_start_matches("impl"));
        let head = head.split(" where ").next().unwrap_or_default();
        let named = |text: &str| {
            let text = text
                .trim()
                .trim_start_matches(['&', '[', '('])
                .trim_start_matches("mut ");
            word(text.trim().rsplit("::").next().unwrap_or_default())
        };
        found.push(match head.rsplit_once(" for ") {
            Some((of, name)) => (*n, Some(named(of)), named(name)),
            None => (*n, None, named(head)),
        });
    }
    found
}

/// A text without what stands between `<` and `>`.
fn plain(text: &str) -> String {
    let mut depth = 0;
    let mut kept = String::new();
    let mut last = ' ';
    for c in text.chars() {
        match c {
            '<' => depth += 1,
            // The arrow of a function type closes nothing.
            '>' if last != '-' => depth -= 1,
            c if depth == 0 => kept.push(c),
            _ => {}
        }
        last = c;
    }
    kept
}

/// Each struct of too many fields.
pub fn wide(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut open: Option<(usize, String, String, usize)> = None;
    for (n, line) in code(text) {
        match &mut open {
            Some((_, _, end, fields)) => {
                let body = line.strip_prefix(end.trim_end_matches('}'));
                if line == end {
                    let (n, name, _, fields) = open.take().unwrap_or_default();
                    let fine = WIDE.iter().any(|(p, s, _)| *p == path && *s == name);
                    if fields > MAX_FIELDS && !fine {
                        complaints.push(format!("{path}:{n}: {name} has {fields} fields"));
                    }
                } else if body.is_some_and(|body| is_field(body.strip_prefix("    "))) {
                    *fields += 1;
                }
            }
            None => {
                let name = defined(line, &["struct "]);
                if let Some(name) = name.filter(|_| line.ends_with('{')) {
                    let indent = line.len() - line.trim_start().len();
                    open = Some((n, name, format!("{}}}", " ".repeat(indent)), 0));
                }
            }
        }
    }
    complaints
}

/// Whether a line, from the fields' own indent on, begins a field.
fn is_field(line: Option<&str>) -> bool {
    let Some(line) = line else { return false };
    let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
    let line = line.strip_prefix("pub(super) ").unwrap_or(line);
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let name = word(line.strip_prefix("r#").unwrap_or(line));
    !name.is_empty() && line.contains(':') && !line.starts_with([' ', '#'])
}

/// An exception that nothing needs any more.
pub fn needless(files: &[(String, String)]) -> Vec<String> {
    let gone = WIDE.iter().filter(|(path, name, _)| {
        let text = files.iter().find(|(p, _)| p == path);
        !text.is_some_and(|(_, text)| {
            // Under another path no exception holds.
            let complaints = wide("other.rs", text);
            complaints
                .iter()
                .any(|c| c.contains(&format!(" {name} has ")))
        })
    });
    gone.map(|(path, name, _)| format!("WIDE: {path} has no such struct {name}"))
        .collect()
}
