//! Sessions: whose they are, what they remember, and when they go.

use super::fixtures::{NOW, Subject, cache, chunk_id, object, pack, path_hash, push, push_object, run};
use super::jobs::Both;
use crate::{
    CommitTarget, Error, JobKind, NewSession, ObjectPlace, PackNumber, Removal, Result, SessionEnd,
    SessionId, SessionOpened, SessionPart,
};

const DAY: i64 = 86_400;

fn id(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn new(number: u8, cache: crate::CacheId, subject: &str) -> NewSession {
    let subject = subject.to_owned();
    NewSession { id: id(number), cache, subject, created_at: NOW, ends_at: NOW + DAY }
}

fn part(number: u8, first: u64) -> SessionPart {
    SessionPart { digest: [number; 32], chunks: vec![run(first, 3), run(first + 10, 1)] }
}

pub(super) async fn a_session_is_its_callers_until_it_ends(index: Subject) -> Result<()> {
    let (main, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    let open = SessionOpened::Open(SessionEnd { ends_at: NOW + DAY });
    for _ in 0..2 {
        assert_eq!(index.open_session(&new(1, main, "ci"), 9).await?, open);
    }
    // A later opening joins it, and does not move its end.
    let later = NewSession { created_at: NOW + 10, ends_at: NOW + 10 + DAY, ..new(1, main, "ci") };
    assert_eq!(index.open_session(&later, 9).await?, open);
    for of in [new(1, other, "ci"), new(1, main, "mallory"), new(1, main, "")] {
        assert_eq!(index.open_session(&of, 9).await?, SessionOpened::NotYours);
        assert_eq!(index.find_session(&of.id, of.cache, &of.subject, NOW).await?, None);
    }
    let find = async |number, now| index.find_session(&id(number), main, "ci", now).await;
    assert_eq!(find(1, NOW + DAY - 1).await?, Some(SessionEnd { ends_at: NOW + DAY }));
    assert_eq!(find(1, NOW + DAY).await?, None);
    assert_eq!(find(2, NOW).await?, None);
    let ended = NewSession { created_at: NOW + DAY, ends_at: NOW + 2 * DAY, ..new(1, main, "ci") };
    assert_eq!(index.open_session(&ended, 9).await?, SessionOpened::NotYours, "a name is used once");
    Ok(())
}

pub(super) async fn a_subject_has_few_sessions_at_once(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    for number in 1..=3 {
        assert!(matches!(index.open_session(&new(number, main, "ci"), 3).await?, SessionOpened::Open(_)));
    }
    assert_eq!(index.open_session(&new(4, main, "ci"), 3).await?, SessionOpened::TooMany);
    assert!(matches!(index.open_session(&new(1, main, "ci"), 3).await?, SessionOpened::Open(_)), "joined");
    assert!(matches!(index.open_session(&new(5, main, "other"), 3).await?, SessionOpened::Open(_)));
    let later = NewSession { created_at: NOW + DAY, ends_at: NOW + 2 * DAY, ..new(4, main, "ci") };
    assert!(matches!(index.open_session(&later, 3).await?, SessionOpened::Open(_)), "the others ended");
    index.delete_cache(main, None, NOW).await?;
    let gone = index.open_session(&new(6, main, "new"), 3).await;
    assert!(matches!(gone, Err(Error::CacheGone)), "{gone:?}");
    Ok(())
}

pub(super) async fn the_oldest_session_makes_room_after_an_hour(index: Subject) -> Result<()> {
    const HOUR: i64 = 3_600;
    let main = cache(&index, "main").await?;
    let begun = |number: u8, at, subject| NewSession {
        created_at: NOW + at,
        ends_at: NOW + at + DAY,
        ..new(number, main, subject)
    };
    let is_open = |opened| matches!(opened, SessionOpened::Open(_));
    // The oldest of all is another subject's.
    assert!(is_open(index.open_session(&begun(9, 0, "other"), 2).await?));
    for (number, at) in [(3, 10), (2, 20)] {
        assert!(is_open(index.open_session(&begun(number, at, "ci"), 2).await?));
    }
    let early = index.open_session(&begun(4, 9 + HOUR, "ci"), 2).await?;
    assert_eq!(early, SessionOpened::TooMany, "all are in use, as far as anybody knows");
    assert!(is_open(index.open_session(&begun(4, 10 + HOUR, "ci"), 2).await?));
    let lasts = async |number, subject| {
        let found = index.find_session(&id(number), main, subject, NOW + 10 + HOUR).await?;
        Ok::<_, Error>(found.is_some())
    };
    assert!(!lasts(3, "ci").await? && lasts(2, "ci").await? && lasts(4, "ci").await?);
    assert!(lasts(9, "other").await?);
    assert!(!index.add_part(&id(3), &part(1, 1), NOW + 10 + HOUR).await?, "it has ended");
    let next = index.open_session(&begun(5, 10 + HOUR, "ci"), 2).await?;
    assert_eq!(next, SessionOpened::TooMany, "one makes room for one");
    Ok(())
}

pub(super) async fn a_session_remembers_its_parts_in_pages(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    for number in 1..=2 {
        index.open_session(&new(number, main, "ci"), 9).await?;
    }
    for number in 1..=5 {
        assert!(index.add_part(&id(1), &part(number, 100), NOW).await?);
    }
    assert!(index.add_part(&id(1), &part(3, 700), NOW).await?, "again, with other chunks");
    assert_eq!(index.find_part(&id(1), &[3; 32]).await?, Some(part(3, 700)));
    assert_eq!(index.find_part(&id(2), &[3; 32]).await?, None);
    let first = index.parts_after(&id(1), None, 3).await?;
    assert_eq!(first, [part(1, 100), part(2, 100), part(3, 700)]);
    assert_eq!(index.parts_after(&id(1), Some(&first[2].digest), 3).await?, [part(4, 100), part(5, 100)]);
    assert_eq!(index.parts_after(&id(2), None, 3).await?, []);
    assert!(!index.add_part(&id(1), &part(6, 1), NOW + DAY).await?, "it has ended");
    assert!(!index.add_part(&id(3), &part(1, 1), NOW).await?, "there is none");
    let empty = SessionPart { digest: [9; 32], chunks: Vec::new() };
    assert!(index.add_part(&id(2), &empty, NOW).await?);
    assert_eq!(index.parts_after(&id(2), None, 3).await?, [empty]);
    Ok(())
}

pub(super) async fn the_recipes_of_a_cache_come_by_age(index: Subject) -> Result<()> {
    let (main, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    push_object(&index, other, 9).await?;
    for number in 1..=5 {
        push_object(&index, main, number).await?;
    }
    let chunk_of = async |number| {
        let rows = index.find_chunks(&[chunk_id(number)]).await?;
        Ok::<_, Error>(rows[0].as_ref().expect("it was pushed").number)
    };
    let mut expected = Vec::new();
    for number in 1..=5 {
        expected.push(vec![run(chunk_of(number).await?, 1)]);
    }
    let (mut found, mut after) = (Vec::new(), None::<ObjectPlace>);
    loop {
        let page = index.recipes_after(main, after, 2).await?;
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = Some(last.place);
        found.extend(page.into_iter().map(|recipe| recipe.runs));
    }
    assert_eq!(found, expected);
    // A place before the last second shows them again: a follower looks back.
    let back = after.map(|place| ObjectPlace { value: place.value - 1, id: 0 });
    assert_eq!(index.recipes_after(main, back, 9).await?.len(), 5);
    assert!(index.remove_object(main, &path_hash(2), Removal::ForCause, NOW).await?);
    assert_eq!(index.recipes_after(main, None, 9).await?.len(), 4);
    index.delete_cache(main, None, NOW).await?;
    assert_eq!(index.recipes_after(main, None, 9).await?, []);
    Ok(())
}

pub(super) async fn chunks_marked_alone_are_stored_again(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    push(&index, main, 1, CommitTarget::Object(object(1))).await?;
    let row = index.find_chunks(&[chunk_id(1)]).await?.remove(0).expect("it was pushed");
    let elsewhere = PackNumber(row.pack.0 + 1);
    for (pack, chunks) in [(row.pack, &[][..]), (elsewhere, &[row.number])] {
        assert_eq!(index.mark_chunks_damaged(pack, chunks, NOW).await?, 0);
    }
    assert!(index.find_chunks(&[chunk_id(1)]).await?[0].is_some());
    assert_eq!(index.mark_chunks_damaged(row.pack, &[row.number], NOW).await?, 1);
    assert_eq!(index.find_chunks(&[chunk_id(1)]).await?, [None]);
    let rows = index.commit_pack(&pack(50, [1])).await?;
    assert_eq!(rows[0].number, row.number, "its number stays");
    assert!(index.find_chunks(&[chunk_id(1)]).await?[0].is_some());
    Ok(())
}

pub(super) async fn ended_sessions_are_swept_in_pages(both: Both) -> Result<()> {
    let index = &both.index;
    let main = cache(index, "main").await?;
    for (number, ends_at) in [(1, NOW + 10), (2, NOW + 10), (3, NOW + DAY)] {
        index.open_session(&NewSession { ends_at, ..new(number, main, "ci") }, 9).await?;
        for digest in 1..=4 {
            assert!(index.add_part(&id(number), &part(digest, 1), NOW).await?);
        }
    }
    assert_eq!(both.jobs.sweep_sessions(NOW + 10 + 3_599, 3).await?, 0, "a request may still use it");
    let mut swept = Vec::new();
    loop {
        match both.jobs.sweep_sessions(NOW + 10 + 3_600, 3).await? {
            0 => break,
            rows => swept.push(rows),
        }
    }
    assert_eq!(swept.iter().sum::<u64>(), 8 + 2, "{swept:?}");
    assert!(swept.iter().all(|rows| *rows <= 3), "{swept:?}");
    assert_eq!(index.parts_after(&id(1), None, 9).await?, []);
    assert_eq!(index.parts_after(&id(3), None, 9).await?.len(), 4, "it lasts");
    assert!(matches!(index.open_session(&new(1, main, "ci"), 9).await?, SessionOpened::Open(_)));
    Ok(())
}

pub(super) async fn a_deleted_cache_ends_its_sessions(both: Both) -> Result<()> {
    let index = &both.index;
    let (main, other) = (cache(index, "main").await?, cache(index, "other").await?);
    for (number, of) in [(1, main), (2, main), (3, other)] {
        index.open_session(&new(number, of, "ci"), 9).await?;
        index.add_part(&id(number), &part(1, 1), NOW).await?;
    }
    index.delete_cache(main, None, NOW).await?;
    let lease = both.jobs.lease_job(JobKind::DeleteCache, "a", NOW, NOW + 60).await?.expect("it is open");
    while !both.jobs.delete_cache_step(&lease, 1, NOW, NOW + 60).await?.is_last {}
    assert_eq!(index.find_session(&id(1), main, "ci", NOW).await?, None);
    assert!(index.find_session(&id(3), other, "ci", NOW).await?.is_some());
    let mut swept = 0;
    loop {
        match both.jobs.sweep_sessions(NOW, 9).await? {
            0 => break,
            rows => swept += rows,
        }
    }
    assert_eq!(swept, 4, "two parts and two sessions");
    Ok(())
}
