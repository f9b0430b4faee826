//! Replaces the master key while replicas run.
//!
//! Order of writes
//! 1. One transaction puts the new key's proof in the place of the old key's, and keeps the old one
//!    beside it. From then on every replica seals with the new key: the transaction that stores a
//!    sealed key compares the proof, and so waits for this one or comes before it.
//! 2. Pages of sealed keys are sealed anew, each page in one transaction. A key that changed
//!    meanwhile is left as it is.
//! 3. The old key's proof goes.
//!
//! A crash leaves a proof of each key that is still needed, and a start checks all proofs. Running
//! the replacement again finishes it, from the first page: what the new key opens is skipped.

use dormer_index::{Index, MASTER_KEY_PROOF, PREVIOUS_KEY_PROOF};

use crate::caches::seal_context;
use crate::{Error, MasterKey, Result};

/// Keys that are read, and sealed anew, together.
const PAGE_KEYS: u32 = 256;

/// What a replacement of the master key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RekeyReport {
    /// Signing keys that were sealed with the new key.
    pub resealed: u64,
    /// Signing keys that the new key had sealed before.
    pub unchanged: u64,
}

/// Seals everything with the current key of `master_key`, which opens what its previous keys
/// sealed.
pub async fn rekey(index: &dyn Index, master_key: &MasterKey) -> Result<RekeyReport> {
    let wrong_key = || Error::Sealed { what: "the database".to_owned() };
    let proof = index.find_setting(MASTER_KEY_PROOF).await?.ok_or_else(wrong_key)?;
    let previous = index.find_setting(PREVIOUS_KEY_PROOF).await?;
    if !master_key.opens_proof(&proof) {
        return Err(wrong_key());
    }
    if let Some(previous) = &previous
        && !master_key.opens_proof(previous)
    {
        return Err(Error::RekeyUnfinished);
    }
    if !master_key.made_proof(&proof) {
        // Nobody knows which keys a replacement that was not finished has left.
        if previous.is_some() {
            return Err(Error::RekeyUnfinished);
        }
        index.begin_rekey(&proof, &master_key.proof()).await?;
    }
    let mut report = RekeyReport::default();
    let mut after = None;
    loop {
        let page = index.list_sealed_keys(after, PAGE_KEYS).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.place);
        let mut changes = Vec::new();
        for key in page {
            let context = seal_context(&key.public_key);
            if master_key.is_sealed_with_current(&context, &key.sealed_secret) {
                report.unchanged += 1;
                continue;
            }
            let plain = master_key.unseal(&context, &key.sealed_secret)?;
            let sealed = master_key.seal(&context, &plain);
            changes.push((key, sealed));
        }
        if !changes.is_empty() {
            index.replace_sealed_keys(&changes).await?;
            report.resealed += changes.len() as u64;
        }
    }
    index.end_rekey().await?;
    Ok(report)
}
