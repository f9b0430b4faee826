//! Documents: what comes back, what merges, and when they go.

use dormer_nix::{BuildId, BuildTrace, DocumentName, StorePath, StorePathHash, TraceKey};

use super::fixtures::{
    NOW, Subject, cache, changes, commit, committed, nar_hash, new_nar, object, pack, path, path_hash, push,
    tag,
};
use crate::topics::documents::DEBUG_LOOKS;
use crate::{
    CacheId, CommitTarget, Error, NarId, NarSource, NewDocument, NewNar, Object, Removal, Result,
    StoredDocument, TraceOutcome,
};

fn derivation(number: u32) -> StorePath {
    StorePath::new(path_hash(number), &format!("package-{number}.drv")).expect("a good name")
}

fn log(number: u32, body: &[u8]) -> NewDocument {
    NewDocument {
        name: DocumentName::Log(derivation(number)),
        owner: path_hash(number),
        size: 7_000,
        encoding: Some("zstd".to_owned()),
        body: body.to_vec(),
    }
}

fn key(number: u32, output: &str) -> TraceKey {
    TraceKey::Derivation { derivation: derivation(number), output: output.to_owned() }
}

/// Output `out` of derivation `number` became path `out`.
fn trace(number: u32, out: u32, sigs: &[&str]) -> BuildTrace {
    BuildTrace {
        key: key(number, "out"),
        out_path: path(out),
        dependents: std::collections::BTreeMap::new(),
        sigs: sigs.iter().map(|sig| format!("{sig}:AAAA")).collect(),
        is_keyed: false,
    }
}

async fn push_output(index: &Subject, cache: CacheId, number: u32, deriver: Option<u32>) -> Result<()> {
    let deriver = deriver.map(|deriver| derivation(deriver).to_string());
    let target = CommitTarget::Object(Object { deriver, ..object(number) });
    push(index, cache, number, target).await.map(drop)
}

async fn find_log(index: &Subject, cache: CacheId, number: u32) -> Result<Option<StoredDocument>> {
    index.find_document(cache, &DocumentName::Log(derivation(number))).await
}

async fn find_trace(index: &Subject, cache: CacheId, number: u32) -> Result<Option<BuildTrace>> {
    let key = key(number, "out");
    let found = index.find_document(cache, &DocumentName::Trace(key.clone())).await?;
    Ok(found.map(|found| {
        assert_eq!((found.size, &found.encoding), (found.body.len() as u64, &None));
        BuildTrace::parse_stored(&key, &found.body).expect("what was stored is a trace")
    }))
}

