//! Records become bytes.

use dormer_nix::StorePath;

use super::records::{JournalCache, JournalListing, JournalObject, JournalPin, JournalRecord};
use crate::manifest::{encode_fills, put_chunks};
use crate::wire::{put_varint, zigzag};

/// Appends a record to a block.
pub(crate) fn put_record(out: &mut Vec<u8>, record: &JournalRecord) {
    match record {
        JournalRecord::Setting { name, value } => {
            out.push(1);
            put_bytes(out, name.as_bytes());
            put_bytes(out, value);
        }
        JournalRecord::Cache(cache) => {
            out.push(2);
            put_cache(out, cache);
        }
        JournalRecord::CacheGone { cache } => {
            out.push(3);
            put_varint(out, *cache);
        }
        JournalRecord::Nar(nar) => {
            out.push(4);
            out.extend_from_slice(nar.hash.as_bytes());
            put_varint(out, nar.size);
            put_chunks(out, &nar.recipe.chunks);
            put_bytes(out, &encode_fills(&nar.recipe.fills));
            match &nar.listing {
                JournalListing::Lost => out.push(0),
                JournalListing::Inline(body) => {
                    out.push(1);
                    put_bytes(out, body);
                }
                JournalListing::Chunks { chunks, size } => {
                    out.push(2);
                    put_varint(out, *size);
                    put_chunks(out, chunks);
                }
            }
        }
        JournalRecord::Path(path) => {
            out.push(5);
            put_varint(out, path.cache);
            out.extend_from_slice(path.hash.as_bytes());
            put_option(out, path.object.as_ref(), put_object);
        }
        JournalRecord::Alias(alias) => {
            out.push(6);
            put_varint(out, alias.cache);
            put_bytes(out, alias.file_name.as_bytes());
            put_option(out, alias.upload.as_ref(), |out, (nar, compression, used_at)| {
                out.extend_from_slice(nar.as_bytes());
                put_bytes(out, compression.as_bytes());
                put_number(out, *used_at);
            });
        }
        JournalRecord::Document(document) => {
            out.push(7);
            put_varint(out, document.cache);
            put_bytes(out, document.name.as_bytes());
            put_option(out, document.content.as_ref(), |out, content| {
                out.extend_from_slice(content.owner.as_bytes());
                put_number(out, content.written_at);
                put_varint(out, content.size);
                put_option(out, content.encoding.as_ref(), |out, text| put_bytes(out, text.as_bytes()));
                put_bytes(out, &content.body);
            });
        }
        JournalRecord::Pins { cache, pins } => {
            out.push(8);
            put_varint(out, *cache);
            put_pins(out, pins);
        }
        JournalRecord::Pin { cache, pin } => {
            out.push(9);
            put_varint(out, *cache);
            put_pin(out, pin);
        }
        JournalRecord::PinGone { cache, name, hash } => {
            out.push(10);
            put_varint(out, *cache);
            put_bytes(out, name.as_bytes());
            out.extend_from_slice(hash.as_bytes());
        }
    }
}

fn put_cache(out: &mut Vec<u8>, cache: &JournalCache) {
    put_varint(out, cache.cache);
    put_bytes(out, cache.name.as_bytes());
    out.push(u8::from(cache.is_public));
    put_bytes(out, cache.store_dir.as_bytes());
    put_number(out, cache.priority);
    put_texts(out, &cache.upstream_key_names);
    for number in [cache.retention_seconds, cache.quota_bytes, cache.keep_latest] {
        put_option(out, number.as_ref(), |out, number| put_number(out, *number));
    }
    out.push(u8::from(cache.allow_replacement));
    put_number(out, cache.created_at);
    put_varint(out, cache.keys.len() as u64);
    for key in &cache.keys {
        put_bytes(out, key.public_key.as_bytes());
        put_bytes(out, &key.sealed_secret);
        out.push(u8::from(key.active));
    }
    put_pins(out, &cache.pins);
}

fn put_pins(out: &mut Vec<u8>, pins: &[JournalPin]) {
    put_varint(out, pins.len() as u64);
    for pin in pins {
        put_pin(out, pin);
    }
}

fn put_pin(out: &mut Vec<u8>, pin: &JournalPin) {
    put_bytes(out, pin.name.as_bytes());
    put_path(out, &pin.path);
    put_number(out, pin.created_at);
    put_option(out, pin.ends_at.as_ref(), |out, number| put_number(out, *number));
}

fn put_object(out: &mut Vec<u8>, object: &JournalObject) {
    put_bytes(out, object.name.as_bytes());
    out.extend_from_slice(object.nar.as_bytes());
    put_varint(out, object.references.len() as u64);
    for reference in &object.references {
        put_path(out, reference);
    }
    for text in [&object.deriver, &object.ca, &object.system] {
        put_option(out, text.as_ref(), |out, text| put_bytes(out, text.as_bytes()));
    }
    put_texts(out, &object.signatures);
    put_varint(out, object.extra.len() as u64);
    for (name, value) in &object.extra {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
    put_number(out, object.created_at);
}

fn put_path(out: &mut Vec<u8>, path: &StorePath) {
    out.extend_from_slice(path.hash().as_bytes());
    put_bytes(out, path.name().as_bytes());
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_varint(out, texts.len() as u64);
    for text in texts {
        put_bytes(out, text.as_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, number: i64) {
    put_varint(out, zigzag(number));
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}
