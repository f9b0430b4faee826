//! Which database a store belongs to. A store names the installation in one small object:
//! `installation/<32 hex>`, with the random id that the installation's database holds too.
//!
//! Invariants
//! - The id is part of the name, and no object is overwritten. Replicas that write the same claim
//!   at once write the same object, and two installations that claim one store at once leave two.
//! - A claim counts only if a listing *after* the write shows no other one. Of two installations
//!   that claim a store at the same time, at least one sees the other and gives up. No conditional
//!   request is needed.
//! - Nobody but [`StoreClaims::adopt`] removes a foreign claim.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use dormer_stores::{Counters, Store};

use crate::contract::{BlobKey, Blobs};
use crate::{Error, Result};

/// Where the names of claims begin.
const CLAIMS: &str = "installation";

/// Claims read at most. More than a handful are a sign of something else.
const CLAIMS_MAX: usize = 100;

/// The random id that a database and its store share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstallationId([u8; 16]);

impl InstallationId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// From its bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for InstallationId {
    type Err = ();

    /// 32 lower-case hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        let id = u128::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| ())?;
        if id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

/// What a store says of its installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is the caller's.
    Ours,
    /// It names no installation.
    Nobody,
    /// It is another one's.
    Foreign(InstallationId),
}

/// The claims of a store.
#[derive(Debug, Clone)]
pub struct StoreClaims {
    store: Store,
}

impl StoreClaims {
    /// The claims of this store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// The installations that the store names. One listing.
    pub async fn list(&self) -> Result<Vec<InstallationId>> {
        let entries = self.store.list_page(CLAIMS, None, CLAIMS_MAX).await?;
        let id = |name: &str| name.strip_prefix(CLAIMS)?.strip_prefix('/')?.parse().ok();
        Ok(entries.iter().filter_map(|entry| id(&entry.name)).collect())
    }

    /// Whose store it is. Changes nothing.
    pub async fn check(&self, own: InstallationId) -> Result<Claim> {
        let ids = self.list().await?;
        // A foreign claim beside ours is foreign: ours may be the one that has to give way.
        Ok(match ids.iter().find(|id| **id != own) {
            Some(foreign) => Claim::Foreign(*foreign),
            None if ids.is_empty() => Claim::Nobody,
            None => Claim::Ours,
        })
    }

    /// Claims a store that is nobody's, and returns whose store it is then.
    pub async fn claim(&self, own: InstallationId) -> Result<Claim> {
        match self.check(own).await? {
            Claim::Nobody => {}
            known => return Ok(known),
        }
        self.write(own).await?;
        // If two installations get here at once, both claims stay and neither has the store: a
        // claim that is taken back could be one that another replica relies on already.
        self.check(own).await
    }

    async fn write(&self, own: InstallationId) -> Result<()> {
        let text = "The packs here belong to the database with the id in this object's name.\n";
        self.store.put(&name(own), None, [Bytes::from_static(text.as_bytes())]).await.map(drop)
    }

    /// Takes the store over: names this installation and no other. Returns the ids that it named
    /// before. Another process of the installation that had the store notices at its next start.
    pub async fn adopt(&self, own: InstallationId) -> Result<Vec<InstallationId>> {
        let before = self.list().await?;
        // Ours first: a crash in between leaves a store that is refused, never one that is free.
        self.write(own).await?;
        for id in before.iter().filter(|id| **id != own) {
            self.store.delete(&name(*id)).await?;
        }
        Ok(before)
    }
}

fn name(id: InstallationId) -> String {
    format!("{CLAIMS}/{id}")
}

/// Packs in a store that did not answer when it was opened: every call waits for the proof that the
/// store is this installation's. After that, a call costs one look at a flag.
#[derive(Debug)]
pub struct UnprovenBlobs {
    inner: Arc<dyn Blobs>,
    claims: StoreClaims,
    own: InstallationId,
    may_claim: bool,
    is_proven: AtomicBool,
}

impl UnprovenBlobs {
    /// Waits with every call of `inner` for the proof. With `may_claim`, a store that is nobody's
    /// becomes ours; else such a store is good enough.
    pub fn new(inner: Arc<dyn Blobs>, claims: StoreClaims, own: InstallationId, may_claim: bool) -> Self {
        Self { inner, claims, own, may_claim, is_proven: AtomicBool::new(false) }
    }

