//! The place of a published layout: a folder, or a bucket.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use dormer_edge::{ObjectMeta, Part};
use futures::{Stream, StreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectStore};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

/// Bytes that are read from a file at a time.
const READ_BYTES: usize = 256 * 1024;

/// Why a store has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file of a folder.
    #[error("failed to read {name}")]
    File {
        /// Its name in the layout.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// An object of a bucket.
    #[error("failed to read {name}")]
    Object {
        /// Its name in the layout.
        name: String,
        /// Why.
        source: object_store::Error,
    },
    /// A small document that is larger than any published one. Never taken for "not here".
    #[error("{name} has {size} bytes, more than the {max} of any that is published")]
    TooLarge {
        /// Its name in the layout.
        name: String,
        /// Bytes.
        size: u64,
        /// The most.
        max: usize,
    },
    /// The bucket's address or its settings are invalid.
    #[error("'{url}' is not a bucket that can be opened")]
    Address {
        /// What was given.
        url: String,
        /// Why.
        source: object_store::Error,
    },
    /// The folder does not exist or cannot be read.
    #[error("{} is not a folder that can be read", path.display())]
    Folder {
        /// What was given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Bytes on their way.
pub(crate) type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A store's answer to a request for bytes.
pub(crate) enum Opened {
    /// The object does not exist.
    Missing,
    /// The object exists, but not the part of it.
    Outside(ObjectMeta),
    /// The object exists, and these are the requested bytes.
    Found(ObjectMeta, ByteStream),
}

/// A published layout.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In a bucket, below a prefix.
    Bucket {
        /// The store.
        store: Arc<dyn ObjectStore>,
        /// Goes before every name.
        prefix: ObjectPath,
    },
}

impl Source {
    /// A folder, which must exist.
    pub fn folder(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Folder { path: path.to_path_buf(), source };
        std::fs::read_dir(path).map_err(failed)?;
        Ok(Self::Folder(path.to_path_buf()))
    }

    /// A bucket by its address (`s3://bucket/prefix`, `gs://…`, `az://…`), with settings as the stores' own tools know them
    /// (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, …).
    pub fn bucket(
        url: &str,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Address { url: url.to_owned(), source };
        let invalid = |error| object_store::Error::Generic { store: "address", source: Box::new(error) };
        let parsed = url::Url::parse(url).map_err(|error| failed(invalid(error)))?;
        // The library knows bare names as well, such as `token` and `endpoint`, that mean anything in an environment.
        let is_a_stores =
            |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
        let settings = settings.into_iter().filter(|(name, _)| is_a_stores(name));
        let mut settings: Vec<(String, String)> =
            settings.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        // The limit of a whole request, with its body: a slow reader of a large NAR takes hours. The host bounds every wait.
        settings.push(("timeout".to_owned(), "86400s".to_owned()));
        // An operator that names an address without TLS means it; the library wants to be told twice.
        if settings.iter().any(|(name, value)| name.contains("endpoint") && value.starts_with("http://")) {
            settings.push(("allow_http".to_owned(), "true".to_owned()));
        }
        let (store, prefix) = object_store::parse_url_opts(&parsed, settings).map_err(failed)?;
        Ok(Self::Bucket { store: Arc::from(store), prefix })
    }

    /// Whether reading it goes over a network, so that remembering it pays.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Self::Bucket { .. })
    }

    /// Size and tag of an object.
    pub(crate) async fn head(&self, name: &str) -> Result<Option<ObjectMeta>, SourceError> {
        match self {
            Self::Folder(root) => {
                Ok(open_file(root, name).await.map_err(file_error(name))?.map(|(_, meta)| meta))
            }
            Self::Bucket { store, prefix } => {
                let options = GetOptions { head: true, ..GetOptions::default() };
                match store.get_opts(&below(prefix, name), options).await {
                    Ok(found) => Ok(Some(meta_of(&found.meta))),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(source) => Err(SourceError::Object { name: name.to_owned(), source }),
                }
            }
        }
    }

    /// Opens an object, or a part of it.
    pub(crate) async fn open(&self, name: &str, part: Option<Part>) -> Result<Opened, SourceError> {
        match self {
            Self::Folder(root) => open_in_folder(root, name, part).await.map_err(file_error(name)),
            Self::Bucket { store, prefix } => {
                let range = part.map(|part| match part {
                    Part::From(first) => GetRange::Offset(first),
                    Part::Between(first, last) => GetRange::Bounded(first..last.saturating_add(1)),
                    Part::Last(count) => GetRange::Suffix(count),
                });
                let options = GetOptions { range, ..GetOptions::default() };
                match store.get_opts(&below(prefix, name), options).await {
                    Ok(found) => {
                        let meta = meta_of(&found.meta);
                        let bytes = found.into_stream().map(|piece| piece.map_err(io::Error::other));
                        Ok(Opened::Found(meta, Box::pin(bytes)))
                    }
                    Err(object_store::Error::NotFound { .. }) => Ok(Opened::Missing),
                    // Stores say in many ways that there is no such part, and some know no last bytes or no end past the last
                    // one: the size decides.
                    Err(source) => {
                        let failed = || SourceError::Object { name: name.to_owned(), source };
                        let Some(part) = part else { return Err(failed()) };
                        let Some(meta) = self.head(name).await? else { return Ok(Opened::Missing) };
                        let Some(range) = part.of(meta.size) else { return Ok(Opened::Outside(meta)) };
                        let exact = Part::Between(range.start, range.end - 1);
                        if exact == part {
                            return Err(failed());
                        }
                        Box::pin(self.open(name, Some(exact))).await
                    }
                }
            }
        }
    }
}

