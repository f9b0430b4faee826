//! Signatures of store paths: ed25519 keys and signatures as Nix writes them, and the text that a
//! signature covers.
//!
//! Keys and signatures have the form `name:base64`. The name says which key is meant; the signature
//! does not cover the name.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::error::{Error, Result};
use crate::hash::NarHash;
use crate::store_path::{StoreDir, StorePath};
use crate::text::serde_as_string;

/// Longest name of a key in bytes: room for a host name and more. Every narinfo repeats the name in
/// its signature.
const KEY_NAME_BYTES_MAX: usize = 512;

/// Longest signature that is kept, in bytes. Those of ML-DSA-87 have 4,627.
const SIGNATURE_BYTES_MAX: usize = 8 * 1024;

/// A signature by ed25519 and the name of the key that made it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    key_name: String,
    bytes: [u8; 64],
}

impl Signature {
    /// Name of the key, such as `cache.nixos.org-1`.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The signature itself.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

impl FromStr for Signature {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (key_name, bytes) = split_key(text).ok_or_else(|| Error::signature(text))?;
        Ok(Self { key_name: key_name.to_owned(), bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_name, STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_string!(Signature, "a signature");

/// A key that signs. [`SecretKey::expose`] is the only way to print or serialise the key. Its
/// memory is wiped on drop.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

impl SecretKey {
    /// Makes a key from 32 random bytes. Fails if Nix could not read the name back.
    pub fn generate(name: &str, seed: [u8; 32]) -> Result<Self> {
        check_key_name(name)?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(&seed) })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The secret in clear: `name:base64` of the seed and the public key, in the form of `nix key
    /// generate-secret`.
    pub fn expose(&self) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.key.to_keypair_bytes()))
    }

    /// Signs a text. For a store path, the text is its [`fingerprint`].
    pub fn sign(&self, message: &str) -> Signature {
        Signature { key_name: self.name.clone(), bytes: self.key.sign(message.as_bytes()).to_bytes() }
    }

    /// The public key that verifies this key's signatures.
    pub fn public_key(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }
}

impl FromStr for SecretKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, bytes) = split_key(text).ok_or(Error::SecretKey)?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| Error::SecretKey)?;
        Ok(Self { name: name.to_owned(), key })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({}:[redacted])", self.name)
    }
}

