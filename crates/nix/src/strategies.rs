//! Arbitrary values for property tests, for this crate and for the crates above (feature
//! `strategies`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::nar::Node;
use crate::{NarHash, NarInfo, SecretKey, Signature, StoreDir, StorePath, StorePathHash};

/// Any hash.
pub fn nar_hash() -> impl Strategy<Value = NarHash> {
    any::<[u8; 32]>().prop_map(NarHash::from_bytes)
}

/// Any hash part.
pub fn store_path_hash() -> impl Strategy<Value = StorePathHash> {
    any::<[u8; 20]>().prop_map(StorePathHash::from_bytes)
}

/// Any path, with names of every length and every character that Nix allows.
pub fn store_path() -> impl Strategy<Value = StorePath> {
    let name = prop_oneof![
        9 => "[0-9a-zA-Z+_?=-][0-9a-zA-Z+._?=-]{0,30}",
        1 => "[0-9a-z][0-9a-zA-Z+._?=-]{210}",
        1 => "\\.[0-9a-zA-Z+_?=][0-9a-zA-Z+._?=-]{0,10}",
    ];
    (store_path_hash(), name)
        .prop_map(|(hash, name)| StorePath::new(hash, &name).expect("the patterns only make valid names"))
}

/// Usual and unusual store folders.
pub fn store_dir() -> impl Strategy<Value = StoreDir> {
    prop_oneof![Just("/nix/store".to_owned()), "(/[a-zA-Z0-9_ -]{1,12}){1,4}"]
        .prop_map(|text| text.parse().expect("the patterns only make valid folders"))
}

/// Any bytes under a valid key's name. The signature verifies with no key.
pub fn signature() -> impl Strategy<Value = Signature> {
    (key_name(), vec(any::<u8>(), 64)).prop_map(|(name, bytes)| {
        format!("{name}:{}", STANDARD.encode(bytes)).parse().expect("64 bytes under a valid name")
    })
}

/// Any key.
pub fn secret_key() -> impl Strategy<Value = SecretKey> {
    (key_name(), any::<[u8; 32]>()).prop_map(|(name, seed)| {
        SecretKey::generate(&name, seed).expect("the pattern only makes valid names")
    })
}

fn key_name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9.@_-]{1,20}"
}

/// Any narinfo. Its references are sorted and unique, as after parsing.
pub fn nar_info() -> impl Strategy<Value = NarInfo> {
    let line = || "[!-~][ -~é]{0,40}";
    let file = (line(), line(), option::of(nar_hash()), option::of(any::<u64>()));
    let nar = (store_path(), nar_hash(), 1u64.., btree_set(store_path(), 0..6), option::of(store_path()));
    let extra = vec(("X[a-zA-Z0-9_-]{0,20}", line()), 0..3);
    let rest = (option::of(line()), option::of(line()), vec(line(), 0..4), extra);
    (file, nar, rest).prop_map(|(file, nar, rest)| {
        let (url, compression, file_hash, file_size) = file;
        let (store_path, nar_hash, nar_size, references, deriver) = nar;
        let (system, ca, sigs, extra) = rest;
        NarInfo {
            store_path,
            url,
            compression,
            file_hash,
            file_size,
            nar_hash,
            nar_size,
            references: references.into_iter().collect(),
            deriver,
            system,
            ca,
            sigs,
            extra,
        }
    })
}

/// Names of directory entries: UTF-8 and not, short and long, some that differ only in the last
/// byte.
pub fn entry_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[a-zA-Z0-9_.+ -]{1,12}".prop_map(String::into_bytes),
        2 => "[ab]{1,9}".prop_map(String::into_bytes),
        1 => "\\PC{1,6}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 1..10),
        1 => vec(1u8..0x20, 1..4),
    ]
    .prop_map(|mut name| {
        name.retain(|byte| !matches!(byte, 0 | b'/'));
        if matches!(name.as_slice(), b"" | b"." | b"..") { b"dot".to_vec() } else { name }
    })
}

/// Trees of up to about 40 nodes and five levels, with nodes of all kinds. File sizes lie around
/// multiples of 8.
pub fn node() -> impl Strategy<Value = Node> {
    let contents = prop_oneof![4 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 1000..1032)];
    let leaf = prop_oneof![
        4 => (any::<bool>(), contents).prop_map(|(executable, contents)| Node::File { executable, contents }),
        1 => entry_name().prop_map(Node::Symlink),
        1 => Just(Node::Directory(BTreeMap::new())),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| btree_map(entry_name(), inner, 0..6).prop_map(Node::Directory))
}
