//! What the Workers runtime offers and web-sys does not know: R2, the Cache API, WebCrypto, the
//! request's context.
//!
//! Declared by hand, a dozen functions: the crate `worker` would bring a router, an address parser
//! with its Unicode tables and a calendar into the module, three times its size, and another 130 µs
//! into each small answer.

use js_sys::{ArrayBuffer, Function, Object, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{ReadableStream, ReadableStreamDefaultReader, Response};

#[wasm_bindgen]
extern "C" {
    /// A binding to an R2 bucket.
    pub(crate) type R2Bucket;

    /// Resolves to an object with its body, or null.
    #[wasm_bindgen(method, catch)]
    pub(crate) fn get(this: &R2Bucket, key: &str, options: &JsValue) -> Result<Promise, JsValue>;

    /// Resolves to an object without a body, or null.
    #[wasm_bindgen(method, catch)]
    pub(crate) fn head(this: &R2Bucket, key: &str) -> Result<Promise, JsValue>;

    /// What R2 found.
    pub(crate) type R2Object;

    /// Size of the whole object, also when a part was asked for.
    #[wasm_bindgen(method, getter)]
    pub(crate) fn size(this: &R2Object) -> f64;

    /// Its tag, quoted.
    #[wasm_bindgen(method, getter, js_name = httpEtag)]
    pub(crate) fn http_etag(this: &R2Object) -> String;

    /// What was asked for of its bytes.
    #[wasm_bindgen(method, getter)]
    pub(crate) fn body(this: &R2Object) -> ReadableStream;

    /// Reads all of it.
    #[wasm_bindgen(method, catch, js_name = arrayBuffer)]
    pub(crate) fn array_buffer(this: &R2Object) -> Result<Promise, JsValue>;

    /// What outlives the answer.
    pub type Context;

    /// Lets a promise end after the answer is sent.
    #[wasm_bindgen(method, js_name = waitUntil)]
    pub(crate) fn wait_until(this: &Context, promise: &Promise);

    /// One cache of this data centre.
    pub(crate) type Cache;

    /// Opens one by its name. Named ones are apart from what the CDN keeps of the same addresses.
    #[wasm_bindgen(js_namespace = caches, js_name = open)]
    fn open_cache(name: &str) -> Promise;

    #[wasm_bindgen(method, js_name = match)]
    fn find(this: &Cache, address: &str) -> Promise;

    #[wasm_bindgen(method)]
    fn put(this: &Cache, address: &str, response: &Response) -> Promise;

    /// A key that WebCrypto verifies with.
    #[derive(Clone)]
    pub(crate) type CryptoKey;

    #[wasm_bindgen(js_namespace = ["crypto", "subtle"], js_name = importKey)]
    fn import_key(
        format: &str,
        key: &Uint8Array,
        algorithm: &JsValue,
        extractable: bool,
        uses: &JsValue,
    ) -> Promise;

    #[wasm_bindgen(js_namespace = ["crypto", "subtle"], js_name = verify)]
    fn verify_signature(
        algorithm: &JsValue,
        key: &CryptoKey,
        signature: &Uint8Array,
        data: &Uint8Array,
    ) -> Promise;

    /// Writes to the Worker's log.
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    pub(crate) fn log_error(message: &str);

    /// Milliseconds since 1970. On Cloudflare it stands still between two inputs, which is exact
    /// enough.
    #[wasm_bindgen(js_namespace = Date, js_name = now)]
    pub(crate) fn now_ms() -> f64;
}

/// A plain JavaScript object.
pub(crate) fn object(entries: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (name, value) in entries {
        // Setting a property of a fresh plain object cannot fail.
        let _ = Reflect::set(&object, &JsValue::from_str(name), value);
    }
    object.into()
}

/// A text among the Worker's variables and secrets.
pub(crate) fn variable(environment: &JsValue, name: &str) -> Option<String> {
    let value = Reflect::get(environment, &JsValue::from_str(name)).ok()?.as_string()?;
    (!value.is_empty()).then_some(value)
}

/// Whether one of the Worker's variables says `off`.
pub(crate) fn is_off(environment: &JsValue, name: &str) -> bool {
    variable(environment, name).is_some_and(|value| value == "off")
}

/// The bucket that the Worker is bound to.
pub(crate) fn bucket(environment: &JsValue) -> Option<R2Bucket> {
    let bucket = Reflect::get(environment, &JsValue::from_str("BUCKET")).ok()?;
    bucket.is_object().then(|| bucket.unchecked_into())
}

/// Counts an answer in Analytics Engine, where that is bound. Never fails a request.
pub(crate) fn count(environment: &JsValue, index: &str, blobs: &[&str], doubles: &[f64]) {
    let Ok(dataset) = Reflect::get(environment, &JsValue::from_str("ANALYTICS")) else { return };
    if !dataset.is_object() {
        return;
    }
    let write = Reflect::get(&dataset, &JsValue::from_str("writeDataPoint"));
    let Some(write) = write.ok().and_then(|write| write.dyn_into::<Function>().ok()) else { return };
    let list = |values: Vec<JsValue>| JsValue::from(values.into_iter().collect::<js_sys::Array>());
    let point = object(&[
        ("indexes", list(vec![index.into()])),
        ("blobs", list(blobs.iter().map(|&blob| blob.into()).collect())),
        ("doubles", list(doubles.iter().map(|&double| double.into()).collect())),
    ]);
    let _ = write.call1(&dataset, &point);
}

/// Reads a whole object: small documents only.
pub(crate) async fn read_all(object: &R2Object) -> Result<Vec<u8>, JsValue> {
    let buffer: ArrayBuffer = JsFuture::from(object.array_buffer()?).await?.unchecked_into();
    Ok(Uint8Array::new(&buffer).to_vec())
}

/// Reads a stream piece by piece, until it ends or `is_enough` says so of a piece.
pub(crate) async fn read_pieces(
    stream: &ReadableStream,
    mut is_enough: impl FnMut(&[u8]) -> bool,
) -> Result<(), JsValue> {
    let reader: ReadableStreamDefaultReader = stream.get_reader().unchecked_into();
    loop {
        let read = JsFuture::from(reader.read()).await?;
        if Reflect::get(&read, &"done".into())?.is_truthy() {
            return Ok(());
        }
        let piece: Uint8Array = Reflect::get(&read, &"value".into())?.dyn_into()?;
        if is_enough(&piece.to_vec()) {
            // The stream ends here, whatever its source says to that.
            let _ = reader.cancel();
            return Ok(());
        }
    }
}

/// Waits for what may be null.
pub(crate) async fn found(promise: Promise) -> Result<Option<R2Object>, JsValue> {
    let value = JsFuture::from(promise).await?;
    Ok((!value.is_null() && !value.is_undefined()).then(|| value.unchecked_into()))
}

impl Cache {
    /// The cache of this Worker.
    pub(crate) async fn open() -> Result<Self, JsValue> {
        Ok(JsFuture::from(open_cache("dormer")).await?.unchecked_into())
    }

    /// What is remembered under an address.
    pub(crate) async fn lookup(&self, address: &str) -> Option<Response> {
        let value = JsFuture::from(self.find(address)).await.ok()?;
        value.dyn_into().ok()
    }

    /// Remembers an answer for as long as its `Cache-Control` says.
    pub(crate) async fn remember(&self, address: &str, response: &Response) -> Result<(), JsValue> {
        JsFuture::from(self.put(address, response)).await.map(drop)
    }
}

/// Imports a key that may only verify.
pub(crate) async fn verifying_key(
    format: &str,
    bytes: &[u8],
    algorithm: &JsValue,
) -> Result<CryptoKey, JsValue> {
    let uses: js_sys::Array = std::iter::once(JsValue::from_str("verify")).collect();
    let promise = import_key(format, &Uint8Array::from(bytes), algorithm, false, &uses);
    Ok(JsFuture::from(promise).await?.unchecked_into())
}

/// Whether a signature holds.
pub(crate) async fn holds(algorithm: &JsValue, key: &CryptoKey, signature: &[u8], message: &[u8]) -> bool {
    let promise = verify_signature(algorithm, key, &Uint8Array::from(signature), &Uint8Array::from(message));
    JsFuture::from(promise).await.is_ok_and(|value| value.is_truthy())
}
