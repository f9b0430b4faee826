//! The master key: found, made for a new database, and compared with the proof in the database.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_engine::MasterKey;
use dormer_index::{Index, MASTER_KEY_PROOF, PREVIOUS_KEY_PROOF};

use super::made::{Made, Observer};
use crate::error::{Error, Result};
use crate::secret_file;
use crate::settings::Settings;

/// The key from the settings or from its file. A key is made only for a database that never had
/// one. The database holds a sealed proof, so a start detects a lost or wrong key, long before the
/// first signature.
pub(super) async fn master_key(
    settings: &Settings,
    index: &dyn Index,
    observer: Observer<'_>,
) -> Result<MasterKey> {
    let proof = index.find_setting(MASTER_KEY_PROOF).await?;
    let path = &settings.master_key_file;
    let bytes = match settings.master_key {
        Some(bytes) => bytes,
        None => master_key_from_file(path, proof.is_some(), observer)?,
    };
    let key = with_previous_key(settings, MasterKey::from_bytes(bytes))?;
    let proof = match proof {
        Some(proof) => proof,
        None => index.create_setting(MASTER_KEY_PROOF, &key.proof()).await?,
    };
    verify_master_key(settings, &key, &proof)?;
    verify_previous_key(&key, index).await?;
    Ok(key)
}

/// The master key of an installation that exists. Makes nothing.
pub(crate) async fn master_key_beside(settings: &Settings, index: &dyn Index) -> Result<MasterKey> {
    let Some(proof) = index.find_setting(MASTER_KEY_PROOF).await? else {
        return Err(Error::NoInstallation { path: settings.database_path.clone() });
    };
    let key = read_master_key(settings, Some(&proof))?;
    verify_previous_key(&key, index).await?;
    Ok(key)
}

/// While a key is being replaced, secrets of both keys are there.
async fn verify_previous_key(key: &MasterKey, index: &dyn Index) -> Result<()> {
    match index.find_setting(PREVIOUS_KEY_PROOF).await? {
        Some(proof) if !key.opens_proof(&proof) => Err(Error::RekeyUnfinished),
        _ => Ok(()),
    }
}

fn verify_master_key(settings: &Settings, key: &MasterKey, proof: &[u8]) -> Result<()> {
    if key.opens_proof(proof) {
        return Ok(());
    }
    let origin = match settings.master_key {
        Some(_) => "the one in the settings (master-key)".to_owned(),
        None => settings.master_key_file.display().to_string(),
    };
    Err(Error::WrongMasterKey { origin })
}

/// Checks that the master key exists and matches the database's `proof`. Makes nothing.
pub(crate) fn check_master_key(settings: &Settings, proof: Option<&[u8]>) -> Result<()> {
    read_master_key(settings, proof).map(drop)
}

fn read_master_key(settings: &Settings, proof: Option<&[u8]>) -> Result<MasterKey> {
    let bytes = match settings.master_key {
        Some(bytes) => bytes,
        None => master_key_from_file(&settings.master_key_file, true, &mut |_| Ok(()))?,
    };
    let key = with_previous_key(settings, MasterKey::from_bytes(bytes))?;
    proof.map_or(Ok(()), |proof| verify_master_key(settings, &key, proof))?;
    Ok(key)
}

fn with_previous_key(settings: &Settings, key: MasterKey) -> Result<MasterKey> {
    let previous = match (&settings.previous_master_key, &settings.previous_master_key_file) {
        (Some(bytes), _) => Some(*bytes),
        (None, Some(path)) => Some(master_key_from_file(path, true, &mut |_| Ok(()))?),
        (None, None) => None,
    };
    Ok(key.with_previous(previous))
}

fn master_key_from_file(path: &Path, was_used: bool, observer: Observer<'_>) -> Result<[u8; 32]> {
    let text = match secret_file::read(path)? {
        Some(text) => text,
        None if was_used => return Err(Error::NoMasterKey { path: path.to_owned() }),
        None => {
            let make = || STANDARD.encode(rand::random::<[u8; 32]>());
            let (text, made) = secret_file::create_or_read(path, make)?;
            if made {
                observer(&Made::MasterKey(path.to_owned()))?;
            }
            text
        }
    };
    let bytes = STANDARD.decode(text.expose()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let what = "a master key: 32 bytes in base64";
    bytes.ok_or_else(|| Error::UnreadableSecret { path: path.to_owned(), what })
}
