//! The version that `nix --version` prints.

/// The first two numbers of `nix (Nix) 2.26.3`.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.rsplit(' ').next()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_however_they_end() {
        assert_eq!(parse_version("nix (Nix) 2.8.0"), Some((2, 8)));
        assert_eq!(parse_version("nix (Nix) 2.36pre20260101_abc"), Some((2, 36)));
        assert_eq!(parse_version("nix (Lix, like Nix) 2.93.0"), Some((2, 93)));
        assert_eq!(parse_version("something else"), None);
    }
}
