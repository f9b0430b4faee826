//! Arbitrary values for property tests, here and in the crates above (feature `strategies`).

use proptest::prelude::*;

use crate::{NarHash, StoreDir, StorePath, StorePathHash};

/// Any hash.
pub fn nar_hash() -> impl Strategy<Value = NarHash> {
    any::<[u8; 32]>().prop_map(NarHash::from_bytes)
}

/// Any hash part.
pub fn store_path_hash() -> impl Strategy<Value = StorePathHash> {
    any::<[u8; 20]>().prop_map(StorePathHash::from_bytes)
}

/// Any path, with names of all lengths and characters that Nix allows.
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
