//! Numbers, sizes and times as people read them, and foreign texts that cannot hide anything.

/// `1,234,567`.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 path`, `2 paths`.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(count), if count == 1 { one } else { many })
}

/// `38.2 MiB`, rounded; below 1 KiB `17 B`. Pages and commands write every size so.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let tenths = |size: u128| (u128::from(bytes) * 10 + size / 2) / size;
    let (mut unit, mut size) = (0, 1024);
    // What would round to 1024.0 is 1.0 of the next unit.
    while tenths(size) >= 10_240 && unit + 1 < UNITS.len() {
        size *= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths(size) / 10, tenths(size) % 10, UNITS[unit])
}

/// `73 %` of a whole; `0 %` of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    let share = (u128::from(part) * 100 + u128::from(whole) / 2).checked_div(u128::from(whole)).unwrap_or(0);
    format!("{share} %")
}

/// `2026-11-23 04:05 UTC`, of seconds since 1970.
pub fn date(seconds: i64) -> String {
    let rest = seconds.rem_euclid(86_400);
    format!("{} {:02}:{:02} UTC", day(seconds), rest / 3_600, rest / 60 % 60)
}

/// `2026-11-23T04:05Z`, as HTML has it for programs.
pub(crate) fn machine_time(seconds: i64) -> String {
    let rest = seconds.rem_euclid(86_400);
    format!("{}T{:02}:{:02}Z", day(seconds), rest / 3_600, rest / 60 % 60)
}

/// `2026-11-23`. The civil calendar from days since 1970, after Howard Hinnant.
pub fn day(seconds: i64) -> String {
    let shifted = seconds.div_euclid(86_400) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `3 days`, `1 hour`, `20 seconds`: the largest unit that fits, cut off.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.unsigned_abs();
    let (count, one, many) = match seconds {
        172_800.. => (seconds / 86_400, "day", "days"),
        7_200.. => (seconds / 3_600, "hour", "hours"),
        120.. => (seconds / 60, "minute", "minutes"),
        _ => (seconds, "second", "seconds"),
    };
    counted(count, one, many)
}

/// Whether a browser or a terminal obeys or hides the character instead of showing it: controls,
/// ends of lines, marks that turn the direction of the text around, and whatever else has no shape
/// of its own (`Default_Ignorable_Code_Point` of Unicode, and the marks of annotations). Pages,
/// what they offer for copying, and commands ask this. Spaces of any width are seen as spaces.
pub const fn is_hidden(one: char) -> bool {
    matches!(
        one,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' // controls
            | '\u{ad}' // soft hyphen
            | '\u{34f}' // combining grapheme joiner
            | '\u{61c}' // Arabic letter mark
            | '\u{115f}'..='\u{1160}' | '\u{3164}' | '\u{ffa0}' // fillers of Hangul
            | '\u{17b4}'..='\u{17b5}' // inherent vowels of Khmer
            | '\u{180b}'..='\u{180f}' // selectors and the vowel separator of Mongolian
            | '\u{200b}'..='\u{200f}' // zero-width space and joiners, left and right marks
            | '\u{2028}'..='\u{202e}' // ends of lines and paragraphs, embeddings, overrides
            | '\u{2060}'..='\u{206f}' // word joiner, invisible operators, isolates
            | '\u{fe00}'..='\u{fe0f}' // variation selectors
            | '\u{feff}' // byte order mark
            | '\u{fff0}'..='\u{fffb}' // reserved specials, marks of annotations
            | '\u{1bca0}'..='\u{1bca3}' // format controls of shorthand
            | '\u{1d173}'..='\u{1d17a}' // beams and slurs of music
            | '\u{e0000}'..='\u{e0fff}' // tags, other variation selectors
    )
}

/// Longest form of a hidden character, in bytes.
pub(crate) const ESCAPE_BYTES_MAX: usize = "\\u{e0fff}".len();

/// A page in which every character can be seen: `\u{202e}` stands for one that is hidden. Line
/// feeds and tabs stay in preformatted texts alone; no foreign text begins or ends one.
pub(crate) fn visible_page(html: &str) -> String {
    let is_no_layout = |one| is_hidden(one) && !matches!(one, '\n' | '\t');
    let mut shown = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(begin) = rest.find("<pre") {
        let length = rest[begin..].find("</pre>").unwrap_or(rest.len() - begin);
        push_visible(&mut shown, &rest[..begin], is_hidden);
        push_visible(&mut shown, &rest[begin..begin + length], is_no_layout);
        rest = &rest[begin + length..];
    }
    push_visible(&mut shown, rest, is_hidden);
    shown
}

fn push_visible(shown: &mut String, mut text: &str, is_hidden: impl Fn(char) -> bool) {
    while let Some(place) = text.find(&is_hidden) {
        shown.push_str(&text[..place]);
        let mut characters = text[place..].chars();
        shown.extend(characters.next().into_iter().flat_map(char::escape_unicode));
        text = characters.as_str();
    }
    shown.push_str(text);
}

