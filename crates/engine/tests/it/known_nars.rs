//! A pusher learns nothing about NARs that it does not have: whatever it sends, an installation
//! that has the announced NAR fails at the same byte, with the same error, as one that has it not.

use dormer_engine::{Engine, IngestRequest};
use dormer_testkit::{Random, package_nar};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::common::{Installation, create_main, hash_of, path, push};

/// How the bytes that are sent differ from the announced NAR.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    Cut(prop::sample::Index),
    Append(Vec<u8>),
    Replace(prop::sample::Index, Vec<u8>),
    /// Nothing of the NAR is left.
    Other(Vec<u8>),
}

fn changes() -> impl Strategy<Value = Change> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 1..max);
    prop_oneof![
        1 => Just(Change::Nothing),
        2 => any::<prop::sample::Index>().prop_map(Change::Cut),
        2 => bytes(20).prop_map(Change::Append),
        4 => (any::<prop::sample::Index>(), bytes(9)).prop_map(|(at, bytes)| Change::Replace(at, bytes)),
        2 => bytes(200).prop_map(Change::Other),
    ]
}

impl Change {
    fn apply(&self, nar: &[u8]) -> Vec<u8> {
        let mut sent = nar.to_vec();
        match self {
            Self::Nothing => {}
            Self::Cut(at) => sent.truncate(at.index(nar.len())),
            Self::Append(more) => sent.extend_from_slice(more),
            Self::Replace(at, bytes) => {
                let start = at.index(nar.len());
                let end = (start + bytes.len()).min(nar.len());
                sent[start..end].copy_from_slice(&bytes[..end - start]);
            }
            Self::Other(bytes) => sent.clone_from(bytes),
        }
        sent
    }
}

/// Where an upload of these bytes ends, and how: the number of the piece, and the error.
async fn outcome(
    engine: &Engine,
    announced: &[u8],
    size: u64,
    sent: &[u8],
    piece: usize,
) -> (usize, Result<u64, String>) {
    let request = IngestRequest {
        store_dir: "/nix/store".to_owned(),
        expected: Some((hash_of(announced), size)),
        extra_memory_bytes: 0,
    };
    let mut ingest = match engine.begin_ingest(request).await {
        Ok(ingest) => ingest,
        Err(error) => return (0, Err(format!("{error:?}"))),
    };
    for (number, bytes) in sent.chunks(piece).enumerate() {
        if let Err(error) = ingest.write(bytes).await {
            return (number + 1, Err(format!("{error:?}")));
        }
    }
    let ingested = ingest.finish().await.map_err(|error| format!("{error:?}"));
    (usize::MAX, ingested.map(|ingested| ingested.nar_size))
}

#[test]
fn no_bytes_tell_whether_the_server_has_the_announced_nar() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (with, without) = (Installation::new(), Installation::new());
    let (with, without) = runtime.block_on(async { (with.engine().await, without.engine().await) });
    let nar = package_nar(&mut Random::new(7), 5_000, &[path(200)]);
    runtime.block_on(async {
        let cache = create_main(&with).await;
        push(&with, &cache, &path(1), &nar).await.expect("the NAR is sound");
    });
    let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let sizes = prop_oneof![3 => Just(0_i64), 1 => -50_i64..50];
    let strategy = (changes(), sizes, 1_usize..3_000);
    TestRunner::new(Config { cases: 400, ..Config::default() })
        .run(&strategy, |(change, more, piece)| {
            let sent = change.apply(&nar);
            let size = (nar.len() as u64).saturating_add_signed(more);
            let known = runtime.block_on(outcome(&with, &nar, size, &sent, piece));
            let unknown = runtime.block_on(outcome(&without, &nar, size, &sent, piece));
            prop_assert_eq!(&known, &unknown);
            let kind = known.1.err().unwrap_or_else(|| "none".to_owned());
            seen.borrow_mut().insert(kind.split([' ', '(']).next().unwrap_or_default().to_owned());
            Ok(())
        })
        .expect("both installations answer alike");
    // The property says nothing of outcomes that never came up.
    let expected = ["HashMismatch", "MalformedNar", "SizeMismatch", "none"];
    assert_eq!(seen.into_inner().into_iter().collect::<Vec<_>>(), expected);
}
