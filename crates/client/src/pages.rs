//! Loops over the pages of a list, which no server may keep running for ever.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hash, RandomState};

use crate::error::{Error, Result};

/// Most pages of one list: at 1,000 entries a page, 100 million entries.
const PAGES_MAX: usize = 100_000;

/// Checks that every page of a list begins at another place. The pages of an honest server do. One
/// hash a page is kept, whatever the server sends.
#[derive(Debug)]
pub struct PageGuard {
    action: String,
    hasher: RandomState,
    seen: HashSet<u64>,
}

impl PageGuard {
    /// A guard for one list. `action` describes the loop in an error.
    pub fn new(action: impl Into<String>) -> Self {
        Self { action: action.into(), hasher: RandomState::new(), seen: HashSet::new() }
    }

    /// Call this before the request for the page after `place`. It is an error if this loop was at
    /// that place before, or if there are too many pages.
    pub fn follow(&mut self, place: impl Hash) -> Result<()> {
        let is_new = self.seen.insert(self.hasher.hash_one(place));
        if is_new && self.seen.len() <= PAGES_MAX {
            Ok(())
        } else {
            Err(Error::EndlessList { action: self.action.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_turns_back_or_never_ends_is_refused() {
        let mut guard = PageGuard::new("listing x");
        assert!(guard.follow("a").is_ok() && guard.follow("b").is_ok());
        let error = guard.follow("a").unwrap_err();
        assert!(matches!(error, Error::EndlessList { .. }) && error.to_string().contains("listing x"));

        let mut guard = PageGuard::new("listing y");
        let followed = (0..=PAGES_MAX).take_while(|page| guard.follow(page).is_ok()).count();
        assert_eq!(followed, PAGES_MAX);
    }
}
