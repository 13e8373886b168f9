//! Reads a command's form as the servers' own documentation writes it: `SET {s} {v} [NX|XX] [EX {sec}|KEEPTTL]`.
//!
//! `[…]` may be left out, `(…)` is there, `|` parts what may stand, `+` behind either repeats it, `{…}` is made up anew.

use crate::support::rng::Rng;

/// One piece of a form.
pub enum Piece {
    Word(&'static str),
    Blank(&'static str),
    Choice {
        forms: Vec<Vec<Piece>>,
        optional: bool,
        repeated: bool,
    },
}

/// The pieces of a form; it panics where the form is wrong, as forms are part of the program.
pub fn parse(form: &'static str) -> Vec<Piece> {
    let mut rest = form;
    let mut forms = alternatives(&mut rest);
    assert!(rest.is_empty() && forms.len() == 1, "a bad form: {form}");
    forms.remove(0)
}

fn alternatives(rest: &mut &'static str) -> Vec<Vec<Piece>> {
    let mut forms = vec![Vec::new()];
    loop {
        *rest = rest.trim_start();
        let mut put = |piece| forms.last_mut().expect("one at least").push(piece);
        match rest.chars().next() {
            None | Some(']' | ')') => return forms,
            Some('|') => {
                *rest = &rest[1..];
                forms.push(Vec::new());
            }
            Some(open @ ('[' | '(')) => {
                *rest = &rest[1..];
                let inner = alternatives(rest);
                assert!(!rest.is_empty(), "a group is not closed");
                *rest = &rest[1..];
                let repeated = rest.starts_with('+');
                *rest = rest.strip_prefix('+').unwrap_or(rest);
                put(Piece::Choice {
                    forms: inner,
                    optional: open == '[',
                    repeated,
                });
            }
            Some('{') => {
                let (blank, after) = rest[1..].split_once('}').expect("a blank is closed");
                put(Piece::Blank(blank));
                *rest = after;
            }
            Some(_) => {
                let end = rest.find([' ', '[', ']', '(', ')', '|']);
                let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
                put(Piece::Word(word));
                *rest = after;
            }
        }
    }
}

/// Fills a form in.
pub fn expand(
    form: &[Piece],
    rng: &mut Rng,
    out: &mut Vec<Vec<u8>>,
    fill: &mut impl FnMut(&str, &mut Rng) -> Vec<u8>,
) {
    for piece in form {
        match piece {
            Piece::Word(word) => out.push(word.as_bytes().to_vec()),
            Piece::Blank(name) => out.push(fill(name, rng)),
            Piece::Choice {
                forms,
                optional,
                repeated,
            } => {
                if *optional && rng.chance(60) {
                    continue;
                }
                let times = if *repeated { 1 + rng.below(4) } else { 1 };
                for _ in 0..times {
                    let form = &forms[rng.below(forms.len() as u64) as usize];
                    expand(form, rng, out, fill);
                }
            }
        }
    }
}

#[test]
fn a_form_is_filled_in() {
    let form = parse("SET {k} [NX|XX] (EX {n}|KEEPTTL) ({f} {v})+");
    let mut rng = Rng::new(1);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..500 {
        let mut out = Vec::new();
        let mut fill = |name: &str, _: &mut Rng| name.to_uppercase().into_bytes();
        expand(&form, &mut rng, &mut out, &mut fill);
        let words: Vec<&str> = (out.iter())
            .map(|w| std::str::from_utf8(w).expect("text"))
            .collect();
        let line = words.join(" ");
        let short = line
            .replace(" F V F V F V F V", " F V")
            .replace(" F V F V F V", " F V");
        seen.insert(short.replace(" F V F V", " F V"));
    }
    let expected = ["", " NX", " XX"].iter().flat_map(|c| {
        [
            format!("SET K{c} EX N F V"),
            format!("SET K{c} KEEPTTL F V"),
        ]
    });
    assert_eq!(seen, expected.collect());
}
