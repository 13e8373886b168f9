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

/// Short strings, without the zero that some modules end them with; none behind what cannot be read.
pub fn aux_texts(id: u64, body: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut value = ModuleValue::behind_id(id, body, 0);
    let mut found = BTreeSet::new();
    while let Ok(Some(item)) = value.item() {
        if let ModuleItem::Text(text) = item {
            let text = text.strip_suffix(&[0]).unwrap_or(&text);
            if (1..=LONGEST).contains(&text.len()) && found.len() < MOST {
                found.insert(text.to_vec());
            }
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
        let found: Vec<Vec<u8>> = aux_texts(1, &body).into_iter().collect();
        assert_eq!(found, [b"a".to_vec(), b"id".to_vec()]);
    }
}
