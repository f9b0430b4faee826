//! Notices of changes that other replicas made.

use dormer_nix::StorePathHash;
use tokio::sync::broadcast;

use crate::contract::CacheId;

/// Notices that a slow reader may lag behind before it is told to forget everything.
const BACKLOG: usize = 1024;

/// Something that was there is another one now, or gone. New things need no notice: a miss is not
/// remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// An object was replaced or removed, or its NAR is another one.
    Object(CacheId, StorePathHash),
    /// A cache's settings or keys changed, or it was deleted with all that is in it.
    Cache(CacheId),
    /// Anything may have changed: what was remembered is to be forgotten.
    Everything,
}

/// Where an adapter sends its notices.
#[derive(Debug, Clone)]
pub(crate) struct ChangeSender(broadcast::Sender<Change>);

impl ChangeSender {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }

    /// Notifies all listeners, if there are any.
    pub(crate) fn send(&self, change: Change) {
        let _ = self.0.send(change);
    }

    pub(crate) fn subscribe(&self) -> Changes {
        Changes(Some(self.0.subscribe()))
    }
}

/// Notices, in the order in which they came.
#[derive(Debug)]
pub struct Changes(Option<broadcast::Receiver<Change>>);

impl Changes {
    /// No notices: this process makes all changes itself.
    pub fn none() -> Self {
        Self(None)
    }

    /// The next notice; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Change> {
        match self.0.as_mut()?.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Everything),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_that_lags_is_told_to_forget_everything() {
        let sender = ChangeSender::new();
        let mut changes = sender.subscribe();
        sender.send(Change::Cache(CacheId(1)));
        assert_eq!(changes.next().await, Some(Change::Cache(CacheId(1))));
        for number in 0..=1024 {
            sender.send(Change::Cache(CacheId(number)));
        }
        assert_eq!(changes.next().await, Some(Change::Everything));
        assert_eq!(changes.next().await, Some(Change::Cache(CacheId(1))));
        drop(sender);
        while changes.next().await.is_some() {}
        assert_eq!(Changes::none().next().await, None);
    }
}
