//! Sizes and durations in the form that people write, and back.
//!
//! Durations accept the words of Attic's settings and tokens (`2y`, `3 months`). As in Attic, a
//! month is 30.44 days and a year 365.25 days. A token for "1 month" is therefore valid equally
//! long wherever it was made.

use std::time::Duration;

pub(crate) use dormer_client::parse_size;
pub(crate) use dormer_pages::bytes as human_size;

const DURATION_UNITS: &[(&[&str], u64)] = &[
    (&["s", "sec", "secs", "second", "seconds"], 1),
    (&["m", "min", "mins", "minute", "minutes"], 60),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600),
    (&["d", "day", "days"], 86_400),
    (&["w", "week", "weeks"], 7 * 86_400),
    (&["M", "month", "months"], 2_630_016),
    (&["y", "yr", "yrs", "year", "years"], 31_557_600),
];

/// `1 path`, `7 paths`.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Parses `90`, `90s`, `250ms`, `2h 30min`, `3 months`. A bare number means seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    if let Ok(seconds) = rest.parse() {
        return Some(Duration::from_secs(seconds));
    }
    while !rest.is_empty() {
        let (number, tail) = split_number(rest)?;
        let tail = tail.trim_start();
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let step = if matches!(unit, "ms" | "msec" | "millis") {
            Duration::from_millis(number)
        } else {
            let (_, seconds) = DURATION_UNITS.iter().find(|(names, _)| names.contains(&unit))?;
            Duration::from_secs(number.checked_mul(*seconds)?)
        };
        total = total.checked_add(step)?;
        rest = tail.trim_start();
    }
    Some(total)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// Writes a duration in the largest unit that divides it. [`parse_duration`] reads the same
/// duration back.
pub(crate) fn write_duration(duration: Duration) -> String {
    if duration.subsec_millis() != 0 {
        return format!("{}ms", duration.as_millis());
    }
    let seconds = duration.as_secs();
    for (names, unit) in DURATION_UNITS.iter().rev() {
        // Weeks would only be a guess, and `M` beside `m` would be a trap.
        if *unit != 604_800 && seconds != 0 && seconds.is_multiple_of(*unit) {
            let name = if *unit == 2_630_016 { " months" } else { names[0] };
            return format!("{}{name}", seconds / unit);
        }
    }
    format!("{seconds}s")
}

/// Writes a size in the largest binary unit that divides it. [`parse_size`] reads the same size
/// back.
pub(crate) fn write_size(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

/// An elapsed time for people: `9.4 s`, `3 min 05 s`, `2 h 07 min`.
pub(crate) fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{}.{} s", seconds, duration.subsec_millis() / 100),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// `12 days ago`: how long before `now` something was, in seconds since 1970.
pub(crate) fn ago(now: i64, at: i64) -> String {
    format!("{} ago", dormer_pages::span((now - at).max(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_the_words_that_attic_takes() {
        let read = |text| parse_duration(text).map(|duration| duration.as_millis());
        for (text, millis) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("250ms", 250),
            ("2h 30min", 9_000_000),
            ("2h30m", 9_000_000),
            ("1 week", 604_800_000),
            ("3 months", 3 * 2_630_016_000),
            ("2y", 2 * 31_557_600_000),
            ("0s", 0),
        ] {
            assert_eq!(read(text), Some(millis), "{text}");
        }
        for text in [
            "",
            " ",
            "s",
            "-1s",
            "1.5h",
            "3 fortnights",
            "1h x",
            "99999999999999999999",
            "18446744073709551615y",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("64 KiB", 65_536),
            ("1MiB", 1 << 20),
            ("2 GB", 2_000_000_000),
            ("2G", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "KiB", "1 kib", "-1", "1.5 MiB", "99999999999 TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 32 << 10, 128 << 20, 64 << 30, u64::MAX] {
            assert_eq!(parse_size(&write_size(bytes)), Some(bytes));
        }
        for millis in [
            0,
            1,
            999,
            1_000,
            60_000,
            61_000,
            3_600_000,
            86_400_000,
            604_800_000,
            15_780_096_000,
            31_557_600_000,
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&write_duration(duration)), Some(duration));
        }
    }

    #[test]
    fn people_see_rounded_numbers() {
        assert_eq!(human_duration(Duration::from_millis(9_420)), "9.4 s");
        assert_eq!(human_duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(human_duration(Duration::from_mins(127)), "2 h 07 min");
    }
}
