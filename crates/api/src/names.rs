//! Names of caches, and the patterns that tokens use for them.
//!
//! Attic's rules: a name is `^[A-Za-z0-9][A-Za-z0-9-_+]{0,49}$`, a pattern allows `*` anywhere.
//! They are checked by hand: a regular expression engine would be this crate's largest dependency.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, excerpt};

/// Longest name or pattern.
pub const CACHE_NAME_BYTES_MAX: usize = 50;

/// The name of a cache. Safe as a URL segment, a file name and a key's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheName(String);

impl CacheName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CacheName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_name(text, false) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::CacheName { text: excerpt(text) })
        }
    }
}

/// The name of a pin: the same form as a cache's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinName(String);

impl PinName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PinName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_name(text, false) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::PinName { text: excerpt(text) })
        }
    }
}

/// A cache's name in which `*` stands for any number of characters, none included.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheNamePattern(String);

impl CacheNamePattern {
    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it holds no `*`, and so means one cache only.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether `name` fits.
    pub fn matches(&self, name: &CacheName) -> bool {
        // The first piece must begin the name, the last must end it, those between are taken where
        // they first occur: at 50 bytes on either side the worst case is 2,500 comparisons.
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = name.0.strip_prefix(first) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl FromStr for CacheNamePattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_name(text, true) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::CacheNamePattern { text: excerpt(text) })
        }
    }
}

impl From<&CacheName> for CacheNamePattern {
    fn from(name: &CacheName) -> Self {
        Self(name.0.clone())
    }
}

fn is_name(text: &str, stars: bool) -> bool {
    let first = |byte: u8| byte.is_ascii_alphanumeric() || (stars && byte == b'*');
    let other = |byte: u8| first(byte) || matches!(byte, b'-' | b'_' | b'+');
    text.len() <= CACHE_NAME_BYTES_MAX && text.bytes().next().is_some_and(first) && text.bytes().all(other)
}

macro_rules! string_like {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
string_like!(CacheName);
string_like!(CacheNamePattern);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule as it is usually written, one character at a time and with backtracking.
    fn matches_slowly(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|skip| matches_slowly(rest, &name[skip..])),
            Some((byte, rest)) => name.first() == Some(byte) && matches_slowly(rest, &name[1..]),
        }
    }

    #[test]
    fn names_are_letters_digits_and_three_signs() {
        for text in ["a", "0", "main", "A-b_c+9", &"a".repeat(50)] {
            assert_eq!(text.parse::<CacheName>().unwrap().as_str(), text);
        }
        for text in
            ["", "-a", "_api", "+", "a b", "a/b", "a.b", "..", "a*", "é", "a\n", "\0", "%61", &"a".repeat(51)]
        {
            assert!(text.parse::<CacheName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn patterns_are_names_with_stars() {
        for text in ["*", "team-*", "*-dev", "a*b*c", "**", "main"] {
            assert_eq!(text.parse::<CacheNamePattern>().unwrap().as_str(), text);
        }
        for text in ["", "-*", "a?", "a[b]", "*/x", &"*".repeat(51)] {
            assert!(text.parse::<CacheNamePattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_star_stands_for_any_number_of_characters() {
        let matches = |pattern: &str, name: &str| {
            pattern.parse::<CacheNamePattern>().unwrap().matches(&name.parse().unwrap())
        };
        for (pattern, name) in
            [("*", "a"), ("team-*", "team-"), ("team-*", "team-a"), ("*-dev", "a-dev"), ("a*b*c", "aXbbc")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("team-*", "team"),
            ("team-*", "xteam-a"),
            ("a*a", "a"),
            ("a", "ab"),
            ("A*", "ab"),
            ("a*b*b", "aXb"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn parse_undoes_display(text in "[A-Za-z0-9][A-Za-z0-9_+-]{0,49}") {
            let name: CacheName = text.parse().unwrap();
            prop_assert_eq!(&name.to_string(), &text);
            prop_assert!(CacheNamePattern::from(&name).is_exact());
            prop_assert_eq!(serde_json::from_str::<CacheName>(&serde_json::to_string(&name).unwrap()).unwrap(), name);
        }

        #[test]
        fn matching_agrees_with_backtracking(pattern in "[ab*]{1,8}", name in "[ab]{1,10}") {
            let parsed: CacheNamePattern = pattern.parse().unwrap();
            prop_assert_eq!(
                parsed.matches(&name.parse().unwrap()),
                matches_slowly(pattern.as_bytes(), name.as_bytes())
            );
        }
    }
}
