//! Journal files: their golden file, and what a cut leaves.

#![expect(clippy::disallowed_methods, reason = "only the crate itself is pure; its test reads files")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;

use dormer_format::fuzz_targets::journal_records;
use dormer_format::{
    ChunkId, HoleFill, JournalAlias, JournalCache, JournalContent, JournalDocument, JournalFile,
    JournalHeader, JournalKey, JournalKind, JournalListing, JournalName, JournalNar, JournalObject,
    JournalPath, JournalPin, JournalRecord, JournalWriter, NarManifest, RecipeBuilder,
};
use dormer_nix::{NarHash, StorePath, StorePathHash};
use proptest::prelude::*;

const HEADER: JournalHeader =
    JournalHeader { kind: JournalKind::Segment, lineage: 7, generation: 3, position: (5, 1_000), number: 0 };

fn path(byte: u8) -> StorePath {
    StorePath::new(StorePathHash::from_bytes([byte; 20]), &format!("package-{byte}")).unwrap()
}

fn nar(byte: u8, listing: JournalListing) -> JournalNar {
    let mut fills = RecipeBuilder::new();
    fills.push_fill(&HoleFill::from_bytes([b'0'; 32]).unwrap());
    let recipe = NarManifest { chunks: vec![ChunkId::from_bytes([byte; 32]); 3], fills: fills.finish() };
    JournalNar { hash: NarHash::from_bytes([byte; 32]), size: 123_456, recipe, listing }
}

/// A record of every kind, with and without its options.
pub(crate) fn every_record() -> Vec<JournalRecord> {
    let cache = JournalCache {
        cache: 1,
        name: "main".to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: -41,
        upstream_key_names: vec!["cache.nixos.org-1".to_owned()],
        retention_seconds: Some(86_400),
        quota_bytes: None,
        keep_latest: Some(2),
        allow_replacement: false,
        created_at: 1_700_000_000,
        keys: vec![JournalKey {
            public_key: "main:AAAA".to_owned(),
            sealed_secret: vec![0, 255, 1],
            active: true,
        }],
        pins: vec![JournalPin {
            name: "release".to_owned(),
            path: path(1),
            created_at: 5,
            ends_at: Some(-6),
        }],
    };
    let object = JournalObject {
        name: "package-1".to_owned(),
        nar: NarHash::from_bytes([1; 32]),
        references: vec![path(1), path(2)],
        deriver: Some("x.drv".to_owned()),
        ca: None,
        system: Some("x86_64-linux".to_owned()),
        signatures: vec!["a:b".to_owned(), String::new()],
        extra: vec![("Provenance".to_owned(), "{}".to_owned())],
        created_at: 1_700_000_001,
    };
    let gone = |object| JournalPath { cache: 1, hash: path(1).hash(), object };
    let upload = Some((NarHash::from_bytes([2; 32]), "xz".to_owned(), 9));
    let alias = |upload| JournalAlias { cache: 1 << 40, file_name: "x.nar.xz".to_owned(), upload };
    let log = JournalContent {
        owner: path(3).hash(),
        written_at: 1_700_000_002,
        size: 7_000,
        encoding: Some("zstd".to_owned()),
        body: vec![0x28, 0xb5, 0, 255],
    };
    let trace = JournalContent { written_at: -1, size: 0, encoding: None, body: Vec::new(), ..log.clone() };
    let document = |name: &str, content| JournalDocument { cache: 3, name: name.to_owned(), content };
    vec![
        JournalRecord::Setting { name: "master-key-check".to_owned(), value: vec![1, 2, 3] },
        JournalRecord::Cache(cache),
        JournalRecord::Cache(JournalCache::default()),
        JournalRecord::CacheGone { cache: 2 },
        JournalRecord::Nar(nar(1, JournalListing::Lost)),
        JournalRecord::Nar(nar(2, JournalListing::Inline(b"listing".to_vec()))),
        JournalRecord::Nar(nar(
            3,
            JournalListing::Chunks { chunks: vec![ChunkId::from_bytes([9; 32])], size: 70 },
        )),
        JournalRecord::Path(gone(Some(object))),
        JournalRecord::Path(gone(None)),
        JournalRecord::Alias(alias(upload)),
        JournalRecord::Alias(alias(None)),
        JournalRecord::Document(document("log/x.drv", Some(log))),
        JournalRecord::Document(document("build-trace-v2/x.drv/out.doi", Some(trace))),
        JournalRecord::Document(document("log/x.drv", None)),
    ]
}

/// Records of pins, which came after the first golden file.
fn pin_records() -> Vec<JournalRecord> {
    let pin = JournalPin { name: "release".to_owned(), path: path(4), created_at: -5, ends_at: None };
    vec![
        JournalRecord::Pins {
            cache: 1,
            pins: vec![pin.clone(), JournalPin { ends_at: Some(7), ..pin.clone() }],
        },
        JournalRecord::Pins { cache: 2, pins: Vec::new() },
        JournalRecord::Pin { cache: 1 << 40, pin },
        JournalRecord::PinGone { cache: 3, name: "nightly".to_owned(), hash: path(5).hash() },
    ]
}

