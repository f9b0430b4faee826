//! Pages for people, made of published documents by the lab's own templates (`dormer-pages`).
//!
//! Invariants
//! - A page reads objects as a client does, by a [`Read`] and after [`Visit::admit`]: beside the
//!   state document the narinfo of one path, and then its listing or its log. No page reads more.
//! - Memory: one narinfo, and a log of [`LOG_PAGE_BYTES_MAX`] or one page of a listing, which
//!   passes by in pieces.
//! - A page says nothing that the published documents do not say to the same caller.
//! - A browser gets the same page for everything that it may not see or that is not there.
//!
//! [`Visit::admit`]: crate::Visit::admit

use dormer_api::CacheName;
use dormer_nix::nar::{FolderEntry, FolderPage, LISTING_BYTES_MAX, ListedNode, ListingSearch};
use dormer_nix::{DocumentName, NarInfo, StoreDir, StorePath, StorePathHash, signature_key_name};
use dormer_pages::{
    CacheRow, CacheView, Contents, FileContent, FileView, FilesView, Found, Frame, HomeView, ListedFile,
    ListedKind, LogView, PathView, PathsView, ProblemView, RelationsView, SortedBy, Visitor, cache_address,
    escape_segment, file_address, path_address, way_to_root,
};

use crate::answer::Answer;
use crate::caching::{AnswerKind, Visibility};
use crate::error::{Error, Result};
use crate::layout::{EdgeKey, NARINFO_BYTES_MAX, NarFile};
use crate::route::{PageRoute, PathPage};
use crate::rules::Read;
use crate::spelling::decode_form;
use crate::state::{CacheState, Catalog};

/// Longest log that has a page, in bytes: an isolate of a Worker has 128 MB for all its requests.
/// The address of a longer log leads to its text.
pub const LOG_PAGE_BYTES_MAX: usize = 1024 * 1024;

/// Caches on a page.
const CACHES: usize = 50;

/// Entries of a folder on a page.
const ENTRIES: usize = 200;

/// Longest query that is read, and longest text to find a path by, in bytes.
const QUERY_BYTES_MAX: usize = 2_000;
const WANTED_BYTES_MAX: usize = 300;

/// The one line at `/` where there are no pages.
const HOME: &str = "Nix binary caches: use http(s)://<this address>/<cache> as a substituter.\n";

/// Stands for an address that a host does not know.
const UNKNOWN_ORIGIN: &str = "https://this-host";

