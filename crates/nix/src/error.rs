//! Why a text in one of Nix's formats was refused. The NAR parser has its own errors, with
//! positions: [`crate::nar::NarError`].

use crate::text::excerpt;

/// A text that does not parse as the expected type. Each variant keeps the shortened text, so that
/// a log line explains itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A character outside the alphabet of nix-base32, an impossible length, or stray bits at the
    /// end.
    #[error("{text:?} is not nix-base32")]
    Nix32 {
        /// What was read.
        text: String,
    },
    /// The text is not a sha256 hash in one of the accepted forms.
    #[error(
        "{text:?} is not a sha256 hash: expected `sha256:` and nix-base32 or hex, or `sha256-` and base64"
    )]
    Hash {
        /// What was read.
        text: String,
    },
    /// The folder of a store must be absolute, without `.`, `..`, empty components or a slash at
    /// the end.
    #[error("{text:?} is not a store folder")]
    StoreDir {
        /// What was read.
        text: String,
    },
    /// The hash part of a store path must be exactly 32 characters of nix-base32.
    #[error("{text:?} is not the hash of a store path: expected 32 characters of nix-base32")]
    StorePathHash {
        /// What was read.
        text: String,
    },
    /// The base name of a store path must be a hash, a dash and a name.
    #[error("{text:?} is not a store path: expected a hash, a dash and a name")]
    StorePath {
        /// What was read.
        text: String,
    },
    /// The name part of a store path is empty, too long or has a bad character.
    #[error("{text:?} is not the name of a store path: expected 1 to 211 of 0-9 a-z A-Z + - . _ ? =")]
    StorePathName {
        /// What was read.
        text: String,
    },
    /// A full path that does not lie directly in the store folder.
    #[error("{text:?} is not directly in the store folder {store_dir}")]
    ForeignStoreDir {
        /// What was read.
        text: String,
        /// The folder that the path should be in.
        store_dir: String,
    },
    /// A signature: `name:base64 of 64 bytes`.
    #[error("{text:?} is not a signature: expected a key's name, a colon and 64 bytes in base64")]
    Signature {
        /// What was read.
        text: String,
    },
    /// A public key: `name:base64 of 32 bytes`, a point of the curve.
    #[error("{text:?} is not an ed25519 public key: expected a name, a colon and 32 bytes in base64")]
    PublicKey {
        /// What was read.
        text: String,
    },
    /// A bad secret key. The error does not keep the text, because a mistyped key is still nearly a
    /// secret.
    #[error(
        "not an ed25519 secret key: expected a name, a colon and 64 bytes in base64 (the seed, then its public key)"
    )]
    SecretKey,
    /// The name of a key: not empty, no colon, no white space.
    #[error("{text:?} is not the name of a key")]
    KeyName {
        /// What was read.
        text: String,
    },
    /// A signature that does not fit the message and the key.
    #[error("the signature by {key_name:?} does not verify")]
    SignatureMismatch {
        /// Name of the key that the signature claims.
        key_name: String,
    },
    /// Not the address of a build log or a build trace.
    #[error(
        "{text:?} is not the name of a document: expected log/<derivation>, \
         build-trace-v2/<derivation>/<output>.doi or realisations/sha256:<hash>!<output>.doi"
    )]
    DocumentName {
        /// What was read.
        text: String,
    },
    /// The build trace is longer than the limit.
    #[error("a build trace of {bytes} bytes is over the limit of {max}")]
    BuildTraceTooLarge {
        /// The size in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The build trace is not JSON of the expected form.
    #[error("reading the build trace: {reason}")]
    BuildTrace {
        /// What the JSON parser says.
        reason: String,
    },
    /// The build trace names another output than its address does, or depends on what is no output.
    #[error("the build trace is about {text:?}, which its address does not name")]
    BuildTraceKey {
        /// The key in the build trace.
        text: String,
    },
    /// The narinfo is longer than the limit.
    #[error("a narinfo of {bytes} bytes is over the limit of {max}")]
    NarInfoTooLarge {
        /// The size in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The narinfo does not end with a line feed. It was cut, perhaps within its references.
    #[error("the narinfo ends in the middle of a line")]
    NarInfoTruncated,
    /// A line without a colon, or with control characters.
    #[error("line {line} of the narinfo is not a field: {text:?}")]
    NarInfoLine {
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A field that may appear only once appears twice.
    #[error("the narinfo has two fields {field}")]
    NarInfoDuplicate {
        /// Name of the field.
        field: &'static str,
    },
    /// A required field is missing.
    #[error("the narinfo has no field {field}")]
    NarInfoMissing {
        /// Name of the field.
        field: &'static str,
    },
    /// The value of a field is not what the field requires, such as a positive number or one line.
    #[error("{value:?} is not a valid value for the narinfo field {field}")]
    NarInfoValue {
        /// Name of the field.
        field: &'static str,
        /// The value.
        value: String,
    },
    /// The value of a field does not parse as the type of the field.
    #[error("reading the narinfo field {field}")]
    NarInfoField {
        /// Name of the field.
        field: &'static str,
        /// Why the value does not parse.
        source: Box<Error>,
    },
}

/// The result type of this crate's text parsers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! text_errors {
    ($($make:ident => $variant:ident),* $(,)?) => {
        impl Error {
            $(pub(crate) fn $make(text: &str) -> Self {
                Self::$variant { text: excerpt(text) }
            })*
        }
    };
}
text_errors! {
    nix32 => Nix32,
    hash => Hash,
    store_dir => StoreDir,
    store_path_hash => StorePathHash,
    store_path => StorePath,
    store_path_name => StorePathName,
    signature => Signature,
    public_key => PublicKey,
    key_name => KeyName,
    document_name => DocumentName,
}
