use std::time::Duration;

use super::drainer_lock::UNFINISHED_AGE;
use super::refused::REFUSED_BYTES;
use super::*;
use crate::durable_file::UNFINISHED;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn caches(texts: &[&str]) -> Vec<QueuedCache> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn entry(cache_names: &[&str], path: &str) -> QueueEntry {
    QueueEntry::new(&caches(cache_names), vec![path.to_owned()], at(1))
}

fn spool() -> (tempfile::TempDir, Spool) {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path().join("a/queue")).unwrap();
    (folder, spool)
}

fn paths(spool: &Spool) -> Vec<String> {
    spool.entries().unwrap().into_iter().flat_map(|(_, entry)| entry.unwrap().paths).collect()
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> usize {
    let below = |entry: fs::DirEntry| match entry.path() {
        path if path.is_dir() => files(&path),
        _ => 1,
    };
    fs::read_dir(folder).unwrap().map(|entry| below(entry.unwrap())).sum()
}

#[test]
fn entries_come_back_oldest_first_and_leave_when_every_cache_has_them() {
    let (_folder, spool) = spool();
    let second = spool.enqueue(&entry(&["a", "b"], "/2"), at(2)).unwrap();
    let first = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
    assert_eq!(paths(&spool), ["/1", "/2"]);
    let [a, b] = ["a", "b"].map(|text| text.parse::<QueuedCache>().unwrap());
    assert_eq!(
        spool.settle(&second, &a).unwrap().unwrap().caches.into_keys().collect::<Vec<_>>(),
        std::slice::from_ref(&b)
    );
    assert_eq!(spool.settle(&first, &a).unwrap(), None);
    assert_eq!(paths(&spool), ["/2"]);
    assert_eq!(spool.settle(&second, &b).unwrap(), None);
    assert!(paths(&spool).is_empty() && spool.dead().unwrap().is_empty());
}

#[test]
fn only_its_user_can_read_the_queue() {
    use std::os::unix::fs::PermissionsExt as _;
    fn check(folder: &Path, seen: &mut usize) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}: {mode:o}", path.display());
            *seen += 1;
            if path.is_dir() {
                check(&path, seen);
            }
        }
    }
    let (folder, spool) = spool();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder.path().join("a")), mode(spool.folder())), (0o700, 0o700));
    // Also in an existing folder that others may read: entries, a dead letter, refusals.
    fs::set_permissions(spool.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
    let id = spool.enqueue(&entry(&["a", "b"], "/2"), at(1)).unwrap();
    let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
    spool.bury(&id, &"a".parse().unwrap(), &standing).unwrap();
    spool.count_refused("no room", at(2));
    let mut seen = 0;
    check(spool.folder(), &mut seen);
    assert!(seen >= 18 + 6, "{seen}");
}

/// A folder in the place of an entry cannot be read, even by root.
#[test]
fn an_entry_that_cannot_be_read_hides_no_other() {
    let (_folder, spool) = spool();
    let [broken, good] = [1, 2].map(|second| spool.enqueue(&entry(&["a"], "/1"), at(second)).unwrap());
    fs::remove_file(spool.path(&broken)).unwrap();
    fs::create_dir(spool.path(&broken)).unwrap();
    assert!(spool.read(&broken).is_err());
    let entries = spool.entries().unwrap();
    let seen: Vec<(&EntryId, bool)> = entries.iter().map(|(id, entry)| (id, entry.is_ok())).collect();
    assert_eq!(seen, [(&broken, false), (&good, true)]);
}

#[test]
fn a_change_does_not_bring_back_what_was_dropped() {
    let (_folder, spool) = spool();
    let id = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
    assert!(spool.drop_entry(&id).unwrap());
    let cache = "a".parse().unwrap();
    let standing = Standing { tries: 1, not_before: 5, error: Some("x".to_owned()) };
    assert_eq!(spool.note_failure(&id, &cache, &standing).unwrap(), None);
    assert_eq!(spool.bury(&id, &cache, &standing).unwrap(), None);
    assert!(!spool.hasten(&id, false, at(2)).unwrap() && !spool.drop_entry(&id).unwrap());
    assert!(paths(&spool).is_empty() && spool.dead().unwrap().is_empty());
}

