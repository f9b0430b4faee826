//! Parts and manifests that are not what they say.

use super::*;

/// A chunk with these stored bytes, whatever they are.
fn forged(id: ChunkId, raw_len: u32, bytes: Vec<u8>) -> StoredChunk {
    let frames = vec![u32::try_from(bytes.len()).unwrap()];
    StoredChunk {
        id,
        layout: dormer_format::ChunkLayout { raw_len, holes: Vec::new(), frames },
        checksum: checksum(&bytes),
        bytes: bytes.into(),
    }
}

#[tokio::test]
async fn what_is_no_sound_part_is_refused_and_stores_nothing() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let raw = b"some bytes that compress compress compress".repeat(40);
    let len = u32::try_from(raw.len()).unwrap();
    let id = ChunkId::compute(&raw, &[]);
    let frame = |change: &dyn Fn(&mut zstd::bulk::Compressor<'_>)| {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        change(&mut compressor);
        compressor.compress(&raw).unwrap()
    };
    let sound = frame(&|_| {});
    // Not in a single segment, with a window of 1 MiB.
    let with_window = {
        let mut bytes = sound.clone();
        bytes[4] &= !0x20;
        bytes.insert(5, 0x50);
        assert_eq!(zstd::decode_all(&bytes[..]).unwrap(), raw, "zstd reads it");
        bytes
    };
    let with_checksum = frame(&|c| c.include_checksum(true).unwrap());
    // The descriptor names a dictionary of one byte, which follows it.
    let with_dictionary = {
        let mut bytes = sound.clone();
        bytes[4] |= 1;
        bytes.insert(5, 7);
        bytes
    };
    let bomb = {
        let zeros = vec![0; 1024 * 1024];
        forged(ChunkId::compute(&zeros, &[]), 1024 * 1024, zstd::bulk::compress(&zeros, 3).unwrap())
    };
    let of_raw_block = |raw: &[u8]| {
        let len = u32::try_from(raw.len()).unwrap();
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60];
        frame.extend(u16::try_from(len - 256).unwrap().to_le_bytes());
        frame.extend(&(len << 3 | 1).to_le_bytes()[..3]);
        frame.extend(raw);
        assert_eq!(zstd::decode_all(&frame[..]).unwrap(), raw, "zstd reads it");
        forged(ChunkId::compute(raw, &[]), len, frame)
    };
    let mut trailing = sound.clone();
    trailing.push(0);
    let garbled = {
        let mut bytes = sound.clone();
        let last = bytes.len() - 3;
        bytes[last] ^= 0x55;
        bytes
    };
    for (what, chunk) in [
        ("a frame with a window", forged(id, len, with_window)),
        ("a frame with a checksum", forged(id, len, with_checksum)),
        ("a frame with a dictionary", forged(id, len, with_dictionary)),
        ("a frame of another size", forged(id, len + 1, sound.clone())),
        ("bytes behind the frame", forged(id, len, trailing)),
        ("a frame that is changed", forged(id, len, garbled)),
        ("a chunk under another one's id", forged(ChunkId::from_bytes([3; 32]), len, sound.clone())),
        ("a chunk larger than any cut", bomb),
        ("a chunk that is not compressed", of_raw_block(&raw)),
    ] {
        let (digest, part) = part_of([chunk]);
        let refused = engine.receive_part(&session, &all(), digest, part, ()).await;
        assert!(
            matches!(refused, Err(Error::MalformedPart(_) | Error::PartChunk { .. })),
            "{what}: {refused:?}"
        );
    }
    let (digest, part) = part_of([forged(id, len, sound)]);
    let other = engine.receive_part(&session, &all(), [9; 32], part.clone(), ()).await;
    assert!(matches!(other, Err(Error::PartDigest)), "{other:?}");
    let cut = engine.receive_part(&session, &all(), digest, part.slice(..part.len() - 1), ()).await;
    assert!(matches!(cut, Err(Error::MalformedPart(_))), "{cut:?}");
    // Chunks that are small as they are sent, and many.
    let zeros = |count: usize, bytes: u32| {
        let zeros = vec![0; bytes as usize];
        let chunk = forged(ChunkId::compute(&zeros, &[]), bytes, zstd::bulk::compress(&zeros, 1).unwrap());
        let mut pack = PackBuilder::new(PackId::from_bytes([1; 16]));
        for _ in 0..count {
            pack.add(chunk.clone());
        }
        let part = Bytes::from(pack.finish().parts.concat());
        (dormer_testkit::digest_of(&part), part)
    };
    let (many_digest, many) = zeros(PART_CHUNKS_MAX + 1, 1024);
    let refused = engine.receive_part(&session, &all(), many_digest, many, ()).await;
    assert!(matches!(refused, Err(Error::PartChunks { chunks: 4_097, .. })), "{refused:?}");
    // Or large in all, for a server that makes large chunks.
    let large = EngineSettings { chunk_params: EngineSettings::default().chunk_params, ..settings() };
    let other = Installation::new();
    let with_large = engine_over(Arc::new(other.index().await), Arc::clone(&other.blobs), large);
    let session_there = open(&with_large, &create_main(&with_large).await, 1).await;
    let (bomb_digest, bomb) = zeros(1_025, 512 * 1024);
    let refused = with_large.receive_part(&session_there, &all(), bomb_digest, bomb, ()).await;
    assert!(matches!(refused, Err(Error::PartTooLarge { .. })), "{refused:?}");

    assert_eq!(installation.blobs.list().await.unwrap(), []);
    engine.receive_part(&session, &all(), digest, part, ()).await.expect("the frame itself is sound");
    let mut random = Random::new(1);
    let noise: Vec<u8> = (0..250).flat_map(|_| random.next_u64().to_le_bytes()).collect();
    let (digest, part) = part_of([of_raw_block(&noise)]);
    engine.receive_part(&session, &all(), digest, part, ()).await.expect("noise cannot be compressed");
}