/// The hash in a text that is a hash, a store path, or the base name of one.
pub fn hash_in(text: &str, store_dir: &StoreDir) -> Option<StorePathHash> {
    let base_name =
        text.strip_prefix(store_dir.as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
    let base_name = base_name.split('/').next()?;
    base_name.parse().ok().or_else(|| base_name.parse::<StorePath>().ok().map(|path| path.hash()))
}

/// Whether this can be shown as an address to paste: a scheme and a host, and nothing that would be
/// another word.
pub fn is_plain_origin(origin: &str) -> bool {
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    host.is_some_and(|host| (1..=255).contains(&host.len()) && host.bytes().all(plain))
}

/// The line of text at `/`, for a host without pages.
pub(crate) fn home_text(is_head: bool) -> Answer {
    let answer = Answer::new(200, AnswerKind::Page, Visibility::Public);
    answer.text("text/plain; charset=utf-8", HOME.to_owned(), is_head)
}

/// `/{cache}` leads to the page of the cache. The answer is the same for every name.
pub(crate) fn with_slash(cache: &CacheName, is_head: bool) -> Answer {
    Answer::redirect(308, Visibility::Public, cache_address(cache.as_str()), is_head)
}

/// What pages read of a query.
#[derive(Debug, Default)]
pub(crate) struct Query {
    after: Option<CacheName>,
    wanted: String,
    begin: Begin,
}

/// Where a page of a folder or a log begins.
#[derive(Debug, Default)]
struct Begin {
    /// At this entry or line.
    from: Option<usize>,
    /// At this name.
    at: String,
}

impl Query {
    /// Reads a query. `None` if it has something that no page asks for.
    pub(crate) fn parse(query: &str) -> Option<Self> {
        if query.len() > QUERY_BYTES_MAX {
            return None;
        }
        let mut read = Self::default();
        for (name, value) in decode_form(query)? {
            match name.as_str() {
                "after" => read.after = Some(value.parse().ok()?),
                "q" | "at" if value.len() > WANTED_BYTES_MAX => return None,
                "q" => value.trim().clone_into(&mut read.wanted),
                "from" => read.begin.from = Some(value.parse().ok()?),
                "at" => read.begin.at = value,
                _ => {}
            }
        }
        Some(read)
    }
}

/// The frame of the page at this path. No host of the edge knows sessions: a token comes with each
/// request or not at all.
pub(crate) fn frame(path: &str, now: i64) -> Frame {
    let visitor = Visitor::Anybody { may_sign_in: false };
    Frame { root: way_to_root(path), visitor, note: None, here: String::new(), now }
}

/// A request for the page at `/`: the public caches that are published here. Private ones are not
/// named.
#[derive(Debug)]
pub struct Home {
    pub(crate) query: Query,
    pub(crate) is_head: bool,
}

impl Home {
    /// The page, given the catalogue ([`EdgeKey::Catalog`]), if it exists.
    pub fn respond(&self, catalog: Option<&Catalog>) -> Answer {
        let caches = catalog.map_or(&[][..], |catalog| catalog.caches.as_slice());
        let first = self.query.after.as_ref().map_or(0, |after| caches.partition_point(|name| name <= after));
        let shown = &caches[first..caches.len().min(first + CACHES)];
        let has_more = first + shown.len() < caches.len();
        let row = |name: &CacheName| CacheRow {
            name: name.to_string(),
            is_public: true,
            counts: None,
            newest_at: None,
        };
        let view = HomeView {
            is_complete: true,
            caches: shown.iter().map(row).collect(),
            next: shown.last().filter(|_| has_more).map(CacheName::to_string),
            has_figures: false,
            savings: None,
            history: Vec::new(),
        };
        // Nothing on this page has a time.
        Answer::page(200, Visibility::Public, view.render(&frame("/", 0)), self.is_head)
    }
}

/// A request for a page about a cache, before the access rules of the cache are known.
#[derive(Debug)]
pub(crate) struct PageVisit {
    pub(crate) route: PageRoute,
    pub(crate) query: Query,
    /// The path as it came.
    pub(crate) path: String,
    pub(crate) origin: Option<String>,
    pub(crate) knows_origin: bool,
    pub(crate) is_head: bool,
}

impl PageVisit {
    /// The page for a caller that may not read the cache, and for a cache that does not exist.
    pub(crate) fn refused(&self, now: i64) -> Answer {
        Answer::no_page(&frame(&self.path, now), self.is_head)
    }

    /// Goes on for a caller that may read the cache.
    pub(crate) fn admit(self, state: &CacheState, now: i64) -> PageStep {
        let origin = self.origin.as_deref().unwrap_or(UNKNOWN_ORIGIN);
        let host = PageHost {
            substituter: format!("{origin}/{}", state.cache),
            cache: state.cache.clone(),
            store_dir: state.store_dir.clone(),
            key_names: key_names(&state.public_keys),
            visibility: state.visibility(),
            frame: frame(&self.path, now),
            is_kept: self.knows_origin,
            is_head: self.is_head,
        };
        match self.route {
            PageRoute::Cache => PageStep::Answer(host.of_cache(state)),
            PageRoute::Paths => PageStep::Answer(host.paths(self.query.wanted)),
            PageRoute::OfPath(hash, page) => {
                let read = host.read(EdgeKey::Narinfo(host.cache.clone(), hash));
                let wanted = Wanted::Narinfo { hash, page, begin: self.query.begin, bytes: Vec::new() };
                PageStep::Read(Box::new(PageRead { host, read, wanted }))
            }
        }
    }
}

/// The names of keys, `name:base64`.
pub fn key_names(keys: &[String]) -> Vec<String> {
    keys.iter().map(|key| key.split(':').next().unwrap_or_default().to_owned()).collect()
}

/// The signatures that none of these keys made.
pub fn foreign_signatures(signatures: Vec<String>, key_names: &[String]) -> Vec<String> {
    let is_foreign = |signature: &String| {
        signature_key_name(signature).map_or(true, |name| !key_names.iter().any(|own| own == name))
    };
    signatures.into_iter().filter(is_foreign).collect()
}

/// The provenance among the fields of a narinfo that no version of Dormer interprets.
pub fn provenance(extra: &[(String, String)]) -> Option<String> {
    extra.iter().find(|(name, _)| name == "Provenance").map(|(_, text)| text.clone())
}

/// What all pages about a cache share.
#[derive(Debug)]
struct PageHost {
    cache: CacheName,
    substituter: String,
    store_dir: String,
    /// Names of the cache's own keys.
    key_names: Vec<String>,
    visibility: Visibility,
    frame: Frame,
    /// Whether caches may keep its pages.
    is_kept: bool,
    is_head: bool,
}

impl PageHost {
    fn is_public(&self) -> bool {
        self.visibility == Visibility::Public
    }

    /// A page reads the whole of an object, also for HEAD: its length depends on it.
    fn read(&self, key: EdgeKey) -> Read {
        Read::whole(key, self.visibility)
    }

    fn page(&self, html: String) -> Answer {
        if self.is_kept {
            Answer::page(200, self.visibility, html, self.is_head)
        } else {
            Answer::page_of_one_request(200, self.visibility, html, self.is_head)
        }
    }

    /// Something that is not there, of a path that is.
    fn missing(&self, title: &str, text: &str) -> Answer {
        let view = ProblemView {
            title: title.to_owned(),
            text: text.to_owned(),
            request: None,
            from_elsewhere: false,
        };
        Answer::page(404, Visibility::Private, view.render(&self.frame), self.is_head)
    }

    fn see_other(&self, address: &str) -> Answer {
        let location = format!("{}{address}", self.frame.root);
        Answer::redirect(303, self.visibility, location, self.is_head)
    }

    /// `/{cache}/`
    fn of_cache(&self, state: &CacheState) -> Answer {
        let view = CacheView {
            name: self.cache.to_string(),
            is_public: self.is_public(),
            substituter: self.substituter.clone(),
            server: None,
            public_keys: state.public_keys.clone(),
            upstream_key_names: Vec::new(),
            store_dir: state.store_dir.clone(),
            priority: state.priority,
            contents: Contents::Published {
                paths: state.object_count,
                file_bytes: state.file_bytes,
                at: state.published_at,
            },
            retention_seconds: None,
            is_published: true,
            lets_go: true,
            quota_bytes: None,
            keep_latest: None,
            history: Vec::new(),
            largest: None,
            longest_unused: None,
            shows_pins: false,
            shows_store: false,
        };
        self.page(view.render(&self.frame))
    }

    /// `/{cache}/paths`
    fn paths(&self, wanted: String) -> Answer {
        let store_dir = self.store_dir.parse().unwrap_or_default();
        if let Some(hash) = hash_in(&wanted, &store_dir) {
            return self.see_other(&path_address(self.cache.as_str(), &hash.to_string()));
        }
        let notice = (!wanted.is_empty()).then(|| "This is no hash and no store path.".to_owned());
        let view = PathsView {
            cache: self.cache.to_string(),
            query: wanted,
            sort: SortedBy::Size,
            paths: None,
            next: None,
            looked_through: None,
            notice,
        };
        self.page(view.render(&self.frame))
    }

    /// `/{cache}/{hash}`
    fn path(&self, path: PathInfo) -> Answer {
        let references = path.references();
        let PathInfo { info, nar_url } = path;
        let view = PathView {
            cache: self.cache.to_string(),
            substituter: self.substituter.clone(),
            store_dir: self.store_dir.clone(),
            base_name: info.store_path.to_string(),
            nar_url: Some(nar_url),
            nar_hash: format!("sha256:{}", info.nar_hash.to_nix32()),
            nar_bytes: info.nar_size,
            file_bytes: info.file_size,
            has_log: if info.deriver.is_some() { None } else { Some(false) },
            deriver: info.deriver.map(|deriver| deriver.to_string()),
            system: info.system,
            content_address: info.ca,
            provenance: provenance(&info.extra),
            signatures: foreign_signatures(info.sigs, &self.key_names),
            own_keys: self.key_names.clone(),
            references,
            shows_closure: false,
            referrers: None,
            pins: None,
            used_at: None,
            is_public: self.is_public(),
            stay: None,
            may_remove: false,
        };
        self.page(view.render(&self.frame))
    }

    /// `/{cache}/{hash}/files/…`, with what the listing has there.
    fn files(&self, path: &PathInfo, files: Files, found: Option<(ListedNode, FolderPage)>) -> Answer {
        let Some((node, page)) = found else {
            return Answer::no_page(&self.frame, self.is_head);
        };
        let store_path = &path.info.store_path;
        // The addresses in a folder are relative to it, so that it ends with a slash; no file does.
        if files.has_slash != (node == ListedNode::Directory) {
            let hash = store_path.hash().to_string();
            let address = file_address(self.cache.as_str(), &hash, files.names.iter().map(String::as_str));
            let slash = if files.has_slash { "" } else { "/" };
            return self.see_other(&format!("{}{slash}", address.trim_end_matches('/')));
        }
        let found = match node {
            ListedNode::Directory => listed_folder(page),
            ListedNode::Symlink(target) => Found::Link(target),
            ListedNode::File { size, executable, .. } => Found::File(FileView {
                bytes: size,
                is_executable: executable,
                content: FileContent::InNar {
                    substituter: self.substituter.clone(),
                    path: format!("{}/{store_path}/{}", self.store_dir, files.names.join("/")),
                    nar_url: self.is_public().then(|| path.nar_url.clone()),
                },
            }),
        };
        let view = FilesView {
            cache: self.cache.to_string(),
            base_name: store_path.to_string(),
            names: files.names,
            found,
        };
        self.page(view.render(&self.frame))
    }

    fn no_log(&self) -> Answer {
        self.missing("No build log", "The cache has no log of the build that made this path.")
    }
}

/// Entries of a folder, as pages show them.
pub fn listed_folder(page: FolderPage) -> Found {
    let entries = page.entries.into_iter().map(listed_file).collect();
    Found::Folder { first: page.first, entries, has_more: page.has_more }
}

fn listed_file(entry: FolderEntry) -> ListedFile {
    let kind = match entry.node {
        ListedNode::Directory => ListedKind::Folder,
        ListedNode::Symlink(target) => ListedKind::Link(target),
        ListedNode::File { size, executable, .. } => {
            ListedKind::File { bytes: size, is_executable: executable }
        }
    };
    ListedFile { name: entry.name, kind }
}

/// The next step towards a page.
#[derive(Debug)]
pub enum PageStep {
    /// The page is made.
    Answer(Answer),
    /// An object has to be read first.
    Read(Box<PageRead>),
}

/// A page that waits for an object. A host looks for the object by [`PageRead::read`], hands over
/// its bytes by [`PageRead::feed`], and then calls [`PageRead::finish`].
#[derive(Debug)]
pub struct PageRead {
    host: PageHost,
    read: Read,
    wanted: Wanted,
}

/// What is read, and for which page.
#[derive(Debug)]
enum Wanted {
    Narinfo { hash: StorePathHash, page: PathPage, begin: Begin, bytes: Vec<u8> },
    Listing { path: Box<PathInfo>, files: Files, search: Box<ListingSearch>, bytes: usize },
    Log { path: Box<PathInfo>, deriver: StorePath, from: Option<usize>, bytes: Vec<u8> },
}

/// A path as its narinfo describes it.
#[derive(Debug)]
struct PathInfo {
    info: NarInfo,
    /// Address of its NAR below the cache.
    nar_url: String,
}

/// A place in a path.
#[derive(Debug)]
struct Files {
    names: Vec<String>,
    has_slash: bool,
}

impl PageRead {
    /// The object to look for.
    pub fn read(&self) -> &Read {
        &self.read
    }

    /// Whether the page is made of a listing, now or after its narinfo.
    pub fn needs_listing(&self) -> bool {
        matches!(self.wanted, Wanted::Listing { .. } | Wanted::Narinfo { page: PathPage::Files { .. }, .. })
    }

    /// Takes the next piece of the object. Returns whether the page needs no more of it.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        match &mut self.wanted {
            Wanted::Narinfo { bytes, .. } => take(bytes, piece, NARINFO_BYTES_MAX),
            Wanted::Log { bytes, .. } => take(bytes, piece, LOG_PAGE_BYTES_MAX),
            Wanted::Listing { search, bytes, .. } => {
                *bytes = bytes.saturating_add(piece.len());
                // What lies behind the longest listing that the lab writes is not looked at.
                search.feed(piece) || *bytes > LISTING_BYTES_MAX
            }
        }
    }

    /// Goes on after the object has ended or the page needs no more of it. `is_there` says whether
    /// the object exists. An error for a document that is not what it should be.
    pub fn finish(self, is_there: bool) -> Result<PageStep> {
        let Self { host, wanted, .. } = self;
        Ok(match wanted {
            Wanted::Narinfo { .. } if !is_there => {
                PageStep::Answer(Answer::no_page(&host.frame, host.is_head))
            }
            Wanted::Narinfo { hash, page, begin, bytes } => {
                let path = PathInfo::parse(&bytes, hash, &host.store_dir)?;
                host.after_narinfo(path, page, &begin)
            }
            Wanted::Listing { .. } if !is_there => PageStep::Answer(
                host.missing("No list of files", "The files of this path are not listed here."),
            ),
            Wanted::Listing { path, files, search, .. } => {
                PageStep::Answer(host.files(&path, files, search.finish_with_entries()))
            }
            Wanted::Log { .. } if !is_there => PageStep::Answer(host.no_log()),
            Wanted::Log { deriver, bytes, .. } if bytes.len() > LOG_PAGE_BYTES_MAX => {
                let deriver = escape_segment(deriver.base_name());
                let address = format!("{}log/{deriver}", cache_address(host.cache.as_str()));
                PageStep::Answer(host.see_other(&address))
            }
            Wanted::Log { path, deriver, from, bytes } => {
                let view = LogView {
                    cache: host.cache.to_string(),
                    is_public: host.is_public(),
                    base_name: path.info.store_path.to_string(),
                    deriver: deriver.to_string(),
                    log: &bytes,
                    from,
                };
                PageStep::Answer(host.page(view.render(&host.frame)))
            }
        })
    }
}

