//! Measures how fast bytes pass through the layers of this crate, on one core.
//!
//! `cargo run --release -p dormer-format --example throughput -- FILE [min avg max, in KiB]`, where
//! FILE is a NAR or a tar of some hundred megabytes. Each line is the median CPU time of three
//! runs. With `QUICK` set, only level 3 runs.
#![expect(clippy::disallowed_methods, reason = "only the crate itself is pure; its benchmark reads files")]
#![expect(clippy::print_stdout, reason = "a benchmark's figures are its output")]
#![expect(clippy::cast_precision_loss, reason = "figures are printed with a few digits")]

use std::time::Duration;

use dormer_format::{ChunkParams, Chunker, Encoder, PackBuilder, PackId, RawChunk};

/// The piece that a server hands to the chunker: one network read of the usual size.
const PIECE_BYTES: usize = 64 * 1024;
const RUNS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: throughput FILE [MIN AVG MAX]")?;
    let levels = if std::env::var_os("QUICK").is_some() { 3..=3 } else { 1..=9 };
    let sizes: Vec<u32> = arguments.map(|text| text.parse()).collect::<Result<_, _>>()?;
    let params = match sizes[..] {
        [min, avg, max] => ChunkParams::new(min * 1024, avg * 1024, max * 1024)?,
        _ => ChunkParams::default(),
    };
    let input = std::fs::read(path)?;

    let megabytes = input.len() as f64 / 1e6;
    let report = |what: &str, stored: Option<usize>, took: Duration| {
        let rate = megabytes / took.as_secs_f64();
        let stored = stored.map_or(String::new(), |bytes| format!("{:9.2} MB stored", bytes as f64 / 1e6));
        println!("{what:28} {rate:8.0} MB/s {:8.3} s{stored}", took.as_secs_f64());
    };

    let chunks = chunk(&input, params);
    let holes: usize = chunks.iter().map(|chunk| chunk.holes.len()).sum();
    println!("{megabytes:.1} MB, {} chunks, {holes} holes", chunks.len());
    report("blake3 of the file", None, median(|| _ = blake3::hash(&input)));
    report("FastCDC alone", None, median(|| _ = fastcdc_alone(&input, params)));
    report("chunker", None, median(|| chunk_and_drop(&input, params, |_| ())));
    report("chunker + blake3", None, median(|| chunk_and_drop(&input, params, |chunk| _ = chunk.id())));
    let small = small_segments(&input);
    let took = median(|| _ = store(&small, 3));
    let nanos = took.as_nanos() / (small.len().max(1) * 65) as u128;
    println!("encode, 65 segments of 80 B  {nanos:8} ns a segment");
    for level in levels {
        let mut stored = 0;
        let took = median(|| stored = store(&chunks, level));
        report(&format!("encode + pack, level {level}"), Some(stored), took);
        let took = median(|| stored = plain_zstd(&chunks, level));
        report(&format!("zstd of the same, level {level}"), Some(stored), took);
    }
    Ok(())
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = cpu_time();
            run();
            cpu_time().saturating_sub(start)
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

/// CPU time of this process so far. Unlike a wall clock, it excludes what other processes do
/// meanwhile.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("this benchmark wants Linux");
    Duration::from_nanos(
        text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("schedstat is numbers"),
    )
}

fn chunk(input: &[u8], params: ChunkParams) -> Vec<RawChunk> {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(params, "/nix/store");
    input.chunks(PIECE_BYTES).for_each(|piece| chunker.push(piece, &mut chunks));
    chunker.finish(&mut chunks);
    chunks
}

/// The most expensive chunks: as many holes as allowed, close together.
fn small_segments(input: &[u8]) -> Vec<RawChunk> {
    let holes: Vec<u32> = (0..64).map(|hole| 80 + hole * 112).collect();
    let chunk = |bytes: &[u8]| RawChunk { bytes: bytes.to_vec(), holes: holes.clone(), fills: Vec::new() };
    input.chunks_exact(64 * 112 + 80).take(2000).map(chunk).collect()
}

/// Works like a server: uses and frees each chunk as it is cut.
fn chunk_and_drop(input: &[u8], params: ChunkParams, mut each: impl FnMut(&RawChunk)) {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(params, "/nix/store");
    for piece in input.chunks(PIECE_BYTES) {
        chunker.push(piece, &mut chunks);
        chunks.drain(..).for_each(|chunk| each(&chunk));
    }
    chunker.finish(&mut chunks);
    chunks.iter().for_each(each);
}

/// The chunker's floor: cuts in memory, without holes and without copies.
fn fastcdc_alone(input: &[u8], params: ChunkParams) -> usize {
    fastcdc::v2020::FastCDC::new(input, params.min as usize, params.avg as usize, params.max as usize).count()
}

fn store(chunks: &[RawChunk], level: i32) -> usize {
    let mut encoder = Encoder::new(level).expect("levels 1 to 9 exist");
    let mut builder = PackBuilder::new(PackId::from_bytes([0; 16]));
    let mut bytes = 0;
    for chunk in chunks {
        // The id is known from the look-up. Hashing again would measure BLAKE3 twice.
        let stored =
            encoder.encode_as(dormer_format::ChunkId::from_bytes([0; 32]), chunk).expect("chunks are sound");
        if !builder.has_room_for(&stored) {
            let full = std::mem::replace(&mut builder, PackBuilder::new(PackId::from_bytes([0; 16])));
            bytes += usize::try_from(full.finish().size).expect("32 MiB");
        }
        builder.add(stored);
    }
    bytes + usize::try_from(builder.finish().size).expect("32 MiB")
}

/// The floor: each chunk as one frame, with one reused context.
///
fn plain_zstd(chunks: &[RawChunk], level: i32) -> usize {
    let mut compressor = zstd::bulk::Compressor::new(level).expect("levels 1 to 9 exist");
    let mut buffer = Vec::with_capacity(1024 * 1024);
    chunks
        .iter()
        .map(|chunk| compressor.compress_to_buffer(&chunk.bytes, &mut buffer).expect("the buffer is large"))
        .sum()
}
