//! Properties of the whole way from bytes to packs and back, and of every format at rest.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::ops::Range;

use crate::common::{STORE_DIR, chunks, chunks_in_pieces, sample};
use bytes::Bytes;
use dormer_format::{
    BLANK, ChunkId, ChunkLayout, ChunkParams, ChunkRun, Decoder, Encoder, FillRun, HOLES_MAX, HoleFill,
    PackBuilder, PackId, RawChunk, Recipe, RecipeBuilder, StoredChunk, TagBuilder, read_pack, splice,
};
use proptest::collection::vec;
use proptest::prelude::*;

const HOLE: usize = 32;

/// Small chunk sizes, so that small inputs have many chunks.
fn small() -> ChunkParams {
    ChunkParams::new(64, 256, 1024).unwrap()
}

/// The pieces of inputs: store paths, texts that resemble store paths, and other bytes.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let path = "[0-9a-df-np-sv-z]{32}".prop_map(|hash| format!("{STORE_DIR}/{hash}").into_bytes());
    prop_oneof![
        4 => path,
        2 => vec(any::<u8>(), 0..300),
        1 => "[a-z0-9/.-]{0,80}".prop_map(String::into_bytes),
        1 => (0..600_usize).prop_map(|len| vec![0; len]),
        1 => (0..70_usize).prop_map(|len| vec![BLANK; len]),
        1 => "[0-9a-df-np-sv-z]{0,31}".prop_map(|hash| format!("{STORE_DIR}/{hash}").into_bytes()),
        1 => (0..=STORE_DIR.len()).prop_map(|len| STORE_DIR.as_bytes()[..len].to_vec()),
        1 => "[0-9a-df-np-sv-z]{32}".prop_map(|hash| format!("{STORE_DIR}/{hash}-x\n").repeat(70).into_bytes()),
    ]
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    vec(piece(), 0..40).prop_map(|pieces| pieces.concat())
}

/// The specification in its simplest form: all bytes in memory, one step after another.
fn naive_chunks(params: ChunkParams, bytes: &[u8]) -> Vec<(Range<usize>, Vec<usize>)> {
    let prefix = format!("{STORE_DIR}/").into_bytes();
    let is_digit = |byte: &u8| b"0123456789abcdfghijklmnpqrsvwxyz".contains(byte);
    let mut blanked = bytes.to_vec();
    let mut holes = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let hole = at + prefix.len();
        if bytes[at..].starts_with(&prefix)
            && bytes.get(hole..hole + HOLE).is_some_and(|hash| hash.iter().all(is_digit))
        {
            blanked[hole..hole + HOLE].fill(BLANK);
            holes.push(hole);
            at = hole + HOLE;
        } else {
            at += 1;
        }
    }
    let cutter = |from: usize| {
        let [min, avg, max] = [params.min, params.avg, params.max].map(|size| size as usize);
        let cutter = fastcdc::v2020::FastCDC::new(&blanked[from..], min, avg, max);
        from + cutter.cut(0, blanked.len() - from).1
    };
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let mut end = cutter(start);
        if let Some(hole) = holes.iter().find(|&&hole| hole < end && end < hole + HOLE) {
            end = hole + HOLE;
        }
        let inside: Vec<usize> =
            holes.iter().filter(|&&hole| (start..end).contains(&hole)).map(|hole| hole - start).collect();
        let literal = inside.len() > HOLES_MAX || inside.len() * HOLE == end - start;
        chunks.push((start..end, if literal { Vec::new() } else { inside }));
        start = end;
    }
    chunks
}

fn check_against_specification(params: ChunkParams, bytes: &[u8], chunks: &[RawChunk]) {
    let expected = naive_chunks(params, bytes);
    assert_eq!(chunks.len(), expected.len());
    for (chunk, (range, holes)) in chunks.iter().zip(expected) {
        assert_eq!(chunk.holes.iter().map(|&hole| hole as usize).collect::<Vec<_>>(), holes);
        assert_eq!(chunk.bytes.len(), range.len());
        assert!(chunk.restore() == bytes[range.clone()], "restored bytes of {range:?}");
        for (&hole, fill) in chunk.holes.iter().zip(&chunk.fills) {
            let hole = hole as usize;
            assert!(chunk.bytes[hole..hole + HOLE].iter().all(|&byte| byte == BLANK));
            assert_eq!(fill.as_bytes()[..], bytes[range.start + hole..][..HOLE]);
        }
    }
}

