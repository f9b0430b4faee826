//! The publisher's small documents, remembered by the isolate.
//!
//! Invariants
//! - An answer from memory is at most [`STATE_SECONDS`] old: by then a revoked token stops working.
//! - A missing document is remembered for as long. So nobody can tell a private cache from a
//!   missing one by the reads that a request causes, or by the requests that fail while the bucket
//!   does. A new cache appears after that time at the latest, a new path in it much sooner.
//! - A bucket that does not answer is an error and never "not there".
//! - Memory is bounded whatever names are asked for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use dormer_edge::{CacheState, Catalog, STATE_BYTES_MAX, STATE_SECONDS};
use wasm_bindgen::JsValue;

use crate::runtime::{self, R2Bucket};

/// Documents that an isolate remembers. Most are small, and 64 of the largest fit into its 128 MB.
const DOCUMENTS_MAX: usize = 64;

struct Remembered<T> {
    value: Option<Rc<T>>,
    until_ms: f64,
}

thread_local! {
    static STATES: RefCell<HashMap<String, Remembered<CacheState>>> = RefCell::new(HashMap::new());
    static CATALOGS: RefCell<HashMap<String, Remembered<Catalog>>> = RefCell::new(HashMap::new());
}

/// The state document of this name, if it exists.
pub(crate) async fn state(bucket: &R2Bucket, name: &str) -> Result<Option<Rc<CacheState>>, String> {
    if let Some(known) = STATES.with_borrow(|known| recall(known, name)) {
        return Ok(known);
    }
    let value = read(bucket, name, CacheState::parse).await?;
    STATES.with_borrow_mut(|known| remember(known, name, value.clone()));
    Ok(value)
}

/// The catalogue, if it exists.
pub(crate) async fn catalog(bucket: &R2Bucket, name: &str) -> Result<Option<Rc<Catalog>>, String> {
    if let Some(known) = CATALOGS.with_borrow(|known| recall(known, name)) {
        return Ok(known);
    }
    let value = read(bucket, name, Catalog::parse).await?;
    CATALOGS.with_borrow_mut(|known| remember(known, name, value.clone()));
    Ok(value)
}

#[expect(clippy::option_option, reason = "nothing is remembered, or that nothing is there")]
fn recall<T>(known: &HashMap<String, Remembered<T>>, name: &str) -> Option<Option<Rc<T>>> {
    known.get(name).filter(|entry| runtime::now_ms() < entry.until_ms).map(|entry| entry.value.clone())
}

fn remember<T>(known: &mut HashMap<String, Remembered<T>>, name: &str, value: Option<Rc<T>>) {
    let now_ms = runtime::now_ms();
    if known.len() >= DOCUMENTS_MAX && !known.contains_key(name) {
        known.retain(|_, entry| now_ms < entry.until_ms);
        // Still full of fresh documents: read all of them again rather than grow. Dropping missing
        // documents first would let a client that fills the memory tell from the time of an answer
        // whether a private cache exists.
        if known.len() >= DOCUMENTS_MAX {
            known.clear();
        }
    }
    known.insert(name.to_owned(), Remembered { value, until_ms: now_ms + f64::from(STATE_SECONDS) * 1000.0 });
}

async fn read<T, E: std::fmt::Display>(
    bucket: &R2Bucket,
    name: &str,
    parse: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<Option<Rc<T>>, String> {
    let failed = |error: JsValue| format!("{name} cannot be read: {error:?}");
    let promise = bucket.get(name, &JsValue::UNDEFINED).map_err(failed)?;
    let Some(object) = runtime::found(promise).await.map_err(failed)? else { return Ok(None) };
    #[expect(clippy::cast_precision_loss, reason = "a small constant")]
    if object.size() > STATE_BYTES_MAX as f64 {
        return Err(format!("{name} is larger than any that is published"));
    }
    let bytes = runtime::read_all(&object).await.map_err(failed)?;
    parse(&bytes).map(|value| Some(Rc::new(value))).map_err(|error| format!("{name}: {error}"))
}
