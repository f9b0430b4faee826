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

/// Whether a browser or a terminal would obey the character instead of showing it: a control, a
/// mark that turns the direction of the text around, or one that ends a line. Pages and commands
/// ask this.
pub fn is_obeyed(one: char) -> bool {
    one.is_control() || turns_text(one) || matches!(one, '\u{2028}' | '\u{2029}')
}

/// Whether the character turns the direction of the text around.
pub(crate) const fn turns_text(one: char) -> bool {
    matches!(one, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A page in which every character can be seen: `\u{202e}` stands for one that would be obeyed.
/// Line feeds and tabs stay in preformatted texts alone; no foreign text begins or ends one.
pub(crate) fn visible_page(html: &str) -> String {
    let is_no_layout = |one| is_obeyed(one) && !matches!(one, '\n' | '\t');
    let mut shown = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(begin) = rest.find("<pre") {
        let length = rest[begin..].find("</pre>").unwrap_or(rest.len() - begin);
        push_visible(&mut shown, &rest[..begin], is_obeyed);
        push_visible(&mut shown, &rest[begin..begin + length], is_no_layout);
        rest = &rest[begin + length..];
    }
    push_visible(&mut shown, rest, is_obeyed);
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

/// The mark of a text that is cut.
pub(crate) const CUT: char = '…';

/// At most so many characters, and [`CUT`] if there were more.
pub(crate) fn shortened(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
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
    use super::*;

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

    #[test]
    fn every_character_can_be_seen() {
        for (text, shown) in [
            ("na\u{ef}ve \u{1f980}", "na\u{ef}ve \u{1f980}"),
            ("a\u{202e}b\u{1b}[31m", "a\\u{202e}b\\u{1b}[31m"),
            ("a\tb\n", "a\\u{9}b\\u{a}"),
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
    }
}
