//! The id of a module's type: its name and the version of its values.

/// The version of a module type's values.
pub fn module_version(id: u64) -> u16 {
    (id & 0x3ff) as u16
}

/// The nine characters of a module type's name (module.c moduleTypeEncodeId).
pub fn module_name(id: u64) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..9)
        .map(|i| {
            ALPHABET
                .get((id >> (58 - 6 * i)) as usize & 63)
                .map_or('?', |c| char::from(*c))
        })
        .collect()
}
