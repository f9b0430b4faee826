//! What the journal asks: the present state of what changed, and a lease that is worth something.

use std::sync::Arc;

use dormer_nix::DocumentName;

use super::fixtures::{NOW, alias, cache, chunk_id, nar_hash, new_cache, path, path_hash, push, push_object};
use crate::{
    CachePatch, CollectIndex, Error, Index, JobIndex, JournalIndex, JournalNote, JournalState,
    JournalSubject, NewDocument, OutboxPosition, Pin, Removal, Result, StoredListing,
};

/// What every case works on: the contracts of one adapter.
pub(super) struct Two {
    pub(super) index: Arc<dyn Index>,
    pub(super) journal: Arc<dyn JournalIndex>,
    pub(super) collect: Arc<dyn CollectIndex>,
    pub(super) jobs: Arc<dyn JobIndex>,
}

fn subjects(notes: &[JournalNote]) -> Vec<JournalSubject> {
    notes.iter().map(|note| note.subject.clone()).collect()
}

/// Forgets all notes, as if they were written.
async fn write_notes(journal: &Arc<dyn JournalIndex>) -> Result<()> {
    let (lease, state) = journal.lease_journal("a", NOW, NOW + 10).await?.expect("it is free");
    let notes = journal.journal_notes(100).await?;
    journal.save_journal(&lease, &state, &notes, NOW + 10).await?;
    journal.release_journal(&lease).await?;
    assert_eq!(journal.journal_notes(100).await?, []);
    Ok(())
}

pub(super) async fn a_lost_lease_saves_nothing(two: Two) -> Result<()> {
    let Two { journal, .. } = two;
    assert_eq!(journal.journal_state().await?, JournalState::default());
    let (first, state) = journal.lease_journal("a", NOW, NOW + 10).await?.expect("it is free");
    assert_eq!(journal.lease_journal("b", NOW + 9, NOW + 99).await?, None);
    // The same process may go on at once, with a new fence: it stopped in the middle.
    let (again, _) = journal.lease_journal("a", NOW + 1, NOW + 10).await?.expect("it is its own");
    assert!(again.fence > first.fence);
    let first = again;
    assert_eq!(journal.journal_state().await?.fence, again.fence);
    let fence = again.fence;
    let saved = JournalState { lineage: 3, sequence: 1, snapshot: Some(vec![1]), fence, ..state.clone() };
    journal.save_journal(&first, &saved, &[], NOW + 20).await?;
    assert_eq!(journal.journal_state().await?, saved);
    assert_eq!(journal.lease_journal("b", NOW + 19, NOW + 99).await?, None, "saving renews the lease");
    journal.renew_journal(&first, NOW + 30).await?;
    assert_eq!(journal.journal_state().await?, saved, "a renewal saves nothing");
    assert_eq!(journal.lease_journal("b", NOW + 29, NOW + 99).await?, None);
    let (second, found) = journal.lease_journal("b", NOW + 30, NOW + 99).await?.expect("it has ended");
    assert!(second.fence > first.fence);
    let saved = JournalState { fence: second.fence, ..saved };
    assert_eq!(found, saved);
    let lost = journal.save_journal(&first, &state, &[], NOW + 200).await;
    assert!(matches!(lost, Err(Error::JobLeaseLost)), "{lost:?}");
    let lost = journal.renew_journal(&first, NOW + 200).await;
    assert!(matches!(lost, Err(Error::JobLeaseLost)), "{lost:?}");
    journal.release_journal(&first).await?;
    assert_eq!(journal.lease_journal("a", NOW + 31, NOW + 99).await?, None, "another one's lease stays");
    assert_eq!(journal.journal_state().await?, saved);
    journal.release_journal(&second).await?;
    let lost = journal.renew_journal(&second, NOW + 200).await;
    assert!(matches!(lost, Err(Error::JobLeaseLost)), "it was given back: {lost:?}");
    assert!(journal.lease_journal("a", NOW + 31, NOW + 99).await?.is_some());
    Ok(())
}

