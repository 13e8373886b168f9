//! No circle of files: who imports whom, and the groups of files that import each other.

use super::{code, is_test, word};
use std::collections::{BTreeMap, BTreeSet};

/// Who imports whom: from a file to a file, and the paths by which it does.
type Edges = BTreeMap<(String, String), BTreeSet<String>>;

/// One complaint for each group of files that reach each other through imports.
pub fn circles(files: &[(String, String)]) -> Vec<String> {
    let edges = edges(files);
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in edges.keys() {
        next.entry(from).or_default().push(to);
    }
    let reach: BTreeMap<&str, BTreeSet<&str>> = next.keys().map(|f| (*f, from(f, &next))).collect();
    let reaches = |a: &str, b: &str| reach.get(a).is_some_and(|r| r.contains(b));
    let mut seen = BTreeSet::new();
    let mut complaints = Vec::new();
    for file in next.keys() {
        // Files come sorted: the first of a group tells of the whole group.
        let group: Vec<&str> = reach[file]
            .iter()
            .copied()
            .filter(|f| reaches(f, file))
            .collect();
        if group.len() < 2 || !seen.insert(group.clone()) {
            continue;
        }
        let mut complaint = format!("circle of {} files: {}", group.len(), group.join(", "));
        for ((from, to), paths) in &edges {
            if group.contains(&from.as_str()) && group.contains(&to.as_str()) {
                let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
                complaint += &format!("\n    {from} -> {to}: {}", paths.join(", "));
            }
        }
        complaints.push(complaint);
    }
    complaints
}

/// Every file that one reaches in one step or more.
fn from<'a>(file: &str, next: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![file];
    while let Some(file) = open.pop() {
        for to in next.get(file).into_iter().flatten() {
            if reached.insert(*to) {
                open.push(to);
            }
        }
    }
    reached
}

fn edges(files: &[(String, String)]) -> Edges {
    let known: BTreeSet<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    let mut edges = Edges::new();
    for (path, text) in files {
        // The program's own file is another crate than the library.
        if path == "src/main.rs" || is_test(path) {
            continue;
        }
        for import in imports(&module(path), text) {
            let to = file(&import, &known);
            if to != *path {
                let paths = edges.entry((path.clone(), to)).or_default();
                paths.insert(import.join("::"));
            }
        }
    }
    edges
}

/// A file's module path: `src/a/b.rs` and `src/a/b/mod.rs` are `a::b`.
fn module(path: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    let inside = inside.trim_end_matches("mod").trim_end_matches('/');
    let parts = inside.split('/').filter(|p| !p.is_empty() && *p != "lib");
    parts.map(String::from).collect()
}

/// The file of the longest beginning of a path that is a module.
fn file(path: &[String], known: &BTreeSet<&str>) -> String {
    for n in (1..=path.len()).rev() {
        let base = format!("src/{}", path[..n].join("/"));
        for file in [format!("{base}.rs"), format!("{base}/mod.rs")] {
            if known.contains(file.as_str()) {
                return file;
            }
        }
    }
    "src/lib.rs".to_owned()
}

/// Every path from the crate's root that a file's code names: one that begins with `crate`, `super`, `self` or a child.
fn imports(own: &[String], text: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = code(text)
        .map(|(_, line)| line.split(" // ").next().unwrap_or(line))
        .collect();
    let children: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            let (_, name) = line.trim_start().split_once("mod ")?;
            name.strip_suffix(';').map(String::from)
        })
        .collect();
    let code = lines.join("\n");
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("::") {
        let before = &code[..at];
        let first: String = before
            .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
            .to_owned();
        let ahead = &before[..before.len() - first.len()];
        // The middle of a path, or the `in` of a visibility.
        if ahead.ends_with("::") || ahead.ends_with("(in ") {
            continue;
        }
        let mut base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => own.to_vec(),
            "super" => own[..own.len().saturating_sub(1)].to_vec(),
            child if children.iter().any(|c| c == child) => {
                let mut base = own.to_vec();
                base.push(first);
                base
            }
            _ => continue,
        };
        let mut rest = &code[at + 2..];
        while let Some(above) = rest.strip_prefix("super::") {
            base.pop();
            rest = above;
        }
        tree(&base, rest, &mut paths);
    }
    paths
}

/// The paths of a `use` tree, or of one plain path; returns what comes after it.
fn tree<'a>(base: &[String], text: &'a str, paths: &mut Vec<Vec<String>>) -> &'a str {
    let Some(mut rest) = text.strip_prefix('{') else {
        let name = word(text);
        let rest = &text[name.len()..];
        let mut path = base.to_vec();
        if !name.is_empty() && name != "self" {
            path.push(name);
        }
        return match rest.strip_prefix("::") {
            // A call's type arguments (`f::<T>`) end the path.
            Some(more) if !more.starts_with('<') => tree(&path, more, paths),
            _ => {
                paths.push(path);
                rest
            }
        };
    };
    loop {
        rest = rest.trim_start_matches([' ', '\n', ',']);
        if rest.is_empty() || rest.starts_with('}') {
            return rest.get(1..).unwrap_or_default();
        }
        rest = tree(base, rest, paths);
        // Past a `*` or an `as` name.
        rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
    }
}
