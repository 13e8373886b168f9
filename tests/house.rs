//! The house rules that a machine can check: floors, circles, first lines, lengths, unwrap and unsafe.
//!
//! Each rule is a function from texts to complaints, and is seen red on a bad sample.

mod circles;
mod types;

use self::circles::circles;
use self::types::{needless, strangers, wide};
use std::fs;
use std::path::{Path, PathBuf};

/// The parts of the crate by floor, lowest first.
const FLOORS: [&[&str]; 5] = [
    &["types", "error", "keyset"],
    &[
        "rdb",
        "resp",
        "command",
        "plan",
        "digest",
        "histogram",
        "search",
    ],
    &["source", "target", "store", "net", "task", "fence"],
    &["migrate", "verify", "cutover", "latency", "check", "fleet"],
    &["cli", "report", "main", "lib"],
];

/// Who may import whom on the same floor: the complete list.
const SIDEWAYS: &[(&str, &[&str])] = &[
    ("types", &["error"]),
    ("keyset", &["types"]),
    ("command", &["resp"]),
    ("rdb", &["resp"]),
    ("digest", &["rdb"]),
    ("search", &["command", "resp"]),
    ("net", &["task"]),
    ("source", &["net", "task"]),
    ("target", &["net", "task"]),
    ("fence", &["source", "target", "net"]),
    ("store", &["task"]),
    ("cli", &["report"]),
    ("main", &["cli", "report"]),
    ("cutover", &["check", "migrate", "verify"]),
];

const MAX_LINES: usize = 600;

#[test]
fn imports_go_down() {
    report(&sources("src"), floors);
}

#[test]
fn a_first_line_says_what_a_file_is_for() {
    let mut files = sources("src");
    files.extend(sources("tests"));
    report(&files, first_line);
}

#[test]
fn a_file_fits_in_the_head() {
    let mut files = sources("src");
    files.extend(sources("tests"));
    report(&files, length);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    complain(circles(&sources("src")));
}

#[test]
fn a_type_is_implemented_where_it_is_defined() {
    complain(strangers(&sources("src")));
}

#[test]
fn a_struct_fits_in_the_head() {
    let files = sources("src");
    report(&files, wide);
    complain(needless(&files));
}

#[test]
fn nothing_unwraps_without_a_reason_beside_it() {
    report(&sources("src"), unwraps);
}

#[test]
fn nothing_is_unsafe() {
    let mut files = sources("src");
    files.extend(sources("tests"));
    report(&files, unsafety);
}

#[test]
fn the_top_level_holds_only_what_it_should() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "plans",
        "tests",
        "benches",
        "docs",
        "deploy",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "demo.sh",
        "test.sh",
        ".ci",
        ".gitignore",
        "LICENSE",
        ".git",
        "target",
        ".servers",
        ".keyferry",
    ];
    let entries = fs::read_dir(root()).expect("the repository is there");
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let other: Vec<String> = names.filter(|n| !allowed.contains(&n.as_str())).collect();
    assert!(other.is_empty(), "not foreseen at the top level: {other:?}");
}

