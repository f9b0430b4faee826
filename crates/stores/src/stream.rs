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
                let (meta, bytes) = self.open_once(name, Some(exact)).await?;
                Ok(Some(Opened::Found(meta, bytes)))
            }
        }
    }

    async fn open_once(&self, name: &str, range: Option<GetRange>) -> Result<(FileMeta, ByteStream)> {
        let options = GetOptions { range, ..GetOptions::default() };
        let path = self.path(name);
        let (got, exchange) = watched(self.parts().resuming.get_opts(&path, options)).await;
        let got = got.map_err(|error| self.failed("read", name, error, &exchange));
        let got = self.checked(got).await?;
        let meta = self.meta(&got.meta);
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
