//! NARs to push: small, deterministic, and shaped like what Nix builds.

use std::collections::BTreeMap;

use dormer_index::Object;
use dormer_nix::StorePath;
use dormer_nix::nar::{Node, encode_tree};

/// A small deterministic generator (SplitMix64): the same seed, the same bytes, on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Bytes that compress to about half, like programs.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 16);
        while bytes.len() < length {
            let word = self.next_u64();
            bytes.extend_from_slice(&word.to_le_bytes());
            bytes.extend_from_slice(&[(word >> 60) as u8; 8]);
        }
        bytes.truncate(length);
        bytes
    }
}

/// A package of a few files that names the given store paths in its contents.
pub fn package_nar(random: &mut Random, content_bytes: usize, references: &[StorePath]) -> Vec<u8> {
    let mut program = random.bytes(content_bytes);
    for (position, reference) in references.iter().enumerate() {
        let text = format!("/nix/store/{reference}/lib\0");
        let at = (position + 1) * content_bytes / (references.len() + 1);
        program.splice(at..at, text.into_bytes());
    }
    let entries = BTreeMap::from([
        (b"bin".to_vec(), Node::Directory(BTreeMap::from([(b"run".to_vec(), file(program, true))]))),
        (b"empty".to_vec(), file(Vec::new(), false)),
        (b"link".to_vec(), Node::Symlink(b"bin/run".to_vec())),
    ]);
    encode_tree(&Node::Directory(entries))
}

/// A farm of symlinks into the store, one for each path.
pub fn farm_nar(targets: &[StorePath]) -> Vec<u8> {
    let link = |target: &StorePath| Node::Symlink(format!("/nix/store/{target}/bin/x").into_bytes());
    let entries = targets.iter().map(|target| (target.to_string().into_bytes(), link(target))).collect();
    encode_tree(&Node::Directory(entries))
}

/// The same archive after a mass rebuild: only the hash part of one store path differs.
pub fn rebuilt(nar: &[u8], from: &StorePath, to: &StorePath) -> Vec<u8> {
    let (from, to) = (from.hash().to_string(), to.hash().to_string());
    let mut nar = nar.to_vec();
    let mut at = 0;
    while let Some(found) = nar[at..].windows(from.len()).position(|window| window == from.as_bytes()) {
        nar[at + found..at + found + to.len()].copy_from_slice(to.as_bytes());
        at += found + to.len();
    }
    nar
}

/// An object for a path with these references.
pub fn object_for(path: &StorePath, references: &[StorePath]) -> Object {
    Object {
        path: path.clone(),
        references: references.to_vec(),
        deriver: None,
        ca: None,
        sigs: Vec::new(),
        system: None,
        extra: Vec::new(),
    }
}

fn file(contents: Vec<u8>, executable: bool) -> Node {
    Node::File { executable, contents }
}