    async fn proven(&self) -> Result<&dyn Blobs> {
        if !self.is_proven.load(Ordering::Relaxed) {
            let claim = if self.may_claim {
                self.claims.claim(self.own).await?
            } else {
                self.claims.check(self.own).await?
            };
            if let Claim::Foreign(other) = claim {
                let store = self.claims.store.location().to_owned();
                return Err(Error::ForeignStore { store, other: other.to_string() });
            }
            self.is_proven.store(true, Ordering::Relaxed);
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Blobs for UnprovenBlobs {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        self.proven().await?.put(key, parts).await
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.proven().await?.get_range(key, range).await
    }

    async fn get_up_to(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        self.proven().await?.get_up_to(key, range).await
    }

    async fn head(&self, key: &BlobKey) -> Result<u64> {
        self.proven().await?.head(key).await
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.proven().await?.delete(key).await
    }

    async fn list(&self) -> Result<Vec<BlobKey>> {
        self.proven().await?.list().await
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn counters(&self) -> Option<&Counters> {
        self.inner.counters()
    }
}

#[cfg(test)]
mod tests {
    use dormer_format::PackId;

    use super::*;
    use crate::StoreBlobs;

    const A: InstallationId = InstallationId([1; 16]);
    const B: InstallationId = InstallationId([2; 16]);

    #[test]
    fn ids_have_one_spelling() {
        let id = InstallationId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "00",
            &id.to_string().to_uppercase().replace(char::is_numeric, "A"),
            "+0000000000000000000000000000001",
        ] {
            assert!(wrong.parse::<InstallationId>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_store_belongs_to_the_first_that_claims_it_until_another_adopts_it() {
        let claims = StoreClaims::new(Store::in_memory());
        assert_eq!(claims.check(A).await.unwrap(), Claim::Nobody);
        assert_eq!(claims.claim(A).await.unwrap(), Claim::Ours);
        assert_eq!(claims.claim(A).await.unwrap(), Claim::Ours, "a second replica or start");
        assert_eq!(claims.claim(B).await.unwrap(), Claim::Foreign(A));
        assert_eq!(claims.list().await.unwrap(), [A]);
        assert_eq!(claims.adopt(B).await.unwrap(), [A]);
        assert_eq!(claims.check(A).await.unwrap(), Claim::Foreign(B));
        assert_eq!(claims.claim(B).await.unwrap(), Claim::Ours);
        assert_eq!(claims.adopt(B).await.unwrap(), [B], "adopting twice is harmless");
        assert_eq!(claims.claim(B).await.unwrap(), Claim::Ours);
    }

    /// All interleavings of the steps of two claims over one empty store: list, put, list.
    #[tokio::test]
    async fn two_installations_that_claim_a_store_at_once_never_both_get_it() {
        for order in 0_u32..64 {
            if order.count_ones() != 3 {
                continue;
            }
            let claims = StoreClaims::new(Store::in_memory());
            let (mut steps, mut seen) = ([0, 0], [Claim::Nobody; 2]);
            for turn in 0..6 {
                let process = usize::from(order >> turn & 1 == 1);
                let own = [A, B][process];
                match steps[process] {
                    0 | 2 if seen[process] == Claim::Nobody => {
                        seen[process] = claims.check(own).await.unwrap();
                    }
                    1 if seen[process] == Claim::Nobody => claims.write(own).await.unwrap(),
                    _ => {}
                }
                steps[process] += 1;
            }
            assert_ne!(seen, [Claim::Ours; 2], "order {order:b}");
        }
    }

    #[tokio::test]
    async fn packs_of_a_foreign_store_are_neither_read_nor_deleted() {
        let store = Store::in_memory();
        let claims = StoreClaims::new(store.clone());
        let packs = Arc::new(StoreBlobs::new(store));
        let key = BlobKey::Pack(PackId::from_bytes([7; 16]));
        packs.put(&key, &["x".into()]).await.unwrap();
        claims.claim(A).await.unwrap();
        let foreign = UnprovenBlobs::new(packs.clone(), claims.clone(), B, true);
        for outcome in [
            foreign.head(&key).await.map(drop),
            foreign.get_range(&key, 0..1).await.map(drop),
            foreign.delete(&key).await,
            foreign.list().await.map(drop),
            foreign.put(&BlobKey::Pack(PackId::from_bytes([8; 16])), &[]).await,
        ] {
            assert!(matches!(outcome, Err(Error::ForeignStore { .. })), "{outcome:?}");
        }
        assert_eq!(packs.list().await.unwrap(), [key]);
        let own = UnprovenBlobs::new(packs.clone(), claims.clone(), A, false);
        assert_eq!(own.head(&key).await.unwrap(), 1);
        // Proven once: it is not asked again.
        claims.adopt(B).await.unwrap();
        assert_eq!(own.get_range(&key, 0..1).await.unwrap(), "x");
        crate::conformance::run(&UnprovenBlobs::new(
            Arc::new(StoreBlobs::in_memory()),
            StoreClaims::new(Store::in_memory()),
            A,
            true,
        ))
        .await;
    }
}
