//! Packs and chunks.

use dormer_format::{ChunkId, ChunkLayout};

use super::fixtures::{
    NOW, Subject, cache, chunk, chunk_id, look_up_statements, nar_hash, pack, pack_id, push_object, run,
};
use crate::{ChunkRow, Error, NarId, NewChunk, Result};

async fn find(index: &Subject, numbers: impl IntoIterator<Item = u32>) -> Result<Vec<Option<ChunkRow>>> {
    let ids: Vec<ChunkId> = numbers.into_iter().map(chunk_id).collect();
    index.find_chunks(&ids).await
}

pub(super) async fn unknown_chunks_are_not_found(index: Subject) -> Result<()> {
    assert_eq!(find(&index, []).await?, []);
    assert_eq!(find(&index, [1, 2, 1]).await?, [None, None, None]);
    index.commit_pack(&pack(1, [1])).await?;
    assert_eq!(find(&index, [2]).await?, [None]);
    Ok(())
}

pub(super) async fn chunks_of_a_pack_come_back_as_committed(index: Subject) -> Result<()> {
    let new = pack(1, 10..20);
    let rows = index.commit_pack(&new).await?;
    for (row, chunk) in rows.iter().zip(&new.chunks) {
        assert_eq!(row.id, chunk.id);
        assert_eq!(row.pack_id, new.id);
        assert_eq!(row.offset, chunk.offset);
        assert_eq!(row.layout, chunk.layout);
        assert_eq!(row.checksum, chunk.checksum);
    }
    assert_eq!(rows.len(), 10);
    let found = find(&index, [12, 99, 10, 12]).await?;
    assert_eq!(found, [Some(rows[2].clone()), None, Some(rows[0].clone()), Some(rows[2].clone())]);
    Ok(())
}

pub(super) async fn numbers_follow_the_order_given(index: Subject) -> Result<()> {
    let first = index.commit_pack(&pack(1, [5, 3, 9, 1])).await?;
    let second = index.commit_pack(&pack(2, [4, 2])).await?;
    assert_ne!(first[0].pack, second[0].pack);
    for rows in [&first, &second] {
        for (row, next) in rows.iter().zip(&rows[1..]) {
            assert_eq!(next.number, row.number + 1);
            assert_eq!(next.pack, row.pack);
        }
    }
    let mut numbers: Vec<u64> = first.iter().chain(&second).map(|row| row.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 6, "no number is given twice");
    Ok(())
}

pub(super) async fn the_first_pack_of_a_chunk_wins(index: Subject) -> Result<()> {
    let first = index.commit_pack(&pack(1, [1, 2])).await?;
    let second = index.commit_pack(&pack(2, [3, 2, 4])).await?;
    assert_eq!(second[1], first[1], "the row of the pack that came first");
    assert_eq!(second[0].pack_id, pack_id(2));
    assert_eq!(second[2].pack_id, pack_id(2));
    assert!(second[0].number < second[2].number);
    let found: Vec<ChunkRow> = find(&index, 1..=4).await?.into_iter().flatten().collect();
    assert_eq!(found, [first[0].clone(), first[1].clone(), second[0].clone(), second[2].clone()]);
    Ok(())
}

pub(super) async fn a_chunk_given_twice_has_one_row(index: Subject) -> Result<()> {
    let rows = index.commit_pack(&pack(1, [1, 2, 1])).await?;
    assert_eq!(rows[0], rows[2]);
    assert_eq!(find(&index, [1]).await?, [Some(rows[0].clone())]);
    Ok(())
}

pub(super) async fn a_repeated_pack_commit_returns_the_same_rows(index: Subject) -> Result<()> {
    let new = pack(1, 1..=5);
    let rows = index.commit_pack(&new).await?;
    assert_eq!(index.commit_pack(&new).await?, rows);
    assert_eq!(index.load_chunks(&[run(rows[0].number, 5)]).await?, rows);
    Ok(())
}

pub(super) async fn an_empty_pack_has_no_rows(index: Subject) -> Result<()> {
    assert_eq!(index.commit_pack(&pack(1, [])).await?, []);
    Ok(())
}

pub(super) async fn runs_load_in_order(index: Subject) -> Result<()> {
    let first = index.commit_pack(&pack(1, 0..10)).await?;
    let second = index.commit_pack(&pack(2, 10..20)).await?;
    let runs = [
        run(second[3].number, 2),
        run(first[0].number, 10),
        run(second[3].number, 1),
        run(first[9].number, 0),
    ];
    let mut expected = second[3..5].to_vec();
    expected.extend_from_slice(&first);
    expected.push(second[3].clone());
    assert_eq!(index.load_chunks(&runs).await?, expected);
    assert_eq!(index.load_chunks(&[]).await?, []);
    Ok(())
}

