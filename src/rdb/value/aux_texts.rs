//! The short strings among what a module saved outside of keys: its names are among them, whatever its version.

use super::module::{ModuleItem, ModuleValue};
use std::collections::BTreeSet;

/// Longest string that is taken for a name, in bytes, and most of them.
const LONGEST: usize = 512;
const MOST: usize = 4096;

/// Data of RediSearch outside of keys: its indexes with their aliases, and its dictionaries.
pub fn is_of_search(module: &str) -> bool {
    module.starts_with("ft_index") || module.starts_with("scdtype")
}

/// Short strings of a module's data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuxTexts {
    pub texts: BTreeSet<Vec<u8>>,
    /// There are more.
    pub cut: bool,
}

/// Short strings, without the zero that some modules end them with; none behind what cannot be read.
pub fn aux_texts(id: u64, body: &[u8]) -> AuxTexts {
    let mut value = ModuleValue::behind_id(id, body, 0);
    let mut found = AuxTexts::default();
    while let Ok(Some(item)) = value.item() {
        if let ModuleItem::Text(text) = item {
            let text = text.strip_suffix(&[0]).unwrap_or(&text);
            if !(1..=LONGEST).contains(&text.len()) || found.texts.contains(text) {
                continue;
            }
            if found.texts.len() == MOST {
                found.cut = true;
                break;
            }
            found.texts.insert(text.to_vec());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_found_among_numbers() {
        // 2: a number, 5: a string, 0: the end.
        let body = [2, 1, 5, 3, b'i', b'd', 0, 2, 7, 5, 1, b'a', 5, 0, 0];
        let found = aux_texts(1, &body);
        let texts: Vec<Vec<u8>> = found.texts.into_iter().collect();
        assert_eq!(texts, [b"a".to_vec(), b"id".to_vec()]);
        assert!(!found.cut);
    }

    #[test]
    fn what_lies_behind_the_most_is_told() {
        let body = |n: usize| -> Vec<u8> {
            let texts = (0..n).flat_map(|i| [&[5, 4], format!("{i:04}").as_bytes()].concat());
            texts.chain([0]).collect()
        };
        assert!(!aux_texts(1, &body(MOST)).cut);
        let found = aux_texts(1, &body(MOST + 1));
        assert!(found.cut && found.texts.len() == MOST);
    }
}
