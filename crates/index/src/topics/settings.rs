//! Named values of the installation, and what is sealed with the master key.

use async_trait::async_trait;

use super::{journal, journal_notes};
use crate::contract::{
    CacheId, JournalSubject, MASTER_KEY_PROOF, PREVIOUS_KEY_PROOF, SealedKey, SealedKeyPlace, SettingIndex,
};
use crate::sql::Argument::{Bytes, Number, Text};
use crate::sql::{Sql, Transaction, both};
use crate::sql_index::{SqlIndex, Write};
use crate::{Error, Result};

const FIND_SETTING: Sql = both!("SELECT value FROM settings WHERE name = $1");

// The update changes nothing; without it there would be no row to return.
const CREATE_SETTING: Sql = both!(
    "INSERT INTO settings (name, value) VALUES ($1, $2)
     ON CONFLICT (name) DO UPDATE SET value = settings.value
     RETURNING value"
);

// On PostgreSQL the lock waits for a replacement that is under way, and makes one wait for this
// transaction.
const LOCKED_PROOF: Sql = Sql {
    sqlite: "SELECT value FROM settings WHERE name = $1",
    postgres: "SELECT value FROM settings WHERE name = $1 FOR SHARE",
};

const REPLACE_PROOF: Sql = both!("UPDATE settings SET value = $3 WHERE name = $1 AND value = $2");

const KEEP_PROOF: Sql =
    both!("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING");

const FORGET_SETTING: Sql = both!("DELETE FROM settings WHERE name = $1");

pub(crate) const LIST_SEALED_KEYS: Sql = both!(
    "SELECT cache, CAST(position AS BIGINT), public_key, sealed_secret FROM cache_keys
     WHERE (cache, position) > ($1, $2) ORDER BY cache, position LIMIT $3"
);

const REPLACE_SEALED_KEY: Sql = both!(
    "UPDATE cache_keys SET sealed_secret = $4 WHERE cache = $1 AND position = $2 AND sealed_secret = $3"
);

/// Fails if the master key with this proof is not the one that secrets are sealed with now.
pub(crate) async fn check_master_key(tx: &mut Transaction, proof: Option<&[u8]>) -> Result<()> {
    let Some(proof) = proof else { return Ok(()) };
    let stored = tx.optional(LOCKED_PROOF, &[Text(MASTER_KEY_PROOF)]).await?;
    let stored: Option<Vec<u8>> = stored.map(|row| row.column(0, "settings")).transpose()?;
    if stored.is_some_and(|stored| stored != proof) { Err(Error::MasterKeyReplaced) } else { Ok(()) }
}

#[async_trait]
impl SettingIndex for SqlIndex {
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

    async fn begin_rekey(&self, before: &[u8], after: &[u8]) -> Result<()> {
        self.write(Write::from("replace the master key's proof").unless_done(), async |mut tx| {
            let replace = [Text(MASTER_KEY_PROOF), Bytes(before), Bytes(after)];
            let keep = [Text(PREVIOUS_KEY_PROOF), Bytes(before)];
            if tx.run(REPLACE_PROOF, &replace).await? == 0 || tx.run(KEEP_PROOF, &keep).await? == 0 {
                return Err(Error::MasterKeyReplaced);
            }
            journal_notes::note(&mut tx, &JournalSubject::Settings).await
        })
        .await
    }

    async fn list_sealed_keys(&self, after: Option<SealedKeyPlace>, limit: u32) -> Result<Vec<SealedKey>> {
        let (cache, position) = after.map_or((i64::MIN, i64::MIN), |after| (after.cache.0, after.position));
        self.read("list sealed keys", async |mut tx| {
            let page = [Number(cache), Number(position), Number(limit.into())];
            let rows = tx.rows(LIST_SEALED_KEYS, &page).await?;
            rows.iter()
                .map(|row| {
                    Ok(SealedKey {
                        place: SealedKeyPlace {
                            cache: CacheId(row.column(0, "cache_keys")?),
                            position: row.column(1, "cache_keys")?,
                        },
                        public_key: row.column(2, "cache_keys")?,
                        sealed_secret: row.column(3, "cache_keys")?,
                    })
                })
                .collect()
        })
        .await
    }

    async fn replace_sealed_keys(&self, keys: &[(SealedKey, Vec<u8>)]) -> Result<()> {
        self.write("seal keys anew", async |mut tx| {
            for (key, sealed) in keys {
                let SealedKeyPlace { cache, position } = key.place;
                let change = [Number(cache.0), Number(position), Bytes(&key.sealed_secret), Bytes(sealed)];
                if tx.run(REPLACE_SEALED_KEY, &change).await? > 0 {
                    journal_notes::note_cache(&mut tx, cache).await?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn end_rekey(&self) -> Result<()> {
        self.write("forget the proof of the master key before", async |mut tx| {
            tx.run(FORGET_SETTING, &[Text(PREVIOUS_KEY_PROOF)]).await?;
            // The snapshot in the store has the keys as the old master key sealed them.
            journal::ask_for_snapshot(&mut tx).await?;
            journal_notes::note(&mut tx, &JournalSubject::Settings).await
        })
        .await
    }
}