pub(super) async fn changes_that_the_journal_missed_ask_for_a_snapshot(two: Two) -> Result<()> {
    let Two { index, journal, jobs, .. } = two;
    let main = cache(&index, "main").await?;
    for number in 1..=3 {
        push_object(&index, main, number).await?;
    }
    let rows = index.outbox_after(OutboxPosition::default(), 10).await?;
    let (lease, state) = journal.lease_journal("a", NOW, NOW + 10).await?.expect("it is free");
    let state = JournalState { lineage: 3, cursor: rows[0].position, segment_bytes: 7, ..state };
    journal.save_journal(&lease, &state, &[], NOW + 10).await?;

    let later = NOW + 1_000;
    assert_eq!(jobs.trim_outbox(later, NOW, 10).await?, 1, "what the journal has written");
    assert_eq!(jobs.trim_outbox(later, NOW, 10).await?, 0, "the rest waits for it");
    assert_eq!(journal.journal_state().await?, state);
    assert!(jobs.trim_outbox(later, later, 10).await? >= 2, "not for ever");
    assert!(journal.journal_state().await?.segment_bytes > 1 << 60);
    let late = journal.save_journal(&lease, &state, &[], NOW + 20).await;
    assert!(matches!(late, Err(Error::JobLeaseLost)), "the turn that goes on ends: {late:?}");
    assert!(journal.lease_journal("b", NOW, NOW + 10).await?.is_some(), "and its lease keeps nobody waiting");
    Ok(())
}

pub(super) async fn a_note_stays_until_the_state_that_it_stands_for_is_written(two: Two) -> Result<()> {
    let Two { index, journal, .. } = two;
    let (lease, state) = journal.lease_journal("a", NOW, NOW + 10).await?.expect("it is free");
    let main = cache(&index, "main").await?;
    push(&index, main, 1, alias("f.nar.xz")).await?;
    index.add_pin(main, &pin("p", 1), None).await?;
    let notes = journal.journal_notes(10).await?;
    let of_alias = JournalSubject::Alias(main, "f.nar.xz".to_owned());
    let of_pin = JournalSubject::Pin(main, "p".to_owned(), path_hash(1));
    assert_eq!(subjects(&notes), [JournalSubject::Cache(main), of_alias, of_pin.clone()]);
    // Something changes between the reading of the state and the note that it is written.
    index.add_pin(main, &Pin { ends_at: Some(NOW + 9), ..pin("p", 1) }, None).await?;
    journal.save_journal(&lease, &state, &notes, NOW + 10).await?;
    let left = journal.journal_notes(10).await?;
    assert_eq!(subjects(&left), [of_pin]);
    journal.save_journal(&lease, &state, &left, NOW + 10).await?;
    assert_eq!(journal.journal_notes(10).await?, []);
    assert_eq!(index.remove_pins(main, "p", None).await?, 1);
    assert_eq!(journal.journal_notes(10).await?.len(), 1);
    Ok(())
}

fn pin(name: &str, number: u32) -> Pin {
    Pin { name: name.to_owned(), path: path(number), created_at: NOW, ends_at: None }
}

/// However many pins a cache has, a change notes those that it adds or removes, and no others.
pub(super) async fn a_change_of_pins_notes_the_pins_that_changed(two: Two) -> Result<()> {
    let Two { index, journal, .. } = two;
    let main = cache(&index, "main").await?;
    let name = "a-name-\"with\"-signs";
    for number in 1..=3 {
        index.add_pin(main, &pin(name, number), None).await?;
    }
    index.add_pin(main, &Pin { ends_at: Some(NOW + 5), ..pin(name, 4) }, None).await?;
    index.add_pin(main, &pin("other", 1), None).await?;
    write_notes(&journal).await?;

    let noted = async |numbers: &[u32]| -> Result<()> {
        let mut found = subjects(&journal.journal_notes(99).await?);
        let of_pin = |number: &u32| JournalSubject::Pin(main, name.to_owned(), path_hash(*number));
        let mut expected: Vec<_> = numbers.iter().map(of_pin).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        write_notes(&journal).await
    };
    assert_eq!(index.remove_pins(main, name, Some(&path_hash(9))).await?, 0);
    noted(&[]).await?;
    // One is new, one has ended, and one is more than the name keeps.
    index.add_pin(main, &Pin { created_at: NOW + 9, ..pin(name, 5) }, Some(3)).await?;
    noted(&[1, 4, 5]).await?;
    index.add_pin(main, &Pin { created_at: NOW + 10, ..pin(name, 2) }, Some(3)).await?;
    noted(&[2]).await?;
    assert_eq!(index.remove_pins(main, name, Some(&path_hash(3))).await?, 1);
    noted(&[3]).await?;
    let found = journal.journaled_pin(main, name, &path_hash(2)).await?.expect("it is there");
    assert_eq!(found, Pin { created_at: NOW + 10, ..pin(name, 2) });
    assert_eq!(journal.journaled_pin(main, name, &path_hash(3)).await?, None);
    assert_eq!(journal.journaled_pin(main, "other", &path_hash(2)).await?, None);
    assert_eq!(index.remove_pins(main, name, None).await?, 2);
    noted(&[2, 5]).await
}