pub(super) async fn a_missing_number_is_an_error(index: Subject) -> Result<()> {
    let rows = index.commit_pack(&pack(1, 0..3)).await?;
    let end = rows[2].number + 1;
    for runs in [
        vec![run(rows[0].number, 4)],
        vec![run(end, 1), run(rows[0].number, 1)],
        vec![run(rows[0].number, 3), run(end, 1)],
    ] {
        let missing = index.load_chunks(&runs).await;
        assert!(matches!(missing, Err(Error::ChunkGone { number }) if number == end), "{missing:?}");
    }
    let missing = index.load_chunks(&[run(7, 1)]).await;
    assert!(matches!(missing, Err(Error::ChunkGone { number: 7 })), "{missing:?}");
    Ok(())
}

pub(super) async fn damaged_chunks_are_not_reused(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let rows = index.commit_pack(&pack(100, 0..4)).await?;
    let nar = push_object(&index, cache, 50).await?;
    index.mark_damaged(nar, &[rows[1].number, rows[3].number], NOW).await?;
    let found = find(&index, 0..4).await?;
    assert_eq!(found, [Some(rows[0].clone()), None, Some(rows[2].clone()), None]);
    assert_eq!(index.load_chunks(&[run(rows[0].number, 4)]).await?, rows, "a reader still gets all of them");
    assert!(index.find_nar(&nar_hash(50)).await?.expect("still there").damaged);
    // Neither an unknown NAR nor an unknown chunk is an error.
    index.mark_damaged(NarId(9999), &[1, 2, 3], NOW).await?;
    index.mark_damaged(nar, &[], NOW).await
}

pub(super) async fn a_damaged_chunk_heals_in_place(index: Subject) -> Result<()> {
    let cache = cache(&index, "main").await?;
    let rows = index.commit_pack(&pack(100, 0..3)).await?;
    let nar = push_object(&index, cache, 50).await?;
    index.mark_damaged(nar, &[rows[1].number], NOW).await?;
    let mut again = pack(101, [0, 1]);
    again.chunks[1].offset = 77;
    again.chunks[1].layout = ChunkLayout { raw_len: 1001, holes: vec![], frames: vec![600] };
    let healed = index.commit_pack(&again).await?;
    index.commit_pack(&again).await?;
    index.commit_pack(&pack(102, [0, 1, 7])).await?;
    assert_eq!(healed[0], rows[0], "the sound one stays where it was");
    assert_eq!(healed[1].number, rows[1].number, "recipes still name it");
    assert_eq!((healed[1].pack_id, healed[1].offset), (pack_id(101), 77));
    assert_eq!(healed[1].layout, again.chunks[1].layout);
    assert_eq!(find(&index, [1]).await?, [Some(healed[1].clone())]);
    assert_eq!(index.load_chunks(&[run(rows[1].number, 1)]).await?, [healed[1].clone()]);
    Ok(())
}

pub(super) async fn large_look_ups_are_one_statement(index: Subject) -> Result<()> {
    let mut rows = Vec::new();
    for part in 0..2 {
        let before = index.statement_count();
        rows.extend(index.commit_pack(&pack(part, part * 8192..(part + 1) * 8192)).await?);
        assert!(index.statement_count() - before <= 5, "a pack costs at most 5 statements");
    }
    let one = look_up_statements(&index).await?;
    let before = index.statement_count();
    let found: Vec<ChunkRow> = find(&index, 0..16_384).await?.into_iter().flatten().collect();
    assert_eq!(index.statement_count() - before, one);
    assert!(found == rows, "all chunks are found, in order");
    let loaded = index.load_chunks(&[run(rows[8192].number, 8192), run(rows[0].number, 8192)]).await?;
    assert_eq!(index.statement_count() - before, 2 * one);
    assert!(loaded[..8192] == rows[8192..] && loaded[8192..] == rows[..8192]);
    let before = index.statement_count();
    let again = index.commit_pack(&pack(9, (0..16_384).rev())).await?;
    assert!(index.statement_count() - before <= 5, "also when every chunk was there before");
    assert!(again.iter().rev().eq(&rows));
    Ok(())
}

pub(super) async fn every_bit_of_a_chunk_row_survives(index: Subject) -> Result<()> {
    let holes: Vec<u32> = (0..64).map(|n| n * 40).collect();
    let many = ChunkLayout { raw_len: 2600, frames: vec![15; 64], holes };
    let mut new = pack(1, []);
    for (number, checksum) in [(1, 0), (2, u64::MAX), (3, 1 << 63), (4, (1 << 63) - 1)] {
        new.chunks.push(NewChunk {
            offset: (1 << 40) + u64::from(number),
            checksum,
            layout: many.clone(),
            ..chunk(number)
        });
    }
    let rows = index.commit_pack(&new).await?;
    for (row, chunk) in rows.iter().zip(&new.chunks) {
        assert_eq!((row.offset, row.checksum, &row.layout), (chunk.offset, chunk.checksum, &chunk.layout));
    }
    assert_eq!(index.load_chunks(&[run(rows[0].number, 4)]).await?, rows);
    Ok(())
}
