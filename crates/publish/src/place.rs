//! Whose place a target is, and whether the rows say what lies there.
//!
//! A document in the target names the lab that publishes to it, because another lab would take the
//! files for strangers and remove them. Before a run writes anything, it reads the document, which
//! costs one request.

use dormer_edge::{EdgeKey, LabMark};
use dormer_index::PublishTarget;

use crate::publisher::{Mode, Publisher, Run};
use crate::transfer::FilePlace;
use crate::{Error, Result};

/// What a run found at the place of its target.
pub(crate) struct Place {
    /// Whether the lab's mark is there.
    pub(crate) is_marked: bool,
    /// Whether the rows say what is there, or nothing was ever published there.
    pub(crate) is_known: bool,
}

impl Publisher {
    /// Fails unless this is where the last run published to, or this run compares the two. Asks the
    /// index alone.
    pub(crate) async fn check_location(&self, target: &PublishTarget, mode: Mode) -> Result<()> {
        if mode == Mode::Reconcile {
            return Ok(());
        }
        let (target_name, now) = (target.name.clone(), self.store.location().to_owned());
        if target.location != now {
            let before = target.location.clone();
            return Err(Error::Moved { target: target_name, before, now });
        }
        if !target.compared && !self.state.published_caches(target.id).await?.is_empty() {
            return Err(Error::Moving { target: target_name, now });
        }
        Ok(())
    }

    /// Looks at the place. Fails if it is another lab's, or if it holds what no row tells of and
    /// this run does not compare: it would send everything again.
    pub(crate) async fn look_at_place(&self, target: &PublishTarget, mode: Mode) -> Result<Place> {
        let location = self.store.location();
        let mark = self.store.get(&EdgeKey::Lab.to_string()).await?;
        if let Some(mark) = &mark {
            self.check_mark(mark)?;
        }
        let is_marked = mark.is_some();
        let mut is_known = target.location == location && target.compared;
        if mode == Mode::Follow && !is_known {
            // Each run writes the catalogue, and those of older versions no mark.
            if is_marked || self.store.get(&EdgeKey::Catalog.to_string()).await?.is_some() {
                let (target, location) = (target.name.clone(), location.to_owned());
                return Err(Error::Unknown { target, location });
            }
            is_known = true;
        }
        Ok(Place { is_marked, is_known })
    }

    /// Fails if the mark is another lab's.
    fn check_mark(&self, mark: &[u8]) -> Result<()> {
        let Some(own) = &self.lab else { return Ok(()) };
        let location = self.store.location().to_owned();
        match LabMark::parse(mark) {
            Ok(LabMark { lab, .. }) if lab == *own => Ok(()),
            Ok(LabMark { lab, .. }) => {
                Err(Error::OtherLab { target: self.settings.name.clone(), location, lab, own: own.clone() })
            }
            Err(source) => Err(Error::Mark { location, source }),
        }
    }
}

impl Run<'_> {
    /// Writes the lab's mark, and looks whose mark is there then: another lab may have come to the
    /// empty place at the same moment. The first one wins. Where the store takes no condition with
    /// a PUT, both may win if they look within the same moment; the next run of one of them fails.
    pub(crate) async fn mark_place(&self) -> Result<()> {
        // Beside a server of an older version, a lab has no id.
        let Some(lab) = self.publisher.lab.clone() else { return Ok(()) };
        let mark = FilePlace::in_target(&EdgeKey::Lab, true);
        let content = LabMark::new(lab).to_json().into();
        let there = Box::pin(async {
            self.store().create(&mark.name, &mark.kind, content).await?;
            Ok(self.store().get(&mark.name).await?)
        });
        match self.in_flight.one(there).await? {
            Some(there) => self.publisher.check_mark(&there),
            None => Err(dormer_stores::Error::NotFound { key: mark.name }.into()),
        }
    }
}
