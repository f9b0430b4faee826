//! Makes tokens from the server's settings, without contacting the server.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_api::{AccessClaim, Audience, CacheNamePattern, Permission, Permissions, Secret, TokenClaims};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use crate::error::{Error, Result};
use crate::secret_file;
use crate::settings::{JwtSettings, Settings, SigningKey};

/// The key that signs and verifies this server's tokens: from the settings, else from the data
/// folder.
pub(crate) fn signing_key(settings: &Settings) -> Result<SigningKey> {
    if let Some(key) = &settings.jwt.signing {
        return Ok(key.clone());
    }
    let path = settings.token_secret_file();
    match secret_file::read(&path)? {
        Some(text) => parse_secret(settings, text.expose()),
        None => Err(Error::NoTokenSecret { path }),
    }
}

/// The same key; makes one if the installation has no key. The result says whether it is new.
pub(crate) fn signing_key_or_new(settings: &Settings) -> Result<(SigningKey, bool)> {
    if let Some(key) = &settings.jwt.signing {
        return Ok((key.clone(), false));
    }
    // 64 bytes: RFC 7518 requires at least 32 for HS256, and Attic's guide makes 64.
    let make = || STANDARD.encode([rand::random::<[u8; 32]>(), rand::random()].concat());
    let (text, made) = secret_file::create_or_read(&settings.token_secret_file(), make)?;
    Ok((parse_secret(settings, text.expose())?, made))
}

fn parse_secret(settings: &Settings, text: &str) -> Result<SigningKey> {
    match STANDARD.decode(text) {
        Ok(secret) if !secret.is_empty() => Ok(SigningKey::Hs256(secret)),
        _ => Err(Error::UnreadableSecret {
            path: settings.token_secret_file(),
            what: "a token secret in base64",
        }),
    }
}

/// Signs claims.
pub(crate) fn sign(key: &SigningKey, claims: &TokenClaims) -> Result<Secret> {
    let (algorithm, key) = match key {
        SigningKey::Hs256(secret) => {
            // No server would believe the token.
            dormer_edge_host::check_secret(secret)?;
            (Algorithm::HS256, EncodingKey::from_secret(secret))
        }
        SigningKey::Rs256Secret(pem) => (
            Algorithm::RS256,
            EncodingKey::from_rsa_pem(pem).map_err(|source| Error::TokenKey {
                what: "jwt.signing.token-rs256-secret-base64",
                source,
            })?,
        ),
        SigningKey::Rs256Public(_) => return Err(Error::CannotSignTokens),
    };
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).map(Secret::new).map_err(Error::SignToken)
}

/// The requested contents of a token.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) subject: String,
    pub(crate) validity: Duration,
    /// Permissions, in the order of the command line.
    pub(crate) grants: Vec<(CacheNamePattern, Permission)>,
    /// Whether the bearer operates the installation, whatever else it may do.
    pub(crate) operates: bool,
}

/// The claims of a requested token. Their random name (`jti`) makes it possible to revoke the token
/// later.
pub(crate) fn claims(wish: &Wish, jwt: &JwtSettings, now: SystemTime) -> TokenClaims {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // A validity of more than 250 million years counts as for ever.
    let exp = i64::try_from(now.saturating_add(wish.validity).as_secs()).unwrap_or(i64::MAX).min(1 << 52);
    TokenClaims {
        sub: Some(wish.subject.clone()),
        exp: Some(exp),
        nbf: None,
        // The server warns before the end of a token only if the token was made for long.
        iat: Some(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)),
        iss: jwt.bound_issuer.clone(),
        aud: (!jwt.bound_audiences.is_empty()).then(|| Audience::Many(jwt.bound_audiences.clone())),
        jti: Some(format!("{:032x}", rand::random::<u128>())),
        access: AccessClaim { caches: entries(&wish.grants), operate: wish.operates.then_some(true) },
    }
}

/// Verifiers use only one entry: the exact name, or else the first match. `--pull '*' --push
/// 'team-*'` must allow both on `team-a`. Each entry therefore includes the permissions of wider
/// patterns, and narrower patterns come first.
fn entries(grants: &[(CacheNamePattern, Permission)]) -> Vec<(CacheNamePattern, Permissions)> {
    let mut own: BTreeMap<&CacheNamePattern, Permissions> = BTreeMap::new();
    for (pattern, permission) in grants {
        let entry = own.entry(pattern).or_default();
        *entry = entry.with(*permission);
    }
    let mut entries: Vec<(CacheNamePattern, Permissions)> = own
        .keys()
        .map(|pattern| {
            let wider = own.iter().filter(|(other, _)| covers(other.as_str(), pattern.as_str()));
            let granted = wider.fold(Permissions::NONE, |sum, (_, granted)| sum.union(*granted));
            ((*pattern).clone(), granted)
        })
        .collect();
    let literals = |pattern: &CacheNamePattern| pattern.as_str().bytes().filter(|byte| *byte != b'*').count();
    entries.sort_by(|(a, _), (b, _)| literals(b).cmp(&literals(a)).then_with(|| a.cmp(b)));
    entries
}