/// A text in which every character can be seen: `\u{202e}` stands for one that is hidden.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    push_visible(&mut shown, text, is_hidden);
    shown
}

/// A value as [`read`] takes it: in one line, without a hidden character, and without a space where
/// a form or a page would drop it. Of a longer one, the beginning and [`CUT`], as long as `most`.
pub(crate) fn written(value: &str, most: usize) -> String {
    let (mut text, mut length, mut after_space) = (String::new(), 0, true);
    for (place, one) in value.char_indices() {
        let rest = &value[place + one.len_utf8()..];
        let is_space = one.is_whitespace();
        let is_escaped = is_hidden(one)
            || is_space && (after_space || rest.is_empty())
            // What would be read as an escape, or as the mark of a cut.
            || one == '\\' && rest.starts_with("u{")
            || one == CUT && rest.is_empty();
        let form = if is_escaped { one.escape_unicode().to_string() } else { one.to_string() };
        length += form.chars().count();
        if length > most {
            text.push(CUT);
            break;
        }
        text.push_str(&form);
        after_space = is_space;
    }
    text
}

/// The value that a text means: `\u{202e}` is one character, everything else is what it is. No
/// database takes the character zero, so no text means it.
pub(crate) fn read(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\u{") {
        value.push_str(before);
        let is_number = |digits: &str| digits.len() <= 6 && digits.bytes().all(|one| one.is_ascii_hexdigit());
        let number = after.split_once('}').filter(|(digits, _)| is_number(digits));
        let escaped = number.and_then(|(digits, behind)| {
            let one = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)?;
            (one != '\0').then_some((one, behind))
        });
        if let Some((one, behind)) = escaped {
            value.push(one);
            rest = behind;
        } else {
            value.push_str("\\u{");
            rest = after;
        }
    }
    value + rest
}

/// The mark of a text that is cut.
pub(crate) const CUT: char = '…';

/// At most so many characters as a page shows them, and [`CUT`] if there were more: the escape of a
/// hidden character is several.
pub(crate) fn shortened(text: &str, characters: usize) -> String {
    let mut shown = 0;
    let end = text.char_indices().find(|(_, one)| {
        shown += if is_hidden(*one) { one.escape_unicode().len() } else { 1 };
        shown > characters
    });
    match end {
        Some((end, _)) => format!("{}{CUT}", &text[..end]),
        None => text.to_owned(),
    }
}

/// A string of the Nix language.
pub(crate) fn nix_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}

