//! A missing bucket is not a cache without paths: Nix would remember a 404 for an hour.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::net::SocketAddr;
use std::path::Path;

use dormer_api::CacheName;
use dormer_edge::{CacheState, Catalog};
use dormer_edge_host::{DiskCache, EdgeServer, EdgeSettings, Source};
use dormer_testkit::services::SeaweedFs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
const NARINFO: &str = "/main/1111111111111111111111111111111z.narinfo";

/// A host of `<bucket>/edge`, with a folder that keeps NARs if one is given.
async fn host(store: &SeaweedFs, bucket: &str, kept: Option<&Path>) -> SocketAddr {
    let access = store.access();
    let variables = [
        ("AWS_ACCESS_KEY_ID", &access.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", &access.secret_access_key),
        ("AWS_REGION", &access.region),
        ("AWS_ENDPOINT", &access.endpoint),
    ]
    .map(|(name, value)| (name.to_owned(), value.clone()));
    let source = Source::bucket(&format!("s3://{bucket}/edge"), variables).unwrap();
    let disk = kept.map(|folder| DiskCache::open(folder, 1_000_000).unwrap());
    let server = EdgeServer::new(source, disk, None, EdgeSettings::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server.run(listener.into(), Box::pin(std::future::pending())));
    address
}

async fn status(address: SocketAddr, method: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    String::from_utf8_lossy(&reply).split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_never_existed_is_503() {
    let store = SeaweedFs::start();
    let address = host(&store, "no-such-bucket", None).await;
    for method in ["GET", "HEAD"] {
        for path in ["/", "/main/nix-cache-info", NARINFO] {
            assert_eq!(status(address, method, path).await, 503, "{method} {path}");
        }
    }
    assert_eq!(status(address, "GET", "/readyz").await, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_deleted_while_it_is_served_is_503() {
    let store = SeaweedFs::start();
    let bucket = store.new_bucket();
    let main: CacheName = "main".parse().unwrap();
    let state = CacheState {
        version: CacheState::VERSION,
        cache: main.clone(),
        public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        public_keys: Vec::new(),
        object_count: 1,
        file_bytes: 1,
        published_at: 1,
        revoked: Vec::new(),
    };
    let nar = |number: u32| format!("/main/nar/{HASH}-{number:026}.nar.zst");
    let put = |name: &str, bytes: Vec<u8>| store.access().put_object(&bucket, &format!("edge{name}"), bytes);
    put("/main/dormer-state.json", state.to_json());
    put("/dormer-caches.json", Catalog::new(vec![main]).to_json());
    put(&nar(0), vec![7; 1_000]);
    put(&nar(1), vec![8; 1_000]);

    let folder = tempfile::tempdir().unwrap();
    let (keeping, plain) =
        (host(&store, &bucket, Some(folder.path())).await, host(&store, &bucket, None).await);
    for address in [keeping, plain] {
        for method in ["GET", "HEAD"] {
            assert_eq!(status(address, method, &nar(0)).await, 200, "{method}");
            assert_eq!(status(address, method, NARINFO).await, 404, "{method}: the bucket is there");
        }
        assert_eq!(status(address, "GET", "/readyz").await, 200);
    }

    store.access().empty_bucket(&bucket);
    store.access().delete_bucket(&bucket);
    // The hosts remember the state of the cache for 30 s, and each miss for 5 s.
    let other = NARINFO.replace('z', "y");
    for (address, kept) in [(keeping, 200), (plain, 503)] {
        assert_eq!(status(address, "GET", &nar(0)).await, kept, "only the disk has it");
        for method in ["GET", "HEAD"] {
            for path in [&nar(1), &other] {
                assert_eq!(status(address, method, path).await, 503, "{method} {path}");
            }
        }
    }
}