#[test]
fn a_dead_letter_has_its_reason_and_comes_back_on_request() {
    let (_folder, spool) = spool();
    let id = spool.enqueue(&entry(&["lab:a", "b"], "/1"), at(1)).unwrap();
    let cache: QueuedCache = "lab:a".parse().unwrap();
    let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
    let left = spool.bury(&id, &cache, &standing).unwrap().unwrap();
    assert_eq!(left.caches.into_keys().collect::<Vec<_>>(), caches(&["b"]));
    let dead = spool.dead().unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].entry.as_ref().unwrap().caches, [(cache.clone(), standing)].into());
    assert!(spool.revive(&dead[0], false, at(3)).unwrap());
    assert!(!spool.revive(&dead[0], false, at(3)).unwrap(), "it is revived once");
    assert!(spool.dead().unwrap().is_empty());
    let (_, back) = spool.entries().unwrap().pop().unwrap();
    assert_eq!(back.unwrap().caches, [(cache, Standing::default())].into());
}

#[test]
fn what_nothing_can_read_does_not_stop_the_rest() {
    let (_folder, spool) = spool();
    let id = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
    spool.enqueue(&entry(&["a"], "/2"), at(2)).unwrap();
    fs::write(spool.path(&id), "{\"version\":1").unwrap();
    assert_eq!(paths(&spool), ["/2"]);
    let dead = spool.dead().unwrap();
    assert_eq!((dead.len(), &dead[0].entry), (1, &None));
    assert!(!spool.revive(&dead[0], false, at(3)).unwrap() && spool.drop_dead(&dead[0]).unwrap());
    assert!(spool.dead().unwrap().is_empty());
}

/// A version of before gave up each entry that it could not read, by moving its file.
#[test]
fn what_an_older_version_could_not_read_comes_back_and_nothing_else() {
    let (_folder, spool) = spool();
    let [unread, broken, tried] =
        [1, 2, 3].map(|second| spool.enqueue(&entry(&["a@http://lab"], "/1"), at(second)).unwrap());
    fs::write(spool.path(&broken), "{\"version\":2").unwrap();
    for id in [&unread, &broken] {
        fs::rename(spool.path(id), spool.folder().join("dead").join(file_name(id))).unwrap();
    }
    let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
    spool.bury(&tried, &"a@http://lab".parse().unwrap(), &standing).unwrap();
    // The disk gives an error for one of them, which comes first.
    let bad = spool.enqueue(&entry(&["a@http://lab"], "/2"), at(0)).unwrap();
    fs::remove_file(spool.path(&bad)).unwrap();
    fs::create_dir(spool.folder().join("dead").join(file_name(&bad))).unwrap();
    assert_eq!((spool.revive_unread().unwrap(), spool.revive_unread().unwrap()), (1, 0));
    assert_eq!(spool.ids().unwrap(), [unread]);
    assert_eq!(paths(&spool), ["/1"]);
    fs::remove_dir(spool.folder().join("dead").join(file_name(&bad))).unwrap();
    assert_eq!(spool.dead().unwrap().len(), 2, "what nothing can read, and what was tried");
}

#[test]
fn an_entry_of_a_later_version_waits_for_a_later_program() {
    let (_folder, spool) = spool();
    let id = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
    let later = "{\"version\":3,\"caches\":[\"a\"]}";
    fs::write(spool.path(&id), later).unwrap();
    let cache = "a".parse().unwrap();
    let (standing, is_later) = (Standing::default(), |error| matches!(error, Error::EntryVersion { .. }));
    assert!(is_later(spool.read(&id).unwrap_err()));
    assert!(is_later(spool.settle(&id, &cache).unwrap_err()));
    assert!(is_later(spool.note_failure(&id, &cache, &standing).unwrap_err()));
    assert!(is_later(spool.bury(&id, &cache, &standing).unwrap_err()));
    assert!(is_later(spool.hasten(&id, false, at(2)).unwrap_err()));
    let [(_, read)] = &spool.entries().unwrap()[..] else { panic!("it is listed") };
    assert!(read.as_ref().is_err_and(|error| error.to_string().contains("version 3")));
    assert_eq!(fs::read_to_string(spool.path(&id)).unwrap(), later);
    assert!(spool.dead().unwrap().is_empty() && spool.drop_entry(&id).unwrap());
}