pub(super) async fn a_document_comes_back_and_gives_way_to_the_next(index: Subject) -> Result<()> {
    let (main, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    assert_eq!(find_log(&index, main, 1).await?, None);
    for body in [&b"first"[..], b"second", b""] {
        let document = log(1, body);
        index.put_document(main, &document, NOW).await?;
        let NewDocument { size, encoding, body, .. } = document;
        assert_eq!(find_log(&index, main, 1).await?, Some(StoredDocument { size, encoding, body }));
    }
    assert_eq!((find_log(&index, main, 2).await?, find_log(&index, other, 1).await?), (None, None));
    Ok(())
}

pub(super) async fn a_document_that_is_added_gives_way_to_the_one_that_is_there(
    index: Subject,
) -> Result<()> {
    let main = cache(&index, "main").await?;
    push_output(&index, main, 2, Some(1)).await?;
    assert!(index.add_document(main, &log(1, b"first"), NOW).await?);
    let before = changes(&index, main).await?.len();
    assert!(!index.add_document(main, &log(1, b"second"), NOW).await?);
    assert_eq!(find_log(&index, main, 1).await?.expect("it stays").body, b"first");
    assert_eq!(changes(&index, main).await?.len(), before, "nothing changed");
    index.delete_cache(main, None, NOW).await?;
    assert!(matches!(index.add_document(main, &log(1, b"third"), NOW).await, Err(Error::CacheGone)));
    assert!(matches!(index.add_document(main, &log(2, b"x"), NOW).await, Err(Error::CacheGone)));
    Ok(())
}

pub(super) async fn a_deleted_cache_has_and_takes_no_document(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    index.put_document(main, &log(1, b"x"), NOW).await?;
    index.merge_trace(main, &trace(1, 2, &[]), &[], NOW).await?;
    index.delete_cache(main, None, NOW).await?;
    assert_eq!((find_log(&index, main, 1).await?, find_trace(&index, main, 1).await?), (None, None));
    assert!(matches!(index.put_document(main, &log(2, b"x"), NOW).await, Err(Error::CacheGone)));
    let merged = index.merge_trace(main, &trace(1, 2, &["a"]), &[], NOW).await;
    assert!(matches!(merged, Err(Error::CacheGone)), "{merged:?}");
    Ok(())
}

pub(super) async fn a_trace_gathers_signatures_and_keeps_its_first_path(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    let merge = async |trace: BuildTrace| index.merge_trace(main, &trace, &[], NOW).await;
    assert_eq!(merge(trace(1, 2, &["a"])).await?, TraceOutcome::Written);
    assert_eq!(merge(trace(1, 2, &["a"])).await?, TraceOutcome::Unchanged);
    assert_eq!(merge(trace(1, 2, &["b", "a"])).await?, TraceOutcome::Written);
    assert_eq!(find_trace(&index, main, 1).await?, Some(trace(1, 2, &["a", "b"])));
    assert_eq!(merge(trace(1, 3, &["c"])).await?, TraceOutcome::Kept(path(2)));
    assert_eq!(find_trace(&index, main, 1).await?, Some(trace(1, 2, &["a", "b"])));
    // Signatures of unknown keys are bounded, and those of a known key stay.
    let known = ["a".to_owned()];
    for n in 0..40 {
        index.merge_trace(main, &trace(1, 2, &[&format!("bogus-{n}")]), &known, NOW).await?;
    }
    let sigs = find_trace(&index, main, 1).await?.expect("it stays").sigs;
    assert!(sigs.len() == 17 && sigs.contains(&"a:AAAA".to_owned()), "{sigs:?}");
    Ok(())
}

pub(super) async fn a_trace_to_a_path_that_is_not_here_gives_way_to_one_that_is(
    index: Subject,
) -> Result<()> {
    let main = cache(&index, "main").await?;
    let merge = async |trace: BuildTrace| index.merge_trace(main, &trace, &[], NOW).await;
    assert_eq!(merge(trace(1, 2, &["a"])).await?, TraceOutcome::Written);
    // Neither path is here, then both are, then the first one is removed.
    assert_eq!(merge(trace(1, 3, &["b"])).await?, TraceOutcome::Kept(path(2)));
    push_output(&index, main, 3, None).await?;
    assert_eq!(merge(trace(1, 3, &["b"])).await?, TraceOutcome::Written);
    assert_eq!(find_trace(&index, main, 1).await?, Some(trace(1, 3, &["b"])));
    push_output(&index, main, 2, None).await?;
    assert_eq!(merge(trace(1, 2, &["a"])).await?, TraceOutcome::Kept(path(3)));
    assert!(index.remove_object(main, &path_hash(3), Removal::WithGraceUntil(NOW + 1000), NOW).await?);
    assert_eq!(find_trace(&index, main, 1).await?, None, "it went with its path");
    Ok(())
}

pub(super) async fn traces_of_a_path_are_bounded_in_number(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    let merge = async |trace: BuildTrace| index.merge_trace(main, &trace, &[], NOW).await;
    assert_eq!(merge(trace(1, 2, &[])).await?, TraceOutcome::Written);
    for number in 2..=1_024 {
        assert_eq!(merge(trace(number, 2, &[])).await?, TraceOutcome::Written);
    }
    assert_eq!(merge(trace(1_025, 2, &[])).await?, TraceOutcome::Full);
    assert_eq!(merge(trace(1_024, 2, &["a"])).await?, TraceOutcome::Written, "it was there");
    assert_eq!(merge(trace(1_025, 3, &[])).await?, TraceOutcome::Written, "another path");
    Ok(())
}

pub(super) async fn signatures_of_racing_traces_are_all_kept(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let index = index.clone();
        tasks
            .spawn(async move { index.merge_trace(main, &trace(1, 2, &[&format!("k{n}")]), &[], NOW).await });
    }
    while let Some(merged) = tasks.join_next().await {
        assert_eq!(merged.expect("no task panics")?, TraceOutcome::Written);
    }
    let mut sigs = find_trace(&index, main, 1).await?.expect("it is there").sigs;
    sigs.sort_unstable();
    assert_eq!(sigs, (0..8).map(|n| format!("k{n}:AAAA")).collect::<Vec<_>>());
    Ok(())
}