/// A word for a shell, quoted where it has to be.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/:._+-=,@%".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parts::{Copied, copyable};
    use crate::terminal_text::terminal_text;

    #[test]
    fn dates_sizes_and_numbers_are_for_people() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(machine_time(1_800_000_000), "2027-01-15T08:00Z");
        assert_eq!(date(1_800_000_000), "2027-01-15 08:00 UTC");
        assert_eq!(day(-1), "1969-12-31");
        assert_eq!([bytes(0), bytes(1), bytes(1_023)], ["0 B", "1 B", "1023 B"]);
        assert_eq!([bytes(1_024), bytes(1_536), bytes(5 << 30)], ["1.0 KiB", "1.5 KiB", "5.0 GiB"]);
        assert_eq!([bytes(40_055_603), bytes((1 << 20) - 1)], ["38.2 MiB", "1.0 MiB"]);
        assert_eq!([bytes(1_048_524), bytes(1_048_525)], ["1023.9 KiB", "1.0 MiB"]);
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(
            [number(0), number(999), number(1_000), number(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([percent(1, 3), percent(2, 3), percent(0, 0)], ["33 %", "67 %", "0 %"]);
        assert_eq!(
            [span(1), span(119), span(120), span(7_199)],
            ["1 second", "119 seconds", "2 minutes", "119 minutes"]
        );
        assert_eq!([span(7_200), span(172_800), span(-172_800)], ["2 hours", "2 days", "2 days"]);
    }

    #[test]
    fn what_is_copied_is_one_word() {
        assert_eq!(nix_string(r#"a"\${b}"#), r#""a\"\\\${b}""#);
        assert_eq!(shell_word("/nix/store/x-y+1.0"), "/nix/store/x-y+1.0");
        assert_eq!(shell_word("a?b"), "'a?b'");
        assert_eq!(shell_word("a'; rm -rf ~"), r"'a'\''; rm -rf ~'");
        assert_eq!(shell_word(""), "''");
    }

    /// What Unicode 14 has as Cc, Zl, Zp and `Default_Ignorable_Code_Point`, and the marks of
    /// annotations.
    const HIDDEN: [(u32, u32); 19] = [
        (0x0, 0x1f),
        (0x7f, 0x9f),
        (0xad, 0xad),
        (0x34f, 0x34f),
        (0x61c, 0x61c),
        (0x115f, 0x1160),
        (0x17b4, 0x17b5),
        (0x180b, 0x180f),
        (0x200b, 0x200f),
        (0x2028, 0x202e),
        (0x2060, 0x206f),
        (0x3164, 0x3164),
        (0xfe00, 0xfe0f),
        (0xfeff, 0xfeff),
        (0xffa0, 0xffa0),
        (0xfff0, 0xfffb),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0000, 0xe0fff),
    ];

    /// Pages, what they offer for copying, and logs ask one list.
    #[test]
    fn no_hidden_character_is_in_a_page_or_a_text_to_copy() {
        for one in '\0'..=char::MAX {
            let number = u32::from(one);
            let is_listed = HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&number));
            assert_eq!(is_hidden(one), is_listed, "{one:?}");
            if is_listed {
                let word = format!("a{one}b");
                let escaped = format!("a\\u{{{number:x}}}b");
                assert_eq!(visible_page(&word), escaped);
                assert!(escaped.len() <= 2 + ESCAPE_BYTES_MAX, "{escaped}");
                let offered = copyable("a word", &Copied::default().shell(&word)).0;
                assert!(!offered.contains("<pre") && offered.contains("nobody sees"), "{offered}");
                let log: String = terminal_text(word.as_bytes()).into_iter().map(|part| part.text).collect();
                assert!(!log.contains(one) || matches!(one, '\n' | '\t'), "{log:?}");
            }
        }
    }

    #[test]
    fn a_filter_shows_what_it_means() {
        for (value, text) in [
            ("repo:a/b:ref:refs/heads/main", "repo:a/b:ref:refs/heads/main"),
            ("a\u{202e}b\u{e0041}", "a\\u{202e}b\\u{e0041}"),
            (r"a\u{202e}b", r"a\u{5c}u{202e}b"),
            (r"C:\users\u", r"C:\users\u"),
            (" a  b ", r"\u{20}a \u{20}b\u{20}"),
            ("a…", r"a\u{2026}"),
        ] {
            assert_eq!(written(value, 100), text);
            assert_eq!(read(text), value);
        }
        for same in [
            r"\u{0}",
            r"\u{",
            r"\u{}",
            r"\u{110000}",
            r"\u{d800}",
            r"\u{0000041}",
            r"\u{zz}",
            r"\u41",
            r"\u{+41}",
        ] {
            assert_eq!(read(same), same, "it is no escape");
        }
        assert_eq!([written("äöü", 3), written("äöü", 2)], ["äöü", "äö…"]);
        assert_eq!(written("a\u{202e}b", 8), "a…", "an escape is not cut");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in prop_oneof![
            any::<String>(),
            r"[\\u{}0-9a-f …\x{202e}\x{200b}\x{e0041}\t]{0,20}",
        ].prop_map(|value| value.replace('\0', "")), most in 1..40_usize) {
            let text = written(&value, usize::MAX);
            prop_assert_eq!(read(&text), value.as_str());
            prop_assert!(!text.contains(is_hidden) && text.trim() == text && !text.ends_with(CUT), "{}", text);
            // A browser sends back what a page shows.
            prop_assert_eq!(read(&visible(&value)), read(&value));
            prop_assert_eq!(visible(&text), text.as_str());
            let shown = written(&value, most);
            if let Some(start) = shown.strip_suffix(CUT) {
                prop_assert!(value.starts_with(&read(start)), "{}", shown);
            } else {
                prop_assert_eq!(&shown, &text);
            }
        }
    }

    #[test]
    fn every_character_can_be_seen() {
        for (text, shown) in [
            ("na\u{ef}ve \u{1f980}", "na\u{ef}ve \u{1f980}"),
            ("a\u{202e}b\u{1b}[31m", "a\\u{202e}b\\u{1b}[31m"),
            ("a\tb\n", "a\\u{9}b\\u{a}"),
            ("a\u{200b}b\u{ad}c\u{feff}", "a\\u{200b}b\\u{ad}c\\u{feff}"),
            ("\0\r\u{7f}\u{85}", "\\u{0}\\u{d}\\u{7f}\\u{85}"),
            ("\n<pre>a\tb\n\r\u{2067}</pre>\n", "\\u{a}<pre>a\tb\n\\u{d}\\u{2067}</pre>\\u{a}"),
        ] {
            assert_eq!(visible_page(text), shown, "{text:?}");
            assert_eq!(visible_page(shown), shown, "nothing is left to show");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöüß", 3), "äöü…");
        assert_eq!(shortened("a\u{202e}", 9), "a\u{202e}");
        assert_eq!(shortened("a\u{202e}b", 9), "a\u{202e}…");
        assert_eq!(shortened("a\u{202e}b", 8), "a…");
    }
}
