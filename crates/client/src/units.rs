//! Sizes in the form that people write.

const SIZE_UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TiB", 1 << 40),
    // The letters alone, as in `curl --limit-rate` and `du -h`.
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("T", 1 << 40),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Parses `1048576`, `1 MiB`, `1MiB`, `1M`, `64 KB`. A bare number means bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (number, unit) = (digits.parse::<u64>().ok()?, unit.trim());
    if unit.is_empty() {
        return Some(number);
    }
    let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*bytes)
}