/// A public key, which verifies signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Verifies that this key made `signature` for `message`. The names must match too, as in Nix.
    pub fn verify(&self, message: &str, signature: &Signature) -> Result<()> {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        // The names come first, because the other check hashes the message. Strict, like libsodium,
        // which Nix uses: keys and points of small order verify nothing.
        if self.name == signature.key_name && self.key.verify_strict(message.as_bytes(), &bytes).is_ok() {
            return Ok(());
        }
        Err(Error::SignatureMismatch { key_name: signature.key_name.clone() })
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, bytes) = split_key(text).ok_or_else(|| Error::public_key(text))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| Error::public_key(text))?;
        Ok(Self { name: name.to_owned(), key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_string!(PublicKey, "a public key");

/// The text that a signature of a store path covers: `1;<path>;sha256:<hash>;<size>;<references>`,
/// with full paths, and with references sorted and joined by commas.
pub fn fingerprint(
    store_dir: &StoreDir,
    path: &StorePath,
    nar_hash: &NarHash,
    nar_size: u64,
    references: &[StorePath],
) -> String {
    use fmt::Write as _;

    let mut text = format!("1;{store_dir}/{path};{nar_hash};{nar_size};");
    for (index, reference) in sorted(references).into_iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(text, "{comma}{store_dir}/{reference}").expect("a string takes all text");
    }
    text
}

/// References as the set that they are in Nix: ascending, each once.
pub(crate) fn sorted(references: &[StorePath]) -> Vec<&StorePath> {
    let mut sorted: Vec<&StorePath> = references.iter().collect();
    if !references.is_sorted_by(|a, b| a < b) {
        sorted.sort_unstable();
        sorted.dedup();
    }
    sorted
}

/// Splits `name:base64`. `None` if either part is not valid.
fn split_key<const N: usize>(text: &str) -> Option<(&str, [u8; N])> {
    let (name, base64) = text.split_once(':')?;
    let bytes = STANDARD.decode(base64).ok()?;
    Some((name, bytes.try_into().ok()?)).filter(|_| is_key_name(name))
}

/// Checks that a text can be the name of a key, such as `cache.nixos.org-1`.
pub fn check_key_name(name: &str) -> Result<()> {
    if is_key_name(name) { Ok(()) } else { Err(Error::key_name(name)) }
}

/// The name of the key in a signature of any algorithm: `name:base64`. Some Nix implementations
/// also sign with ECDSA and ML-DSA. The server cannot verify such a signature, and passes it on.
pub fn signature_key_name(text: &str) -> Result<&str> {
    let (name, base64) = text.split_once(':').ok_or_else(|| Error::signature(text))?;
    let bytes = STANDARD.decode(base64).map_err(|_| Error::signature(text))?;
    let is_sound = is_key_name(name) && (1..=SIGNATURE_BYTES_MAX).contains(&bytes.len());
    if is_sound { Ok(name) } else { Err(Error::signature(text)) }
}

/// White space separates keys in lists, and a colon separates a key's name from the key.
fn is_key_name(name: &str) -> bool {
    let plain = |char: char| !char.is_whitespace() && !char.is_control() && char != ':';
    !name.is_empty() && name.len() <= KEY_NAME_BYTES_MAX && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::NarInfo;
    use crate::strategies;

    /// Made by `nix key generate-secret` and `nix key convert-secret-to-public`.
    const SECRET: &str = include_str!("../tests/data/signing-key.secret");
    const PUBLIC: &str = include_str!("../tests/data/signing-key.public");

    #[test]
    fn keys_of_nix_are_read_and_written_back() {
        let secret: SecretKey = SECRET.trim().parse().unwrap();
        assert_eq!(secret.name(), "dormer-test-1");
        assert_eq!(secret.expose(), SECRET.trim());
        assert_eq!(secret.public_key().to_string(), PUBLIC.trim());
        assert_eq!(PUBLIC.trim().parse(), Ok(secret.public_key()));
    }

    #[test]
    fn nix_and_we_sign_alike() {
        let store_dir = StoreDir::default();
        for text in [
            include_str!("../tests/data/leaf.narinfo"),
            include_str!("../tests/data/with-references.narinfo"),
        ] {
            let info = NarInfo::parse(text, &store_dir).unwrap();
            let secret: SecretKey = SECRET.trim().parse().unwrap();
            let signature = secret.sign(&info.fingerprint(&store_dir));
            assert_eq!(info.sigs, [signature.to_string()]);
            assert_eq!(secret.public_key().verify(&info.fingerprint(&store_dir), &signature), Ok(()));
        }
    }

    #[test]
    fn a_signature_only_fits_its_message_key_and_name() {
        let secret = SecretKey::generate("a", [1; 32]).unwrap();
        let signature = secret.sign("message");
        let public = secret.public_key();
        assert_eq!(public.verify("message", &signature), Ok(()));
        assert!(public.verify("messagf", &signature).is_err());
        assert!(
            SecretKey::generate("a", [2; 32]).unwrap().public_key().verify("message", &signature).is_err()
        );
        assert!(
            SecretKey::generate("b", [1; 32]).unwrap().public_key().verify("message", &signature).is_err()
        );
        let mut forged = signature;
        forged.bytes[0] ^= 1;
        assert!(public.verify("message", &forged).is_err());
    }

    #[test]
    fn a_key_of_small_order_verifies_nothing() {
        // The identity point as the key, and as R with s = 0: a plain check accepts this for every
        // message.
        let mut identity = [0; 32];
        identity[0] = 1;
        let public: PublicKey = format!("a:{}", STANDARD.encode(identity)).parse().unwrap();
        let mut bytes = [0; 64];
        bytes[0] = 1;
        assert!(public.verify("anything", &Signature { key_name: "a".to_owned(), bytes }).is_err());
    }

    #[test]
    fn malformed_keys_and_signatures_are_refused() {
        let good = SecretKey::generate("a", [1; 32]).unwrap();
        let base64 = STANDARD.encode([0u8; 64]);
        for text in [
            String::new(),
            "a".to_owned(),
            "a:".to_owned(),
            format!(":{base64}"),
            format!("a b:{base64}"),
            format!("a\n:{base64}"),
            format!("a:{base64}\n"),
            format!("a:b:{base64}"),
            format!("a:{}", &base64[..base64.len() - 2]),
            format!("a:{}", STANDARD.encode([0u8; 63])),
            format!("a:{}", STANDARD.encode([0u8; 65])),
            format!("{}:{base64}", "a".repeat(513)),
        ] {
            assert!(text.parse::<Signature>().is_err(), "{text:?}");
            assert!(text.parse::<SecretKey>().is_err(), "{text:?}");
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
        }
        // A seed with the public half of another key would leak the seed when signing.
        let other = SecretKey::generate("a", [2; 32]).unwrap();
        let mixed = [good.key.to_bytes(), *other.public_key().as_bytes()].concat();
        assert!(matches!(
            format!("a:{}", STANDARD.encode(mixed)).parse::<SecretKey>(),
            Err(Error::SecretKey)
        ));
        assert!(SecretKey::generate("a:b", [0; 32]).is_err());
        assert!(SecretKey::generate("", [0; 32]).is_err());
    }

    #[test]
    fn a_signature_of_any_algorithm_has_a_name_and_base64() {
        let text = |name: &str, bytes: usize| format!("{name}:{}", STANDARD.encode(vec![7; bytes]));
        // ed25519, ECDSA in DER, ML-DSA-44, -65 and -87, and the limits.
        for bytes in [64, 70, 71, 72, 2_420, 3_309, 4_627, 1, SIGNATURE_BYTES_MAX] {
            assert_eq!(signature_key_name(&text("cache-1", bytes)), Ok("cache-1"), "{bytes}");
        }
        for text in [
            text("", 64),
            text("a b", 64),
            text("a\n", 64),
            text("a:b", 64),
            text("a", 0),
            text("a", SIGNATURE_BYTES_MAX + 1),
            text(&"a".repeat(KEY_NAME_BYTES_MAX + 1), 64),
            "a".to_owned(),
            "a:%".to_owned(),
            text("a", 64) + "\n",
            text("a", 64).trim_end_matches('=').to_owned(),
        ] {
            assert!(signature_key_name(&text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_secret_key_does_not_show_in_debug_output() {
        let secret: SecretKey = SECRET.trim().parse().unwrap();
        let (_, base64) = SECRET.trim().split_once(':').unwrap();
        assert_eq!(format!("{secret:?}"), "SecretKey(dormer-test-1:[redacted])");
        assert!(!format!("{:?}", base64.parse::<SecretKey>().unwrap_err()).contains(&base64[..8]));
    }

    proptest! {
        #[test]
        fn parse_undoes_display(signature in strategies::signature(), secret in strategies::secret_key()) {
            prop_assert_eq!(signature.to_string().parse(), Ok(signature.clone()));
            prop_assert_eq!(secret.expose().parse::<SecretKey>().unwrap().expose(), secret.expose());
            prop_assert_eq!(secret.public_key().to_string().parse(), Ok(secret.public_key()));
            let json = serde_json::to_string(&signature).unwrap();
            prop_assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
        }

        #[test]
        fn the_fingerprint_does_not_depend_on_the_order_of_references(
            path in strategies::store_path(),
            mut references in proptest::collection::vec(strategies::store_path(), 0..6),
        ) {
            let store_dir = StoreDir::default();
            let print = |references: &[StorePath]| {
                fingerprint(&store_dir, &path, &NarHash::from_bytes([0; 32]), 1, references)
            };
            let before = print(&references);
            references.reverse();
            references.extend(references.clone());
            prop_assert_eq!(print(&references), before);
        }
    }
}