pub(super) async fn a_removal_for_cause_notes_the_aliases_that_it_takes(two: Two) -> Result<()> {
    let Two { index, journal, .. } = two;
    let main = cache(&index, "main").await?;
    push_object(&index, main, 1).await?;
    push(&index, main, 1, alias("f.nar.xz")).await?;
    write_notes(&journal).await?;
    index.remove_object(main, &path_hash(1), Removal::ForCause, NOW).await?;
    let notes = journal.journal_notes(10).await?;
    assert_eq!(subjects(&notes), [JournalSubject::Alias(main, "f.nar.xz".to_owned())]);
    assert_eq!(journal.journaled_alias(main, "f.nar.xz").await?, None);
    Ok(())
}

fn log(number: u32, body: Vec<u8>) -> NewDocument {
    let derivation = dormer_nix::StorePath::new(path_hash(number), "package.drv").expect("a good name");
    let encoding = Some("zstd".to_owned());
    NewDocument { name: DocumentName::Log(derivation), owner: path_hash(number), size: 7_000, encoding, body }
}

pub(super) async fn what_changes_besides_objects_is_noted(two: Two) -> Result<()> {
    let Two { index, journal, collect, .. } = two;
    let main = cache(&index, "main").await?;
    push(&index, main, 1, alias("f.nar.xz")).await?;
    write_notes(&journal).await?;

    let document = log(1, b"log".to_vec());
    index.put_document(main, &document, NOW).await?;
    let of_document = JournalSubject::Document(main, document.name.to_string());
    assert_eq!(subjects(&journal.journal_notes(9).await?), std::slice::from_ref(&of_document));
    write_notes(&journal).await?;
    // A path that names the log's derivation goes, and the log with it.
    let deriver = Some(format!("{}-package.drv", path_hash(1)));
    let object = crate::Object { deriver, ..super::fixtures::object(1) };
    push(&index, main, 1, crate::CommitTarget::Object(object)).await?;
    assert_eq!(journal.journal_notes(9).await?, [], "an object has its outbox row");
    index.remove_object(main, &path_hash(1), Removal::WithGraceUntil(NOW), NOW).await?;
    assert_eq!(subjects(&journal.journal_notes(9).await?), [of_document]);
    assert_eq!(journal.journaled_document(main, &document.name.to_string()).await?, None);
    write_notes(&journal).await?;

    assert_eq!(collect.expire_aliases(9, NOW + 1).await?, 1);
    let of_alias = JournalSubject::Alias(main, "f.nar.xz".to_owned());
    assert_eq!(subjects(&journal.journal_notes(9).await?), [of_alias]);
    assert_eq!(journal.journaled_alias(main, "f.nar.xz").await?, None);
    write_notes(&journal).await?;

    // Another master key.
    journal.restore_setting(crate::MASTER_KEY_PROOF, b"before").await?;
    index.begin_rekey(b"before", b"after").await?;
    assert_eq!(subjects(&journal.journal_notes(9).await?), [JournalSubject::Settings]);
    write_notes(&journal).await?;
    let key = index.list_sealed_keys(None, 1).await?.remove(0);
    index.replace_sealed_keys(&[(key, b"sealed anew".to_vec())]).await?;
    assert_eq!(subjects(&journal.journal_notes(9).await?), [JournalSubject::Cache(main)]);
    write_notes(&journal).await?;
    index.end_rekey().await?;
    assert_eq!(subjects(&journal.journal_notes(9).await?), [JournalSubject::Settings]);
    Ok(())
}

pub(super) async fn documents_are_read_in_pages_of_few_bytes(two: Two) -> Result<()> {
    let Two { index, journal, .. } = two;
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    let large = 3 << 20;
    for (cache, number, bytes) in [(a, 1, large), (a, 2, large), (b, 1, 10), (b, 3, 20)] {
        index.put_document(cache, &log(number, vec![7; bytes]), NOW).await?;
    }
    let (mut after, mut pages) = (0, Vec::new());
    loop {
        let page = journal.journaled_documents_after(after, 9).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        pages.push(page.iter().map(|document| document.body.as_ref().map(Vec::len)).collect::<Vec<_>>());
    }
    // The second page has room for small ones, and the pages hold each document once.
    assert_eq!(pages, [vec![Some(large)], vec![Some(large), Some(10), Some(20)]]);
    let name = log(3, Vec::new()).name.to_string();
    let found = journal.journaled_document(b, &name).await?.expect("it is there");
    assert_eq!((found.cache, found.owner, found.size, found.written_at), (b, path_hash(3), 7_000, NOW));
    assert_eq!((found.name, found.encoding, found.body), (name, Some("zstd".to_owned()), Some(vec![7; 20])));
    Ok(())
}

