//! Text that a terminal shows and does not obey.
//!
//! Names, messages and settings come from servers, files and other programs. An escape sequence in
//! them could rewrite earlier lines, set the clipboard or change the title. A bidirectional control
//! or a character without a shape could show a command that differs from the one that is copied. So
//! the printer passes every line through this module. The list of such characters is that of pages.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal obeys or hides the character instead of showing it. Tabs are harmless.
fn is_hidden(c: char) -> bool {
    c != '\t' && dormer_pages::is_hidden(c)
}

/// The text on one line, with `\u{1b}` in place of an escape character.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, |out, c| match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        c => out.extend(c.escape_unicode()),
    })
}

/// A file for a terminal, piece by piece: its lines, with `\u{1b}` in place of an escape character
/// and `\xff` in place of a byte that is no text.
#[derive(Debug, Default)]
pub(crate) struct ShownFile {
    /// The beginning of a character whose other bytes have not come.
    rest: Vec<u8>,
}

impl ShownFile {
    /// The next bytes, as far as they are whole characters.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() - unfinished(&self.rest);
        let after = self.rest.split_off(whole);
        shown_bytes(&std::mem::replace(&mut self.rest, after))
    }

    /// The bytes that no character came of.
    pub(crate) fn finish(self) -> String {
        shown_bytes(&self.rest)
    }
}

/// Bytes at the end that may be the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    let is_inner = |byte: u8| byte & 0xc0 == 0x80;
    let tail = bytes.iter().rev().take(3).position(|byte| !is_inner(*byte));
    let Some(inner) = tail else { return 0 };
    let length = match bytes[bytes.len() - 1 - inner] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if inner + 1 < length { inner + 1 } else { 0 }
}

fn shown_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for run in bytes.utf8_chunks() {
        for c in run.valid().chars() {
            if c != '\n' && is_hidden(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
        }
        for byte in run.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// A log line, with at most one line break: at its end.
pub(crate) fn shown_log_line(line: &str, form: LogForm) -> Cow<'_, str> {
    let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
    let safe = match form {
        LogForm::Json => shown_json(text),
        LogForm::Plain => shown(text),
        LogForm::Coloured => {
            let parts: Vec<_> = text.split('\u{1b}').map(shown).collect();
            parts.join("\u{1b}").into()
        }
    };
    if safe == text { Cow::Borrowed(line) } else { format!("{safe}{end}").into() }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogForm {
    Plain,
    /// With escape sequences for colours. The library that writes them takes escape characters out
    /// of values.
    Coloured,
    Json,
}

/// The same JSON, with such characters written as `\u001b`. All of them are inside of texts.
pub(crate) fn shown_json(json: &str) -> Cow<'_, str> {
    escaped(json, |out, c| {
        // JSON has characters beyond U+FFFF as two units.
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    })
}

fn escaped(text: &str, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) { escape(&mut out, c) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_shown_alike_however_it_is_cut() {
        let file = b"plain\ttext, \xc3\xa4, \xf0\x9f\x91\x8d\n\x1b[2J\xc2\x9b31m\xff\xe2\x80\xae\r\n\xe2\x80";
        let expected = "plain\ttext, ä, 👍\n\\u{1b}[2J\\u{9b}31m\\xff\\u{202e}\\u{d}\n\\xe2\\x80";
        for piece in 1..=file.len() {
            let mut shown = ShownFile::default();
            let text: String = file.chunks(piece).map(|piece| shown.push(piece)).collect();
            assert_eq!(text + &shown.finish(), expected, "{piece}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(shown("plain\ttext, ä, 日本, 👍"), "plain\ttext, ä, 日本, 👍");
        assert_eq!(shown("\u{1b}[2Jgone"), "\\u{1b}[2Jgone");
        assert_eq!(shown("a\nerror: b\r"), "a\\nerror: b\\r");
        assert_eq!(shown("\u{9b}31m \u{7f} \u{202e}gpj"), "\\u{9b}31m \\u{7f} \\u{202e}gpj");
    }

    #[test]
    fn a_log_line_stays_one_line_and_is_not_obeyed() {
        let evil = "a\u{202e}b\u{1b}[31m\nerror: forged\u{9b}\n";
        assert_eq!(shown_log_line(evil, LogForm::Plain), "a\\u{202e}b\\u{1b}[31m\\nerror: forged\\u{9b}\n");
        assert_eq!(shown_log_line(evil, LogForm::Coloured), "a\\u{202e}b\u{1b}[31m\\nerror: forged\\u{9b}\n");
        let json = format!("{}\n", serde_json::json!({ "message": evil }));
        let safe = shown_log_line(&json, LogForm::Json);
        assert!(!safe.trim_end_matches('\n').contains(is_hidden), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap()["message"], evil);
        assert!(matches!(shown_log_line("plain\n", LogForm::Plain), Cow::Borrowed("plain\n")));
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "a\u{202e}": "\u{1b}[31m \u{9b} \u{2028} \u{7f} \u{61c} \u{200b} \u{e0041} \\ \" ä" });
        let text = value.to_string();
        let safe = shown_json(&text);
        assert!(!safe.contains(is_hidden), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    /// Controls, marks of direction, and characters without a shape.
    #[test]
    fn no_hidden_character_passes() {
        for c in char::MIN..=char::MAX {
            let is_shown = c == '\t' || !dormer_pages::is_hidden(c);
            assert_eq!(shown(&c.to_string()).contains(c), is_shown, "{c:?}");
            if !is_shown {
                let json = format!("\"{c}\"");
                assert!(!shown_json(&json).contains(c), "{c:?}");
                // A JSON text has no bare control.
                if !c.is_ascii_control() {
                    assert_eq!(serde_json::from_str::<char>(&shown_json(&json)).unwrap(), c);
                }
            }
        }
        for c in "\u{1b}\u{9b}\u{202e}\u{2066}\u{200b}\u{200d}\u{2060}\u{feff}\u{ad}\u{e0041}".chars() {
            assert!(dormer_pages::is_hidden(c), "{c:?}");
        }
    }
}
