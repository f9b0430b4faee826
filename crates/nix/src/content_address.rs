//! Content addresses: paths that prove themselves.
//!
//! The hash part of a content-addressed path follows from the path's contents, name and references.
//! A reader that checks both needs no signature: the path that the contents make is the one that
//! was asked for. [`ContentAddress::makes`] checks the first half, [`ContentProof`] names what is
//! left to check of the contents.
//!
//! Only SHA-256 is known here, which Nix uses for sources, for texts, and for fetched files unless
//! an expression says otherwise. A path that refers to itself is not known either: its hash leaves
//! out its own name. Such paths need a signature.

use std::fmt::Write as _;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::hash::{NarHash, NarHasher};
use crate::signature::sorted;
use crate::store_path::{StoreDir, StorePath, StorePathHash};

/// The field `CA` of a narinfo, as far as this crate can check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentAddress {
    /// `fixed:r:sha256:`: the hash of the NAR.
    Nar(NarHash),
    /// `fixed:sha256:`: the hash of the only file's contents.
    File(NarHash),
    /// `text:sha256:`: the hash of the only file's contents, which may refer to paths.
    Text(NarHash),
}

/// What proves the contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentProof {
    /// The NAR has this hash.
    Nar(NarHash),
    /// The NAR holds one file, not executable, whose contents have this hash.
    File(NarHash),
}

impl FromStr for ContentAddress {
    type Err = Error;

    /// An error also for a valid address of a kind that this crate cannot check.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(hash) = text.strip_prefix("fixed:r:") {
            return hash.parse().map(Self::Nar);
        }
        if let Some(hash) = text.strip_prefix("fixed:") {
            return hash.parse().map(Self::File);
        }
        text.strip_prefix("text:").unwrap_or_default().parse().map(Self::Text)
    }
}

impl ContentAddress {
    /// What is left to check of the contents, if this address makes this path. `None` if it makes
    /// another path.
    pub fn makes(
        &self,
        path: &StorePath,
        store_dir: &StoreDir,
        references: &[StorePath],
    ) -> Option<ContentProof> {
        if references.contains(path) {
            return None;
        }
        let (kind, digest, proof) = match self {
            Self::Nar(hash) => {
                (with_references("source", store_dir, references), *hash, ContentProof::Nar(*hash))
            }
            Self::Text(hash) => {
                (with_references("text", store_dir, references), *hash, ContentProof::File(*hash))
            }
            Self::File(_) if !references.is_empty() => return None,
            Self::File(hash) => {
                let inner = format!("fixed:out:sha256:{}:", hash.to_hex());
                ("output:out".to_owned(), NarHash::digest(inner.as_bytes()), ContentProof::File(*hash))
            }
        };
        let text = format!("{kind}:sha256:{}:{store_dir}:{}", digest.to_hex(), path.name());
        let mut folded = [0; 20];
        for (place, byte) in NarHash::digest(text.as_bytes()).as_bytes().iter().enumerate() {
            folded[place % 20] ^= byte;
        }
        (StorePathHash::from_bytes(folded) == path.hash()).then_some(proof)
    }
}

fn with_references(kind: &str, store_dir: &StoreDir, references: &[StorePath]) -> String {
    let mut text = kind.to_owned();
    for reference in sorted(references) {
        write!(text, ":{store_dir}/{reference}").expect("a string takes all text");
    }
    text
}

/// A NAR of one file that is not executable begins with this; the length of the contents follows.
const FILE_PREFIX: &[u8] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0\
\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\
\x04\0\0\0\0\0\0\0type\0\0\0\0\
\x07\0\0\0\0\0\0\0regular\0\
\x08\0\0\0\0\0\0\0contents";

/// Bytes of the length.
const LENGTH_BYTES: usize = 8;

/// Hashes the contents of the only file in a NAR that streams by.
#[derive(Clone, Default)]
pub struct FileContentsHasher {
    /// The prefix and the length, as far as they came.
    head: Vec<u8>,
    /// Bytes of the contents that did not come yet.
    left: u64,
    contents: NarHasher,
}

