//! Many rows as one parameter: JSON text, which both databases unfold into a table.

use std::fmt::Write as _;

/// Rows of several columns, written as a JSON array of arrays. [`records`] reads them back in SQL.
#[derive(Debug, Default)]
pub(crate) struct Records {
    json: String,
    row_is_open: bool,
}

impl Records {
    /// Begins a row; the columns follow.
    pub(crate) fn row(&mut self) -> &mut Self {
        self.end_row();
        self.json.push_str(if self.json.is_empty() { "[[" } else { ",[" });
        self.row_is_open = true;
        self
    }

    /// A column of bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.optional_bytes(Some(bytes))
    }

    /// A column of bytes, or NULL.
    pub(crate) fn optional_bytes(&mut self, bytes: Option<&[u8]>) -> &mut Self {
        match bytes {
            Some(bytes) => write!(self.json, "\"{}\",", hex::encode(bytes)),
            None => write!(self.json, "null,"),
        }
        .expect("a string takes everything");
        self
    }

    /// A column of a number.
    pub(crate) fn number(&mut self, number: i64) -> &mut Self {
        write!(self.json, "{number},").expect("a string takes everything");
        self
    }

    /// A column of text, or NULL.
    pub(crate) fn text(&mut self, text: Option<&str>) -> &mut Self {
        let text = serde_json::to_string(&text).expect("text is JSON");
        self.json.push_str(&text);
        self.json.push(',');
        self
    }

    /// The parameter.
    pub(crate) fn finish(mut self) -> String {
        self.end_row();
        self.json.push_str(if self.json.is_empty() { "[]" } else { "]" });
        self.json
    }

    fn end_row(&mut self) {
        if std::mem::take(&mut self.row_is_open) {
            if self.json.ends_with(',') {
                self.json.pop();
            }
            self.json.push(']');
        }
    }
}

/// A statement in both dialects in which one parameter, made by [`Records`], stands as a table. Its
/// columns are given with their kind and position:
/// `records!("… FROM", 3 { hash: bytes 0, since: number 1 }, "AS k …")`.
///
/// With `keyed`, the table also has the columns `target` and `cache`, as in
/// [`both`](crate::sql::both).
macro_rules! records {
    ($before:expr, keyed $parameter:literal { $($column:ident: $kind:ident $position:literal),+ }, $after:expr) => {
        Sql {
            sqlite: concat!(
                $before, " (SELECT ", $(records!(@sqlite $kind $position), " AS ", stringify!($column), ", ",)+
                "$1 AS target, $2 AS cache FROM json_each($", $parameter, ") LIMIT -1 OFFSET 0) ", $after
            ),
            postgres: concat!(
                $before, " (SELECT ", $(records!(@postgres $kind $position), " AS ", stringify!($column), ", ",)+
                "$1::bigint AS target, $2::bigint AS cache FROM json_array_elements($", $parameter,
                "::json) AS l (value) OFFSET 0) ", $after
            ),
        }
    };
    ($before:expr, $parameter:literal { $($column:ident: $kind:ident $position:literal),+ }, $after:expr) => {
        Sql {
            sqlite: concat!(
                $before, " (SELECT ", $(records!(@sqlite $kind $position), " AS ", stringify!($column), ", ",)+
                "1 AS one FROM json_each($", $parameter, ")) ", $after
            ),
            postgres: concat!(
                $before, " (SELECT ", $(records!(@postgres $kind $position), " AS ", stringify!($column), ", ",)+
                "1 AS one FROM json_array_elements($", $parameter, "::json) AS l (value)) ", $after
            ),
        }
    };
    (@sqlite bytes $position:literal) => { concat!("unhex(value ->> ", $position, ")") };
    (@sqlite number $position:literal) => { concat!("(value ->> ", $position, ")") };
    (@sqlite text $position:literal) => { concat!("(value ->> ", $position, ")") };
    (@postgres bytes $position:literal) => { concat!("decode(value ->> ", $position, ", 'hex')") };
    (@postgres number $position:literal) => { concat!("(value ->> ", $position, ")::bigint") };
    (@postgres text $position:literal) => { concat!("(value ->> ", $position, ")") };
}
pub(crate) use records;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_json() {
        assert_eq!(Records::default().finish(), "[]");
        let mut records = Records::default();
        records.row().bytes(&[1, 255]).number(-7).text(Some("a\"b"));
        records.row().optional_bytes(None).number(8).text(None);
        assert_eq!(records.finish(), r#"[["01ff",-7,"a\"b"],[null,8,null]]"#);
    }
}