impl PageHost {
    /// The page of a path, or what else its files or its log need.
    fn after_narinfo(self, path: PathInfo, page: PathPage, begin: &Begin) -> PageStep {
        let hash = path.info.store_path.hash();
        let (key, wanted) = match page {
            PathPage::Path => return PageStep::Answer(self.path(path)),
            PathPage::References => {
                let (cache, base_name) = (self.cache.to_string(), path.info.store_path.to_string());
                let from = begin.from.unwrap_or(0);
                let references = path.references();
                let signatures = foreign_signatures(path.info.sigs, &self.key_names);
                let view = RelationsView::references(cache, base_name, &references, from, signatures);
                return PageStep::Answer(self.page(view.render(&self.frame)));
            }
            PathPage::Files { names, has_slash } => {
                let search = ListingSearch::new(&names).with_entries(begin.from.unwrap_or(0), ENTRIES);
                let search = search.beginning_at(&begin.at);
                let files = Files { names, has_slash };
                let wanted =
                    Wanted::Listing { path: Box::new(path), files, search: Box::new(search), bytes: 0 };
                (EdgeKey::Listing(self.cache.clone(), hash), wanted)
            }
            PathPage::Log => {
                let name =
                    path.info.deriver.as_ref().and_then(|deriver| format!("log/{deriver}").parse().ok());
                let Some(DocumentName::Log(deriver)) = name else { return PageStep::Answer(self.no_log()) };
                let key = EdgeKey::Document(self.cache.clone(), DocumentName::Log(deriver.clone()));
                (key, Wanted::Log { path: Box::new(path), deriver, from: begin.from, bytes: Vec::new() })
            }
        };
        let read = self.read(key);
        PageStep::Read(Box::new(PageRead { host: self, read, wanted }))
    }
}

