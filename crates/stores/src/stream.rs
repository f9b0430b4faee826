//! Reading an object, or a part of it, as a stream.

use std::io::{self, SeekFrom};
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore as _};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::exchange::watched;
use crate::store::{FileMeta, Store};
use crate::{Error, Result};

/// Bytes that are read from a file at once. The library reads 8 KiB, each with a hop to another
/// thread.
const READ_BYTES: usize = 256 * 1024;

/// Bytes on their way. An error ends the stream.
pub type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// An object that was opened.
pub enum Opened {
    /// The object is there, but the requested range lies outside of it.
    Outside(FileMeta),
    /// The object is there, and these are the requested bytes.
    Found(FileMeta, ByteStream),
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Opened::Outside(meta) => f.debug_tuple("Outside").field(meta).finish(),
            Opened::Found(meta, _) => f.debug_tuple("Found").field(meta).finish_non_exhaustive(),
        }
    }
}

impl Store {
    /// Opens an object, or a range of it; `None` if it is not there. A connection that breaks
    /// half-way is resumed by the library.
    pub async fn open_object(&self, name: &str, range: Option<GetRange>) -> Result<Option<Opened>> {
        match self.open_once(name, range.clone()).await {
            Ok((meta, bytes)) => Ok(Some(Opened::Found(meta, bytes))),
            Err(Error::NotFound { .. }) => Ok(None),
            // Stores say in many ways that a range is outside. Some know no ranges from the end,
            // and some no range that ends behind the object. The size decides.
            Err(error) => {
                let Some(range) = range.filter(|_| !matches!(error, Error::FolderGone { .. })) else {
                    return Err(error);
                };
                let Some(meta) = self.head(name).await? else { return Ok(None) };
                let Ok(exact) = range.as_range(meta.size) else { return Ok(Some(Opened::Outside(meta))) };
                let exact = GetRange::Bounded(exact);
                if exact == range {
                    return Err(error);
                }
                let (now, bytes) = self.open_once(name, Some(exact)).await?;
                // In an object of another size, these bytes may be another range.
                if now.size != meta.size {
                    let source = "the object changed between two requests".into();
                    return Err(Error::Unavailable { attempt: "read", key: name.to_owned(), source });
                }
                Ok(Some(Opened::Found(now, bytes)))
            }
        }
    }

    async fn open_once(&self, name: &str, range: Option<GetRange>) -> Result<(FileMeta, ByteStream)> {
        let options = GetOptions { range, ..GetOptions::default() };
        let path = self.path(name);
        let (got, exchange) = watched(self.parts().resuming.get_opts(&path, options)).await;
        let got = got.map_err(|error| self.failed("read", name, error, &exchange));
        let got = self.checked(got).await?;
        let meta = self.meta(&got.meta, &got.attributes);
        let bytes = stream_of(got).await.map_err(|source| Error::Io {
            attempt: "read",
            key: name.to_owned(),
            source,
        })?;
        Ok((meta, bytes))
    }
}

async fn stream_of(got: GetResult) -> io::Result<ByteStream> {
    match got.payload {
        GetResultPayload::File(file, _) => {
            let mut file = tokio::fs::File::from_std(file);
            file.seek(SeekFrom::Start(got.range.start)).await?;
            let bytes = file.take(got.range.end - got.range.start);
            Ok(Box::pin(ReaderStream::with_capacity(bytes, READ_BYTES)))
        }
        GetResultPayload::Stream(bytes) => Ok(Box::pin(bytes.map(|piece| piece.map_err(io::Error::other)))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    use super::*;
    use crate::{CallPolicy, Credentials, RemoteKind, RemoteSettings};

    /// A store that knows no range from the end. Its object has ten bytes when it is asked for the
    /// size, and so many when it is read. Returns its port.
    async fn store_with_an_object_that_changes(size: u64) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let mut connection = BufReader::new(connection);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    connection.read_line(&mut head).await.unwrap();
                }
                let head = head.to_ascii_lowercase();
                let said = if head.starts_with("head ") {
                    "200 OK\r\ncontent-length: 10\r\n\r\n".to_owned()
                } else if head.contains("range: bytes=-4\r\n") {
                    "416 Range Not Satisfiable\r\ncontent-length: 0\r\n\r\n".to_owned()
                } else {
                    format!(
                        "206 Partial Content\r\ncontent-range: bytes 6-9/{size}\r\ncontent-length: 4\r\n\r\n6789"
                    )
                };
                let answer = format!(
                    "HTTP/1.1 {}",
                    said.replacen("\r\n", "\r\netag: \"x\"\r\nconnection: close\r\n", 1)
                );
                connection.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    #[tokio::test]
    async fn a_range_of_an_object_that_changes_meanwhile_is_no_answer() {
        for (size, is_found) in [(10, true), (20, false)] {
            let port = store_with_an_object_that_changes(size).await;
            let settings = RemoteSettings {
                kind: RemoteKind::S3,
                bucket: "bucket".to_owned(),
                prefix: String::new(),
                endpoint: Some(format!("http://127.0.0.1:{port}")),
                region: Some("any".to_owned()),
                credentials: Some(Credentials {
                    access_key_id: "id".to_owned(),
                    secret_access_key: "secret".to_owned(),
                }),
                path_style: true,
                ca_file: None,
                connect_timeout: std::time::Duration::from_secs(5),
                request_timeout: std::time::Duration::from_secs(5),
            };
            let store = Store::open(&settings, &CallPolicy::once()).unwrap();
            let opened = store.open_object("x", Some(GetRange::Suffix(4))).await;
            match opened {
                Ok(Some(Opened::Found(meta, _))) => assert!(is_found && meta.size == 10, "{meta:?}"),
                other => assert!(!is_found && matches!(other, Err(Error::Unavailable { .. })), "{other:?}"),
            }
        }
    }
}
