//! One statement for both databases: what differs between them is how many keys come as one parameter.

use crate::Result;
use crate::rows::Row;

/// A statement in both dialects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

/// A parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    Number(i64),
    OptionalNumber(Option<i64>),
    Bytes(&'a [u8]),
    OptionalBytes(Option<&'a [u8]>),
    Text(&'a str),
    OptionalText(Option<&'a str>),
    /// Many keys: a table of one column, `item`.
    List(&'a [&'a [u8]]),
}

/// What both databases' transactions can do.
pub(crate) trait Transaction: Send {
    /// Its rows.
    type Row: Row + Send + Sync;
    /// Runs a statement; returns how many rows it changed.
    fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> impl Future<Output = Result<u64>> + Send;
    /// Runs a statement that gives rows.
    fn rows(
        &mut self,
        sql: Sql,
        arguments: &[Argument<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>>> + Send;
}

/// The same in both dialects.
macro_rules! both {
    ($text:expr) => {
        crate::publish::Sql { sqlite: $text, postgres: $text }
    };
    // Text, number of a parameter that is a list, text: the list stands between as a table with the column `item`.
    ($before:expr, list $number:literal, $after:expr) => {
        crate::publish::Sql {
            sqlite: concat!(
                $before,
                " (SELECT unhex(value) AS item FROM json_each($",
                $number,
                ")) ",
                $after
            ),
            postgres: concat!(
                $before,
                " (SELECT item FROM unnest($",
                $number,
                "::bytea[]) AS l (item)) ",
                $after
            ),
        }
    };
}
pub(crate) use both;
