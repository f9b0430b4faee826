//! Reads and pushes over a real S3 server: how many requests they cost. Counts only; how long they
//! take is for benchmarks.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::common::{Installation, create_main, decompress, engine_over, hash_of, path, push, served};
use dormer_blobs::{Blobs, Counters, Method, StoreBlobs};
use dormer_engine::{Engine, EngineSettings, Error};
use dormer_format::ChunkParams;
use dormer_index::{Cache, Index, NarQuery};
use dormer_nix::StorePath;
use dormer_nix::nar::{ListedNode, ListingSearch, Node, encode_tree};
use dormer_stores::{CallPolicy, Credentials, RemoteKind, RemoteSettings};
use dormer_testkit::services::SeaweedFs;
use dormer_testkit::{Random, package_nar};
use futures::stream::{StreamExt, TryStreamExt};
use prometheus::core::Collector as _;

fn seaweedfs() -> &'static SeaweedFs {
    static SERVER: OnceLock<SeaweedFs> = OnceLock::new();
    SERVER.get_or_init(SeaweedFs::start)
}

/// A bucket of its own, as the server would use it, and what was asked of it.
fn bucket() -> (Arc<dyn Blobs>, Arc<Counters>) {
    let access = seaweedfs().access();
    let settings = RemoteSettings {
        kind: RemoteKind::S3,
        bucket: access.new_bucket(),
        prefix: "lab".to_owned(),
        endpoint: Some(access.endpoint.clone()),
        region: Some(access.region.clone()),
        credentials: Some(Credentials {
            access_key_id: access.access_key_id.clone(),
            secret_access_key: access.secret_access_key.clone(),
        }),
        path_style: true,
        ca_file: None,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_mins(1),
    };
    let policy = CallPolicy { requests_max: Some(64), ..CallPolicy::default() };
    let blobs = StoreBlobs::open(&settings, &policy).expect("the settings are good");
    let counters = Arc::clone(blobs.store().counters());
    (Arc::new(blobs), counters)
}

/// As the server has them, but for the level, which costs time here and no requests.
fn real_settings() -> EngineSettings {
    EngineSettings { zstd_level: 1, ..EngineSettings::default() }
}

async fn engine_on(installation: &Installation, blobs: &Arc<dyn Blobs>) -> Engine {
    let index: Arc<dyn Index> = Arc::new(installation.index().await);
    engine_over(index, Arc::clone(blobs), real_settings())
}

/// Sizes as in a real closure: half of the paths are a few lines, and most bytes are in a few of
/// them.
fn closure() -> Vec<(StorePath, Vec<u8>)> {
    let mut random = Random::new(42);
    (0..64_u8)
        .map(|number| {
            let size = match number % 32 {
                0 => 12_000_000,
                7 | 20 => 2_500_000,
                8 | 16 | 24 => 400_000,
                4 | 12 | 28 => 60_000,
                _ => 200 + usize::from(number) * 70,
            };
            (path(number), package_nar(&mut random, size, &[path(200), path(201)]))
        })
        .collect()
}

async fn push_all(engine: &Engine, cache: &Cache, closure: &[(StorePath, Vec<u8>)], at_once: usize) {
    let pushes = closure.iter().map(|(path, nar)| push(engine, cache, path, nar));
    futures::stream::iter(pushes)
        .buffer_unordered(at_once)
        .try_collect::<()>()
        .await
        .expect("all are pushed");
}

/// Reads everything back and compares it; returns the bytes served.
async fn read_all(engine: &Engine, cache: &Cache, closure: &[(StorePath, Vec<u8>)], at_once: usize) -> u64 {
    let reads = closure.iter().map(|(path, nar)| async move {
        let bytes = served(engine, cache, nar, None).await.expect("it is read").expect("it is there");
        assert!(decompress(&bytes) == *nar, "{path} came back with other bytes");
        bytes.len() as u64
    });
    futures::stream::iter(reads).buffer_unordered(at_once).fold(0, async |sum, bytes| sum + bytes).await
}