/// A NAR at rest: one pack, one recipe.
struct Stored {
    pack: Vec<u8>,
    recipe: Vec<u8>,
}

fn store(chunks: &[RawChunk], level: i32) -> Stored {
    let mut encoder = Encoder::new(level).unwrap();
    let mut builder = PackBuilder::new(PackId::from_bytes([9; 16]));
    let mut recipe = RecipeBuilder::new();
    for chunk in chunks {
        recipe.push_chunk(builder.add(encoder.encode(chunk).unwrap()).into());
        for fill in &chunk.fills {
            recipe.push_fill(fill);
        }
    }
    Stored { pack: builder.finish().parts.concat(), recipe: recipe.finish().encode() }
}

/// The bytes that are served for the NAR.
fn serve(stored: &Stored) -> Vec<u8> {
    let pack = Bytes::from(stored.pack.clone());
    let (_, entries) = read_pack(&pack).unwrap();
    let recipe = Recipe::decode(&stored.recipe).unwrap();
    let mut fills = recipe.hole_fills().copied();
    let mut out = Vec::new();
    let mut promised = 0;
    for number in recipe.chunk_numbers() {
        let entry = &entries[usize::try_from(number).unwrap()];
        let own: Vec<HoleFill> = fills.by_ref().take(entry.layout.holes.len()).collect();
        let range =
            usize::try_from(entry.range().start).unwrap()..usize::try_from(entry.range().end).unwrap();
        splice(&pack.slice(range), &entry.layout, &own, &mut out).unwrap();
        promised += entry.layout.spliced_len();
    }
    assert_eq!(fills.next(), None, "every fill has its hole");
    let served = out.concat();
    assert_eq!(served.len() as u64, promised, "the length is known in advance");
    served
}

fn arbitrary_layout() -> impl Strategy<Value = ChunkLayout> {
    let gaps = vec((prop_oneof![Just(0_u32), 1..5000_u32], 0..1000_u32), 0..=HOLES_MAX);
    (gaps, 0..100_000_u32, 0..1000_u32).prop_filter_map(
        "stored bytes are never empty",
        |(gaps, last, extra)| {
            // A frame of any length that zstd may make of its segment.
            let frame = |segment: u32, extra: u32| 10 + extra % (segment + (segment >> 8) + 30);
            let mut layout = ChunkLayout { raw_len: 0, holes: Vec::new(), frames: Vec::new() };
            for (gap, extra) in gaps {
                if gap > 0 {
                    layout.frames.push(frame(gap, extra));
                }
                layout.holes.push(layout.raw_len + gap);
                layout.raw_len += gap + 32;
            }
            if last > 0 {
                layout.frames.push(frame(last, extra));
            }
            layout.raw_len += last;
            (!layout.frames.is_empty()).then_some(layout)
        },
    )
}

fn arbitrary_recipe() -> impl Strategy<Value = Recipe> {
    let number = prop_oneof![0..1000_u64, 0..=i64::MAX.cast_unsigned()];
    let run = (number, prop_oneof![1..5_u32, 1..=u32::MAX]).prop_map(|(first, count)| ChunkRun {
        first: first.min(i64::MAX.cast_unsigned() + 1 - u64::from(count)),
        count,
    });
    let hash = "[0-9a-df-np-sv-z]{32}"
        .prop_map(|hash| HoleFill::from_bytes(hash.into_bytes().try_into().unwrap()).unwrap());
    let fill = (any::<u32>(), prop_oneof![Just(1_u32), 1..5_u32, 1..=u32::MAX]);
    (vec(run, 0..50), vec(hash, 0..10), vec(fill, 0..50)).prop_map(|(runs, hashes, fills)| {
        let known = u32::try_from(hashes.len()).unwrap();
        let fills = fills.into_iter().filter(|_| known > 0);
        let fills = fills.map(|(hash, count)| FillRun { hash: hash % known, count }).collect();
        Recipe { runs, hashes, fills }
    })
}

