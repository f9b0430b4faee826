//! Listings, in the order of the names' bytes.

use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStore as _};

use crate::counters::Method;
use crate::exchange::{Exchange, watched};
use crate::store::{Medium, Store};
use crate::{Result, folder_walk};

/// An object that a listing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Name of the object.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// The store's tag of the content, as [`Stored::etag`](crate::Stored::etag) tells it.
    pub etag: Option<String>,
    /// When it was written, in milliseconds since 1970-01-01 UTC, by the store's clock.
    pub modified_at: i64,
}

/// Names of a folder that are held in memory at once, some 50 MB. A folder is read once for as many
/// files.
const FOLDER_PAGE: usize = 250_000;

impl Store {
    /// All objects whose names begin with `<folder>/`, in the order of their names; with an empty
    /// `folder`, all objects. A bucket is asked for one page at a time, and a listing that breaks
    /// goes on behind its last name. Nothing on a hot path lists.
    pub fn list(&self, folder: &str) -> BoxStream<'static, Result<FileEntry>> {
        if self.is_folder() { self.walk(folder, FOLDER_PAGE).boxed() } else { self.pages(folder).boxed() }
    }

    /// The first `limit` objects whose names begin with `<folder>/` and come after `after`, in the
    /// order of their names. A file system lists in no order, so a folder is read once for each
    /// page that has names of it, and the first names are kept.
    pub async fn list_page(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<FileEntry>> {
        let listing = self.listing(folder);
        let after = after.map(|after| self.path(after));
        let page = || async {
            match &self.parts().medium {
                Medium::Folder { root, .. } => {
                    let after = after.as_ref().and_then(|after| self.name_of(after));
                    let folder = self.name_of(&self.path(folder)).unwrap_or_default();
                    folder_walk::first_files(root, &folder, after, limit).await
                }
                Medium::Bucket | Medium::Memory => listing.first(after.as_ref(), limit).await,
            }
        };
        self.call(Method::Get, "list", folder, page).await
    }

    /// Whether one of the first `entries_max` objects of a folder is like this. 1,000 entries are
    /// one request.
    pub async fn any_of_first(
        &self,
        folder: &str,
        entries_max: usize,
        is_one: impl Fn(&str) -> bool,
    ) -> Result<bool> {
        let mut entries = self.list(folder).take(entries_max);
        while let Some(entry) = entries.try_next().await? {
            if is_one(&entry.name) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn listing(&self, folder: &str) -> Listing {
        self.count_listing();
        let prefix = Some(self.path(folder)).filter(|prefix| !prefix.as_ref().is_empty());
        Listing { store: self.clone(), folder: folder.to_owned(), prefix }
    }

    /// The entries of a store that lists in order.
    fn pages(&self, folder: &str) -> impl Stream<Item = Result<FileEntry>> + use<> {
        let listing = self.listing(folder);
        let entries = listing.entries_after(None);
        stream::try_unfold((listing, entries, None), |(listing, mut entries, mut last)| async move {
            let mut tries = listing.store.retries().begin(Method::Get);
            loop {
                match listing.next(&mut entries).await {
                    Ok(None) => return Ok(None),
                    Ok(Some(meta)) => {
                        let entry = listing.entry(&meta);
                        last = Some(meta.location);
                        return Ok(Some((entry, (listing, entries, last))));
                    }
                    Err(error) => {
                        tries.pause_after(error).await?;
                        entries = listing.entries_after(last.as_ref());
                    }
                }
            }
        })
        .try_filter_map(|entry| async move { Ok(entry) })
    }

    /// The entries of a folder, whose names may not fit into memory.
    fn walk(&self, folder: &str, page: usize) -> impl Stream<Item = Result<FileEntry>> + use<> {
        let state = (self.clone(), folder.to_owned(), None, false);
        stream::try_unfold(
            state,
            move |(store, folder, after, is_done): (_, _, Option<String>, _)| async move {
                if is_done {
                    return Ok(None);
                }
                let entries = store.list_page(&folder, after.as_deref(), page).await?;
                let is_done = entries.len() < page;
                let after = entries.last().map(|entry| entry.name.clone());
                Ok(Some((stream::iter(entries.into_iter().map(Ok)), (store, folder, after, is_done))))
            },
        )
        .try_flatten()
    }
}

struct Listing {
    store: Store,
    folder: String,
    prefix: Option<Path>,
}

type Entries = BoxStream<'static, object_store::Result<ObjectMeta>>;

impl Listing {
    /// The library's entries behind a name.
    fn entries_after(&self, last: Option<&Path>) -> Entries {
        let store = &self.store.parts().store;
        match last {
            None => store.list(self.prefix.as_ref()),
            Some(last) => store.list_with_offset(self.prefix.as_ref(), last),
        }
    }

    async fn next(&self, entries: &mut Entries) -> Result<Option<ObjectMeta>> {
        let (entry, exchange) = watched(entries.try_next()).await;
        entry.map_err(|error| self.store.failed("list", &self.folder, error, &exchange))
    }

    fn entry(&self, meta: &ObjectMeta) -> Option<FileEntry> {
        let name = self.store.name_of(&meta.location)?;
        let etag = meta.e_tag.clone().filter(|_| !self.store.is_folder());
        Some(FileEntry { name, size: meta.size, etag, modified_at: meta.last_modified.timestamp_millis() })
    }

    /// The first entries of a store that lists in order.
    async fn first(&self, after: Option<&Path>, limit: usize) -> Result<Vec<FileEntry>> {
        let mut entries = self.entries_after(after);
        let mut page = Vec::new();
        while page.len() < limit
            && let Some(meta) = self.next(&mut entries).await?
        {
            page.extend(self.entry(&meta));
        }
        // A caller that merges pages would take missing names for lost objects.
        if !page.is_sorted_by(|a, b| a.name < b.name) {
            let source = "the store does not list in the order of names".into();
            let error = StoreError::Generic { store: "store", source };
            return Err(self.store.failed("list", &self.folder, error, &Exchange::default()));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_listed_in_order_with_bounded_memory() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::folder(folder.path()).unwrap();
        let mut names = ["a", "a.b", "a0", "b/c", "b.c", "z"].map(|name| format!("c/{name}x")).to_vec();
        names.extend((0..20).map(|number| format!("c/nar/{:02}", number * 7 % 20)));
        for name in names.iter().map(String::as_str).chain(["d/other"]) {
            store.put(name, None, ["x".into()]).await.unwrap();
        }
        names.sort_unstable();
        // Folders without a file, and what an interrupted write left, are no names.
        for empty in ["c/a", "c/aa", "c/nar/05/x", "c/zz"] {
            let _ = std::fs::create_dir_all(folder.path().join(empty));
        }
        std::fs::write(folder.path().join("c/nar/07#1"), "half").unwrap();
        for page in [1, 2, 3, 25, 26, 27, 1_000] {
            let listed: Vec<String> =
                store.walk("c", page).map_ok(|entry| entry.name).try_collect().await.unwrap();
            assert_eq!(listed, names, "{page} names a page");
        }
    }
}
