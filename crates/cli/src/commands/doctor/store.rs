//! Checks the object store: whether it belongs to this installation, and whether the server can do
//! all it must there.

use std::time::Duration;

use dormer_blobs::{Claim, InstallationId, StoreBlobs, StoreClaims};
use dormer_stores::{CallPolicy, Probe, RemoteSettings, Right};

use super::clock::Clocks;
use super::database;
use super::finding::{Finding, Status};
use super::probe_timeout::PROBE_TIMEOUT;
use crate::error::Error;
use crate::installation;
use crate::settings::Settings;

const SUBJECT: &str = "store";

/// The doctor waits less long than a server does.
const REQUEST_TIMEOUT: Duration = PROBE_TIMEOUT;

/// Checks the store. [`super::folder`] already checked a local store as a folder. Opening it here
/// would remove files that a running server is writing.
pub(super) async fn check(settings: &Settings, clocks: &mut Clocks) -> Vec<Finding> {
    let mut findings = if let Some(remote) = &settings.remote_storage {
        check_remote(&remote.store, clocks).await
    } else {
        let place = settings.storage_path.display();
        match installation::refuse_foreign_folders(settings) {
            Ok(()) => vec![Finding::ok(SUBJECT, format!("packs are kept in {place}"))],
            Err(error @ Error::ForeignFolder { .. }) => vec![Finding::error(SUBJECT, &error)],
            // The folder check already reported a folder that cannot be read.
            Err(_) => Vec::new(),
        }
    };
    if findings.iter().all(|finding| finding.status != Status::Fail) {
        findings.extend(check_owner(settings).await);
    }
    findings
}

/// Checks whether store and database carry the same id. Says nothing where one of them cannot be
/// read, which other checks report.
async fn check_owner(settings: &Settings) -> Option<Finding> {
    let found = database::examine(settings, installation::INSTALLATION_SETTING).await.ok()?;
    let own = InstallationId::from_bytes(found.setting?.try_into().ok()?);
    let (claims, store) = installation::open_claims(settings).ok()?;
    owner_finding(store, own, &claims).await
}

async fn owner_finding(store: String, own: InstallationId, claims: &StoreClaims) -> Option<Finding> {
    Some(match claims.check(own).await.ok()? {
        Claim::Ours => Finding::ok(SUBJECT, "store and database carry the same id"),
        Claim::Nobody => Finding::error(SUBJECT, &Error::UnclaimedStore { store }),
        Claim::Foreign(other) => {
            let error = dormer_blobs::Error::ForeignStore { store, other: other.to_string() };
            Finding::error(SUBJECT, &error.into())
        }
    })
}

async fn check_remote(remote: &RemoteSettings, clocks: &mut Clocks) -> Vec<Finding> {
    let remote = RemoteSettings {
        connect_timeout: remote.connect_timeout.min(REQUEST_TIMEOUT),
        request_timeout: remote.request_timeout.min(REQUEST_TIMEOUT),
        ..remote.clone()
    };
    let store = match StoreBlobs::open(&remote, &CallPolicy::once()) {
        Ok(store) => store,
        Err(error) => return vec![Finding::error(SUBJECT, &error.into())],
    };
    // The rights check below reports a missing right to list.
    if let Ok(true) = store.holds_attic_chunks().await {
        let error = Error::ForeignBucket { store: store.store().location().to_owned(), owner: "Attic" };
        return vec![Finding::error(SUBJECT, &error)];
    }
    let probe = store.store().probe().await;
    if let Some(date) = probe.date {
        clocks.saw("the store", date);
    }
    describe(store.store().location(), probe)
}

fn describe(name: &str, probe: Probe) -> Vec<Finding> {
    let mut works = Vec::new();
    let mut findings = Vec::new();
    for (right, outcome) in probe.rights {
        match outcome {
            Ok(()) => works.push(right.name()),
            Err(error) => findings.push(failure(right, error)),
        }
    }
    if !works.is_empty() {
        let conditional = match probe.refuses_conditional_put {
            Some(true) => "; conditional PUTs work (nothing relies on them)",
            Some(false) => "; conditional PUTs do not work (nothing relies on them)",
            None => "",
        };
        findings.insert(0, Finding::ok(SUBJECT, format!("{name}: {} work{conditional}", works.join(", "))));
    }
    findings
}

fn failure(right: Right, error: dormer_blobs::Error) -> Finding {
    let is_refused = matches!(error, dormer_blobs::Error::Refused { .. });
    let finding = Finding::error(SUBJECT, &Error::from(error));
    let advice = match right {
        _ if !is_refused => "is the store running, and are storage.endpoint and storage.path-style right?",
        Right::Put => "allow the key s3:PutObject (or what the store calls it)",
        Right::GetRange => "allow the key s3:GetObject (or what the store calls it)",
        Right::List => "allow the key s3:ListBucket (or what the store calls it)",
        Right::Delete => {
            "allow the key s3:DeleteObject (or what the store calls it); without it, garbage is never freed"
        }
    };
    let mut finding = Finding { message: format!("{}: {}", right.name(), finding.message), ..finding };
    finding.advice.push(advice.to_owned());
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_of_another_installation_is_told() {
        let [own, other] = [1, 2].map(|byte| InstallationId::from_bytes([byte; 16]));
        let claims = StoreClaims::new(dormer_stores::Store::in_memory());
        let look = async || owner_finding("s3://b".to_owned(), own, &claims).await.unwrap();
        assert_eq!(look().await.status, Status::Fail, "no id");
        claims.adopt(other).await.unwrap();
        let foreign = look().await;
        assert!(foreign.message.contains("another installation"), "{}", foreign.message);
        assert!(foreign.advice.concat().contains("dormer adopt"));
        claims.adopt(own).await.unwrap();
        assert_eq!(look().await.status, Status::Ok);
    }

    #[test]
    fn each_right_that_is_missing_is_told_with_its_name() {
        let refused = || dormer_blobs::Error::Refused {
            attempt: "delete",
            key: "k".to_owned(),
            store: "s3://b".to_owned(),
            source: "403 Forbidden".into(),
        };
        let probe = Probe {
            rights: vec![
                (Right::Put, Ok(())),
                (Right::List, Err(refused())),
                (Right::Delete, Err(refused())),
            ],
            refuses_conditional_put: Some(false),
            date: None,
        };
        let findings = describe("s3://b", probe);
        let statuses: Vec<Status> = findings.iter().map(|finding| finding.status).collect();
        assert_eq!(statuses, [Status::Ok, Status::Fail, Status::Fail]);
        assert_eq!(
            findings[0].message,
            "s3://b: put work; conditional PUTs do not work (nothing relies on them)"
        );
        assert!(findings[1].advice.concat().contains("s3:ListBucket"));
        assert!(findings[2].message.starts_with("delete: "), "{}", findings[2].message);
    }
}
