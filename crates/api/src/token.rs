//! Tokens: where a request carries one, and what its claims say once the signature is verified.
//!
//! The server, `dormer edge serve` and the Worker share these rules and limits, so a token that
//! counts for one of them counts for all. Verifying the signature needs cryptography, which each
//! host has in its own form.
//!
//! The order of the patterns in the JSON decides which of several wins. The order is kept: no map
//! type in between.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::permissions::Flag;
use crate::{CacheName, CacheNamePattern, Permission, Permissions, unique_keys};

/// Name of the claim that holds the permissions; Attic's, so that its tokens work unchanged.
pub const CLAIM_NAMESPACE: &str = "https://jwt.attic.rs/v1";

/// Longest token that is looked at, in bytes. Tokens of OIDC issuers take some KiB.
pub const TOKEN_BYTES_MAX: usize = 32 * 1024;

/// Longest `Authorization` that is looked at, in bytes: the longest token as the password of
/// `Basic`, with 1 KiB for the user name.
const AUTHORIZATION_BYTES_MAX: usize = (TOKEN_BYTES_MAX + 1024) / 3 * 4 + 64;

/// How far the clock of a token's issuer may be ahead of ours, in seconds.
pub const CLOCK_LEEWAY_SECONDS: i64 = 60;

/// The token that a request presents in `Authorization`: after `Bearer`, or as the password of
/// `Basic` with any user name, as Nix sends the password in netrc.
pub fn presented_token(authorization: &str) -> Option<String> {
    if authorization.len() > AUTHORIZATION_BYTES_MAX {
        return None;
    }
    let (scheme, value) = authorization.trim().split_once(' ')?;
    let value = value.trim();
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        value.to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
        pair.split_once(':')?.1.to_owned()
    } else {
        return None;
    };
    (1..=TOKEN_BYTES_MAX).contains(&token.len()).then_some(token)
}

/// A token's claims. Other claims are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenClaims {
    /// The user of the token; shown in logs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sub: Option<String>,
    /// End of validity, in seconds since 1970; fractions are cut off.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "numeric_date")]
    pub exp: Option<i64>,
    /// Start of validity, in seconds since 1970; fractions are cut off.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "numeric_date")]
    pub nbf: Option<i64>,
    /// When the token was made, in seconds since 1970. Decides nothing about validity.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "numeric_date")]
    pub iat: Option<i64>,
    /// The issuer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub iss: Option<String>,
    /// The servers that the token is for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub aud: Option<Audience>,
    /// The name of the token, by which it can be revoked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub jti: Option<String>,
    /// The permissions. Without any, the bearer may do what anybody may.
    #[serde(rename = "https://jwt.attic.rs/v1", default)]
    pub access: AccessClaim,
}

impl TokenClaims {
    /// Reads claims from the JSON of a token's payload. An object with a key that stands twice is
    /// refused, wherever it stands.
    pub fn parse(json: &[u8]) -> Result<Self> {
        unique_keys::from_slice(json).map_err(Error::TokenClaims)
    }

    /// What the token may do with `cache`. An entry of exactly that name decides. Otherwise the
    /// first pattern that matches decides. Otherwise the token may do nothing. Entries are never
    /// added up.
    pub fn permissions_for(&self, cache: &CacheName) -> Permissions {
        let caches = &self.access.caches;
        let exact = caches.iter().find(|(pattern, _)| pattern.as_str() == cache.as_str());
        let entry = exact.or_else(|| caches.iter().find(|(pattern, _)| pattern.matches(cache)));
        entry.map_or(Permissions::NONE, |(_, permissions)| *permissions)
    }

    /// Whether the token is valid at this time, in seconds since 1970 UTC.
    pub fn is_valid_at(&self, now: i64) -> bool {
        let latest_begin = now.saturating_add(CLOCK_LEEWAY_SECONDS);
        self.exp.is_none_or(|end| now < end) && self.nbf.is_none_or(|begin| begin <= latest_begin)
    }

    /// Whether the token operates the installation: as its claim says, else if it reads and
    /// configures every cache that exists, existed or will exist. What operators see names private
    /// caches and the subjects of other tokens, and says how busy each caller keeps the server.
    pub fn may_operate(&self) -> bool {
        let may = |permissions: &Permissions| {
            permissions.allows(Permission::Pull) && permissions.allows(Permission::ConfigureCache)
        };
        let caches = &self.access.caches;
        self.access.operate.unwrap_or_else(|| {
            caches.iter().any(|(pattern, _)| pattern.as_str() == "*")
                && caches.iter().all(|(_, permissions)| may(permissions))
        })
    }