/// Every rule is seen red here, on a sample that breaks it.
#[test]
fn the_rules_can_fail() {
    assert_eq!(floors("src/rdb/mod.rs", "use crate::net::Conn;\n").len(), 1);
    assert_eq!(
        floors(
            "src/rdb/mod.rs",
            "use crate::{error::Error, store, cli::{a, b}};\n"
        )
        .len(),
        2
    );
    assert_eq!(
        floors("src/net/mod.rs", "fn f() { crate::target::open() }\n").len(),
        1
    );
    assert_eq!(floors("src/surprise.rs", "\n").len(), 1);
    assert!(
        floors(
            "src/migrate/mod.rs",
            "use crate::{\n    net,\n    migrate::shard,\n};\n// crate::cli\n"
        )
        .is_empty()
    );
    assert_eq!(
        circled(&[
            ("src/a.rs", "use crate::b::B;\n"),
            ("src/b.rs", "fn f() { crate::a::g() }\n")
        ]),
        1
    );
    // A child that uses what its parent hands on, and imports of the parent's own.
    assert_eq!(
        circled(&[
            ("src/a/mod.rs", "mod b;\npub use b::B;\n"),
            ("src/a/b.rs", "use super::{\n    A, c::C,\n};\n"),
            ("src/a/c.rs", "\n"),
        ]),
        1
    );
    assert_eq!(
        circled(&[
            ("src/a/mod.rs", "pub mod b;\nfn f() { b::g() }\n"),
            ("src/a/b.rs", "use super::A;\n"),
        ]),
        1
    );
    // Two circles, of which one leads to the other.
    assert_eq!(
        circled(&[
            ("src/a.rs", "use crate::b;\n"),
            ("src/b.rs", "use crate::{a, c::d::{self, D}};\n"),
            ("src/c/d.rs", "use super::e;\n"),
            ("src/c/e.rs", "use super::super::c::d;\n"),
        ]),
        2
    );
    assert_eq!(
        circled(&[
            ("src/a/mod.rs", "mod b;\nfn f() {}\n"),
            ("src/a/b.rs", "use super::A;\n"),
            (
                "src/c.rs",
                "pub(in crate::d) struct C;\n// crate::d\n#[cfg(test)]\nuse crate::d;\n"
            ),
            ("src/d.rs", "use crate::c::C;\n"),
        ]),
        0
    );
    let home = (
        "src/a/b.rs",
        "pub struct B<T> {\n}\nenum C {}\nimpl<T: Fn() -> u8> B<T> {}\n",
    );
    assert_eq!(strange(&[home, ("src/d.rs", "impl B<u8> {\n}\n")]), 1);
    assert_eq!(
        strange(&[
            home,
            (
                "src/d/e.rs",
                "impl<T> From<T>\n    for super::a::b::C\n{\n}\n"
            )
        ]),
        1
    );
    assert_eq!(
        strange(&[
            home,
            (
                "src/a/d/e.rs",
                "impl<'a> Display for B<&'a u8> {}\nimpl C {}\nimpl Foreign {}\n"
            ),
            ("src/f.rs", "struct F(u8);\n"),
            ("src/f/g.rs", "impl F {}\n"),
        ]),
        0
    );
    let fields = "    /// Says: what.\n    #[serde(default)]\n    pub a: u8,\n".repeat(15);
    assert!(wide("src/a.rs", &format!("struct A {{\n{fields}}}\n")).is_empty());
    assert_eq!(
        wide(
            "src/a.rs",
            &format!("pub struct A {{\n{fields}    b: u8,\n}}\n")
        )
        .len(),
        1
    );
    assert_eq!(first_line("src/a.rs", "use std::fs;\n").len(), 1);
    assert_eq!(length("src/a.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
    assert_eq!(
        unwraps(
            "src/a.rs",
            "fn f() {\n    x.unwrap();\n    y.expect(\"z\");\n}\n"
        )
        .len(),
        2
    );
    assert!(
        unwraps(
            "src/a.rs",
            "    // Cannot fail: just checked.\n    x.unwrap();\n"
        )
        .is_empty()
    );
    assert!(
        unwraps(
            "src/a.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests { fn g() { x.unwrap() } }\n"
        )
        .is_empty()
    );
    assert_eq!(
        unsafety("src/a.rs", &format!("{} {{ }}\n", UNSAFE)).len(),
        1
    );
}

fn circled(files: &[(&str, &str)]) -> usize {
    circles(&owned(files)).len()
}

fn strange(files: &[(&str, &str)]) -> usize {
    strangers(&owned(files)).len()
}

fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let files = files.iter();
    files
        .map(|(path, text)| (path.to_string(), text.to_string()))
        .collect()
}

const UNSAFE: &str = concat!("un", "safe");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder of the repository: its path from the root, and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder is there").flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is text");
                let name = path
                    .strip_prefix(root())
                    .unwrap_or(&path)
                    .display()
                    .to_string();
                files.push((name, text));
            }
        }
    }
    files.sort();
    files
}

#[track_caller]
fn report(files: &[(String, String)], rule: fn(&str, &str) -> Vec<String>) {
    let complaints: Vec<String> = files
        .iter()
        .flat_map(|(path, text)| rule(path, text))
        .collect();
    complain(complaints);
}

