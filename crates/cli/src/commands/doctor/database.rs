//! Checks the database: which program it belongs to, its schema, whether it keeps what it
//! acknowledges, and whether the master key belongs to it.

use dormer_index::{Examination, MASTER_KEY_PROOF, PostgresIndex, SqliteIndex};

use super::clock::Clocks;
use super::finding::Finding;
use super::keys;
use crate::error::Error;
use crate::settings::Settings;

const SUBJECT: &str = "database";

/// Checks the database and its master key.
pub(super) async fn check(settings: &Settings, clocks: &mut Clocks) -> Vec<Finding> {
    let examined = match &settings.postgres {
        Some(server) => PostgresIndex::examine(server.url.expose(), &server.options, MASTER_KEY_PROOF).await,
        None => SqliteIndex::examine(&settings.database_path, MASTER_KEY_PROOF).await,
    };
    let found = match examined {
        Ok(found) => found,
        Err(error) => return vec![Finding::error(SUBJECT, &Error::from(error))],
    };
    if let Some(time) = found.time {
        clocks.saw("the database", time);
    }
    let mut findings = describe(&settings.database_name(), &found);
    if settings.postgres.as_ref().is_some_and(|server| server.options.transaction_pooler) {
        findings.push(describe_pooler(found.pooled));
    }
    findings.extend(keys::check_master_key(settings, &found));
    findings
}

fn describe(place: &str, found: &Examination) -> Vec<Finding> {
    let mut findings = Vec::new();
    for right in &found.missing_rights {
        findings.push(Finding::fail(
            SUBJECT,
            format!("the role lacks the right {right}"),
            ["make the role the owner of the database: ALTER DATABASE … OWNER TO …"],
        ));
    }
    let program = &found.program;
    findings.push(match found.schema {
        None => {
            Finding::ok(SUBJECT, format!("{program}, {place} is empty: the first start creates the schema"))
        }
        Some(schema) if schema < found.schema_known => Finding::warn(
            SUBJECT,
            format!(
                "{program}, {place} has schema {schema}; the next start upgrades it to {}",
                found.schema_known
            ),
            ["back it up before that start"],
        ),
        Some(schema) if found.in_use => {
            Finding::ok(SUBJECT, format!("{program}, {place} has schema {schema}; a server runs on it"))
        }
        Some(schema) => Finding::ok(SUBJECT, format!("{program}, {place} has schema {schema}")),
    });
    findings
}

/// What `database.transaction-pooler = true` costs, and whether it is needed.
fn describe_pooler(was_seen: bool) -> Finding {
    if was_seen {
        let what = "a pooler gives every transaction another connection: what another replica removes or changes shows after up \
                    to 5 s";
        return Finding::ok(SUBJECT, what);
    }
    Finding::warn(
        SUBJECT,
        "database.transaction-pooler is set, but no such pooler was found",
        [
            "set it only behind PgBouncer or the like with pool_mode = transaction: without it, changes show at once and \
          statements are prepared",
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn rights_that_are_missing_fail_one_by_one() {
        let found = Examination {
            program: "PostgreSQL 17".to_owned(),
            schema: Some(1),
            schema_known: 2,
            in_use: false,
            time: None,
            pooled: false,
            missing_rights: vec!["CREATE on schema public".to_owned()],
            setting: None,
        };
        let statuses: Vec<Status> =
            describe("db/dormer", &found).iter().map(|finding| finding.status).collect();
        assert_eq!(statuses, [Status::Fail, Status::Warn]);
    }
}
