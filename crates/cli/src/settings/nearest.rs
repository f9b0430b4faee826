//! "Did you mean …?": the known word nearest to a mistyped one.

/// The word of `known` that is nearest to `typed`, if at most a third of its letters differ. Of
/// equally near words, the first wins.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, word) =
        known.into_iter().map(|word| (distance(typed, word), word)).min_by_key(|(distance, _)| *distance)?;
    (distance <= word.chars().count().max(3) / 3).then_some(word)
}

/// Number of insertions, deletions, replacements and swaps of neighbours. `-` and `_` count as
/// equal, and so do upper and lower case.
fn distance(a: &str, b: &str) -> usize {
    let normal = |text: &str| text.replace('_', "-").to_ascii_lowercase();
    strsim::osa_distance(&normal(a), &normal(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits_and_swaps() {
        for (a, b, edits) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("listen", "lisetn", 1),
            ("LISTEN", "listen", 0),
            ("zstd-level", "zstd_lvel", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        let known = ["listen", "data-dir", "chunks.avg", "chunks.max"];
        assert_eq!(nearest("lsiten", known), Some("listen"));
        assert_eq!(nearest("data_dir", known), Some("data-dir"));
        assert_eq!(nearest("chunks.agv", known), Some("chunks.avg"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
