//! Replacing the master key: replicas go on, and a crash at any step leaves nothing that nobody can
//! open.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::sync::Arc;

use crate::common::{Installation, create_cache, path, push, settings};
use dormer_engine::{CreateCache, Engine, Error, KeyChange, MasterKey, SystemClock, UpdateCache, rekey};
use dormer_index::{Index, MASTER_KEY_PROOF, PREVIOUS_KEY_PROOF};
use dormer_nix::nar::{Node, encode_tree};
use dormer_testkit::{FaultIndex, Faults};

const OLD: [u8; 32] = [9; 32];
const NEW: [u8; 32] = [8; 32];

fn old() -> MasterKey {
    MasterKey::from_bytes(OLD)
}

fn new() -> MasterKey {
    MasterKey::from_bytes(NEW)
}

fn both() -> MasterKey {
    new().with_previous([OLD])
}

impl Installation {
    /// A replica with these keys, on an index that replicas share.
    fn replica(&self, index: &Arc<dyn Index>, key: MasterKey) -> Engine {
        Engine::new(Arc::clone(index), Arc::clone(&self.blobs), key, settings(), Arc::new(SystemClock))
    }

    /// Two caches, one with a retired key too, and a path in each.
    async fn filled(&self) -> Arc<dyn Index> {
        let index: Arc<dyn Index> = Arc::new(self.index().await);
        index.create_setting(MASTER_KEY_PROOF, &old().proof()).await.unwrap();
        let engine = self.replica(&index, old());
        for name in ["a", "b"] {
            let cache = create_cache(&engine, name).await;
            push(&engine, &cache, &path(1), &nar()).await.unwrap();
        }
        let cache = engine.find_cache("b").await.unwrap().unwrap();
        let update = UpdateCache { new_key: Some(KeyChange::Generate), ..UpdateCache::default() };
        engine.update_cache(&cache, update).await.unwrap();
        index
    }
}

fn nar() -> Vec<u8> {
    encode_tree(&Node::File { executable: false, contents: b"hello".to_vec() })
}

/// Whether a replica that remembers nothing signs for every cache.
async fn signs(installation: &Installation, index: &Arc<dyn Index>, key: MasterKey) -> Result<(), Error> {
    let engine = installation.replica(index, key);
    for cache in index.list_caches().await.unwrap() {
        let has_path = cache.name.as_str() < "c";
        let narinfo = engine.narinfo(&Arc::new(cache), &path(1).hash()).await?;
        assert_eq!(narinfo.is_some_and(|text| text.windows(4).any(|part| part == b"Sig:")), has_path);
    }
    Ok(())
}

/// How many signing keys this key alone opens.
async fn opened_by(index: &Arc<dyn Index>, key: &MasterKey) -> usize {
    let keys = index.list_sealed_keys(None, 1_000).await.unwrap();
    let opens = |public_key: &str, sealed: &[u8]| {
        key.is_sealed_with_current(&format!("signing key {public_key}"), sealed)
    };
    keys.iter().filter(|sealed| opens(&sealed.public_key, &sealed.sealed_secret)).count()
}

#[tokio::test]
async fn a_new_master_key_takes_over_while_replicas_run() {
    let installation = Installation::new();
    let index = installation.filled().await;
    // Replicas get both keys one by one. What they make is for those with the old key alone, too.
    let replica = installation.replica(&index, both());
    create_cache(&replica, "c").await;
    assert_eq!(opened_by(&index, &old()).await, 4);
    signs(&installation, &index, both()).await.unwrap();

    let late = installation.replica(&index, old());
    let report = rekey(&*index, &both()).await.unwrap();
    assert_eq!((report.resealed, report.unchanged), (4, 0));
    assert_eq!((opened_by(&index, &new()).await, opened_by(&index, &old()).await), (4, 0));
    assert_eq!(index.find_setting(PREVIOUS_KEY_PROOF).await.unwrap(), None);
    signs(&installation, &index, both()).await.unwrap();
    signs(&installation, &index, new()).await.unwrap();
    create_cache(&replica, "d").await;
    assert_eq!(opened_by(&index, &new()).await, 5, "a running replica seals with the new key by itself");

    // One that was forgotten says so, and stores nothing that nobody else could open.
    let refused = signs(&installation, &index, old()).await;
    assert!(matches!(refused, Err(Error::Sealed { .. })), "{refused:?}");
    let wish = CreateCache {
        name: "e".to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        upstream_cache_key_names: Vec::new(),
        secret_key: None,
        allow_replacement: false,
    };
    let refused = late.create_cache(wish).await;
    assert!(matches!(refused, Err(Error::Sealed { .. })), "{refused:?}");
    assert!(index.find_cache("e").await.unwrap().is_none());

    // Again: nothing is left to do. With the old key alone: refused.
    let report = rekey(&*index, &both()).await.unwrap();
    assert_eq!((report.resealed, report.unchanged), (0, 5));
    assert!(matches!(rekey(&*index, &old()).await, Err(Error::Sealed { .. })));
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_keys_that_both_master_keys_open() {
    for effect_kept in [false, true] {
        for step in 0.. {
            let what = format!("crash at step {step}, effect kept: {effect_kept}");
            let installation = Installation::new();
            let index = installation.filled().await;
            let faults = Faults::crash_at(step, effect_kept);
            let crashing = FaultIndex::new(Arc::clone(&index), Arc::clone(&faults));
            let outcome = rekey(&crashing, &both()).await;
            let crashed = faults.crashed();
            assert!(crashed || outcome.is_ok(), "{what}: {outcome:?}");
            signs(&installation, &index, both()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            let (by_old, by_new) = (opened_by(&index, &old()).await, opened_by(&index, &new()).await);
            assert_eq!(by_old + by_new, 3, "{what}");
            // A start checks these: every key that is still needed has its proof.
            let proof = index.find_setting(MASTER_KEY_PROOF).await.unwrap().unwrap();
            let previous = index.find_setting(PREVIOUS_KEY_PROOF).await.unwrap();
            let proofs = [Some(proof), previous];
            let is_proven = |key: &MasterKey| proofs.iter().flatten().any(|proof| key.made_proof(proof));
            assert!(by_old == 0 || is_proven(&old()), "{what}");
            assert!(by_new == 0 || is_proven(&new()), "{what}");
            // With another new key meanwhile, the first one has to be finished.
            if by_new > 0 && proofs[1].is_some() {
                let other = MasterKey::from_bytes([7; 32]).with_previous([NEW]);
                let refused = rekey(&*index, &other).await;
                assert!(matches!(refused, Err(Error::RekeyUnfinished)), "{what}: {refused:?}");
            }
            rekey(&*index, &both()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(opened_by(&index, &new()).await, 3, "{what}");
            signs(&installation, &index, new()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            if !crashed {
                assert!(step >= 3, "only {step} steps: the test no longer sees the writes");
                break;
            }
        }
    }
}