impl Source {
    /// Reads a small object whole; `None`: there is none. One of more than `bytes_max` is an error.
    pub(crate) async fn read(
        &self,
        name: &str,
        bytes_max: usize,
    ) -> Result<Option<(ObjectMeta, Bytes)>, SourceError> {
        let Opened::Found(meta, mut bytes) = self.open(name, None).await? else { return Ok(None) };
        if meta.size > bytes_max as u64 {
            return Err(SourceError::TooLarge { name: name.to_owned(), size: meta.size, max: bytes_max });
        }
        let mut all = Vec::new();
        while let Some(piece) = bytes.next().await {
            all.extend_from_slice(&piece.map_err(file_error(name))?);
        }
        Ok(Some((meta, all.into())))
    }
}

fn below(prefix: &ObjectPath, name: &str) -> ObjectPath {
    prefix.parts().chain(ObjectPath::from(name).parts()).collect()
}

fn meta_of(meta: &object_store::ObjectMeta) -> ObjectMeta {
    ObjectMeta { size: meta.size, etag: meta.e_tag.clone() }
}

fn file_error(name: &str) -> impl FnOnce(io::Error) -> SourceError {
    let name = name.to_owned();
    move |source| SourceError::File { name, source }
}

/// Opens a file. Names of the layout have neither dots nor an empty part between slashes, so they stay in the folder.
pub(crate) async fn open_file(root: &Path, name: &str) -> io::Result<Option<(File, ObjectMeta)>> {
    let file = match File::open(root.join(name)).await {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let meta = file.metadata().await?;
    if !meta.is_file() {
        return Ok(None);
    }
    let changed = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let etag = format!("\"{:x}-{:x}\"", changed.as_nanos(), meta.len());
    Ok(Some((file, ObjectMeta { size: meta.len(), etag: Some(etag) })))
}

/// The bytes of a file, or of a part of it.
pub(crate) async fn open_in_folder(root: &Path, name: &str, part: Option<Part>) -> io::Result<Opened> {
    let Some((mut file, meta)) = open_file(root, name).await? else { return Ok(Opened::Missing) };
    let range = match part {
        None => 0..meta.size,
        Some(part) => match part.of(meta.size) {
            Some(range) => range,
            None => return Ok(Opened::Outside(meta)),
        },
    };
    file.seek(SeekFrom::Start(range.start)).await?;
    let bytes = ReaderStream::with_capacity(file.take(range.end - range.start), READ_BYTES);
    Ok(Opened::Found(meta, Box::pin(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_large_is_not_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), [0; 100]).unwrap();
        let source = Source::folder(folder.path()).unwrap();
        assert!(source.read("x", 100).await.unwrap().is_some());
        assert!(source.read("y", 100).await.unwrap().is_none());
        assert!(matches!(source.read("x", 99).await, Err(SourceError::TooLarge { size: 100, .. })));
    }

    #[test]
    fn only_a_stores_own_variables_are_its_settings() {
        let open = |settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Source::bucket("s3://bucket/prefix", settings).map(|source| format!("{source:?}"))
        };
        let own = [("AWS_REGION", "r"), ("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")];
        let stray = [("TOKEN", "stray-value"), ("region", "stray-value"), ("OTEL_ENDPOINT", "http://x")];
        let said = open(&[own.as_slice(), &stray].concat()).unwrap();
        assert!(!said.contains("stray-value"), "{said}");
    }
}
