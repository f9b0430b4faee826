//! Checks whether the journal in the store knows more than the database does.

use dormer_engine::{Clock as _, ComparedPasts, KEEP_SECONDS, SystemClock, kept_journals};
use dormer_format::KeptJournal;

use super::finding::Finding;
use crate::error::Result;
use crate::installation;
use crate::settings::Settings;

const SUBJECT: &str = "journal";

/// Says nothing where database or store cannot be read, which other checks report.
pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    compare(settings).await.into_iter().collect()
}

async fn compare(settings: &Settings) -> Result<Finding> {
    let opened = installation::open_index_beside(settings).await?;
    let store = installation::open_files(settings)?;
    let pasts = ComparedPasts::read(&*opened.journal, &store).await?;
    let kept = kept_journals(&store).await?;
    opened.index.close().await?;
    Ok(describe(pasts, &kept, SystemClock.now()))
}

fn describe(pasts: ComparedPasts, kept: &[KeptJournal], now: i64) -> Finding {
    if pasts.is_database_older {
        return Finding::warn(
            SUBJECT,
            "the journal in the store is newer than this database, which was restored from a copy",
            [
                "what was pushed since the copy: stop every server, set this database aside, then dormer recover --from-store",
                "if nothing of it is needed, start the server: the newer journal stays for 30 days",
            ],
        );
    }
    let Some(newest) = kept.iter().max_by_key(|kept| kept.since) else {
        return Finding::ok(SUBJECT, "the store has no newer journal than that of this database");
    };
    let days = (newest.since + KEEP_SECONDS - now).max(0) / 86_400;
    Finding::warn(
        SUBJECT,
        format!(
            "the store keeps a journal of another past, and the packs that it may need, for {days} days more"
        ),
        [
            "docs/OPERATING.md, \"Several journals\", says how to recover it",
            "if nothing of it is needed: dormer recover --accept-loss",
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn a_newer_journal_and_a_kept_one_are_told() {
        let same = ComparedPasts { is_database_older: false, is_store_older: false };
        let older = ComparedPasts { is_database_older: true, ..same };
        let kept = [KeptJournal { first: 1, through: 2, since: 1_000 }];
        assert_eq!(describe(same, &[], 0).status, Status::Ok);
        let finding = describe(older, &kept, 0);
        assert!(
            finding.status == Status::Warn && finding.message.contains("newer than this"),
            "{}",
            finding.message
        );
        let finding = describe(same, &kept, 1_000 + 86_400);
        assert_eq!(finding.status, Status::Warn);
        assert!(finding.message.contains("for 29 days more"), "{}", finding.message);
    }
}