/// Whether every name that matches `narrow` matches `wide`: a star of `narrow` must fall under a
/// star of `wide`.
fn covers(wide: &str, narrow: &str) -> bool {
    let (wide, narrow) = (wide.as_bytes(), narrow.as_bytes());
    // fits[j]: the part of `wide` so far covers the first j characters of `narrow`. At most 50 × 50
    // steps.
    let mut fits = vec![false; narrow.len() + 1];
    fits[0] = true;
    for &sign in wide {
        if sign == b'*' {
            for j in 1..=narrow.len() {
                fits[j] |= fits[j - 1];
            }
        } else {
            for j in (1..=narrow.len()).rev() {
                fits[j] = fits[j - 1] && narrow[j - 1] == sign;
            }
            fits[0] = false;
        }
    }
    fits[narrow.len()]
}

#[cfg(test)]
mod tests {
    use dormer_api::CacheName;

    use super::*;

    fn wish(grants: &[(&str, Permission)]) -> Wish {
        let grants =
            grants.iter().map(|(pattern, permission)| (pattern.parse().unwrap(), *permission)).collect();
        Wish { subject: "ada".to_owned(), validity: Duration::from_mins(1), grants, operates: false }
    }

    fn jwt() -> JwtSettings {
        JwtSettings { bound_issuer: None, bound_audiences: Vec::new(), signing: None }
    }

    fn allowed(grants: &[(&str, Permission)], cache: &str) -> Vec<Permission> {
        let claims = claims(&wish(grants), &jwt(), SystemTime::now());
        claims.permissions_for(&cache.parse::<CacheName>().unwrap()).iter().collect()
    }

    #[test]
    fn permissions_of_several_patterns_add_up_as_they_were_asked_for() {
        use Permission::{Delete, Pull, Push};
        let grants = [("*", Pull), ("team-*", Push), ("team-a", Delete)];
        assert_eq!(allowed(&grants, "main"), [Pull]);
        assert_eq!(allowed(&grants, "team-b"), [Pull, Push]);
        assert_eq!(allowed(&grants, "team-a"), [Pull, Push, Delete]);
        assert_eq!(allowed(&[("team-*", Push)], "main"), []);
        let crossing = [("*-dev", Push), ("team-*", Pull)];
        assert_eq!(allowed(&crossing, "x-dev"), [Push]);
    }

    #[test]
    fn a_pattern_covers_what_it_fits_star_for_star() {
        for (wide, narrow) in
            [("*", "*"), ("*", ""), ("*", "a*b"), ("a*", "ab*"), ("a*c", "a*b*c"), ("a", "a"), ("**", "*")]
        {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [("a*", "*"), ("a", "a*"), ("a*", "b"), ("*a", "a*"), ("", "*")] {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn tokens_are_bound_as_the_settings_say_and_each_has_its_own_name() {
        let jwt = JwtSettings {
            bound_issuer: Some("lab".to_owned()),
            bound_audiences: vec!["a".to_owned()],
            signing: None,
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let one = claims(&wish(&[]), &jwt, now);
        assert_eq!((one.iss.as_deref(), one.iat, one.exp), (Some("lab"), Some(1_000), Some(1_060)));
        assert_eq!(one.aud.as_ref().unwrap().names(), ["a"]);
        assert_ne!(one.jti, claims(&wish(&[]), &jwt, now).jti);
        let mut endless = wish(&[]);
        endless.validity = Duration::MAX;
        assert_eq!(claims(&endless, &jwt, now).exp, Some(1 << 52));
    }

    const SECRET: &[u8] = b"a secret of the tests, 32 bytes.";

    #[test]
    fn a_signed_token_verifies_with_the_same_secret_only() {
        let key = SigningKey::Hs256(SECRET.to_vec());
        let token =
            sign(&key, &claims(&wish(&[("*", Permission::Pull)]), &jwt(), SystemTime::now())).unwrap();
        let verify = |secret: &[u8]| {
            let validation = jsonwebtoken::Validation::new(Algorithm::HS256);
            jsonwebtoken::decode::<TokenClaims>(
                token.expose(),
                &jsonwebtoken::DecodingKey::from_secret(secret),
                &validation,
            )
        };
        assert_eq!(verify(SECRET).unwrap().claims.sub.as_deref(), Some("ada"));
        assert!(verify(b"other").is_err());
        assert!(matches!(
            sign(&SigningKey::Rs256Public(Vec::new()), &TokenClaims::default()),
            Err(Error::CannotSignTokens)
        ));
        let short = sign(&SigningKey::Hs256(SECRET[1..].to_vec()), &TokenClaims::default()).unwrap_err();
        assert_eq!(short.to_string(), "the HS256 secret has 31 bytes; it needs at least 32");
        assert!(short.hints()[0].contains("openssl rand -base64 64"), "{:?}", short.hints());
    }
}