impl PathInfo {
    /// What the path refers to, itself left out.
    fn references(&self) -> Vec<String> {
        let is_other = |reference: &&StorePath| **reference != self.info.store_path;
        self.info.references.iter().filter(is_other).map(StorePath::to_string).collect()
    }

    fn parse(bytes: &[u8], hash: StorePathHash, store_dir: &str) -> Result<Self> {
        let unreadable = |reason: String| Error::Narinfo { hash, reason };
        if bytes.len() > NARINFO_BYTES_MAX {
            return Err(unreadable(format!("it has more than {NARINFO_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
        let store_dir =
            store_dir.parse().map_err(|error: dormer_nix::Error| unreadable(error.to_string()))?;
        let info = NarInfo::parse(text, &store_dir).map_err(|error| unreadable(error.to_string()))?;
        if info.store_path.hash() != hash {
            return Err(unreadable(format!("it is about {}", info.store_path)));
        }
        let file = info.url.strip_prefix("nar/").and_then(|file| file.parse::<NarFile>().ok());
        let file = file.ok_or_else(|| unreadable("its URL is none of the published layout".to_owned()))?;
        Ok(Self { nar_url: format!("nar/{file}"), info })
    }
}

/// Keeps one byte more than may be there, at most. Returns whether that byte came.
fn take(bytes: &mut Vec<u8>, piece: &[u8], bytes_max: usize) -> bool {
    let room = (bytes_max + 1).saturating_sub(bytes.len());
    bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    bytes.len() > bytes_max
}