proptest! {
    // Inputs have a few kilobytes and chunks a few hundred bytes, so each case cuts dozens of
    // chunks.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_are_what_the_specification_says(bytes in input()) {
        check_against_specification(small(), &bytes, &chunks(small(), &bytes));
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_input_is_split(bytes in input(), sizes in vec(1..3000_usize, 1..20)) {
        let whole = chunks(small(), &bytes);
        prop_assert_eq!(&chunks_in_pieces(small(), &bytes, &sizes), &whole);
        prop_assert_eq!(&chunks_in_pieces(small(), &bytes, &[1]), &whole);
    }

    #[test]
    fn what_is_served_decompresses_to_what_was_stored(bytes in input(), level in 1..=4_i32) {
        let stored = store(&chunks(small(), &bytes), level);
        let served = serve(&stored);
        // The ordinary streaming decoder, as in Nix. No NAR is empty: an empty one would have no
        // frame.
        if bytes.is_empty() {
            prop_assert!(served.is_empty());
        } else {
            prop_assert_eq!(zstd::decode_all(&served[..]).unwrap(), bytes);
        }
    }

    #[test]
    fn other_hashes_make_the_same_chunks(bytes in input(), character in "[0-9a-df-np-sv-z]") {
        let changed = {
            let mut changed = bytes.clone();
            for (range, holes) in naive_chunks(small(), &bytes) {
                for hole in holes {
                    changed[range.start + hole..][..HOLE].fill(character.as_bytes()[0]);
                }
            }
            changed
        };
        let ids = |bytes: &[u8]| chunks(small(), bytes).iter().map(RawChunk::id).collect::<Vec<ChunkId>>();
        prop_assert_eq!(ids(&bytes), ids(&changed));
    }

    #[test]
    fn ids_are_equal_only_for_equal_chunks(first in input(), second in input()) {
        let mut all = chunks(small(), &first);
        all.extend(chunks(small(), &second));
        let mut known = std::collections::HashMap::new();
        for chunk in all {
            let same = known.entry(chunk.id()).or_insert_with(|| (chunk.bytes.clone(), chunk.holes.clone()));
            prop_assert_eq!(&*same, &(chunk.bytes, chunk.holes));
        }
    }

    #[test]
    fn chunks_decode_to_what_they_were(bytes in input()) {
        let mut encoder = Encoder::new(3).unwrap();
        let mut decoder = Decoder::new().unwrap();
        for chunk in chunks(small(), &bytes) {
            let stored = encoder.encode(&chunk).unwrap();
            prop_assert_eq!(decoder.decode_blanked(&stored.bytes, &stored.layout).unwrap(), &chunk.bytes[..]);
            let restored = decoder.decode(&stored.bytes, &stored.layout, &chunk.fills).unwrap();
            prop_assert_eq!(restored, chunk.restore());
        }
    }

    #[test]
    fn layouts_come_back(layout in arbitrary_layout()) {
        layout.validate().unwrap();
        prop_assert_eq!(ChunkLayout::decode(&layout.encode()).unwrap(), layout);
    }

    #[test]
    fn recipes_come_back(recipe in arbitrary_recipe()) {
        prop_assert_eq!(Recipe::decode(&recipe.encode()).unwrap(), recipe);
    }

    #[test]
    fn packs_come_back(bytes in input(), id: [u8; 16]) {
        let mut encoder = Encoder::new(1).unwrap();
        let stored: Vec<StoredChunk> =
            chunks(small(), &bytes).iter().map(|chunk| encoder.encode(chunk).unwrap()).collect();
        let mut builder = PackBuilder::new(PackId::from_bytes(id));
        for chunk in &stored { builder.add(chunk.clone()); }
        let pack = builder.finish();
        let bytes = pack.parts.concat();
        let (found, entries) = read_pack(&bytes).unwrap();
        prop_assert_eq!((found, &entries), (pack.id, &pack.entries));
        let whole = Bytes::from(bytes);
        for (entry, chunk) in entries.into_iter().zip(stored) {
            let range = usize::try_from(entry.range().start).unwrap()..usize::try_from(entry.range().end).unwrap();
            let back =
                StoredChunk { id: entry.id, layout: entry.layout, checksum: entry.checksum, bytes: whole.slice(range) };
            prop_assert_eq!(back, chunk);
        }
    }

    #[test]
    fn changed_packs_and_recipes_never_serve_other_bytes(bytes in input(), at: prop::sample::Index, bit in 0..8_u8) {
        let mut stored = store(&chunks(small(), &bytes), 1);
        let sound = serve(&stored);
        let place = at.index(stored.pack.len());
        stored.pack[place] ^= 1 << bit;
        prop_assert!(read_pack(&stored.pack).is_err());
        stored.pack[place] ^= 1 << bit;
        // Recipes have no checksum of their own, because the database keeps them. A changed recipe
        // is refused or decodes to another recipe.
        let place = at.index(stored.recipe.len());
        let before = Recipe::decode(&stored.recipe).unwrap();
        stored.recipe[place] ^= 1 << bit;
        if let Ok(after) = Recipe::decode(&stored.recipe) {
            prop_assert_ne!(after, before);
        }
        stored.recipe[place] ^= 1 << bit;
        prop_assert_eq!(serve(&stored), sound);
    }

    #[test]
    fn tags_tell_encodings_apart(bytes in input()) {
        let chunks = chunks(small(), &bytes);
        let tag = |level: i32| {
            let mut encoder = Encoder::new(level).unwrap();
            let mut builder = TagBuilder::new();
            let mut all = Vec::new();
            for chunk in &chunks {
                let stored = encoder.encode(chunk).unwrap();
                builder.push_chunk(&stored.id, stored.checksum, &stored.layout);
                for fill in &chunk.fills { builder.push_fill(fill); }
                all.extend_from_slice(&stored.bytes);
            }
            (builder.finish(), all)
        };
        let ((first_tag, first), (second_tag, second)) = (tag(1), tag(9));
        prop_assert_eq!(first_tag == second_tag, first == second);
    }
}

