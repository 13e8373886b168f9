//! Holds a JSON value against the plan's own schema, so that a mistake is named by its path.
//!
//! The schema comes from the structs; so there is no second list of keys.
//! Invariant: a message shows a key or the name of a choice, never the value of a text field.

use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;

/// Refuses the first key, type or choice that the schema does not know.
pub(super) fn check(value: &Value, schema: &Value) -> Result<()> {
    Walk { root: schema }.value(value, schema, "")
}

struct Walk<'a> {
    root: &'a Value,
}

impl<'a> Walk<'a> {
    fn value(&self, value: &Value, schema: &'a Value, path: &str) -> Result<()> {
        let mut forms = Vec::new();
        self.forms(schema, &mut forms);
        let fitting: Vec<&Value> = forms
            .iter()
            .copied()
            .filter(|f| type_fits(value, f))
            .collect();
        if fitting.is_empty() {
            let wanted: Vec<&str> = forms
                .iter()
                .copied()
                .map(type_name)
                .filter(|n| *n != "null")
                .collect();
            let name = if path.is_empty() { "the plan" } else { path };
            return Err(wrong(format!(
                "{name} must be {}, not {}",
                join(wanted),
                described(value)
            )));
        }
        match value {
            Value::Object(members) => {
                for (key, member) in members {
                    let below = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    let Some(next) = fitting.iter().find_map(|f| member_schema(f, key)) else {
                        let known: Vec<&str> = fitting.iter().flat_map(|f| keys(f)).collect();
                        return Err(unknown(&below, key, &known));
                    };
                    self.value(member, next, &below)?;
                }
                let required = fitting
                    .first()
                    .and_then(|f| f.get("required"))
                    .and_then(Value::as_array);
                for key in required.into_iter().flatten().filter_map(Value::as_str) {
                    if !members.contains_key(key) {
                        let below = if path.is_empty() {
                            key.to_string()
                        } else {
                            format!("{path}.{key}")
                        };
                        return Err(wrong(format!("{below} is missing")));
                    }
                }
                Ok(())
            }
            Value::Array(items) => match fitting.iter().find_map(|f| f.get("items")) {
                Some(of) => items
                    .iter()
                    .enumerate()
                    .try_for_each(|(i, item)| self.value(item, of, &format!("{path}[{i}]"))),
                None => Ok(()),
            },
            Value::String(text) => {
                let choices: Vec<&str> = fitting.iter().flat_map(|f| choices(f)).collect();
                if choices.is_empty() || choices.contains(&text.as_str()) {
                    return Ok(());
                }
                Err(match nearest(text, choices.iter().copied()) {
                    Some(near) => {
                        wrong(format!("{path} cannot be {text:?}; did you mean {near:?}?"))
                    }
                    None => wrong(format!("{path} cannot be {text:?}")),
                }
                .hint(format!("choose one of: {}", choices.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// All plain schemas that a schema stands for, references and alternatives resolved.
    fn forms(&self, schema: &'a Value, out: &mut Vec<&'a Value>) {
        if let Some(name) = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|r| r.strip_prefix("#/$defs/"))
        {
            if let Some(found) = self.root.get("$defs").and_then(|d| d.get(name)) {
                self.forms(found, out);
            }
            return;
        }
        let alternatives = ["anyOf", "oneOf"]
            .iter()
            .find_map(|k| schema.get(*k))
            .and_then(Value::as_array);
        match alternatives {
            Some(list) => list.iter().for_each(|s| self.forms(s, out)),
            None => out.push(schema),
        }
    }
}

fn member_schema<'a>(form: &'a Value, key: &str) -> Option<&'a Value> {
    let named = form.get("properties").and_then(|p| p.get(key));
    named.or_else(|| form.get("additionalProperties").filter(|s| s.is_object()))
}

fn keys(form: &Value) -> impl Iterator<Item = &str> {
    form.get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, _)| k.as_str())
}

fn choices(form: &Value) -> Vec<&str> {
    match (
        form.get("const"),
        form.get("enum").and_then(Value::as_array),
    ) {
        (Some(one), _) => one.as_str().into_iter().collect(),
        (None, Some(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn types(form: &Value) -> Vec<&str> {
    match form.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn type_fits(value: &Value, form: &Value) -> bool {
    let types = types(form);
    types.is_empty()
        || types.iter().any(|t| match (*t, value) {
            ("object", Value::Object(_))
            | ("array", Value::Array(_))
            | ("string", Value::String(_))
            | ("boolean", Value::Bool(_))
            | ("null", Value::Null)
            | ("number", Value::Number(_)) => true,
            ("integer", Value::Number(n)) => {
                let most = if form.get("format").and_then(Value::as_str) == Some("uint32") {
                    u64::from(u32::MAX)
                } else {
                    u64::MAX
                };
                n.as_u64().is_some_and(|n| n <= most)
            }
            _ => false,
        })
}

fn type_name(form: &Value) -> &'static str {
    match types(form).first().copied() {
        Some("object") => "an object",
        Some("array") => "a list",
        Some("string") => "a string",
        Some("boolean") => "true or false",
        Some("number") => "a number",
        Some("integer") => "a whole number of 0 or more",
        _ => "null",
    }
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

fn join(mut names: Vec<&str>) -> String {
    names.dedup();
    names.join(" or ")
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Plan, message)
}

fn unknown(path: &str, key: &str, known: &[&str]) -> Error {
    match nearest(key, known.iter().copied()) {
        Some(near) => wrong(format!("{path} is not a known key; did you mean {near:?}?")),
        None => wrong(format!("{path} is not a known key")),
    }
    .hint(format!("the keys here are: {}", known.join(", ")))
}

/// The candidate with the smallest edit distance, when it is near enough to be meant.
fn nearest<'a>(typed: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let best = candidates.map(|c| (distance(typed, c), c)).min()?;
    (best.0 <= (typed.chars().count() / 3).max(2)).then_some(best.1)
}

/// Levenshtein distance over characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let here = (diagonal + usize::from(ca != *cb))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = *cell;
            *cell = here;
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edit_distance_is_levenshtein() {
        for (a, b, d) in [
            ("", "", 0),
            ("a", "", 1),
            ("pasword", "password", 1),
            ("kitten", "sitting", 3),
            ("", "abc", 3),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }

    #[test]
    fn nothing_is_suggested_that_is_far() {
        assert_eq!(nearest("zzzzzz", ["name", "source"].into_iter()), None);
        assert_eq!(
            nearest("on_exist", ["name", "on_existing"].into_iter()),
            None
        );
        assert_eq!(
            nearest("on_existin", ["name", "on_existing"].into_iter()),
            Some("on_existing")
        );
    }
}
