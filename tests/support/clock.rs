//! Programs with a wrong clock: a library that shifts what they read of it.

use super::compiled::compiled;

/// The variables that shift a program's clock by `seconds`; `None` where there is no C compiler.
pub fn skewed(seconds: i64) -> Option<[(String, String); 2]> {
    let library = compiled("skew")?.to_str()?.to_owned();
    Some([
        ("LD_PRELOAD".to_owned(), library),
        ("SKEW_S".to_owned(), seconds.to_string()),
    ])
}
