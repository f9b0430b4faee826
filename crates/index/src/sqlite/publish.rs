//! Publishing's contract on SQLite.

use dormer_format::EncodingTag;
use dormer_nix::{NarHash, StorePathHash};
use sqlx::query;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::SqliteIndex;
use super::hex_array;
use super::session::{Session, Statement};
use crate::Result;
use crate::contract::{CacheId, FoundObject, OutboxPosition, UnixSeconds};
use crate::publish::{Argument, Sql, Transaction, implement_publish_index, work};

impl<C: std::ops::DerefMut<Target = SqliteConnection> + Send> Transaction for Session<'_, C> {
    type Row = SqliteRow;

    async fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<u64> {
        self.execute(bound(sql, arguments)).await
    }

    async fn rows(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Vec<SqliteRow>> {
        self.all(bound(sql, arguments)).await
    }
}

fn bound<'a>(sql: Sql, arguments: &[Argument<'a>]) -> Statement<'a> {
    let mut statement = query(sql.sqlite);
    for argument in arguments {
        statement = match *argument {
            Argument::Number(number) => statement.bind(number),
            Argument::OptionalNumber(number) => statement.bind(number),
            Argument::Bytes(bytes) => statement.bind(bytes),
            Argument::OptionalBytes(bytes) => statement.bind(bytes),
            Argument::Text(text) => statement.bind(text),
            Argument::OptionalText(text) => statement.bind(text),
            Argument::List(keys) => statement.bind(hex_array(keys.iter().copied())),
        };
    }
    statement
}

macro_rules! read {
    ($self:ident, $attempt:literal, |$tx:ident| $work:expr) => {{
        let mut session = $self.read($attempt).await?;
        let $tx = &mut session;
        $work.await
    }};
}

macro_rules! write {
    ($self:ident, $attempt:literal, |$tx:ident| $work:expr) => {{
        let mut session = $self.write($attempt).await?;
        let mut transaction = session.begin().await?;
        let done = {
            let $tx = &mut transaction;
            $work.await?
        };
        transaction.commit().await?;
        Ok(done)
    }};
}

implement_publish_index!(SqliteIndex, read, write);
