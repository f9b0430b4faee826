//! What both S3 servers share: access, and the few requests that tests send themselves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{HttpConnector as _, HttpRequest, ReqwestConnector};
use object_store::{ClientOptions, HeaderMap, ObjectStore as _, ObjectStoreExt as _};
use rand::random;

/// Time limit until a server stores an object.
const READY_LIMIT: Duration = Duration::from_mins(2);

/// Access to one S3 server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Access {
    /// `http://127.0.0.1:port`.
    pub endpoint: String,
    /// The region for signatures.
    pub region: String,
    /// The key of a user with all permissions.
    pub access_key_id: String,
    /// The secret of the same user.
    pub secret_access_key: String,
}

impl S3Access {
    pub(super) fn new(port: u16) -> Self {
        Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            region: "us-east-1".to_owned(),
            access_key_id: "testaccess".to_owned(),
            secret_access_key: "testsecret1234567890".to_owned(),
        }
    }

    /// Makes an empty bucket with a unique name.
    pub fn new_bucket(&self) -> String {
        let bucket = format!("test-{:016x}", random::<u64>());
        self.expect("PUT", &bucket, &Bytes::new());
        bucket
    }

    /// Stores an object that Dormer did not write.
    pub fn put_object(&self, bucket: &str, name: &str, bytes: impl Into<Bytes>) {
        self.expect("PUT", &format!("{bucket}/{name}"), &bytes.into());
    }

    /// All objects in a bucket: names and bytes.
    pub fn objects(&self, bucket: &str) -> BTreeMap<String, Bytes> {
        let store = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_region(&self.region)
            .with_bucket_name(bucket)
            .with_access_key_id(&self.access_key_id)
            .with_secret_access_key(&self.secret_access_key)
            .build()
            .expect("a store");
        let work = async move {
            let mut objects = BTreeMap::new();
            let mut listing = store.list(None);
            while let Some(found) = listing.next().await {
                let name = found.expect("a listing").location;
                let bytes = store.get(&name).await.expect("an object").bytes().await.expect("its bytes");
                objects.insert(name.to_string(), bytes);
            }
            objects
        };
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a run time").block_on(work)
        };
        std::thread::spawn(work).join().expect("no panic while reading")
    }

    /// Deletes everything in a bucket.
    pub fn empty_bucket(&self, bucket: &str) {
        for name in self.objects(bucket).into_keys() {
            self.expect("DELETE", &format!("{bucket}/{name}"), &Bytes::new());
        }
    }

    /// Deletes a bucket, which must be empty.
    pub fn delete_bucket(&self, bucket: &str) {
        self.expect("DELETE", bucket, &Bytes::new());
    }

    /// Waits until the server really stores an object: servers listen long before that. `gone`
    /// returns a reason if the server can no longer start. That reason becomes the error.
    pub(super) fn wait_until_ready(&self, mut gone: impl FnMut() -> Option<String>) -> Result<(), String> {
        let begin = Instant::now();
        let bucket = format!("ready-{:016x}", random::<u64>());
        let mut last = String::new();
        while begin.elapsed() < READY_LIMIT {
            if let Some(why) = gone() {
                return Err(format!("the S3 server ended: {why}"));
            }
            let stored = self
                .send("PUT", &bucket, Bytes::new())
                .and_then(|()| self.send("PUT", &format!("{bucket}/object"), Bytes::from_static(b"ready")));
            match stored {
                Ok(()) => return Ok(()),
                Err(why) => last = why,
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("no object can be stored within {READY_LIMIT:?}: {last}");
    }

    fn expect(&self, method: &str, path: &str, body: &Bytes) {
        // A server on a busy machine may answer the first try with 503.
        let mut last = String::new();
        for _ in 0..20 {
            match self.send(method, path, body.clone()) {
                Ok(()) => return,
                Err(why) => last = why,
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("{method} {path}: {last}");
    }

    /// Sends one signed request from a new thread, because callers may be inside a runtime.
    fn send(&self, method: &str, path: &str, body: Bytes) -> Result<(), String> {
        let access = self.clone();
        let (method, path) = (method.to_owned(), path.to_owned());
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            runtime.block_on(access.send_now(&method, &path, body))
        };
        std::thread::spawn(work).join().expect("no panic while sending")
    }

    async fn send_now(&self, method: &str, path: &str, body: Bytes) -> Result<(), String> {
        let credential = AwsCredential {
            key_id: self.access_key_id.clone(),
            secret_key: self.secret_access_key.clone(),
            token: None,
        };
        let mut request = HttpRequest::new(body.into());
        *request.method_mut() = method.parse().expect("a method");
        // What is signed is escaped, and the signer takes the path as it is.
        let path: String = path
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                byte => format!("%{byte:02X}"),
            })
            .collect();
        *request.uri_mut() = format!("{}/{path}", self.endpoint).parse().expect("an address");
        *request.headers_mut() = HeaderMap::new();
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|error| error.to_string())?;
        let options = ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(10));
        let client = ReqwestConnector::default().connect(&options).map_err(|error| error.to_string())?;
        let response = client.execute(request).await.map_err(|error| error.to_string())?;
        if response.status().is_success() {
            return Ok(());
        }
        let status = response.status();
        let pieces: Vec<Bytes> = response.into_body().bytes_stream().try_collect().await.unwrap_or_default();
        Err(format!("{status}: {}", String::from_utf8_lossy(&pieces.concat())))
    }
}
