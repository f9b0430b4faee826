//! The text of a build log, with the colours that a terminal would show.
//!
//! Invariants
//! - Whatever the bytes are, the result is visible text: no hidden character is left
//!   ([`is_hidden`]) but the line feed and the tab. Controls and the selectors of emoji are
//!   dropped; U+FFFD stands for every other one.
//! - Only colours and weights survive. Every other escape sequence is dropped: those that move the
//!   cursor, set titles or make links.
//! - The result does not depend on anything before the first byte. A page that begins in the middle
//!   of a log begins without colour.

use crate::text::is_hidden;

/// A part of a text in one style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPart {
    /// The text.
    pub text: String,
    /// Colour of the text, 0 to 7, and 8 to 15 for the bright ones.
    pub colour: Option<u8>,
    /// Whether it is bold.
    pub is_bold: bool,
}

impl TextPart {
    /// The names of its style.
    pub(crate) fn classes(&self) -> String {
        let mut classes = String::new();
        if let Some(colour) = self.colour {
            classes = format!("t{}", colour % 16);
        }
        if self.is_bold {
            classes.push_str(if classes.is_empty() { "bold" } else { " bold" });
        }
        classes
    }
}

/// Longest escape sequence that is looked at, in characters. A longer one is shown without its
/// first character.
const SEQUENCE_MAX: usize = 64;

/// Splits the bytes of a log into parts.
pub fn terminal_text(bytes: &[u8]) -> Vec<TextPart> {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = vec![TextPart { text: String::new(), colour: None, is_bold: false }];
    let mut rest = text.as_ref();
    while let Some(character) = rest.chars().next() {
        let after = &rest[character.len_utf8()..];
        rest = after;
        match character {
            '\u{1b}' => {
                let (style, behind) = escape_sequence(after);
                rest = behind;
                if let Some(codes) = style {
                    restyle(&mut parts, codes);
                }
            }
            // Progress bars return to the start of their line; only a line feed ends it.
            '\r' if after.starts_with('\n') => {}
            '\r' => push(&mut parts, '\n'),
            '\n' | '\t' => push(&mut parts, character),
            // Without its selector, a character has its usual shape, as in most terminals.
            '\u{fe00}'..='\u{fe0f}' => {}
            character if character.is_control() => {}
            character if is_hidden(character) => push(&mut parts, char::REPLACEMENT_CHARACTER),
            character => push(&mut parts, character),
        }
    }
    parts.retain(|part| !part.text.is_empty());
    parts
}

fn push(parts: &mut [TextPart], character: char) {
    if let Some(part) = parts.last_mut() {
        part.text.push(character);
    }
}

/// What follows an escape character: the codes of a style, if the sequence is one, and the rest.
fn escape_sequence(text: &str) -> (Option<&str>, &str) {
    if let Some(sequence) = text.strip_prefix('[') {
        let is_final = |character: char| ('@'..='~').contains(&character);
        let end = sequence.char_indices().take(SEQUENCE_MAX).find(|(_, character)| is_final(*character));
        return match end {
            Some((end, 'm')) => (Some(&sequence[..end]), &sequence[end + 1..]),
            Some((end, _)) => (None, &sequence[end + 1..]),
            None => (None, sequence),
        };
    }
    if let Some(command) = text.strip_prefix(']') {
        // A title or a link, up to a bell or `ESC \`.
        let end =
            command.char_indices().take(16 * SEQUENCE_MAX).find(|(_, one)| matches!(one, '\u{7}' | '\u{1b}'));
        return match end {
            Some((end, '\u{7}')) => (None, &command[end + 1..]),
            Some((end, _)) => (None, command[end + 1..].strip_prefix('\\').unwrap_or(&command[end + 1..])),
            None => (None, command),
        };
    }
    // Two characters, such as `ESC (` and `ESC =`.
    let mut characters = text.chars();
    match characters.next() {
        Some('(' | ')') => {
            characters.next();
            (None, characters.as_str())
        }
        Some(character) if character.is_ascii_graphic() => (None, characters.as_str()),
        _ => (None, text),
    }
}

