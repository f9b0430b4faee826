//! A statement in both dialects, and its arguments.

/// A statement in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

impl Sql {
    /// For a dialect whose statement before this one does all of the work. It is not sent.
    pub(crate) const NOTHING: &'static str = "";
}

/// A parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    Flag(bool),
    OptionalFlag(Option<bool>),
    Number(i64),
    OptionalNumber(Option<i64>),
    Bytes(&'a [u8]),
    OptionalBytes(Option<&'a [u8]>),
    Text(&'a str),
    OptionalText(Option<&'a str>),
    /// Many keys. PostgreSQL takes an array, SQLite a JSON array of hexadecimal texts.
    List(&'a [&'a [u8]]),
    /// Many numbers. PostgreSQL takes an array, SQLite a JSON array.
    Numbers(&'a [i64]),
    /// Many rows of several columns. It must be the last argument: PostgreSQL takes one array for
    /// each column, SQLite one JSON array of rows.
    Table(&'a [Column<'a>]),
}

/// A column of [`Argument::Table`]. All columns of a table have the same length.
#[derive(Debug)]
pub(crate) enum Column<'a> {
    Numbers(Vec<i64>),
    Bytes(Vec<&'a [u8]>),
}

/// Writes one text for both dialects.
macro_rules! both {
    ($text:expr) => {
        crate::statement::Sql { sqlite: $text, postgres: $text }
    };
    // Text, the number of a parameter that is a list of keys, text. The list stands between as a
    // table with the column `item`.
    ($before:expr, list $number:literal, $after:expr) => {
        crate::statement::Sql {
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
    // The same with the columns `target` and `cache` too, which are the parameters 1 and 2. The
    // OFFSET keeps the planner from seeing through it: a statement that joins on `k.target` and
    // `k.cache` can only begin at the keys and look each one up. Compared with `$1` and `$2`, a
    // planner that has no figures expects a handful of rows of a cache, and compares each row with
    // each key.
    ($before:expr, keyed $number:literal, $after:expr) => {
        crate::statement::Sql {
            sqlite: concat!(
                $before,
                " (SELECT $1 AS target, $2 AS cache, unhex(value) AS item FROM json_each($",
                $number,
                ") LIMIT -1 OFFSET 0) ",
                $after
            ),
            postgres: concat!(
                $before,
                " (SELECT $1::bigint AS target, $2::bigint AS cache, item FROM unnest($",
                $number,
                "::bytea[]) AS l (item) OFFSET 0) ",
                $after
            ),
        }
    };
}
pub(crate) use both;

/// When a NAR was found damaged, or NULL: by itself, or because it needs a damaged chunk. The
/// parameter is the name that the statement gives to the table `nars`. The table `damaged_nars` is
/// nearly always empty, so this is one look into an empty index and no statement of its own.
macro_rules! damaged {
    ($nar:literal) => {
        concat!(
            "coalesce(",
            $nar,
            ".damaged_at, (SELECT max(dc.damaged_at) FROM damaged_nars AS d CROSS JOIN chunks AS dc
                 WHERE d.nar = ",
            $nar,
            ".id AND dc.number = d.chunk))"
        )
    };
}
pub(crate) use damaged;
