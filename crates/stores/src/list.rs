//! Listings, in the order of the names.

use std::collections::BTreeMap;

use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _};

use crate::Result;
use crate::counters::Method;
use crate::exchange::watched;
use crate::store::Store;

/// An object that a listing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Name of the object.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// The store's tag of the content, as [`Stored::etag`](crate::Stored::etag) tells it.
    pub etag: Option<String>,
}

/// Names of a folder that are held in memory at once, some 50 MB. A folder is walked once for as many files.
const FOLDER_PAGE: usize = 250_000;

impl Store {
    /// All objects whose names begin with `<folder>/`, in the order of their names as bytes; with an empty `folder`, all
    /// objects. A bucket is asked for one page at a time. Nothing on a hot path lists.
    pub fn list(&self, folder: &str) -> BoxStream<'static, Result<FileEntry>> {
        self.count_listing();
        let prefix = Some(self.path(folder)).filter(|prefix| !prefix.as_ref().is_empty());
        let listing = Listing { store: self.clone(), folder: folder.to_owned(), prefix };
        if self.is_folder() { listing.walk(FOLDER_PAGE).boxed() } else { listing.pages().boxed() }
    }

    /// Whether one of the first `entries_max` objects of a folder is like this. 1,000 entries are one request.
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
}

struct Listing {
    store: Store,
    folder: String,
    prefix: Option<Path>,
}

type Entries = BoxStream<'static, object_store::Result<ObjectMeta>>;

impl Listing {
    /// The library's entries behind a name. A resumed listing begins at its last name.
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
        Some(FileEntry { name, size: meta.size, etag })
    }

    /// Stores list in the order of names.
    fn pages(self) -> impl Stream<Item = Result<FileEntry>> {
        let entries = self.entries_after(None);
        stream::try_unfold((self, entries, None), |(this, mut entries, mut last)| async move {
            let mut tries = this.store.retries().begin(Method::Get);
            loop {
                match this.next(&mut entries).await {
                    Ok(None) => return Ok(None),
                    Ok(Some(meta)) => {
                        let entry = this.entry(&meta);
                        last = Some(meta.location);
                        return Ok(Some((entry, (this, entries, last))));
                    }
                    Err(error) => {
                        tries.pause_after(error).await?;
                        entries = this.entries_after(last.as_ref());
                    }
                }
            }
        })
        .try_filter_map(|entry| async move { Ok(entry) })
    }

    /// A file system lists in no order, and names of a large cache do not fit into memory. Each walk finds the next names.
    fn walk(self, page: usize) -> impl Stream<Item = Result<FileEntry>> {
        stream::try_unfold((self, Some(None)), move |(this, after)| async move {
            let Some(after) = after else { return Ok(None) };
            let mut entries = this.entries_after(Option::<Path>::as_ref(&after));
            let mut found: BTreeMap<Path, FileEntry> = BTreeMap::new();
            let mut is_whole = true;
            while let Some(meta) = this.next(&mut entries).await? {
                if let Some(entry) = this.entry(&meta) {
                    found.insert(meta.location, entry);
                }
                if found.len() > page {
                    found.pop_last();
                    is_whole = false;
                }
            }
            let last = found.last_key_value().map(|(path, _)| Some(path.clone()));
            let entries = stream::iter(found.into_values().map(Ok));
            Ok(Some((entries, (this, last.filter(|_| !is_whole)))))
        })
        .try_flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_listed_in_order_with_bounded_memory() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::folder(folder.path()).unwrap();
        let mut names: Vec<String> = ["a", "a.b", "a0", "b/c", "b.c", "z"].map(|name| format!("c/{name}x")).to_vec();
        names.extend((0..20).map(|number| format!("c/nar/{:02}", number * 7 % 20)));
        for name in &names {
            store.put(name, None, ["x".into()]).await.unwrap();
        }
        store.put("d/other", None, ["x".into()]).await.unwrap();
        names.sort_unstable();
        for page in [1, 2, 25, 26, 27, 1_000] {
            let listing =
                Listing { store: store.clone(), folder: "c".to_owned(), prefix: Some(store.path("c")) };
            let listed: Vec<String> = listing.walk(page).map_ok(|entry| entry.name).try_collect().await.unwrap();
            assert_eq!(listed, names, "{page} names a page");
        }
    }
}
