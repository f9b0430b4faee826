//! Publishing's contract on PostgreSQL.

use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};
use sqlx::postgres::PgRow;
use sqlx::query;

use super::PostgresIndex;
use super::session::{Session, Statement};
use crate::Result;
use crate::contract::{CacheId, FoundObject, OutboxPosition, UnixSeconds};
use crate::publish::{Argument, Sql, Transaction, implement_publish_index, work};

impl Transaction for Session<'_> {
    type Row = PgRow;

    async fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<u64> {
        self.execute(bound(sql, arguments)).await
    }

    async fn rows(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Vec<PgRow>> {
        self.all(bound(sql, arguments)).await
    }
}

fn bound<'a>(sql: Sql, arguments: &[Argument<'a>]) -> Statement<'a> {
    let mut statement = query(sql.postgres);
    for argument in arguments {
        statement = match *argument {
            Argument::Number(number) => statement.bind(number),
            Argument::OptionalNumber(number) => statement.bind(number),
            Argument::Bytes(bytes) => statement.bind(bytes),
            Argument::OptionalBytes(bytes) => statement.bind(bytes),
            Argument::Text(text) => statement.bind(text),
            Argument::OptionalText(text) => statement.bind(text),
            Argument::List(keys) => statement.bind(keys),
        };
    }
    statement
}

macro_rules! read {
    ($self:ident, $attempt:literal, |$tx:ident| $work:expr) => {
        $self
            .again(|| async {
                let mut session = $self.read($attempt).await?;
                let done = {
                    let $tx = &mut session;
                    $work.await?
                };
                session.end().await?;
                Ok(done)
            })
            .await
    };
}

// Done twice all of it is the same, the giving out of a lease excepted: one whose answer was lost has to run out.
macro_rules! write {
    ($self:ident, $attempt:literal, |$tx:ident| $work:expr) => {
        $self
            .again(|| async {
                let mut session = $self.write($attempt, &[]).await?;
                let done = {
                    let $tx = &mut session;
                    $work.await
                };
                match done {
                    Ok(done) => {
                        session.commit().await?;
                        Ok(done)
                    }
                    Err(reason) => Err(session.give_up(reason).await),
                }
            })
            .await
    };
}

implement_publish_index!(PostgresIndex, read, write);