#[tokio::test]
async fn a_manifest_that_is_not_that_of_its_nar_is_refused() {
    let installation = Installation::new();
    let engine = installation.engine().await;
    let main = create_main(&engine).await;
    let session = open(&engine, &main, 1).await;
    let nar = &nars()[0];
    let chunked = cut(nar);
    let (digest, part) = chunked.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let sound = entry(&path(1), nar, &chunked.manifest);
    let failure = async |path: ChunkedPath| match commit_one(&engine, &session, &all(), path).await.unwrap() {
        PathOutcome::Failed(error) => error,
        other => panic!("it should fail: {other:?}"),
    };
    let with = |manifest: &NarManifest| entry(&path(1), nar, manifest);

    let error = failure(ChunkedPath {
        nar_hash: NarHash::digest(b"other"),
        digest: NarHash::digest(b"1"),
        ..sound.clone()
    })
    .await;
    assert!(matches!(*error, Error::HashMismatch { .. }), "{error:?}");
    let error =
        failure(ChunkedPath { nar_size: sound.nar_size + 8, digest: NarHash::digest(b"2"), ..sound.clone() })
            .await;
    assert!(matches!(*error, Error::SizeMismatch { .. }), "{error:?}");

    let mut no_fills = chunked.manifest.clone();
    no_fills.fills = RecipeBuilder::new().finish();
    let error = failure(with(&no_fills)).await;
    assert!(matches!(*error, Error::FillMismatch { fills: 0, .. }), "{error:?}");
    let mut other_fills = chunked.manifest.clone();
    for hash in &mut other_fills.fills.hashes {
        *hash = HoleFill::from_bytes([b'7'; 32]).unwrap();
    }
    let error = failure(with(&other_fills)).await;
    assert!(matches!(*error, Error::HashMismatch { .. }), "{error:?}");

    let mut bytes = vec![1];
    bytes.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x20]);
    bytes.extend([7; 64]);
    let huge = ChunkedPath { manifest: bytes.into(), digest: NarHash::digest(b"3"), ..sound.clone() };
    let error = failure(huge).await;
    assert!(matches!(*error, Error::MalformedManifest(_)), "{error:?}");

    // The same bytes, cut elsewhere, by chunks that were all received.
    let mut chunks = chunked.chunks.clone();
    let literal = |bytes: &[u8]| RawChunk { bytes: bytes.to_vec(), holes: Vec::new(), fills: Vec::new() };
    let whole = chunks[0].restore();
    chunks.splice(0..1, [literal(&whole[..700]), literal(&whole[700..])]);
    let recut = ChunkedNar::of(chunks);
    let (digest, part) = recut.part(1);
    engine.receive_part(&session, &all(), digest, part, ()).await.unwrap();
    let error = failure(with(&recut.manifest)).await;
    assert!(matches!(*error, Error::CutMismatch { position: 0 }), "{error:?}");
    let narinfo = engine.narinfo(&main, &path(1).hash()).await.unwrap();
    assert!(narinfo.is_none(), "nothing is visible");

    let mut unknown = chunked.manifest.clone();
    unknown.chunks[2] = ChunkId::from_bytes([9; 32]);
    let outcome = commit_one(&engine, &session, &all(), with(&unknown)).await.unwrap();
    assert!(matches!(&outcome, PathOutcome::Missing(chunks) if *chunks == [2]), "{outcome:?}");
    let outcome = commit_one(&engine, &session, &all(), sound).await.unwrap();
    assert!(matches!(outcome, PathOutcome::Committed(_)), "{outcome:?}");
    // Cuts are checked for a NAR that the server has too: no answer tells whether it has it.
    let error = failure(with(&recut.manifest)).await;
    assert!(matches!(*error, Error::CutMismatch { position: 0 }), "{error:?}");
}