#[track_caller]
fn complain(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// A file's lines of code with their numbers, without comments and without what is for tests only.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let all: Vec<&str> = text.lines().collect();
    let mut kept = Vec::new();
    let mut n = 0;
    while let Some(line) = all.get(n) {
        if line.trim() == "#[cfg(test)]" {
            n = after_item(&all, n);
            continue;
        }
        if !line.trim_start().starts_with("//") {
            kept.push((n + 1, *line));
        }
        n += 1;
    }
    kept.into_iter()
}

/// The line behind the item whose first attribute stands at `n`.
fn after_item(all: &[&str], n: usize) -> usize {
    let indent = all[n].len() - all[n].trim_start().len();
    let attribute = |line: &&&str| line.trim_start().starts_with("#[");
    let head = n + all[n..].iter().take_while(attribute).count();
    let close = format!("{}}}", " ".repeat(indent));
    match all.get(head) {
        Some(line) if line.trim_end().ends_with(';') => head + 1,
        _ => (head..all.len())
            .find(|n| all[*n] == close)
            .map_or(all.len(), |n| n + 1),
    }
}

/// Whether a file of src is for tests only.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.ends_with("/testing.rs")
}

/// The part of the crate that a file belongs to.
fn part(path: &str) -> &str {
    let inside = path.trim_start_matches("src/");
    inside.split(['/', '.']).next().unwrap_or(inside)
}

fn floor(part: &str) -> Option<usize> {
    FLOORS.iter().position(|parts| parts.contains(&part))
}

fn floors(path: &str, text: &str) -> Vec<String> {
    let own = part(path);
    let Some(own_floor) = floor(own) else {
        return vec![format!(
            "{path}: {own} stands on no floor: add it to FLOORS and to docs/architecture.md"
        )];
    };
    let joined: Vec<&str> = code(text).map(|(_, line)| line).collect();
    let mut complaints = Vec::new();
    for other in imports(&joined.join("\n")) {
        let sideways = SIDEWAYS
            .iter()
            .any(|(from, to)| *from == own && to.contains(&other.as_str()));
        let fine = match floor(&other) {
            Some(floor) => floor < own_floor || other == own || sideways,
            // `crate::SomeItem` of lib.rs: only the surface has those.
            None => own_floor == 4,
        };
        if !fine {
            complaints.push(format!("{path}: {own} (floor {own_floor}) imports {other}"));
        }
    }
    complaints
}

/// The parts named after `crate::`, also inside braces.
fn imports(code: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => parts.push(word(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut fresh = true;
                for (n, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => fresh = true,
                        c if fresh && (c.is_alphanumeric() || c == '_') => {
                            parts.push(word(&group[n..]));
                            fresh = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    parts.sort();
    parts.dedup();
    parts
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn first_line(path: &str, text: &str) -> Vec<String> {
    let says = text
        .lines()
        .next()
        .is_some_and(|line| line.starts_with("//! ") && line.len() > 12);
    if says {
        Vec::new()
    } else {
        vec![format!(
            "{path}: the first line does not say what it is for (//! …)"
        )]
    }
}

fn length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines <= MAX_LINES {
        Vec::new()
    } else {
        vec![format!("{path}: {lines} lines, more than {MAX_LINES}")]
    }
}

fn unwraps(path: &str, text: &str) -> Vec<String> {
    // A module's tests may lie in a file of their own.
    if is_test(path) {
        return Vec::new();
    }
    let all: Vec<&str> = text.lines().collect();
    let bare =
        code(text).filter(|(_, line)| line.contains(".unwrap()") || line.contains(".expect("));
    // A comment on the line or right above it is the reason.
    let unexplained = bare.filter(|(n, line)| {
        let above = n.checked_sub(2).and_then(|n| all.get(n)).unwrap_or(&"");
        !line.contains("//") && !above.trim_start().starts_with("//")
    });
    unexplained
        .map(|(n, line)| format!("{path}:{n}: {}", line.trim()))
        .collect()
}

fn unsafety(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        !line.trim_start().starts_with("//") && words.any(|w| w == UNSAFE)
    });
    lines
        .map(|(n, line)| format!("{path}:{}: {}", n + 1, line.trim()))
        .collect()
}
