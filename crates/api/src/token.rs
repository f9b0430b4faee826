//! The claims of a token, after its signature was checked.
//!
//! Whoever verifies tokens (the server, the edge) also checks `exp`, `nbf`, `iss` and `aud`; here they are only read.
//! The order of the patterns in the JSON decides which of several wins, so it is kept: no map type in between.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::{CacheName, CacheNamePattern, Permission, Permissions};

/// Name of the claim that holds the permissions; Attic's, so that its tokens work unchanged.
pub const CLAIM_NAMESPACE: &str = "https://jwt.attic.rs/v1";

/// A token's claims. Others than these are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenClaims {
    /// Whom the token was made for; shown in logs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sub: Option<String>,
    /// End of validity, in seconds since 1970; fractions are cut off.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "numeric_date")]
    pub exp: Option<i64>,
    /// Start of validity, in seconds since 1970; fractions are cut off.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "numeric_date")]
    pub nbf: Option<i64>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub iss: Option<String>,
    /// Which servers it is for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub aud: Option<Audience>,
    /// Its own name, by which it can be revoked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub jti: Option<String>,
    /// The permissions. A token without them may do what anybody may.
    #[serde(rename = "https://jwt.attic.rs/v1", default)]
    pub access: AccessClaim,
}

impl TokenClaims {
    /// Reads claims from the JSON of a token's payload.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(Error::TokenClaims)
    }

    /// What the token may do with `cache`: an entry of exactly that name decides; else the first pattern that matches;
    /// else nothing. Entries are never added up.
    pub fn permissions_for(&self, cache: &CacheName) -> Permissions {
        let caches = &self.access.caches;
        let exact = caches.iter().find(|(pattern, _)| pattern.as_str() == cache.as_str());
        let entry = exact.or_else(|| caches.iter().find(|(pattern, _)| pattern.matches(cache)));
        entry.map_or(Permissions::NONE, |(_, permissions)| *permissions)
    }

    /// Whether there is any name of a cache with which the token might have this permission. Without it there is none.
    pub fn may_somewhere(&self, permission: Permission) -> bool {
        self.access.caches.iter().any(|(_, permissions)| permissions.allows(permission))
    }
}

/// The value of the claim [`CLAIM_NAMESPACE`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccessClaim {
    /// Patterns and what they allow, in the token's order; no pattern stands twice.
    #[serde(with = "ordered_entries")]
    pub caches: Vec<(CacheNamePattern, Permissions)>,
}

/// `aud`: one name or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// A plain string.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl Audience {
    /// The names, whichever form they were written in.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// Up to 2^53 a float holds whole seconds exactly; what is beyond is no date.
const SECONDS_MAX: f64 = 9_007_199_254_740_992.0;

/// RFC 7519 allows fractions of seconds; nobody needs them.
fn numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    if let Some(seconds) = number.as_i64() {
        return Ok(Some(seconds));
    }
    match number.as_f64() {
        #[expect(clippy::cast_possible_truncation, reason = "the range was just checked")]
        Some(seconds) if seconds.abs() <= SECONDS_MAX => Ok(Some(seconds.floor() as i64)),
        _ => Err(D::Error::custom("a date is not a number of seconds")),
    }
}

mod ordered_entries {
    use serde::ser::SerializeMap as _;

    use super::{CacheNamePattern, Deserializer, MapAccess, Permissions, Serializer, Visitor, fmt};

    type Entries = Vec<(CacheNamePattern, Permissions)>;

    pub(super) fn serialize<S: Serializer>(entries: &Entries, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(entries.len()))?;
        for (pattern, permissions) in entries {
            map.serialize_entry(pattern, permissions)?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of cache name patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::new();
                while let Some(entry) = map.next_entry::<CacheNamePattern, Permissions>()? {
                    entries.push(entry);
                }
                let mut patterns: Vec<&CacheNamePattern> =
                    entries.iter().map(|(pattern, _)| pattern).collect();
                patterns.sort_unstable();
                match patterns.windows(2).find(|pair| pair[0] == pair[1]) {
                    // Which of the two would count depends on the reader: refuse rather than guess.
                    Some(pair) => {
                        Err(serde::de::Error::custom(format!("the pattern {} stands twice", pair[0])))
                    }
                    None => Ok(entries),
                }
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Permission;

    fn claims(caches: &str) -> TokenClaims {
        TokenClaims::parse(format!(r#"{{"{CLAIM_NAMESPACE}":{{"caches":{caches}}}}}"#).as_bytes()).unwrap()
    }

    fn allowed(claims: &TokenClaims, cache: &str) -> Vec<Permission> {
        claims.permissions_for(&cache.parse().unwrap()).iter().collect()
    }

    #[test]
    fn an_exact_name_beats_patterns_wherever_it_stands() {
        let claims = claims(r#"{"*":{"r":1},"team-a":{"w":1}}"#);
        assert_eq!(allowed(&claims, "team-a"), [Permission::Push]);
        assert_eq!(allowed(&claims, "team-b"), [Permission::Pull]);
    }

    #[test]
    fn the_first_matching_pattern_wins_in_the_order_of_the_text() {
        let forwards = claims(r#"{"z*":{"r":1},"*":{"w":1},"za*":{"d":1}}"#);
        assert_eq!(allowed(&forwards, "zab"), [Permission::Pull]);
        let backwards = claims(r#"{"za*":{"d":1},"*":{"w":1},"z*":{"r":1}}"#);
        assert_eq!(allowed(&backwards, "zab"), [Permission::Delete]);
        assert_eq!(allowed(&backwards, "zb"), [Permission::Push]);
    }

    #[test]
    fn an_exact_name_can_take_away_what_a_pattern_gives() {
        let claims = claims(r#"{"*":{"r":1},"secret":{}}"#);
        assert!(allowed(&claims, "secret").is_empty());
    }

    #[test]
    fn no_entry_means_no_permission() {
        assert!(allowed(&claims(r#"{"team-*":{"r":1}}"#), "main").is_empty());
        assert!(allowed(&TokenClaims::parse(b"{}").unwrap(), "main").is_empty());
    }

    #[test]
    fn a_pattern_that_stands_twice_is_refused() {
        let json = format!(r#"{{"{CLAIM_NAMESPACE}":{{"caches":{{"a":{{"r":1}},"b":{{}},"a":{{}}}}}}}}"#);
        let error = TokenClaims::parse(json.as_bytes()).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("stands twice"));
    }

    #[test]
    fn dates_may_be_fractions_but_not_texts() {
        let read = |json: &str| TokenClaims::parse(json.as_bytes()).map(|claims| claims.exp).map_err(drop);
        assert_eq!(read(r#"{"exp":1700000000}"#), Ok(Some(1_700_000_000)));
        assert_eq!(read(r#"{"exp":1700000000.9}"#), Ok(Some(1_700_000_000)));
        assert_eq!(read(r#"{"exp":-1}"#), Ok(Some(-1)));
        assert_eq!(read(r#"{"exp":null}"#), Ok(None));
        for json in [r#"{"exp":"1"}"#, r#"{"exp":1e300}"#, r#"{"exp":18446744073709551615}"#, r#"{"exp":[]}"#]
        {
            assert_eq!(read(json), Err(()), "{json}");
        }
    }

    #[test]
    fn an_audience_is_one_name_or_several() {
        let read = |json: &str| TokenClaims::parse(json.as_bytes()).unwrap().aud.unwrap().names().to_vec();
        assert_eq!(read(r#"{"aud":"a"}"#), ["a"]);
        assert_eq!(read(r#"{"aud":["a","b"]}"#), ["a", "b"]);
    }
}
