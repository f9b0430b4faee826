//! The permissions of callers on caches. Attic's rule: a caller without any permission on a cache
//! gets the same 401 whether the cache exists or not. Only a caller with some permission learns
//! what is missing.

use std::sync::Arc;

use dormer_api::{CacheName, Permission, Permissions, TokenClaims};
use dormer_index::{Cache, CacheSelection};

use crate::app::App;
use crate::auth::header_token;
use crate::call::Call;
use crate::failure::Failure;
use crate::operations::Operations;
use crate::session_cookie::cookie_token;

/// How old the settings of a cache may be for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settings {
    /// At most some seconds, whatever another replica changes. Costs nothing.
    Remembered,
    /// The settings in the index now.
    Current,
}

/// Of which private caches the caller may know, as the token has it.
pub(crate) fn known_caches(claims: Option<&TokenClaims>) -> Vec<(&str, bool)> {
    let entries = claims.map_or(&[][..], |claims| claims.access.caches.as_slice());
    entries.iter().map(|(pattern, permissions)| (pattern.as_str(), !permissions.is_empty())).collect()
}

/// The caches that such a caller may know of. The time to list all caches would tell a caller
/// without a token how many there are.
pub(crate) fn selection<'k>(known: &'k [(&'k str, bool)]) -> CacheSelection<'k> {
    if known.is_empty() { CacheSelection::Public } else { CacheSelection::Allowed(known) }
}

impl App {
    /// The cache of this name, for a caller that may do `needed` with it.
    pub(crate) async fn open_cache(
        &self,
        call: &Call,
        name: &CacheName,
        needed: Permission,
    ) -> Result<Arc<Cache>, Failure> {
        self.open_cache_for_any(call, name, &[needed]).await
    }

    /// The cache of this name, for a caller that may do at least one of these with it.
    pub(crate) async fn open_cache_for_any(
        &self,
        call: &Call,
        name: &CacheName,
        needed: &[Permission],
    ) -> Result<Arc<Cache>, Failure> {
        self.open(call, name, needed, Settings::Remembered).await
    }

    /// The cache of this name with its present settings, for a caller that may do `needed` with it.
    /// A change that one replica has acknowledged shows on every replica.
    pub(crate) async fn open_current_cache(
        &self,
        call: &Call,
        name: &CacheName,
        needed: Permission,
    ) -> Result<Arc<Cache>, Failure> {
        self.open(call, name, &[needed], Settings::Current).await
    }

    async fn open(
        &self,
        call: &Call,
        name: &CacheName,
        needed: &[Permission],
        settings: Settings,
    ) -> Result<Arc<Cache>, Failure> {
        let pulling_suffices = needed.contains(&Permission::Pull);
        let (cache, permissions) = self.find_cache(call, name, pulling_suffices, settings).await?;
        match cache {
            Some(cache) if needed.iter().any(|one| permissions.allows(*one)) => Ok(cache),
            Some(_) | None if permissions.is_empty() => Err(Failure::Unauthorized),
            Some(_) => Err(Failure::Forbidden(needed[0])),
            None => Err(Failure::NoSuchCache),
        }
    }

    /// The cache with its present settings, if it exists, and the caller's permissions on it.
    pub(crate) async fn open_cache_to_configure(
        &self,
        call: &Call,
        name: &CacheName,
    ) -> Result<(Arc<Cache>, Permissions), Failure> {
        let (cache, permissions) = self.find_cache(call, name, false, Settings::Current).await?;
        match cache {
            _ if permissions.is_empty() => Err(Failure::Unauthorized),
            Some(cache) => Ok((cache, permissions)),
            None => Err(Failure::NoSuchCache),
        }
    }

    async fn find_cache(
        &self,
        call: &Call,
        name: &CacheName,
        pulling_suffices: bool,
        settings: Settings,
    ) -> Result<(Option<Arc<Cache>>, Permissions), Failure> {
        let is_remembered = settings == Settings::Remembered;
        if pulling_suffices
            && is_remembered
            && let Some(cache) = self.engine.remembered_public_cache(name.as_str())
        {
            // Anybody may pull: the hottest path looks at no token.
            call.set_about_public_cache();
            return Ok((Some(cache), Permissions::NONE.with(Permission::Pull)));
        }
        let own = self.permissions(call, name);
        let cache = match (own.is_empty(), is_remembered) {
            // The caller may know of public caches only, so only those are looked at.
            (true, true) => match self.engine.remembered_public_cache(name.as_str()) {
                Some(cache) => Some(cache),
                None => self.engine.current_public_cache(name.as_str()).await?,
            },
            (true, false) => self.engine.current_public_cache(name.as_str()).await?,
            (false, true) => self.engine.find_cache(name.as_str()).await?,
            (false, false) => self.engine.current_cache(name.as_str()).await?,
        };
        let is_public = cache.as_ref().is_some_and(|cache| cache.is_public);
        if is_public {
            call.set_about_public_cache();
        }
        let permissions = if is_public { own.with(Permission::Pull) } else { own };
        Ok((cache, permissions))
    }

    /// The permissions of the caller's token on a cache, whether the cache exists or not. Looks
    /// nothing up.
    pub(crate) fn permissions(&self, call: &Call, name: &CacheName) -> Permissions {
        self.claims(call).map_or(Permissions::NONE, |claims| claims.permissions_for(name))
    }

    /// The claims of the caller's token, if it counts.
    pub(crate) fn claims(&self, call: &Call) -> Option<Arc<TokenClaims>> {
        if call.allows_session() {
            return self.presented(call).map(|(_, claims)| claims);
        }
        self.authenticator.authenticate(call, self.engine.now())
    }

    /// The token of a page's visitor with its claims, if one counts: from the headers, else from
    /// the cookie of the session. A browser may send a proxy's password in the headers.
    pub(crate) fn presented(&self, call: &Call) -> Option<(String, Arc<TokenClaims>)> {
        let verify = |token: String| {
            let claims = self.authenticator.verify(call, &token, self.engine.now())?;
            Some((token, claims))
        };
        let from_cookie = || cookie_token(self, call).and_then(verify);
        header_token(call.headers()).and_then(verify).or_else(from_cookie)
    }

    /// The parts that operators look at, for a caller that operates the installation. Looks nothing
    /// up.
    pub(crate) fn open_operations(&self, call: &Call) -> Result<&Operations, Failure> {
        match self.claims(call) {
            Some(claims) if claims.may_operate() => self.operations.get().ok_or(Failure::NoRoute),
            Some(_) => Err(Failure::NoOperator),
            None => Err(Failure::Unauthorized),
        }
    }

    /// Refuses a caller that may push nowhere, before the body is read to find the cache that the
    /// request is about. Like everywhere, a caller without any permission gets 401.
    pub(crate) fn require_push_somewhere(&self, call: &Call) -> Result<(), Failure> {
        match self.claims(call) {
            Some(claims) if claims.may_somewhere(Permission::Push) => Ok(()),
            Some(claims) if Permission::ALL.into_iter().any(|any| claims.may_somewhere(any)) => {
                Err(Failure::Forbidden(Permission::Push))
            }
            Some(_) | None => Err(Failure::Unauthorized),
        }
    }
}