#[test]
fn chunks_of_the_default_size_are_what_the_specification_says() {
    let params = ChunkParams::default();
    let bytes = sample(1, 6_000_000);
    let whole = chunks(params, &bytes);
    assert!(whole.len() > 20, "{} chunks", whole.len());
    assert!(whole.iter().any(|chunk| !chunk.holes.is_empty()));
    check_against_specification(params, &bytes, &whole);
    for sizes in [&[65_536][..], &[1_000_003], &[11, 4096, 700_000]] {
        assert!(chunks_in_pieces(params, &bytes, sizes) == whole, "{sizes:?}");
    }
    let stored = store(&whole, 3);
    assert!(zstd::decode_all(&serve(&stored)[..]).unwrap() == bytes);
}

#[test]
fn a_rebuild_with_other_hashes_has_the_same_chunks() {
    let params = ChunkParams::default();
    let before = sample(2, 3_000_000);
    let chunks_before = chunks(params, &before);
    // Replaces every hash in a hole with another hash. Literal chunks keep their hashes.
    let after: Vec<u8> = chunks_before
        .iter()
        .flat_map(|chunk| {
            let fills = chunk.fills.iter().map(|fill| {
                let mut bytes = *fill.as_bytes();
                bytes.reverse();
                HoleFill::from_bytes(bytes).unwrap()
            });
            RawChunk { fills: fills.collect(), ..chunk.clone() }.restore()
        })
        .collect();
    assert!(before != after, "the sample has holes");
    let ids = |chunks: &[RawChunk]| chunks.iter().map(RawChunk::id).collect::<Vec<_>>();
    assert_eq!(ids(&chunks(params, &after)), ids(&chunks_before));
}
