//! Named values of the installation.

use async_trait::async_trait;

use crate::Result;
use crate::contract::SettingIndex;
use crate::rows::Row as _;
use crate::sql::Argument::{Bytes, Text};
use crate::sql::{Sql, Transaction as _, both};
use crate::sql_index::{Dialect, SqlIndex};

const FIND_SETTING: Sql = both!("SELECT value FROM settings WHERE name = $1");

// The update changes nothing; without it there would be no row to return.
const CREATE_SETTING: Sql = both!(
    "INSERT INTO settings (name, value) VALUES ($1, $2)
     ON CONFLICT (name) DO UPDATE SET value = settings.value
     RETURNING value"
);

#[async_trait]
impl<D: Dialect> SettingIndex for SqlIndex<D> {
    async fn find_setting(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.read("find a setting", async |mut tx| {
            let row = tx.optional(FIND_SETTING, &[Text(name)]).await?;
            row.map(|row| row.column(0, "settings")).transpose()
        })
        .await
    }

    async fn create_setting(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        self.write("create a setting", async |mut tx| {
            tx.one(CREATE_SETTING, &[Text(name), Bytes(value)]).await?.column(0, "settings")
        })
        .await
    }
}
