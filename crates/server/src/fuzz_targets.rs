//! One checked property per parser of foreign bytes: a plain function that panics when the property
//! fails.
//!
//! Tests run them over `fuzz/corpus/server_*` and mutations of it; a fuzzer can run them for longer
//! (`fuzz/README.md`).

use std::io::Cursor;

use futures::FutureExt as _;
use tokio::io::AsyncReadExt as _;

use crate::codec::{Compression, WindowTooLarge};
use crate::route::{NarFile, Route};

/// The most memory that any decoder may name: a window of 128 MiB and one MiB more.
const DECODER_BYTES_MAX: u64 = 129 * 1024 * 1024;

/// Decoding ends here: the reader of the body limits its length.
const PLAIN_BYTES_MAX: u64 = 1024 * 1024;

/// A path. Nothing has two spellings, and nothing leads out of its cache.
pub fn fuzz_route(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    let Some(route) = Route::parse(path) else { return };
    let spelled = match &route {
        Route::Narinfo(cache, hash) => format!("/{cache}/{hash}.narinfo"),
        Route::Listing(cache, hash) => format!("/{cache}/{hash}.ls"),
        Route::NixCacheInfo(cache) => format!("/{cache}/nix-cache-info"),
        Route::AtticCacheInfo(cache) => format!("/{cache}/attic-cache-info"),
        Route::CacheConfig(cache) => format!("/_api/v1/cache-config/{cache}"),
        Route::Object(cache, hash) => format!("/_api/v2/caches/{cache}/objects/{hash}"),
        Route::Nar(cache, NarFile::Encoded(hash, tag)) => {
            format!("/{cache}/nar/{}-{tag}.nar.zst", hash.to_nix32())
        }
        Route::Nar(cache, NarFile::StorePath(hash)) => format!("/{cache}/nar/{hash}.nar"),
        Route::Nar(cache, NarFile::Upload(name)) => format!("/{cache}/nar/{name}"),
        // Whatever stands there, the answer is the same.
        Route::NotKept(cache, _) => {
            assert!(path.starts_with(&format!("/{cache}/")));
            return;
        }
        route => route.template().to_owned(),
    };
    assert_eq!(spelled, path);
    assert!(!path.contains("/../") && !path.contains("//") && !path.contains('%'), "{route:?}");
}

/// An upload's bytes: what its head announces is within the limit, and decoding takes any bytes and
/// ends.
pub fn fuzz_codec(data: &[u8]) {
    for compression in Compression::ALL {
        let decoder_bytes = match compression.decoder_bytes(data) {
            Ok(bytes) => bytes,
            Err(WindowTooLarge(window)) => {
                assert!(window > DECODER_BYTES_MAX - 1024 * 1024, "{compression:?} refused {window}");
                continue;
            }
        };
        assert!(decoder_bytes <= DECODER_BYTES_MAX, "{compression:?} needs {decoder_bytes}");
        let decoder = compression.decode(Box::pin(Cursor::new(data.to_vec())), decoder_bytes);
        let mut plain = Vec::new();
        let read = async { decoder.take(PLAIN_BYTES_MAX).read_to_end(&mut plain).await };
        // Garbage is an error, which is fine.
        let _ = read.now_or_never().expect("bytes in memory are never waited for");
        assert!(plain.len() as u64 <= PLAIN_BYTES_MAX);
    }
}