pub(super) async fn a_document_is_told_to_followers_of_what_it_belongs_to(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    for number in [1, 2] {
        push_output(&index, main, number, Some(9)).await?;
    }
    push_output(&index, main, 3, None).await?;
    let before = changes(&index, main).await?.len();
    let since = async |before: usize| -> Result<Vec<StorePathHash>> {
        let mut since: Vec<_> = changes(&index, main).await?.drain(before..).flatten().collect();
        since.sort_unstable();
        Ok(since)
    };
    index.put_document(main, &log(9, b"x"), NOW).await?;
    let mut outputs = [path_hash(1), path_hash(2)];
    outputs.sort_unstable();
    assert_eq!(since(before).await?, outputs);
    index.put_document(main, &log(8, b"nobody's"), NOW).await?;
    index.merge_trace(main, &trace(9, 4, &[]), &[], NOW).await?;
    assert_eq!(since(before + 2).await?, []);
    index.merge_trace(main, &trace(8, 3, &["a"]), &[], NOW).await?;
    index.merge_trace(main, &trace(8, 3, &["a"]), &[], NOW).await?;
    assert_eq!(since(before + 2).await?, [path_hash(3)], "once");
    Ok(())
}

pub(super) async fn a_log_goes_with_the_last_object_of_its_derivation(index: Subject) -> Result<()> {
    let (main, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    for cache in [main, other] {
        push_output(&index, cache, 1, Some(9)).await?;
        push_output(&index, cache, 2, Some(9)).await?;
        index.put_document(cache, &log(9, b"x"), NOW).await?;
        index.put_document(cache, &log(8, b"another's"), NOW).await?;
    }
    push_output(&index, main, 3, Some(7)).await?;
    push_output(&index, main, 4, None).await?;
    for (number, has_log) in [(1, true), (2, true), (3, false), (4, false)] {
        let found = index.find_object(main, &path_hash(number)).await?.expect("it is there");
        let and_log = index.find_object_and_log(main, &path_hash(number)).await?;
        assert_eq!(and_log, Some((found, has_log)), "path {number}");
    }
    assert_eq!(index.find_object_and_log(main, &path_hash(9)).await?, None);
    let grace = Removal::WithGraceUntil(NOW + 1000);
    assert!(index.remove_object(main, &path_hash(1), grace, NOW).await?);
    assert!(find_log(&index, main, 9).await?.is_some(), "path 2 names its derivation too");
    assert!(index.remove_for_cause(main, &path_hash(2), None, false, NOW).await?.was_there);
    assert_eq!(find_log(&index, main, 9).await?, None);
    assert!(find_log(&index, main, 8).await?.is_some());
    assert!(find_log(&index, other, 9).await?.is_some());
    Ok(())
}

pub(super) async fn a_derivation_that_is_removed_takes_its_log_along(index: Subject) -> Result<()> {
    let (main, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    for cache in [main, other] {
        for number in [7, 8, 9] {
            index.put_document(cache, &log(number, b"a secret"), NOW).await?;
        }
    }
    // Of no object.
    let removed = index.remove_for_cause(main, &path_hash(7), None, false, NOW).await?;
    assert_eq!((removed.was_there, removed.had_log), (false, true));
    let again = index.remove_for_cause(main, &path_hash(7), None, false, NOW).await?;
    assert_eq!((again.was_there, again.had_log), (false, false));
    assert_eq!(find_log(&index, main, 7).await?, None);
    // Of objects that stay: followers hear of each.
    for number in [1, 2] {
        push_output(&index, main, number, Some(9)).await?;
    }
    push_output(&index, main, 9, None).await?;
    let before = changes(&index, main).await?.len();
    let removed = index.remove_for_cause(main, &path_hash(9), None, false, NOW).await?;
    assert_eq!((removed.was_there, removed.had_log), (true, true));
    assert_eq!(find_log(&index, main, 9).await?, None);
    let mut told: Vec<_> = changes(&index, main).await?.drain(before..).flatten().collect();
    let mut expected = [path_hash(1), path_hash(2), path_hash(9)];
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert!(find_log(&index, main, 8).await?.is_some() && find_log(&index, other, 9).await?.is_some());
    // A removal with a grace is no word about the log.
    push_output(&index, main, 8, None).await?;
    assert!(index.remove_object(main, &path_hash(8), Removal::WithGraceUntil(NOW + 1000), NOW).await?);
    assert!(find_log(&index, main, 8).await?.is_some());
    Ok(())
}

pub(super) async fn a_trace_goes_with_its_path(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    for number in [1, 2] {
        push_output(&index, main, number, None).await?;
        index.merge_trace(main, &trace(number + 10, number, &[]), &[], NOW).await?;
        index.merge_trace(main, &trace(number + 20, number, &[]), &[], NOW).await?;
    }
    let grace = Removal::WithGraceUntil(NOW + 1000);
    assert!(index.remove_object(main, &path_hash(1), grace, NOW).await?);
    assert_eq!((find_trace(&index, main, 11).await?, find_trace(&index, main, 21).await?), (None, None));
    assert!(find_trace(&index, main, 12).await?.is_some());
    // Of a path that went before, too.
    index.merge_trace(main, &trace(11, 1, &[]), &[], NOW).await?;
    assert!(!index.remove_for_cause(main, &path_hash(1), None, false, NOW).await?.was_there);
    assert_eq!(find_trace(&index, main, 11).await?, None);
    Ok(())
}

pub(super) async fn debug_info_is_found_by_its_build_id(index: Subject) -> Result<()> {
    let (main, other) = (cache(&index, "main").await?, cache(&index, "other").await?);
    let id = |text: &str| -> BuildId { text.parse().expect("a build id") };
    let push_debug = async |cache: CacheId, number: u32, ids: &[&str]| -> Result<NarId> {
        let rows = index.commit_pack(&pack(number, [number])).await?;
        let build_ids = ids.iter().map(|text| id(text)).collect();
        let nar = NarSource::New(Box::new(NewNar { build_ids, ..new_nar(number, &rows) }));
        Ok(committed(&commit(&index, cache, nar, CommitTarget::Object(object(number))).await?))
    };
    let find = async |cache: CacheId, text: &str| index.find_debug_nar(cache, &id(text)).await;
    let nar = |number: u32| Some((nar_hash(number), tag(number)));
    push_debug(main, 1, &["aa01", "aa02"]).await?;
    let second = push_debug(main, 2, &["aa02", "aa03", "aa03"]).await?;
    push_debug(other, 3, &["aa01"]).await?;
    assert_eq!((find(main, "aa01").await?, find(main, "aa03").await?), (nar(1), nar(2)));
    assert_eq!(find(main, "aa02").await?, nar(2), "the newest");
    assert_eq!((find(main, "aa04").await?, find(other, "aa02").await?), (None, None));
    assert_eq!(find(other, "aa01").await?, nar(3));
    // An object of a NAR that is known already.
    commit(&index, other, NarSource::Known(second), CommitTarget::Object(object(2))).await?;
    assert_eq!(find(other, "aa02").await?, nar(2));
    let before = index.statement_count();
    find(main, "aa02").await?;
    assert_eq!(index.statement_count() - before, super::fixtures::look_up_statements(&index).await?);
    // Another tenant pushes so many NARs with the build id that the first look ends among them.
    let hostile = u32::try_from(DEBUG_LOOKS[0]).expect("it is small") + 2;
    for number in 100..100 + hostile {
        push_debug(other, number, &["aa03"]).await?;
    }
    assert_eq!((find(main, "aa03").await?, find(main, "aa04").await?), (nar(2), None));
    // Damaged bytes are no debug info, and a removal takes it along.
    index.mark_damaged(second, &[], NOW).await?;
    assert_eq!(find(main, "aa02").await?, nar(1));
    assert!(index.remove_for_cause(main, &path_hash(1), None, false, NOW).await?.was_there);
    assert_eq!(find(main, "aa02").await?, None);
    index.delete_cache(other, None, NOW).await?;
    assert_eq!(find(other, "aa01").await?, None);
    Ok(())
}

pub(super) async fn a_document_costs_few_statements(index: Subject) -> Result<()> {
    let main = cache(&index, "main").await?;
    let look_up = super::fixtures::look_up_statements(&index).await?;
    let before = index.statement_count();
    find_log(&index, main, 1).await?;
    assert_eq!(index.statement_count() - before, look_up);
    let before = index.statement_count();
    index.put_document(main, &log(1, b"x"), NOW).await?;
    let cost = index.statement_count() - before;
    // Beside the one: the beginning, the lock and the end.
    assert!(cost <= 4, "{cost} statements for a log");
    // One to look, and one to write what is new.
    for (sigs, most) in [(&["a"][..], 5), (&["a"], 4), (&["b"], 5)] {
        let before = index.statement_count();
        index.merge_trace(main, &trace(1, 2, sigs), &[], NOW).await?;
        let cost = index.statement_count() - before;
        assert!(cost <= most, "{cost} statements for a trace");
    }
    Ok(())
}
