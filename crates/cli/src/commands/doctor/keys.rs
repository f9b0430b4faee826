//! Checks the key that signs tokens, and the master key.

use std::collections::BTreeSet;

use dormer_index::Examination;

use super::finding::Finding;
use crate::commands::serve;
use crate::error::Error;
use crate::installation;
use crate::secret_file;
use crate::settings::{Settings, SigningKey};
use crate::tokens;

const TOKENS: &str = "tokens";
const MASTER_KEY: &str = "master key";

/// RFC 7518 requires a secret at least as long as the digest.
const SECRET_BYTES_MIN: usize = 32;
/// Random bytes of that length have some thirty different values; a password has a dozen or two.
const SECRET_VALUES_MIN: usize = 16;

const NEW_SECRET: &str =
    "make another one: openssl rand -base64 64 | tr -d '\\n' (then make all tokens again)";

/// Checks the key that signs and verifies tokens.
pub(super) fn check_token_key(settings: &Settings) -> Vec<Finding> {
    let key = match tokens::signing_key(settings) {
        Ok(key) => key,
        Err(Error::NoTokenSecret { .. }) => {
            return vec![Finding::ok(TOKENS, "there is no secret yet: the first start makes one")];
        }
        Err(error) => return vec![Finding::error(TOKENS, &error)],
    };
    let mut findings = Vec::new();
    let path = settings.token_secret_file();
    if settings.jwt.signing.is_none() && secret_file::is_readable_by_others(&path) {
        findings.push(Finding::fail(
            TOKENS,
            format!("{} can be read by other users", path.display()),
            ["chmod 600 it, and make another one if another user may have read it"],
        ));
    }
    findings.push(match &key {
        SigningKey::Hs256(secret) => check_secret(secret),
        // Only signing or verifying shows whether the key is valid.
        SigningKey::Rs256Secret(_) => check_signing(settings, &key),
        SigningKey::Rs256Public(_) => match serve::authenticator(settings, &key) {
            Ok(_) => Finding::ok(TOKENS, "an RSA public key verifies tokens that are made elsewhere"),
            Err(error) => Finding::error(TOKENS, &error),
        },
    });
    findings
}

fn check_secret(secret: &[u8]) -> Finding {
    let values = secret.iter().collect::<BTreeSet<_>>().len();
    if secret.len() < SECRET_BYTES_MIN {
        let message = format!("the secret has {} bytes; it needs at least {SECRET_BYTES_MIN}", secret.len());
        return Finding::fail(TOKENS, message, [NEW_SECRET]);
    }
    if values < SECRET_VALUES_MIN {
        let message =
            format!("the secret can be guessed: its {} bytes have {values} different values", secret.len());
        return Finding::fail(TOKENS, message, [NEW_SECRET]);
    }
    if secret.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_whitespace()) {
        return Finding::warn(TOKENS, "the secret looks like words, not like random bytes", [NEW_SECRET]);
    }
    Finding::ok(TOKENS, format!("a secret of {} bytes signs tokens", secret.len()))
}

fn check_signing(settings: &Settings, key: &SigningKey) -> Finding {
    let signed = tokens::sign(key, &dormer_api::TokenClaims::default());
    match signed.and_then(|_| serve::authenticator(settings, key)) {
        Ok(_) => Finding::ok(TOKENS, "an RSA key signs and verifies tokens"),
        Err(error) => Finding::error(TOKENS, &error),
    }
}

/// Checks the master key against the proof in the database.
pub(super) fn check_master_key(settings: &Settings, database: &Examination) -> Vec<Finding> {
    let was_used = database.setting.is_some();
    let path = &settings.master_key_file;
    if settings.master_key.is_none() && !was_used && !path.exists() {
        if settings.postgres.is_some() {
            return vec![Finding::error(MASTER_KEY, &Error::NoSharedMasterKey { path: path.clone() })];
        }
        return vec![Finding::ok(MASTER_KEY, "there is none yet: the first start makes one")];
    }
    let mut findings = Vec::new();
    if settings.master_key.is_none() && secret_file::is_readable_by_others(path) {
        findings.push(Finding::fail(
            MASTER_KEY,
            format!("{} can be read by other users", path.display()),
            ["chmod 600 it, and give the caches other signing keys if another user may have read it"],
        ));
    }
    findings.push(match installation::check_master_key(settings, database.setting.as_deref()) {
        Ok(()) if was_used => Finding::ok(MASTER_KEY, "it is the key of this database"),
        Ok(()) => Finding::ok(MASTER_KEY, "the key is readable; the database has no key yet"),
        Err(error) => Finding::error(MASTER_KEY, &error),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn secrets_that_can_be_guessed_are_told_from_random_ones() {
        let random: [u8; 64] = std::array::from_fn(|n| u8::try_from(n * 37 % 251).unwrap());
        assert_eq!(check_secret(&random).status, Status::Ok);
        assert_eq!(check_secret(&random[..32]).status, Status::Ok);
        assert_eq!(check_secret(&random[..31]).status, Status::Fail);
        assert_eq!(check_secret(&[7; 64]).status, Status::Fail);
        assert_eq!(check_secret(b"hunter2hunter2hunter2hunter2hunter2").status, Status::Fail);
        let words = b"the quick brown fox jumps over the lazy dog";
        assert_eq!(check_secret(words).status, Status::Warn);
    }

    #[test]
    fn no_finding_shows_a_secret() {
        for secret in [&b"hunter2"[..], b"hunter2hunter2hunter2hunter2hunter2"] {
            assert!(!format!("{:?}", check_secret(secret)).contains("hunter2"));
        }
    }
}
