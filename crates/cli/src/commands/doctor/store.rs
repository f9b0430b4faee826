//! The object store: that it is ours, and that all that the server does there can be done.

use super::clock::Clocks;
use super::finding::Finding;
use crate::error::Error;
use crate::installation;
use crate::settings::Settings;

const SUBJECT: &str = "store";

/// Checks the store. A local one is a folder like the others, which [`super::folder`] checked: opening it here would clear
/// away what a running server writes.
#[expect(clippy::unused_async, reason = "remote stores are asked over the network")]
pub(super) async fn check(settings: &Settings, _clocks: &mut Clocks) -> Vec<Finding> {
    let place = settings.storage_path.display();
    match installation::refuse_foreign_folders(settings) {
        Ok(()) => vec![Finding::ok(SUBJECT, format!("packs are kept in {place}"))],
        Err(error @ Error::ForeignFolder { .. }) => vec![Finding::error(SUBJECT, &error)],
        // A folder that cannot be read was told of already.
        Err(_) => Vec::new(),
    }
}
