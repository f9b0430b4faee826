//! Text of clients in log lines. Clients choose its length, and a log must not fill a disk.

use std::borrow::Cow;

/// Longest text of a client in a log line, in bytes.
pub const FOREIGN_BYTES_MAX: usize = 200;

/// The text for a log line: cut to [`FOREIGN_BYTES_MAX`], and marked if something is missing.
pub fn brief(text: &str) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= FOREIGN_BYTES_MAX {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(FOREIGN_BYTES_MAX - MARK.len());
    Cow::Owned(format!("{}{MARK}", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        for (text, expected) in [
            ("short".to_owned(), "short".to_owned()),
            ("x".repeat(200), "x".repeat(200)),
            ("x".repeat(60_000), "x".repeat(197) + "…"),
            ("é".repeat(101), "é".repeat(98) + "…"),
        ] {
            assert_eq!(brief(&text), expected);
            assert!(brief(&text).len() <= FOREIGN_BYTES_MAX);
        }
    }
}
