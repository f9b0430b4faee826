//! Bytes become records.

use dormer_nix::{NarHash, StorePath, StorePathHash};

use super::records::{
    JournalAlias, JournalCache, JournalContent, JournalDocument, JournalKey, JournalListing, JournalNar,
    JournalObject, JournalPath, JournalPin, JournalRecord,
};
use crate::error::{Malformed, Result};
use crate::manifest::{NarManifest, decode_fills, read_chunks};
use crate::wire::{Reader, unzigzag};

/// Reads the records of a block, which has one spelling.
pub(crate) fn read_records(raw: &[u8], records: &mut Vec<JournalRecord>) -> Result<(), Malformed> {
    let mut reader = Reader::new(raw);
    while reader.remaining() > 0 {
        records.push(read_record(&mut reader)?);
    }
    Ok(())
}

fn read_record(reader: &mut Reader<'_>) -> Result<JournalRecord, Malformed> {
    Ok(match reader.u8()? {
        1 => JournalRecord::Setting { name: read_text(reader)?, value: read_bytes(reader)?.to_vec() },
        2 => JournalRecord::Cache(read_cache(reader)?),
        3 => JournalRecord::CacheGone { cache: reader.varint()? },
        4 => JournalRecord::Nar(read_nar(reader)?),
        5 => JournalRecord::Path(JournalPath {
            cache: reader.varint()?,
            hash: StorePathHash::from_bytes(reader.array()?),
            object: read_option(reader, read_object)?,
        }),
        6 => JournalRecord::Alias(JournalAlias {
            cache: reader.varint()?,
            file_name: read_text(reader)?,
            upload: read_option(reader, |reader| {
                Ok((NarHash::from_bytes(reader.array()?), read_text(reader)?, read_number(reader)?))
            })?,
        }),
        7 => JournalRecord::Document(JournalDocument {
            cache: reader.varint()?,
            name: read_text(reader)?,
            content: read_option(reader, |reader| {
                Ok(JournalContent {
                    owner: StorePathHash::from_bytes(reader.array()?),
                    written_at: read_number(reader)?,
                    size: reader.varint()?,
                    encoding: read_option(reader, read_text)?,
                    body: read_bytes(reader)?.to_vec(),
                })
            })?,
        }),
        8 => JournalRecord::Pins { cache: reader.varint()?, pins: read_pins(reader)? },
        9 => JournalRecord::Pin { cache: reader.varint()?, pin: read_pin(reader)? },
        10 => JournalRecord::PinGone {
            cache: reader.varint()?,
            name: read_text(reader)?,
            hash: StorePathHash::from_bytes(reader.array()?),
        },
        _ => return Err(Malformed::OutOfBounds { what: "the kind of a journal record" }),
    })
}

fn read_cache(reader: &mut Reader<'_>) -> Result<JournalCache, Malformed> {
    Ok(JournalCache {
        cache: reader.varint()?,
        name: read_text(reader)?,
        is_public: read_flag(reader)?,
        store_dir: read_text(reader)?,
        priority: read_number(reader)?,
        upstream_key_names: read_list(reader, 1, read_text)?,
        retention_seconds: read_option(reader, read_number)?,
        quota_bytes: read_option(reader, read_number)?,
        keep_latest: read_option(reader, read_number)?,
        allow_replacement: read_flag(reader)?,
        created_at: read_number(reader)?,
        keys: read_list(reader, 3, |reader| {
            Ok(JournalKey {
                public_key: read_text(reader)?,
                sealed_secret: read_bytes(reader)?.to_vec(),
                active: read_flag(reader)?,
            })
        })?,
        pins: read_pins(reader)?,
    })
}

fn read_pins(reader: &mut Reader<'_>) -> Result<Vec<JournalPin>, Malformed> {
    read_list(reader, 24, read_pin)
}

fn read_pin(reader: &mut Reader<'_>) -> Result<JournalPin, Malformed> {
    Ok(JournalPin {
        name: read_text(reader)?,
        path: read_path(reader)?,
        created_at: read_number(reader)?,
        ends_at: read_option(reader, read_number)?,
    })
}

fn read_nar(reader: &mut Reader<'_>) -> Result<JournalNar, Malformed> {
    let hash = NarHash::from_bytes(reader.array()?);
    let size = reader.varint()?;
    let chunks = read_chunks(reader)?;
    let bad = Malformed::OutOfBounds { what: "the fills of a journal's NAR" };
    let fills = decode_fills(read_bytes(reader)?).map_err(|_| bad)?;
    let listing = match reader.u8()? {
        0 => JournalListing::Lost,
        1 => JournalListing::Inline(read_bytes(reader)?.to_vec()),
        2 => {
            let size = reader.varint()?;
            JournalListing::Chunks { chunks: read_chunks(reader)?, size }
        }
        _ => return Err(Malformed::OutOfBounds { what: "the kind of a listing" }),
    };
    Ok(JournalNar { hash, size, recipe: NarManifest { chunks, fills }, listing })
}

fn read_object(reader: &mut Reader<'_>) -> Result<JournalObject, Malformed> {
    Ok(JournalObject {
        name: read_text(reader)?,
        nar: NarHash::from_bytes(reader.array()?),
        references: read_list(reader, 21, read_path)?,
        deriver: read_option(reader, read_text)?,
        ca: read_option(reader, read_text)?,
        system: read_option(reader, read_text)?,
        signatures: read_list(reader, 1, read_text)?,
        extra: read_list(reader, 2, |reader| Ok((read_text(reader)?, read_text(reader)?)))?,
        created_at: read_number(reader)?,
    })
}

fn read_path(reader: &mut Reader<'_>) -> Result<StorePath, Malformed> {
    let hash = StorePathHash::from_bytes(reader.array()?);
    StorePath::new(hash, &read_text(reader)?)
        .map_err(|_| Malformed::OutOfBounds { what: "the name of a path" })
}

/// A list of items of at least `bytes_each` bytes.
fn read_list<'r, T>(
    reader: &mut Reader<'r>,
    bytes_each: usize,
    mut read: impl FnMut(&mut Reader<'r>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = reader.count(bytes_each)?;
    // Not reserved: an item takes far more memory than the bytes that claim it.
    (0..count).map(|_| read(reader)).collect()
}

fn read_bytes<'r>(reader: &mut Reader<'r>) -> Result<&'r [u8], Malformed> {
    let length = reader.count(1)?;
    reader.take(length)
}

fn read_text(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let bytes = read_bytes(reader)?.to_vec();
    String::from_utf8(bytes).map_err(|_| Malformed::OutOfBounds { what: "a text of a journal record" })
}

fn read_number(reader: &mut Reader<'_>) -> Result<i64, Malformed> {
    reader.varint().map(unzigzag)
}

fn read_flag(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::OutOfBounds { what: "a flag of a journal record" }),
    }
}

fn read_option<'r, T>(
    reader: &mut Reader<'r>,
    read: impl FnOnce(&mut Reader<'r>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if read_flag(reader)? { read(reader).map(Some) } else { Ok(None) }
}