/// One name on two servers: each has its own entry, dead letter and fate.
#[test]
fn a_cache_is_another_one_on_another_server() {
    let (_folder, spool) = spool();
    let [one, other] =
        ["main@http://one", "main@http://other"].map(|text| text.parse::<QueuedCache>().unwrap());
    let both = [one.clone(), other.clone()];
    let id = spool.enqueue(&QueueEntry::new(&both, vec!["/1".to_owned()], at(1)), at(1)).unwrap();
    let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
    spool.bury(&id, &one, &standing).unwrap();
    spool.bury(&id, &other, &standing).unwrap();
    let dead = spool.dead().unwrap();
    assert_eq!(dead.len(), 2, "{dead:?}");
    assert!(spool.revive(&dead[0], false, at(2)).unwrap() && spool.revive(&dead[1], true, at(3)).unwrap());
    let revived =
        spool.entries().unwrap().into_iter().flat_map(|(_, entry)| entry.unwrap().caches.into_keys());
    let revived: Vec<QueuedCache> = revived.collect();
    assert!(both.contains(&revived[0]) && revived[1].to_string() == "main", "{revived:?}");
}

#[test]
fn one_process_drains() {
    let (_folder, spool) = spool();
    let lock = spool.try_lock_drainer().unwrap().unwrap();
    assert!(Spool::open(spool.folder()).unwrap().try_lock_drainer().unwrap().is_none());
    assert_eq!(spool.drainer().unwrap(), Some(std::process::id()));
    drop(lock);
    assert_eq!(spool.drainer().unwrap(), None);
    assert!(spool.try_lock_drainer().unwrap().is_some());
}

#[test]
fn a_full_queue_refuses_and_takes_entries_again_later() {
    let (_folder, spool) = spool();
    for shard in SHARDS {
        let folder = spool.folder().join("pending").join(shard.to_string());
        for number in 0..SHARD_ENTRIES_MAX {
            File::create(folder.join(number.to_string())).unwrap();
        }
    }
    let refused = spool.enqueue(&entry(&["a"], "/1"), at(1));
    assert!(matches!(refused, Err(Error::QueueFull { .. })), "{refused:?}");
    for shard in SHARDS {
        fs::remove_file(spool.folder().join("pending").join(shard.to_string()).join("0")).unwrap();
    }
    spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
}

#[test]
fn refused_builds_are_counted_in_a_file_of_fixed_size() {
    let (_folder, spool) = spool();
    let size = || fs::metadata(spool.folder().join("refused")).unwrap().len();
    assert_eq!((spool.refused(), size()), (Refused::default(), REFUSED_BYTES as u64));
    let reason = "\u{1}\"\\é".repeat(200);
    for count in 1..=3 {
        spool.count_refused(&reason, at(7));
        assert_eq!(
            (spool.refused().count, spool.refused().last_at, size()),
            (count, 7, REFUSED_BYTES as u64)
        );
    }
    spool.forget_refused().unwrap();
    assert_eq!(spool.refused(), Refused::default());
}

#[test]
fn leftovers_of_killed_processes_go_and_fresh_ones_stay() {
    let (_folder, spool) = spool();
    let old = spool.folder().join("pending/3").join(format!("{UNFINISHED}1"));
    let fresh = spool.folder().join("dead").join(format!("{UNFINISHED}2"));
    File::create(&fresh).unwrap();
    File::create(&old).unwrap().set_modified(SystemTime::now() - 2 * UNFINISHED_AGE).unwrap();
    assert!(paths(&spool).is_empty() && spool.dead().unwrap().is_empty());
    let before = files(spool.folder());
    drop(spool.try_lock_drainer().unwrap());
    assert!(!old.exists() && fresh.exists());
    assert_eq!(files(spool.folder()), before - 1);
}