impl FileContentsHasher {
    /// Takes the next piece of the NAR; pieces can have any size.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let head_bytes = FILE_PREFIX.len() + LENGTH_BYTES;
        if self.head.len() < head_bytes {
            let (head, rest) = bytes.split_at(bytes.len().min(head_bytes - self.head.len()));
            self.head.extend_from_slice(head);
            bytes = rest;
            if self.head.len() < head_bytes {
                return;
            }
            let length = self.head.last_chunk::<LENGTH_BYTES>().expect("the head is longer");
            self.left = u64::from_le_bytes(*length);
        }
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.contents.update(&bytes[..count]);
        self.left -= count as u64;
    }

    /// The hash of the contents. `None` if the NAR is not one file, or is executable, or ended too
    /// early.
    pub fn finish(self) -> Option<NarHash> {
        let is_file =
            self.head.len() == FILE_PREFIX.len() + LENGTH_BYTES && self.head.starts_with(FILE_PREFIX);
        (is_file && self.left == 0).then(|| self.contents.finish().0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nar::{Node, encode_tree};

    #[test]
    fn the_paths_of_nix_follow_from_their_contents() {
        let store_dir = StoreDir::default();
        // `nix-store --add`, `--add-fixed sha256` and `builtins.toFile` of the text "hello\n", with
        // the names of these paths, in Nix 2.34.
        let nar = encode_tree(&Node::File { executable: false, contents: b"hello\n".to_vec() });
        let contents = NarHash::digest(b"hello\n");
        for (address, path) in [
            (ContentAddress::Nar(NarHash::digest(&nar)), NAR_PATH),
            (ContentAddress::File(contents), FILE_PATH),
            (ContentAddress::Text(contents), TEXT_PATH),
        ] {
            let path: StorePath = path.parse().unwrap();
            let proof = address.makes(&path, &store_dir, &[]).unwrap();
            let expected = match address {
                ContentAddress::Nar(hash) => ContentProof::Nar(hash),
                ContentAddress::File(hash) | ContentAddress::Text(hash) => ContentProof::File(hash),
            };
            assert_eq!(proof, expected);
            // Another name, another reference, another store folder: another path.
            let other: StorePath = format!("{}-other", path.hash()).parse().unwrap();
            assert_eq!(address.makes(&other, &store_dir, &[]), None);
            assert_eq!(address.makes(&path, &store_dir, std::slice::from_ref(&other)), None);
            assert_eq!(address.makes(&path, &store_dir, std::slice::from_ref(&path)), None);
            assert_eq!(address.makes(&path, &"/gnu/store".parse().unwrap(), &[]), None);
        }
    }

    const NAR_PATH: &str = "gwina1sjk7g95wq6fxc6b7s1hza53h74-hello";
    const FILE_PATH: &str = "8zv8i345w2xn27jrxj4cyjc6x3b4am1q-hello";
    const TEXT_PATH: &str = "nmrmdcw1bfnl35a893n7nyhw4xa5vy08-hello";

    #[test]
    fn only_addresses_that_can_be_checked_are_read() {
        let sha256 = NarHash::digest(b"x");
        assert_eq!(format!("fixed:r:{sha256}").parse(), Ok(ContentAddress::Nar(sha256)));
        assert_eq!(format!("fixed:{sha256}").parse(), Ok(ContentAddress::File(sha256)));
        assert_eq!(format!("text:{sha256}").parse(), Ok(ContentAddress::Text(sha256)));
        for other in ["", "text:", "fixed:r:sha1:143xibwh31h9bvxzalr0sjvbbvpa6ffs", "fixed:git:sha1:x"] {
            assert!(other.parse::<ContentAddress>().is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn the_contents_of_a_file_are_hashed_however_the_nar_is_cut(
            contents in proptest::collection::vec(any::<u8>(), 0..600),
            executable: bool,
            piece in 1_usize..200,
        ) {
            let nar = encode_tree(&Node::File { executable, contents: contents.clone() });
            let hash = |nar: &[u8]| {
                let mut hasher = FileContentsHasher::default();
                nar.chunks(piece).for_each(|piece| hasher.update(piece));
                hasher.finish()
            };
            prop_assert_eq!(hash(&nar), (!executable).then(|| NarHash::digest(&contents)));
            prop_assert_eq!(hash(&nar[..FILE_PREFIX.len()]), None);
        }

        #[test]
        fn any_bytes_are_hashed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut hasher = FileContentsHasher::default();
            hasher.update(&bytes);
            prop_assert_eq!(hasher.finish(), None);
        }
    }
}