    /// Whether any cache name exists for which the token has this permission.
    pub fn may_somewhere(&self, permission: Permission) -> bool {
        self.access.caches.iter().any(|(_, permissions)| permissions.allows(permission))
    }
}

/// The issuer and the audiences whose tokens count. Nothing set: every token with a valid signature
/// counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBounds {
    /// Only tokens with this `iss` count.
    pub issuer: Option<String>,
    /// Only tokens with one of these in `aud` count. Empty: `aud` does not matter.
    pub audiences: Vec<String>,
}

impl TokenBounds {
    /// Whether tokens with these claims count.
    pub fn admit(&self, claims: &TokenClaims) -> bool {
        let named = claims.aud.as_ref().map_or(&[][..], Audience::names);
        (self.issuer.is_none() || claims.iss == self.issuer)
            && (self.audiences.is_empty() || named.iter().any(|name| self.audiences.contains(name)))
    }
}

/// The value of the claim [`CLAIM_NAMESPACE`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccessClaim {
    /// Patterns and what they allow, in the token's order; no pattern stands twice.
    #[serde(with = "ordered_entries")]
    pub caches: Vec<(CacheNamePattern, Permissions)>,
    /// Whether the bearer operates the installation. It says nothing about any cache. `None`, as in
    /// tokens made elsewhere or before there was such a claim: the caches decide.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "flag")]
    pub operate: Option<bool>,
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