fn restyle(parts: &mut Vec<TextPart>, codes: &str) {
    let (mut colour, mut is_bold) = parts.last().map_or((None, false), |part| (part.colour, part.is_bold));
    let mut codes = codes.split([';', ':']);
    while let Some(code) = codes.next() {
        match code.parse::<u8>() {
            Ok(0) => (colour, is_bold) = (None, false),
            Ok(1) => is_bold = true,
            Ok(22) => is_bold = false,
            Ok(code @ 30..=37) => colour = Some(code - 30),
            Ok(code @ 90..=97) => colour = Some(code - 90 + 8),
            Ok(39) => colour = None,
            // 256 colours, and true ones: only the first 16 have a class.
            Ok(kind @ (38 | 48)) => {
                let number = match codes.next() {
                    Some("5") => codes.next().and_then(|number| number.parse::<u8>().ok()),
                    Some("2") => codes.by_ref().take(3).last().and(None),
                    _ => None,
                };
                if kind == 38 {
                    colour = number.filter(|number| *number < 16);
                }
            }
            Err(_) if code.is_empty() => (colour, is_bold) = (None, false),
            _ => {}
        }
    }
    parts.push(TextPart { text: String::new(), colour, is_bold });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn styled(bytes: &[u8]) -> Vec<(String, String)> {
        terminal_text(bytes).into_iter().map(|part| (part.classes(), part.text)).collect()
    }

    fn plain(bytes: &[u8]) -> String {
        terminal_text(bytes).into_iter().map(|part| part.text).collect()
    }

    #[test]
    fn colours_and_weights_survive() {
        let part = |classes: &str, text: &str| (classes.to_owned(), text.to_owned());
        assert_eq!(
            styled(b"a\x1b[31mb\x1b[1mc\x1b[0md\x1b[92me\x1b[39;22mf\x1b[mg"),
            [
                part("", "a"),
                part("t1", "b"),
                part("t1 bold", "c"),
                part("", "d"),
                part("t10", "e"),
                part("", "f"),
                part("", "g")
            ]
        );
        assert_eq!(
            styled(b"\x1b[38;5;9mx\x1b[38;2;1;2;3my\x1b[48;5;1;1mz"),
            [part("t9", "x"), part("", "y"), part("bold", "z")]
        );
    }

    #[test]
    fn everything_else_of_a_terminal_is_dropped() {
        for (bytes, text) in [
            (&b"a\x1b[2Kb\x1b[10;20Hc"[..], "abc"),
            (b"\x1b]0;title\x07x\x1b]8;;javascript:alert(1)\x1b\\link\x1b]8;;\x1b\\", "xlink"),
            (b"10%\r20%\r\ndone\r\n", "10%\n20%\ndone\n"),
            (b"a\0b\x08c\x7fd\te", "abcd\te"),
            (b"\x1b(Bx\x1b=y\x1b", "xy"),
            (b"\x1b[", ""),
            ("a\u{202e}b\u{2066}c".as_bytes(), "a\u{fffd}b\u{fffd}c"),
            ("a\u{200b}b\u{e0041}c\u{2028}".as_bytes(), "a\u{fffd}b\u{fffd}c\u{fffd}"),
            ("\u{26a0}\u{fe0f} warning".as_bytes(), "\u{26a0} warning"),
            (b"\xff<script>", "\u{fffd}<script>"),
        ] {
            assert_eq!(plain(bytes), text, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_visible_text(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b'm'), Just(b';'), Just(b']')], 0..200),
            text in any::<String>(),
        ) {
            for part in terminal_text(&[bytes.as_slice(), text.as_bytes()].concat()) {
                prop_assert!(part.text.chars().all(|one| !is_hidden(one) || matches!(one, '\n' | '\t')));
                prop_assert!(part.classes().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b' '));
            }
        }
    }
}