pub(super) async fn the_present_state_is_read_by_key_and_in_pages(two: Two) -> Result<()> {
    let Two { index, journal, .. } = two;
    let (a, b) = (cache(&index, "a").await?, cache(&index, "b").await?);
    for number in 1..4 {
        push_object(&index, a, number).await?;
    }
    push_object(&index, b, 2).await?;
    push(&index, b, 5, alias("f")).await?;
    push(&index, b, 6, alias("g")).await?;

    let found = journal.journaled_objects(a, &[path_hash(3), path_hash(9)]).await?;
    assert_eq!(found.len(), 1);
    let (object, nar) = (&found[0].object, &found[0].nar);
    assert_eq!((found[0].cache, &object.path, found[0].created_at), (a, &path(3), NOW));
    assert_eq!((nar.hash, nar.listing.is_some()), (nar_hash(3), true));
    let known = index.find_object(a, &path_hash(3)).await?.expect("it is there");
    assert_eq!((*object == known.object, nar.size), (true, known.nar.size));
    let rows = index.load_chunks(&nar.recipe.runs).await?;
    assert!(rows.iter().all(|row| row.id != chunk_id(0)) && !rows.is_empty());

    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = journal.journaled_objects_after(after, 2).await?;
        let Some(last) = page.last() else { break };
        after = Some((last.cache, last.object.path.hash()));
        seen.extend(page.iter().map(|found| (found.cache, found.object.path.hash())));
    }
    assert_eq!(seen.len(), 4);
    assert!(seen.is_sorted(), "by cache and hash");
    let first = journal.journaled_aliases_after((a, "z"), 1).await?;
    assert_eq!((first[0].cache, first[0].file_name.as_str(), first[0].compression.as_str()), (b, "f", "xz"));
    assert!(matches!(first[0].nar.listing, Some(StoredListing::Inline(_) | StoredListing::Chunks { .. })));
    let second = journal.journaled_aliases_after((b, "f"), 9).await?;
    assert_eq!(second.iter().map(|alias| alias.file_name.as_str()).collect::<Vec<_>>(), ["g"]);

    // A row may show up a moment after its commit.
    let rows = index.outbox_after(OutboxPosition::START, 1_000).await?;
    assert!(journal.outbox_end().await? >= rows.last().map_or(OutboxPosition::START, |row| row.position));
    Ok(())
}

pub(super) async fn a_cache_is_restored_with_all_its_keys(two: Two) -> Result<()> {
    let Two { index, journal, .. } = two;
    assert!(journal.is_empty().await?);
    assert_eq!(journal.outbox_end().await?, OutboxPosition::START);
    let id = index.create_cache(&new_cache("main")).await?;
    assert!(!journal.is_empty().await?);
    let key = super::fixtures::key("second");
    let quota_bytes = Some(Some(77));
    let patch = CachePatch {
        replace_keys: Some(key),
        quota_bytes,
        keep_latest: Some(Some(3)),
        ..CachePatch::default()
    };
    index.update_cache(id, &patch, NOW).await?;
    let cache = journal.find_cache_by_id(id).await?.expect("it is there");
    assert_eq!(Some(&cache), index.find_cache("main").await?.as_ref());
    index.delete_cache(id, None, NOW).await?;
    assert_eq!(journal.find_cache_by_id(id).await?, None);
    let restored = journal.restore_cache(&cache).await?;
    assert_ne!(restored, id);
    let found = index.find_cache("main").await?.expect("it was restored");
    assert_eq!(found, crate::Cache { id: restored, ..cache.clone() });
    assert_eq!(journal.restore_cache(&cache).await?, restored, "twice is the same");
    index.create_setting("name", b"value").await?;
    assert!(journal.settings().await?.contains(&("name".to_owned(), b"value".to_vec())));
    journal.restore_setting("name", b"other").await?;
    assert_eq!(index.find_setting("name").await?, Some(b"other".to_vec()));
    Ok(())
}