fn file(header: &JournalHeader, records: &[JournalRecord]) -> Vec<u8> {
    let mut writer = JournalWriter::new(header);
    for record in records {
        writer.push(record).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn a_journal_file_of_version_1_reads_back() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, expected) in [("v1.journal", every_record()), ("v1.journal-pins", pin_records())] {
        let (whole, records) = (golden.join(name), golden.join(format!("{name}-records")));
        if std::env::var_os("DORMER_WRITE_GOLDEN").is_some() {
            std::fs::write(&whole, file(&HEADER, &expected)).unwrap();
            std::fs::write(&records, journal_records(&expected)).unwrap();
        }
        let read = JournalFile::read(&std::fs::read(whole).unwrap()).unwrap();
        assert_eq!((read.header, read.is_whole), (HEADER, true));
        assert_eq!(read.records, expected);
        let records = std::fs::read(records).unwrap();
        assert!(journal_records(&expected) == records, "records are written as ever");
    }
}

#[test]
fn a_file_cut_at_any_byte_gives_a_prefix_and_says_that_it_is_cut() {
    // Two blocks: the first one is full.
    let large = JournalRecord::Setting { name: "large".to_owned(), value: vec![1; 1 << 20] };
    let records = [vec![large], every_record()].concat();
    let whole = file(&HEADER, &records);
    let mut lengths = std::collections::BTreeSet::new();
    for length in 0..whole.len() {
        match JournalFile::read(&whole[..length]) {
            Ok(file) => {
                assert!(!file.is_whole && records.starts_with(&file.records), "{length}");
                lengths.insert(file.records.len());
            }
            Err(_) => assert!(length < 56, "the header is whole at {length}"),
        }
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 1, records.len()]);
}

#[test]
fn a_changed_byte_is_never_taken_for_a_record() {
    let every_record = || [every_record(), pin_records()].concat();
    let whole = file(&HEADER, &every_record());
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        if let Ok(file) = JournalFile::read(&changed) {
            assert!(!file.is_whole && every_record().starts_with(&file.records), "byte {at}");
        }
    }
}

#[test]
fn parts_and_ends_have_numbers() {
    for kind in [JournalKind::Part, JournalKind::End] {
        let header = JournalHeader { kind, number: u32::MAX - 1, ..HEADER };
        assert_eq!(JournalFile::read(&file(&header, &[])).unwrap().header, header);
    }
}

/// A reader stops at a block that is too large, so no writer makes one. What was written before
/// stays readable.
#[test]
fn a_record_that_no_reader_would_take_is_refused() {
    let mut writer = JournalWriter::new(&HEADER);
    let kept = JournalRecord::Setting { name: "kept".to_owned(), value: vec![1; 1_000_000] };
    writer.push(&kept).unwrap();
    let large = JournalRecord::Setting { name: "large".to_owned(), value: vec![1; 64 << 20] };
    assert!(writer.push(&large).is_err());
    let later = pin_records();
    for record in &later {
        writer.push(record).unwrap();
    }
    let read = JournalFile::read(&writer.finish().unwrap()).unwrap();
    assert!(read.is_whole && read.records == [vec![kept], later].concat());
}

#[test]
fn names_have_one_spelling() {
    for kind in [JournalKind::Segment, JournalKind::Part, JournalKind::End] {
        let name = JournalName { generation: 1 << 40, kind, position: (0, u64::MAX), random: 5 };
        assert_eq!(JournalName::parse(&name.to_string()), Some(name));
        assert_eq!(JournalName::parse(&name.to_string().to_uppercase()), None);
    }
    let early =
        JournalName { generation: 1, kind: JournalKind::Segment, position: (9, 200), random: u64::MAX };
    let late = JournalName { position: (10, 1), random: 0, ..early };
    assert!(early.to_string() < late.to_string(), "names sort by place");
    for wrong in ["", "journal", "journal/1/end-0-0-0", "packs/00/x.pack"] {
        assert_eq!(JournalName::parse(wrong), None);
    }
}

proptest! {
    #[test]
    fn any_records_in_any_order_come_back(
        picks in proptest::collection::vec((0_usize..18, any::<u64>(), ".{0,40}"), 0..40),
    ) {
        let all = [every_record(), pin_records()].concat();
        let records: Vec<JournalRecord> = picks
            .into_iter()
            .map(|(pick, number, text)| match all[pick].clone() {
                JournalRecord::Setting { .. } => JournalRecord::Setting { name: text, value: number.to_le_bytes().to_vec() },
                JournalRecord::CacheGone { .. } => JournalRecord::CacheGone { cache: number },
                JournalRecord::Cache(cache) => {
                    JournalRecord::Cache(JournalCache { name: text, created_at: number.cast_signed(), ..cache })
                }
                JournalRecord::Alias(alias) => JournalRecord::Alias(JournalAlias { file_name: text, ..alias }),
                other => other,
            })
            .collect();
        let read = JournalFile::read(&file(&HEADER, &records)).unwrap();
        prop_assert!(read.is_whole);
        prop_assert_eq!(read.records, records);
    }
}
