//! Tests the reader against NARs of Nix, against the writer, and against everything that a NAR must
//! not be.

use proptest::prelude::*;

use super::*;
use crate::fuzz_targets::rebuild;
use crate::nar::{Node, encode_tree, listed_build_ids};
use crate::{NarHash, NarInfo, StoreDir, strategies};

/// NARs, listings and narinfos that Nix 2.8.0 made of tests/data/tree.nix, with `nix-store --dump`
/// and with `nix copy` and `write-nar-listing=true`.
macro_rules! of_nix {
    ($($name:literal),*) => {
        [$((
            $name,
            include_bytes!(concat!("../../tests/data/", $name, ".nar")).as_slice(),
            include_str!(concat!("../../tests/data/", $name, ".ls")),
            include_str!(concat!("../../tests/data/", $name, ".narinfo")),
        )),*]
    };
}

fn read(nar: &[u8]) -> Result<Listing, NarError> {
    read_with(nar, NarLimits::default())
}

fn read_with(nar: &[u8], limits: NarLimits) -> Result<Listing, NarError> {
    let mut reader = NarReader::new(limits);
    reader.feed(nar)?;
    reader.finish()
}

/// Strings in the form of a NAR, one after another.
fn strings(strings: &[&[u8]]) -> Vec<u8> {
    let mut nar = Vec::new();
    for string in strings {
        nar.extend_from_slice(&(string.len() as u64).to_le_bytes());
        nar.extend_from_slice(string);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

#[test]
fn build_ids_are_those_of_debug_files_alone() {
    let file = || Node::file("x");
    let in_folders = |folders: &[&str], leaf: Node| {
        folders.iter().rev().fold(leaf, |node, name| Node::directory([(*name, node)]))
    };
    let ids = |tree: &Node| {
        let mut reader = NarReader::new(NarLimits::default());
        reader.feed(&encode_tree(tree)).unwrap();
        let ids = reader.take_build_ids();
        assert_eq!(reader.take_build_ids(), []);
        let Listing::Json(listing) = reader.finish().unwrap() else { panic!("it is small") };
        assert_eq!(listed_build_ids(&listing), ids, "as the listing names them");
        ids.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let debug = ["lib", "debug", ".build-id"];
    let of_two = Node::directory([
        ("00", Node::directory([("ab12.debug", file()), ("cd34.debug", file()), ("ef56", file())])),
        ("ff", Node::directory([("1234.debug", file()), ("xy.debug", file()), ("z.debug", file())])),
    ]);
    assert_eq!(ids(&in_folders(&debug, of_two)), ["00ab12", "00cd34", "ff1234"]);
    for (folders, leaf) in [
        (vec!["lib", "debug", ".build-id"], Node::directory([("ab12.debug", file())])),
        (vec!["lib", "debug", ".build-id", "00"], Node::directory([("ab.debug", Node::symlink("x"))])),
        (vec!["lib", "debug", ".build-id", "00", "x"], Node::directory([("ab.debug", file())])),
        (vec!["libd", "ebug", ".build-id", "00"], Node::directory([("ab.debug", file())])),
        (vec!["lib", "debug", ".build-id0", "0"], Node::directory([("ab.debug", file())])),
        (vec!["usr", "lib", "debug", ".build-id", "00"], Node::directory([("ab.debug", file())])),
    ] {
        assert_eq!(ids(&in_folders(&folders, leaf)), Vec::<String>::new(), "{folders:?}");
    }
}

/// A NAR that is a directory of empty files with these names.
fn directory_of(names: &[&[u8]]) -> Vec<u8> {
    let mut all: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"directory"];
    for name in names {
        all.extend([b"entry".as_slice(), b"(", b"name", name, b"node"]);
        all.extend([b"(".as_slice(), b"type", b"regular", b"contents", b"", b")", b")"]);
    }
    all.push(b")");
    strings(&all)
}

fn nested(depth: usize, name: &[u8]) -> Vec<u8> {
    let mut all: Vec<&[u8]> = vec![b"nix-archive-1"];
    for _ in 1..depth {
        all.extend([b"(".as_slice(), b"type", b"directory", b"entry", b"(", b"name", name, b"node"]);
    }
    all.extend([b"(".as_slice(), b"type", b"directory", b")"]);
    for _ in 1..depth {
        all.extend([b")".as_slice(), b")"]);
    }
    strings(&all)
}

#[test]
fn nars_of_nix_are_read_with_the_listing_and_the_hash_that_nix_gives_them() {
    for (name, nar, listing, narinfo) in of_nix!["leaf", "single", "empty", "symlink", "with-references"] {
        let json = read(nar).unwrap().into_json().unwrap();
        assert_eq!(String::from_utf8(json.clone()).unwrap(), listing, "{name}");
        assert_eq!(encode_tree(&rebuild(nar, &json).unwrap()), nar, "{name}");
        let info = NarInfo::parse(narinfo, &StoreDir::default()).unwrap();
        assert_eq!((NarHash::digest(nar), nar.len() as u64), (info.nar_hash, info.nar_size), "{name}");
    }
}

#[test]
fn a_tree_is_written_as_nix_writes_it() {
    let leaf = Node::directory([
        ("bin", Node::directory([("hello", Node::executable("hi\n"))])),
        ("empty", Node::directory::<&str>([])),
        ("sp ace", Node::directory([("quo\"te", Node::file("x")), ("back\\slash", Node::file("y"))])),
        (
            "deep",
            Node::directory([(
                "a",
                Node::directory([("b", Node::directory([("c", Node::directory([("z", Node::file("z"))]))]))]),
            )]),
        ),
        ("nothing", Node::file("")),
        ("link", Node::symlink("bin/hello")),
        ("dangling", Node::symlink("/does/not/exist")),
        ("eight", Node::file("12345678")),
        ("seven", Node::file("1234567")),
        ("nine", Node::file("123456789")),
        ("ünïcödé", Node::file("u")),
        ("A", Node::file("A")),
        ("tab\there", Node::file("c")),
        ("del\x7f", Node::file("d")),
        ("nl\nx", Node::file("n")),
    ]);
    assert_eq!(encode_tree(&leaf), include_bytes!("../../tests/data/leaf.nar"));
}

#[test]
fn a_nar_is_truncated_wherever_it_is_cut() {
    let nar = include_bytes!("../../tests/data/leaf.nar");
    for end in 0..nar.len() {
        assert_eq!(read(&nar[..end]), Err(NarError::Truncated { offset: end as u64 }));
    }
}

#[test]
fn nothing_may_follow_the_end() {
    let mut nar = encode_tree(&Node::file("x"));
    let offset = nar.len() as u64;
    let twice = nar.repeat(2);
    assert_eq!(read(&twice), Err(NarError::TrailingBytes { offset }));
    nar.push(0);
    assert_eq!(read(&nar), Err(NarError::TrailingBytes { offset }));
}

/// Positions of the bytes that pad strings, found by walking over the length fields.
fn padding_positions(nar: &[u8]) -> Vec<usize> {
    let mut positions = Vec::new();
    let mut start = 0;
    while start < nar.len() {
        let len = u64::from_le_bytes(nar[start..start + 8].try_into().unwrap());
        let end = start + 8 + usize::try_from(len).unwrap();
        start = end.next_multiple_of(8);
        positions.extend(end..start);
    }
    positions
}

#[test]
fn every_bit_of_padding_must_be_zero() {
    let nar = include_bytes!("../../tests/data/leaf.nar");
    let positions = padding_positions(nar);
    assert!(positions.len() > 1000);
    for position in positions {
        for bit in 0..8 {
            let mut bad = nar.to_vec();
            bad[position] ^= 1 << bit;
            assert_eq!(read(&bad), Err(NarError::BadPadding { offset: position as u64 }));
        }
    }
}

#[test]
fn something_else_is_no_nar() {
    for bytes in [
        strings(&[b"nix-archive-2"]),
        strings(&[b"nix-archive-1x"]),
        strings(&[b"nix-archive-"]),
        strings(&[b""]),
        b"PK\x03\x04 and so on".to_vec(),
        vec![0; 64],
        vec![0xff; 64],
        b"\x28\xb5\x2f\xfd compressed".to_vec(),
    ] {
        assert_eq!(read(&bytes), Err(NarError::BadMagic), "{bytes:?}");
    }
    assert_eq!(read(b""), Err(NarError::Truncated { offset: 0 }));
}

#[test]
fn names_must_be_single_components() {
    let good: [&[u8]; 5] = [b"...", b".a", b"a\\b", b" ", b"\xff\xfe"];
    for name in good {
        assert!(read(&directory_of(&[name])).is_ok(), "{name:?}");
    }
    let bad: [&[u8]; 8] = [b"", b".", b"..", b"/", b"a/b", b"../a", b"a\0b", b"\0"];
    for name in bad {
        assert!(
            matches!(read(&directory_of(&[name])), Err(NarError::BadName { offset: 128, .. })),
            "{name:?}"
        );
    }
}

#[test]
fn names_must_ascend_by_their_bytes() {
    let good: [&[&[u8]]; 4] = [
        &[b"a", b"b"],
        &[b"A", b"a", b"aa", b"b"],
        &[b"z", b"\x80", b"\xff"],
        &[b"a", b"a\x01", b"a.", b"a0"],
    ];
    for names in good {
        assert!(read(&directory_of(names)).is_ok(), "{names:?}");
    }
    let bad: [&[&[u8]]; 5] =
        [&[b"a", b"a"], &[b"b", b"a"], &[b"aa", b"a"], &[b"\xff", b"z"], &[b"a", b"c", b"b"]];
    for names in bad {
        assert!(matches!(read(&directory_of(names)), Err(NarError::NameNotAscending { .. })), "{names:?}");
    }
}

#[test]
fn names_ascend_in_each_directory_on_its_own() {
    let inner = Node::directory([("a", Node::file("")), ("z", Node::file(""))]);
    let tree = Node::directory([("m", inner.clone()), ("n", inner), ("o", Node::file(""))]);
    assert!(read(&encode_tree(&tree)).is_ok());
}

#[test]
fn links_have_a_target() {
    let link =
        |target: &[u8]| strings(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", target, b")"]);
    assert!(read(&link(b"../../\xff \n")).is_ok());
    for target in [b"".as_slice(), b"a\0"] {
        assert!(matches!(read(&link(target)), Err(NarError::BadTarget { .. })), "{target:?}");
    }
}

#[test]
fn no_length_field_is_believed() {
    const TARGET_MAX: u64 = super::super::TARGET_BYTES_MAX as u64;
    const NAME_MAX: u64 = super::super::NAME_BYTES_MAX as u64;
    let before: [(&[&[u8]], u64); 5] = [
        (&[b"nix-archive-1"], 16),
        (&[b"nix-archive-1", b"(", b"type", b"regular"], 16),
        (&[b"nix-archive-1", b"(", b"type", b"regular", b"executable"], 16),
        (&[b"nix-archive-1", b"(", b"type", b"symlink", b"target"], TARGET_MAX),
        (&[b"nix-archive-1", b"(", b"type", b"directory", b"entry", b"(", b"name"], NAME_MAX),
    ];
    for (before, max) in before {
        for len in [
            max + 1,
            1 << 31,
            1 << 32,
            (1 << 32) + 1,
            (1 << 63) - 1,
            1 << 63,
            (1 << 63) + 1,
            u64::MAX - 7,
            u64::MAX,
        ] {
            let mut nar = strings(before);
            let offset = nar.len() as u64;
            nar.extend_from_slice(&len.to_le_bytes());
            nar.extend_from_slice(b"name");
            match read(&nar) {
                Err(NarError::TokenTooLong { offset: at, len: found, max: limit, .. }) => {
                    assert_eq!((at, found, limit), (offset, len, max));
                }
                other => panic!("{before:?} {len}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_file_cannot_be_longer_than_a_nar() {
    let before = strings(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
    for len in [
        i64::MAX as u64 - 102,
        i64::MAX as u64,
        1 << 63,
        (1 << 63) + 8,
        u64::MAX - 104,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let nar = [before.as_slice(), &len.to_le_bytes()].concat();
        let expected = NarError::TooLarge { offset: before.len() as u64, max: i64::MAX as u64 };
        assert_eq!(read(&nar), Err(expected), "{len}");
    }
    // A file of 1 EiB would be allowed; it would only take long.
    let nar = [before.as_slice(), &(1u64 << 60).to_le_bytes(), b"..."].concat();
    assert_eq!(read(&nar), Err(NarError::Truncated { offset: nar.len() as u64 }));
}

#[test]
fn the_limit_of_the_whole_holds() {
    let nar = encode_tree(&Node::directory([("a", Node::file("contents")), ("b", Node::symlink("x"))]));
    let limits = |nar_bytes_max| NarLimits { nar_bytes_max, ..NarLimits::default() };
    assert!(read_with(&nar, limits(nar.len() as u64)).is_ok());
    for max in 0..nar.len() as u64 {
        assert!(matches!(read_with(&nar, limits(max)), Err(NarError::TooLarge { .. })), "{max}");
    }
}

#[test]
fn a_long_name_costs_memory_only_as_it_arrives() {
    let mut nar = strings(&[b"nix-archive-1", b"(", b"type", b"directory", b"entry", b"(", b"name"]);
    nar.extend_from_slice(&(super::super::NAME_BYTES_MAX as u64).to_le_bytes());
    nar.extend_from_slice(b"abc");
    let mut reader = NarReader::new(NarLimits::default());
    reader.feed(&nar).unwrap();
    assert!(reader.token.capacity() < 1024, "{}", reader.token.capacity());
}

#[test]
fn words_out_of_place_are_refused() {
    let magic: &[u8] = b"nix-archive-1";
    let cases: [&[&[u8]]; 16] = [
        &[magic, b")"],
        &[magic, magic],
        &[magic, b"(", b"typo"],
        &[magic, b"(", b")"],
        &[magic, b"(", b"type", b"fifo"],
        &[magic, b"(", b"type", b"Regular"],
        &[magic, b"(", b"type", b"regular", b")"],
        &[magic, b"(", b"type", b"regular", b"executable", b"1"],
        &[magic, b"(", b"type", b"regular", b"executable", b"", b"executable"],
        &[magic, b"(", b"type", b"regular", b"contents", b"x", b"contents"],
        &[magic, b"(", b"type", b"symlink", b")"],
        &[magic, b"(", b"type", b"symlink", b"target", b"a", b"target"],
        &[magic, b"(", b"type", b"directory", b"name"],
        &[magic, b"(", b"type", b"directory", b"entry", b"(", b"node"],
        &[magic, b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b")"],
        &[magic, b"(", b"type", b"directory", b"entry", b")"],
    ];
    for case in cases {
        let nar = strings(case);
        let last = nar.len() - 8 - case.last().unwrap().len().next_multiple_of(8);
        match read(&nar) {
            Err(NarError::UnexpectedToken { offset, found, .. }) => {
                assert_eq!(offset, last as u64);
                assert_eq!(found.as_bytes(), *case.last().unwrap());
            }
            Err(NarError::TokenTooLong { offset, .. }) => assert_eq!(offset, last as u64),
            other => panic!("{case:?}: {other:?}"),
        }
    }
}

#[test]
fn directories_nest_as_deep_as_the_limit_and_no_deeper() {
    assert!(read(&nested(1024, b"d")).is_ok());
    assert!(matches!(read(&nested(1025, b"d")), Err(NarError::TooDeep { max: 1024, .. })));
    assert!(matches!(read(&nested(100_000, b"d")), Err(NarError::TooDeep { .. })));
    assert!(read(&encode_tree(&Node::file(""))).is_ok());
}

#[test]
fn the_names_of_a_path_are_bounded_together() {
    let limits = NarLimits { path_bytes_max: 100, ..NarLimits::default() };
    assert!(read_with(&nested(11, b"0123456789"), limits).is_ok());
    assert!(matches!(
        read_with(&nested(12, b"0123456789"), limits),
        Err(NarError::PathTooLong { max: 100, .. })
    ));
    // The names of neighbours do not add up.
    let names: Vec<Vec<u8>> = (0..50).map(|number| format!("name-{number:03}").into_bytes()).collect();
    assert!(read_with(&directory_of(&names.iter().map(Vec::as_slice).collect::<Vec<_>>()), limits).is_ok());
}

#[test]
fn a_listing_over_its_limit_is_dropped_and_the_nar_stays_valid() {
    let nar = include_bytes!("../../tests/data/leaf.nar");
    let json_len = read(nar).unwrap().into_json().unwrap().len();
    let limits = |listing_bytes_max| NarLimits { listing_bytes_max, ..NarLimits::default() };
    assert_eq!(read_with(nar, limits(json_len)), read(nar));
    for max in [0, 1, json_len - 1] {
        assert_eq!(read_with(nar, limits(max)), Ok(Listing::TooLarge));
    }
    let mut broken = nar.to_vec();
    broken.push(0);
    assert!(read_with(&broken, limits(1)).is_err());
}

#[test]
fn names_that_are_not_utf8_are_listed_apart() {
    let json = read(&directory_of(&[b"a\xfeb", b"a\xffb"])).unwrap().into_json().unwrap();
    let listing: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let entries = listing["root"]["entries"].as_object().unwrap();
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["a\u{fffd}feb", "a\u{fffd}ffb"]);
}

#[test]
fn a_reader_that_failed_keeps_failing() {
    let mut reader = NarReader::new(NarLimits::default());
    let error = reader.feed(b"not a nar").unwrap_err();
    assert_eq!(reader.feed(&encode_tree(&Node::file(""))), Err(error.clone()));
    assert!(!reader.is_complete());
    assert_eq!(reader.finish(), Err(error));
}

#[test]
fn a_file_of_64_gib_is_read_in_pieces_without_keeping_them() {
    const LEN: u64 = 64 << 30;
    let mut reader = NarReader::new(NarLimits::default());
    reader.feed(&strings(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"])).unwrap();
    reader.feed(&LEN.to_le_bytes()).unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..LEN >> 20 {
        reader.feed(&piece).unwrap();
    }
    reader.feed(&strings(&[b")"])).unwrap();
    assert!(reader.finish().is_ok());
}

proptest! {
    #[test]
    fn what_the_writer_writes_is_read_back(tree in strategies::node()) {
        let nar = encode_tree(&tree);
        let json = read(&nar).unwrap().into_json().unwrap();
        if let Some(rebuilt) = rebuild(&nar, &json) {
            prop_assert_eq!(rebuilt, tree);
        }
    }

    #[test]
    fn how_a_nar_is_cut_does_not_matter(
        tree in strategies::node(),
        damage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut nar = encode_tree(&tree);
        if let Some((position, byte)) = damage {
            let position = position.index(nar.len());
            nar[position] = byte;
        }
        let expected = read(&nar);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(nar.len())).collect();
        cuts.sort_unstable();
        cuts.push(nar.len());
        for pieces in [cuts, (1..=nar.len()).collect()] {
            let mut reader = NarReader::new(NarLimits::default());
            let mut start = 0;
            for end in pieces {
                // Errors repeat, so feeding more after an error changes nothing.
                let _ = reader.feed(&nar[start..end]);
                start = end;
            }
            prop_assert_eq!(reader.finish(), expected.clone());
        }
    }
}