/// As permissions are written.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    Ok(Some(Flag::deserialize(deserializer)?.0))
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
                Ok(entries)
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_as_bearer_or_as_the_password_of_basic() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for (header, token) in [
            ("Bearer a.b.c", "a.b.c"),
            ("bearer  a.b.c ", "a.b.c"),
            (&basic("any:a.b.c"), "a.b.c"),
            (&basic(":a:b"), "a:b"),
        ] {
            assert_eq!(presented_token(header).as_deref(), Some(token), "{header}");
        }
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "a.b.c",
            "Digest a.b.c",
            "Basic a.b.c",
            "Basic %%%",
            &basic("a.b.c"),
            &basic("x:"),
        ] {
            assert_eq!(presented_token(header), None, "{header}");
        }
    }

    #[test]
    fn the_longest_token_counts_in_both_forms_and_a_longer_one_in_none() {
        for (length, counts) in [(TOKEN_BYTES_MAX, true), (TOKEN_BYTES_MAX + 1, false)] {
            let token = "a".repeat(length);
            let basic = STANDARD.encode(format!("{}:{token}", "u".repeat(1000)));
            for header in [format!("Bearer {token}"), format!("Basic {basic}")] {
                assert_eq!(presented_token(&header).is_some(), counts, "{length}");
            }
        }
        assert_eq!(presented_token(&format!("Basic {}", "a".repeat(AUTHORIZATION_BYTES_MAX))), None);
    }

    #[test]
    fn dates_are_compared_with_a_leeway_for_the_issuers_clock() {
        let claims = TokenClaims { exp: Some(200), nbf: Some(100), ..TokenClaims::default() };
        for (now, is_valid) in [(39, false), (40, true), (100, true), (199, true), (200, false)] {
            assert_eq!(claims.is_valid_at(now), is_valid, "{now}");
        }
        assert!(TokenClaims::default().is_valid_at(0) && TokenClaims::default().is_valid_at(i64::MAX));
    }

    #[test]
    fn a_token_counts_within_its_bounds_only() {
        let claims = TokenClaims::parse(br#"{"iss":"lab","aud":["edge","other"]}"#).unwrap();
        let counts = |issuer: Option<&str>, audiences: &[&str]| {
            let audiences = audiences.iter().map(|&name| name.to_owned()).collect();
            TokenBounds { issuer: issuer.map(str::to_owned), audiences }.admit(&claims)
        };
        assert!(counts(None, &[]) && counts(Some("lab"), &["edge"]) && counts(None, &["x", "other"]));
        assert!(!counts(Some("x"), &[]) && !counts(None, &["x"]) && !counts(Some("lab"), &["labs"]));
    }

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
    fn operating_is_a_claim_of_its_own_and_permits_nothing_on_a_cache() {
        let token = |access: &str| {
            TokenClaims::parse(format!(r#"{{"{CLAIM_NAMESPACE}":{access}}}"#).as_bytes()).unwrap()
        };
        for (access, operates) in [
            (r#"{"caches":{},"operate":1}"#, true),
            (r#"{"operate":true,"caches":{"main":{"r":1}}}"#, true),
            (r#"{"caches":{"*":{"r":1,"cr":1}}}"#, true),
            (r#"{"caches":{"*":{"r":1,"cr":1}},"operate":0}"#, false),
            (r#"{"caches":{"*":{"r":1,"cr":1},"a":{}}}"#, false),
            (r#"{"caches":{"main":{"r":1,"cr":1}}}"#, false),
            (r#"{"caches":{"operate":{"r":1,"cr":1}}}"#, false),
            (r#"{"caches":{}}"#, false),
        ] {
            let claims = token(access);
            assert_eq!(claims.may_operate(), operates, "{access}");
            let written = serde_json::to_vec(&claims).unwrap();
            assert_eq!(TokenClaims::parse(&written).unwrap(), claims, "{access}");
        }
        let alone = token(r#"{"caches":{},"operate":1}"#);
        assert!(allowed(&alone, "main").is_empty());
        assert!(Permission::ALL.into_iter().all(|one| !alone.may_somewhere(one)));
        assert!(serde_json::to_string(&alone).unwrap().contains(r#""operate":true"#));
        for bad in [
            r#"{"caches":{},"operate":2}"#,
            r#"{"caches":{},"operate":null}"#,
            r#"{"caches":{},"operate":"1"}"#,
        ] {
            let json = format!(r#"{{"{CLAIM_NAMESPACE}":{bad}}}"#);
            assert!(TokenClaims::parse(json.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_entry_means_no_permission() {
        assert!(allowed(&claims(r#"{"team-*":{"r":1}}"#), "main").is_empty());
        assert!(allowed(&TokenClaims::parse(b"{}").unwrap(), "main").is_empty());
    }

    /// Every object of a token, with a key twice in one spelling or in two: equal values, others,
    /// and values that take something away.
    #[test]
    fn an_object_with_a_key_twice_is_refused_wherever_it_stands() {
        let access = |caches: &str| format!(r#""{CLAIM_NAMESPACE}":{{"caches":{caches}}}"#);
        let mut twice: Vec<String> = Permission::ALL
            .iter()
            .map(|one| access(&format!(r#"{{"a":{{"{0}":1,"{0}":0}}}}"#, one.key())))
            .collect();
        let whole = serde_json::to_value(TokenClaims {
            sub: Some("s".to_owned()),
            exp: Some(1),
            nbf: Some(1),
            iat: Some(1),
            iss: Some("i".to_owned()),
            aud: Some(Audience::One("a".to_owned())),
            jti: Some("j".to_owned()),
            access: AccessClaim::default(),
        });
        for (name, value) in whole.unwrap().as_object().unwrap() {
            twice.push(format!(r#""{name}":{value},"{name}":{value}"#));
        }
        twice.extend([
            access(r#"{"a":{"r":0,"r":1}}"#),
            access(r#"{"a":{"r":1,"\u0072":0}}"#),
            access(r#"{"a":{"r":1},"b":{},"a":{}}"#),
            access(r#"{"a":{"x":1,"x":1}}"#),
            format!(r#""{CLAIM_NAMESPACE}":{{"caches":{{}},"operate":0,"operate":1}}"#),
            format!(r#""{CLAIM_NAMESPACE}":{{"caches":{{}},"caches":{{}}}}"#),
            r#""x":1,"x":1"#.to_owned(),
            r#""x":[{"y":{"z":1,"z":1}}]"#.to_owned(),
        ]);
        for members in twice {
            let error = TokenClaims::parse(format!("{{{members}}}").as_bytes()).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("stands twice"), "{members}: {cause}");
        }
        let once =
            format!("{{{},\"x\":[{{\"r\":1}},{{\"r\":null}}]}}", access(r#"{"a":{"r":1},"b":{"r":1}}"#));
        assert!(TokenClaims::parse(once.as_bytes()).is_ok(), "{once}");
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