/// What reading a closure costs a server that remembers nothing.
async fn cost_of_reading(
    installation: &Installation,
    blobs: &Arc<dyn Blobs>,
    counters: &Counters,
    closure: &[(StorePath, Vec<u8>)],
    at_once: usize,
) -> (u64, u64) {
    let engine = engine_on(installation, blobs).await;
    let cache = engine.find_cache("main").await.expect("the index answers").expect("it is there");
    let before = (counters.requests(Method::Get), counters.requests(Method::Head), counters.bytes_received());
    let served = read_all(&engine, &cache, closure, at_once).await;
    let (gets, heads) =
        (counters.requests(Method::Get) - before.0, counters.requests(Method::Head) - before.1);
    let received = counters.bytes_received() - before.2;
    assert!(received < served + served / 5 + 4_000_000, "{received} bytes were read to serve {served}");
    (gets, heads)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_costs_few_requests() {
    let installation = Installation::new();
    let (blobs, counters) = bucket();
    let closure = closure();
    {
        let engine = engine_on(&installation, &blobs).await;
        let cache = create_main(&engine).await;
        push_all(&engine, &cache, &closure, 5).await;
        let packs = blobs.list().await.expect("it lists").len() as u64;
        assert_eq!(counters.requests(Method::Put), packs, "one PUT a pack");
        assert!(packs <= 32, "{packs} packs for {} paths", closure.len());
        assert_eq!(counters.requests(Method::Head), 0, "a push looks for nothing");
        assert_eq!(counters.retries(Method::Put), 0);

        let mut page = String::new();
        prometheus::TextEncoder::new().encode_utf8(&engine.collect(), &mut page).expect("it is well formed");
        assert!(page.contains(&format!("dormer_store_requests_total{{method=\"put\"}} {packs}\n")), "{page}");
        let duration = "dormer_store_request_duration_seconds";
        assert!(page.contains(&format!("{duration}_count{{method=\"put\"}} {packs}\n")), "{page}");
        assert!(
            page.contains(&format!("{duration}_bucket{{method=\"put\",le=\"+Inf\"}} {packs}\n")),
            "{page}"
        );
        assert!(page.contains("dormer_store_requests_limit 64\n"), "{page}");
        assert!(page.contains("dormer_budget_limit{budget=\"index_connections\"} 5\n"), "{page}");

        // What was just stored is known to be there.
        read_all(&engine, &cache, &closure, 1).await;
        assert_eq!(counters.requests(Method::Head), 0);
    }
    for at_once in [1, 8] {
        let (gets, heads) = cost_of_reading(&installation, &blobs, &counters, &closure, at_once).await;
        assert!(gets <= 48, "{gets} GETs for {} paths, {at_once} at once", closure.len());
        assert!(heads <= 6, "{heads} HEADs for {} paths, {at_once} at once", closure.len());
    }
    assert_eq!(counters.retries(Method::Get), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nar_of_one_read_costs_one_get_and_a_look_at_it_one_head() {
    let installation = Installation::new();
    let (blobs, counters) = bucket();
    let nar = package_nar(&mut Random::new(1), 3_000_000, &[path(2)]);
    {
        let engine = engine_on(&installation, &blobs).await;
        let cache = create_main(&engine).await;
        push(&engine, &cache, &path(1), &nar).await.unwrap();
    }
    let counts = || (counters.requests(Method::Get), counters.requests(Method::Head));
    let key = NarQuery::Hash(hash_of(&nar));
    let before = counts();

    let engine = engine_on(&installation, &blobs).await;
    let cache = engine.find_cache("main").await.unwrap().unwrap();
    assert_eq!(decompress(&served(&engine, &cache, &nar, None).await.unwrap().unwrap()), nar);
    assert_eq!(counts(), (before.0 + 1, before.1));
    engine.open_nar(&cache, &key).await.unwrap().unwrap().prove().await.unwrap();
    assert_eq!(counts(), (before.0 + 1, before.1), "a read was a proof");

    drop(engine);
    let engine = engine_on(&installation, &blobs).await;
    engine.open_nar(&cache, &key).await.unwrap().unwrap().prove().await.unwrap();
    assert_eq!(counts(), (before.0 + 1, before.1 + 1), "a caller that does not read asks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_of_a_large_nar_costs_two_reads_and_two_megabytes() {
    let installation = Installation::new();
    let (blobs, counters) = bucket();
    let mut random = Random::new(7);
    let small = random.bytes(10_000);
    // More chunks than the rows of which are loaded at once, most of them alike.
    let megabytes = if std::env::var_os("DORMER_TEST_LONG").is_some() { 1_000 } else { 50 };
    let large = random.bytes(1_000_000).repeat(megabytes);
    let chunk_params = ChunkParams { min: 8 * 1024, avg: 32 * 1024, max: 128 * 1024 };
    let engine_on = async || {
        let index: Arc<dyn Index> = Arc::new(installation.index().await);
        engine_over(index, Arc::clone(&blobs), EngineSettings { chunk_params, ..real_settings() })
    };
    let names = ["lib", "b"].map(str::to_owned);
    let nar = encode_tree(&Node::directory([(
        "lib",
        Node::directory([
            ("a", Node::file(large)),
            ("b", Node::file(small.clone())),
            ("c", Node::file(random.bytes(5_000_000))),
        ]),
    )]));
    {
        let engine = engine_on().await;
        let cache = create_main(&engine).await;
        push(&engine, &cache, &path(1), &nar).await.unwrap();
    }
    let engine = engine_on().await;
    let cache = engine.find_cache("main").await.unwrap().unwrap();
    let before = (counters.requests(Method::Get), counters.requests(Method::Head), counters.bytes_received());
    let (contents, _) = read_one_file(&engine, &cache, names).await;
    assert_eq!(contents, small);
    let gets = counters.requests(Method::Get) - before.0;
    let bytes = counters.bytes_received() - before.2;
    println!("{gets} reads of {bytes} bytes for a file of {} bytes in a NAR of {}", small.len(), nar.len());
    assert!(gets <= 2 && bytes <= 2_000_000, "{gets} reads of {bytes} bytes");
    assert_eq!(counters.requests(Method::Head), before.1, "packs that the file does not need");
}

/// A file of the NAR of `path(1)`, found by its names in the listing, and the size of the listing.
async fn read_one_file(
    engine: &Engine,
    cache: &Cache,
    names: impl IntoIterator<Item = String>,
) -> (Vec<u8>, u64) {
    const SOUND: &str = "store and index answer, and what they hold is sound";
    const THERE: &str = "it was pushed";
    let mut listing = engine.listing(cache, &path(1).hash()).await.expect(SOUND).expect(THERE);
    let mut search = ListingSearch::new(names);
    while let Some(piece) = listing.try_next().await.expect(SOUND) {
        search.feed(&piece);
    }
    let Some(ListedNode::File { size, nar_offset, .. }) = search.finish() else { panic!("it is a file") };
    let open = engine.open_nar(cache, &NarQuery::Hash(listing.nar)).await.expect(SOUND).expect(THERE);
    let part = open.stream_part(nar_offset..nar_offset + size).await.expect(SOUND);
    let frames = part.frames.map_ok(|piece| piece.to_vec()).try_concat().await.expect(SOUND);
    let skip = usize::try_from(part.skip).expect(SOUND);
    let contents = decompress(&frames)[skip..][..usize::try_from(size).expect(SOUND)].to_vec();
    (contents, listing.size)
}

/// A listing of so many files is stored as chunks.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_among_twenty_thousand_costs_two_reads_and_two_megabytes() {
    const FILES: usize = 20_000;
    let installation = Installation::new();
    let (blobs, counters) = bucket();
    let mut random = Random::new(8);
    // Names as long as in real trees, which compress no better.
    let mut name = |number: usize| {
        let mut word = [0; 16];
        word[4..].copy_from_slice(&random.bytes(12));
        format!("{number:05}-{:024x}.js", u128::from_be_bytes(word))
    };
    let names: Vec<String> = (0..FILES).map(&mut name).collect();
    let wanted = names[FILES - 7].clone();
    let files = names.iter().map(|name| (name.as_bytes().to_vec(), Node::file(name.as_bytes().to_vec())));
    let nar = encode_tree(&Node::directory(files));
    {
        let engine = engine_on(&installation, &blobs).await;
        let cache = create_main(&engine).await;
        push(&engine, &cache, &path(1), &nar).await.unwrap();
    }
    let engine = engine_on(&installation, &blobs).await;
    let cache = engine.find_cache("main").await.unwrap().unwrap();
    let before = (counters.requests(Method::Get), counters.bytes_received());
    let (contents, listed) = read_one_file(&engine, &cache, [wanted.clone()]).await;
    assert!(listed > 1_500_000, "{listed} bytes of JSON are no chunks");
    assert_eq!(contents, wanted.as_bytes());
    let (gets, bytes) = (counters.requests(Method::Get) - before.0, counters.bytes_received() - before.1);
    println!("{gets} reads of {bytes} bytes for a file among {FILES}, listed in {listed} bytes");
    assert!(gets <= 2 && bytes <= 2_000_000, "{gets} reads of {bytes} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_pack_is_found_before_any_answer_begins() {
    let installation = Installation::new();
    let (blobs, _) = bucket();
    // The first read does not reach the end of it.
    let nar = package_nar(&mut Random::new(3), 60_000_000, &[]);
    {
        let engine = engine_on(&installation, &blobs).await;
        let cache = create_main(&engine).await;
        push(&engine, &cache, &path(1), &nar).await.unwrap();
    }
    let engine = engine_on(&installation, &blobs).await;
    let cache = engine.find_cache("main").await.unwrap().unwrap();
    let found = engine.index().find_nar_in_cache(cache.id, &NarQuery::Hash(hash_of(&nar)), 0).await;
    let last = found.unwrap().unwrap().recipe.runs.last().copied().unwrap();
    let rows = engine.index().load_chunks(&[last]).await.unwrap();
    assert!(blobs.list().await.unwrap().len() > 1, "it is in several packs");
    blobs.delete(&dormer_blobs::BlobKey::Pack(rows.last().unwrap().pack_id)).await.unwrap();

    let open = engine.open_nar(&cache, &NarQuery::Hash(hash_of(&nar))).await.unwrap().unwrap();
    assert!(matches!(open.clone().stream(Some(0..10)).await.map(drop), Err(Error::Damaged { .. })));
    assert!(matches!(open.prove().await, Err(Error::Damaged { .. })));
    assert!(engine.open_nar(&cache, &NarQuery::Hash(hash_of(&nar))).await.unwrap().is_none());
    assert_eq!(engine.missing_paths(&cache, &[path(1).hash()]).await.unwrap(), [path(1).hash()]);
    push(&engine, &cache, &path(1), &nar).await.unwrap();
    // Copied piece by piece: held all at once they would take more than the memory for reads.
    let open = engine.open_nar(&cache, &NarQuery::Hash(hash_of(&nar))).await.unwrap().unwrap();
    let pieces = open.stream(None).await.unwrap().map_ok(|piece| piece.to_vec());
    assert!(decompress(&pieces.try_concat().await.unwrap()) == nar);
}
