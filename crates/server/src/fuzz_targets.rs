//! One checked property per parser of foreign bytes: a plain function that panics when the property
//! fails.
//!
//! Tests run them over `fuzz/corpus/server_*` and mutations of it; a fuzzer can run them for longer
//! (`fuzz/README.md`).

use std::sync::LazyLock;

use bytes::Bytes;
use dormer_edge::{decode_form, decode_path};
use dormer_engine::CpuPool;
use dormer_format::STEP_OUTPUT_BYTES;
use dormer_pages::{escape_segment, is_hidden, terminal_text};
use futures::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use tokio::runtime::Runtime;

use crate::codec::{Compression, WindowTooLarge};
use crate::decoder::Decoder;
use crate::forwarded::{Forwarded, Network};
use crate::page_route::PageRoute;
use crate::route::{NarFile, Route};

/// The most memory that any decoder may name: a window of 128 MiB and one MiB more.
const DECODER_BYTES_MAX: u64 = 129 * 1024 * 1024;

/// Decoding ends here: the reader of the body limits its length.
const PLAIN_BYTES_MAX: usize = 1024 * 1024;

/// Decoders run on its threads.
static DECODING: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().build().expect("a machine that fuzzes has threads")
});

/// A path. Decoded, nothing has two spellings, and nothing leads out of its cache.
pub fn fuzz_route(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    let Some(path) = decode_path(path) else { return };
    let path = path.as_ref();
    let Some(route) = Route::parse(path) else { return };
    let spelled = match &route {
        Route::Narinfo(cache, hash) => format!("/{cache}/{hash}.narinfo"),
        Route::Listing(cache, hash) => format!("/{cache}/{hash}.ls"),
        Route::NixCacheInfo(cache) => format!("/{cache}/nix-cache-info"),
        Route::AtticCacheInfo(cache) => format!("/{cache}/attic-cache-info"),
        Route::CacheConfig(cache) => format!("/_api/v1/cache-config/{cache}"),
        Route::Object(cache, hash) => format!("/_api/v2/caches/{cache}/objects/{hash}"),
        Route::File(cache, hash) => format!("/_api/v2/caches/{cache}/objects/{hash}/file"),
        Route::Nar(cache, NarFile::Encoded(hash, tag)) => {
            format!("/{cache}/nar/{}-{tag}.nar.zst", hash.to_nix32())
        }
        Route::Nar(cache, NarFile::StorePath(hash)) => format!("/{cache}/nar/{hash}.nar"),
        Route::Nar(cache, NarFile::Upload(name)) => format!("/{cache}/nar/{name}"),
        // Debug info has a second spelling.
        Route::Document(cache, name) => match format!("/{cache}/{name}") {
            longer if longer.contains("/debuginfo/") && path.strip_suffix(".debug").is_none() => {
                longer.trim_end_matches(".debug").to_owned()
            }
            spelled => spelled,
        },
        Route::Objects(cache) | Route::Purges(cache) | Route::CacheStats(cache) | Route::Pins(cache) => {
            route.template().replace("{cache}", cache.as_str())
        }
        Route::Referrers(cache, hash) => format!("/_api/v2/caches/{cache}/objects/{hash}/referrers"),
        Route::Pin(cache, name) => format!("/_api/v2/caches/{cache}/pins/{}", name.as_str()),
        Route::PinnedPath(cache, name, hash) => {
            format!("/_api/v2/caches/{cache}/pins/{}/{hash}", name.as_str())
        }
        Route::Page(page) => {
            let template = page.template().replace("/{path}", "");
            match page {
                PageRoute::Asset(asset) => template.replace("{file}", asset.name()),
                PageRoute::SignIn
                | PageRoute::SignOut
                | PageRoute::OperatorWithoutSlash
                | PageRoute::Operator(_) => template,
                PageRoute::CacheWithoutSlash(cache)
                | PageRoute::Cache(cache)
                | PageRoute::Paths(cache)
                | PageRoute::Pins(cache) => template.replace("{cache}", cache.as_str()),
                PageRoute::OfPath(cache, hash, _) => {
                    template.replace("{cache}", cache.as_str()).replace("{hash}", &hash.to_string())
                }
            }
        }
        route => route.template().to_owned(),
    };
    assert_eq!(spelled, path);
    assert!(!path.contains("/../") && !path.contains("//") && !path.contains('%'), "{route:?}");
}

/// A form, or the query of a page. What is decoded can be written again and reads back the same.
pub fn fuzz_form(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(fields) = decode_form(text) else { return };
    let written = fields
        .iter()
        .map(|(name, value)| format!("{}={}", escape_segment(name), escape_segment(value)))
        .collect::<Vec<_>>()
        .join("&");
    // A field without a name and a value is an empty text between two signs, which is no field.
    assert_eq!(decode_form(&written).as_ref(), Some(&fields), "{written}");
    assert!(fields.iter().all(|(name, value)| !name.contains('\0') && !value.contains('\0')));
}

/// A build log. Its page shows visible text only, in a few styles.
pub fn fuzz_log(data: &[u8]) {
    for part in terminal_text(data) {
        assert!(part.colour.is_none_or(|colour| colour < 16), "{part:?}");
        for character in part.text.chars() {
            let is_visible = !is_hidden(character) || matches!(character, '\n' | '\t');
            assert!(is_visible, "{character:?}");
        }
    }
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
        let input = stream::iter([Ok(Bytes::copy_from_slice(data))]).boxed();
        let mut decoder = Decoder::of(compression, input, decoder_bytes, &CpuPool::new(1, 1));
        let mut plain_bytes = 0;
        // Garbage is an error, which is fine.
        while let Ok(Some(piece)) = DECODING.block_on(decoder.next()) {
            assert!(
                !piece.is_empty() && (compression == Compression::None || piece.len() <= STEP_OUTPUT_BYTES)
            );
            plain_bytes += piece.len();
            if plain_bytes > PLAIN_BYTES_MAX {
                break;
            }
        }
    }
}

/// The headers of a trusted proxy, one value per line: `Forwarded`, `X-Forwarded-Proto`, `-Host`
/// and `-Prefix`. Whatever a proxy passes on, the answer is a plain address. The first line may
/// also be a network of the settings.
pub fn fuzz_forwarded(data: &[u8]) {
    const NAMES: [HeaderName; 4] = [
        HeaderName::from_static("forwarded"),
        HeaderName::from_static("x-forwarded-proto"),
        HeaderName::from_static("x-forwarded-host"),
        HeaderName::from_static("x-forwarded-prefix"),
    ];
    let mut headers = HeaderMap::new();
    for (name, line) in NAMES.into_iter().zip(data.split(|byte| *byte == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    let address = Forwarded::read(&headers).address("inner:8080");
    let uri: Uri = address.parse().expect("the address is one");
    assert!(matches!(uri.scheme_str(), Some("http" | "https")), "{address}");
    assert!(uri.query().is_none() && uri.path().ends_with('/') && !uri.path().contains("//"), "{address}");
    assert!(uri.host().is_some_and(|host| !host.is_empty()), "{address}");
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"@#?\"\\<>".contains(&byte);
    assert!(address.bytes().all(is_plain), "{address}");
    assert!(!address.split('/').skip(3).any(|segment| matches!(segment, "." | "..")), "{address}");

    let first = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(first) else { return };
    let Ok(network) = text.parse::<Network>() else { return };
    assert_eq!(network.to_string().parse(), Ok(network));
}
