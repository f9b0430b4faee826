//! A pusher that speaks Attic's API like Attic's client: one request for the missing paths, then
//! one PUT for each path. The NAR is a chunked body. The metadata is in a header or, from 4 KiB on,
//! before the NAR.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::corpus::{Entry, Generation};
use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::server::{CACHE, Server};

/// From this size on, Attic's client sends the metadata in the body.
const PREAMBLE_FROM_BYTES: usize = 4096;

#[derive(Serialize)]
struct NarInfo<'a> {
    cache: &'a str,
    store_path_hash: &'a str,
    store_path: &'a str,
    references: Vec<&'a str>,
    system: Option<&'a str>,
    deriver: Option<&'a str>,
    sigs: [&'a str; 0],
    ca: Option<&'a str>,
    nar_hash: String,
    nar_size: u64,
}

/// Uploads one path.
pub(crate) fn upload(connection: &mut Connection, entry: &Entry, nar: &mut dyn Read) -> Result<()> {
    let json = serde_json::to_string(&NarInfo {
        cache: CACHE,
        store_path_hash: &entry.hash,
        store_path: &entry.store_path,
        references: entry.references.iter().filter_map(|path| path.rsplit('/').next()).collect(),
        system: None,
        deriver: None,
        sigs: [],
        ca: None,
        nar_hash: format!("sha256:{}", entry.nar_hash_hex),
        nar_size: entry.nar_size,
    })
    .context(|| format!("describe {}", entry.store_path))?;
    let in_body = json.len() >= PREAMBLE_FROM_BYTES;
    let (headers, preamble) = if in_body {
        (format!("X-Attic-Nar-Info-Preamble-Size: {}\r\n", json.len()), json.as_bytes())
    } else {
        (format!("X-Attic-Nar-Info: {json}\r\n"), &[][..])
    };
    let (status, answer) = connection.put_chunked("/_api/v1/upload-path", &headers, preamble, nar)?;
    if status == 200 {
        Ok(())
    } else {
        let answer = String::from_utf8_lossy(&answer);
        Err(Error::new(format!("push of {} was answered {status}: {answer}", entry.store_path)))
    }
}

/// Pushes a whole generation over `connections` connections.
pub(crate) fn generation(server: &Server, generation: &Generation, connections: usize) -> Result<()> {
    generation_over(&|_| server.connect(), generation, connections)
}

/// Pushes a whole generation over `connections` connections. `open` opens each one by its number.
pub(crate) fn generation_over(
    connect: &(dyn Fn(usize) -> Result<Connection> + Sync),
    generation: &Generation,
    connections: usize,
) -> Result<()> {
    let question = serde_json::to_vec(&serde_json::json!({
        "cache": CACHE,
        "store_path_hashes": generation.entries.iter().map(|entry| &entry.hash).collect::<Vec<_>>(),
    }))
    .context(|| "ask what is missing".to_owned())?;
    let (status, _) = connect(0)?.post_json("/_api/v1/get-missing-paths", &question)?;
    if status != 200 {
        return Err(Error::new(format!("get-missing-paths was answered {status}")));
    }
    let next = AtomicUsize::new(0);
    in_parallel(connections, |number| {
        let mut connection = connect(number)?;
        while let Some(entry) = generation.entries.get(next.fetch_add(1, Ordering::Relaxed)) {
            upload(&mut connection, entry, &mut generation.open(entry)?)?;
        }
        Ok(())
    })
}

/// Runs `work` on `count` threads and returns the first error.
pub(crate) fn in_parallel(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::new("a thread of the benchmark panicked")))
        })
    })
}
