//! `/<cache>/<hash>/files/…`: the files of a store path.

use maud::{Markup, html};

use crate::cache::below;
use crate::frame::{Frame, PAGE_BYTES_MAX, escape_segment, file_address, path_address};
use crate::parts::{Copied, copyable, size};
use crate::text::{ESCAPE_BYTES_MAX, is_hidden, number, shortened, visible_page};

/// Room for the entries of a folder, or the text of a file, in bytes of HTML. The rest of the page
/// has the way back to the file, which may be long.
const CONTENT_BYTES_MAX: usize = PAGE_BYTES_MAX - 24_000;

/// Steps of the way back that are shown.
const STEPS_SHOWN: usize = 12;

/// Characters of a name that are shown.
const NAME_SHOWN: usize = 120;

/// Longest name that is part of an address, in bytes. Names in a NAR may have a MiB.
const LINKED_NAME_MAX: usize = 1_000;

/// What is at a place in a store path.
#[derive(Debug, Clone)]
pub struct FilesView {
    /// The cache.
    pub cache: String,
    /// `<hash>-<name>` of the store path.
    pub base_name: String,
    /// The names that lead to the place.
    pub names: Vec<String>,
    /// What is there.
    pub found: Found,
}

/// What is at a place.
#[derive(Debug, Clone)]
pub enum Found {
    /// A folder.
    Folder {
        /// The number of the first entry here.
        first: usize,
        /// Its entries, by name.
        entries: Vec<ListedFile>,
        /// Whether entries follow.
        has_more: bool,
    },
    /// A file.
    File(FileView),
    /// A link to this place.
    Link(String),
}

/// An entry of a folder.
#[derive(Debug, Clone)]
pub struct ListedFile {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ListedKind,
}

/// What an entry is.
#[derive(Debug, Clone)]
pub enum ListedKind {
    /// A folder.
    Folder,
    /// A file.
    File {
        /// Bytes.
        bytes: u64,
        /// Whether it is a program.
        is_executable: bool,
    },
    /// A link to this place.
    Link(String),
}

/// A file.
#[derive(Debug, Clone)]
pub struct FileView {
    /// Bytes.
    pub bytes: u64,
    /// Whether it is a program.
    pub is_executable: bool,
    /// What the host can show of it.
    pub content: FileContent,
}

/// What a host can show of a file.
#[derive(Debug, Clone)]
pub enum FileContent {
    /// The host reads the file alone: its beginning, if it is text.
    Read(Option<String>),
    /// The host has the file only within its NAR.
    InNar {
        /// The cache's address, as Nix uses it as a substituter.
        substituter: String,
        /// The whole path of the file.
        path: String,
        /// Address of the NAR below the cache; `None` where a browser cannot get it.
        nar_url: Option<String>,
    },
}

impl FilesView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let (hash, name) = self.base_name.split_once('-').unwrap_or((&self.base_name, ""));
        // A folder's own address ends with a slash: those of its entries are relative to it.
        let here = |upto: usize| {
            let slash = if upto == 0 { "" } else { "/" };
            file_address(&self.cache, hash, self.names[..upto].iter().map(String::as_str)) + slash
        };
        let title = self.names.last().map_or(name, String::as_str);
        let mut way = crate::cache::way_below(&self.cache, path_address(&self.cache, hash), name.to_owned());
        way.push((here(0), "files".to_owned()));
        let hidden = self.names.len().saturating_sub(STEPS_SHOWN);
        for upto in hidden + 1..=self.names.len() {
            // A long address is no step: the page would grow with it.
            let address = here(upto);
            let step = if address.len() <= 700 { address } else { here(0) };
            way.push((step, shortened(&self.names[upto - 1], 60)));
        }
        let content = html! {
            h1 { (shortened(title, NAME_SHOWN)) }
            @match &self.found {
                Found::Folder { first, entries, has_more } => (folder(*first, entries, *has_more)),
                Found::Link(target) => p { "A link to " code { (shortened(target, 1_000)) } "." },
                Found::File(file) => (file.render(frame, &self.cache)),
            }
        };
        frame.page(&shortened(title, NAME_SHOWN), &way, &content)
    }
}

/// Entries until the page is full. Their addresses are relative, so they stay short in a deep
/// folder.
fn folder(first: usize, entries: &[ListedFile], has_more: bool) -> Markup {
    let mut rows = Vec::new();
    let mut length = 0;
    for entry in entries {
        let row = row(entry);
        length += visible_page(&row.0).len();
        if length > CONTENT_BYTES_MAX {
            break;
        }
        rows.push(row);
    }
    let has_more = has_more || rows.len() < entries.len();
    let is_part = first > 0 || has_more;
    html! {
        @if is_part {
            form.search method="get" role="search" {
                label for="at" { "Begin at a name" }
                input #at type="search" name="at" maxlength="250" autocomplete="off" spellcheck="false";
                button { "Go" }
            }
            @if !rows.is_empty() {
                p.quiet { "Entries " (number(first as u64 + 1)) " to " (number((first + rows.len()) as u64)) ", by name." }
            }
        }
        @if entries.is_empty() { p { "Nothing is here." } } @else {
            table.wide data-filter {
                thead { tr { th scope="col" { "Name" } th.figure scope="col" { "Size" } th scope="col" { "Kind" } } }
                tbody { @for row in &rows { (row) } }
            }
        }
        @if is_part {
            p.orders {
                @if first > 0 { a.button rel="first" href="?from=0" { "The first" } }
                @if has_more { a.button rel="next" href={ "?from=" (first + rows.len()) } { "More" } }
            }
        }
    }
}

fn row(entry: &ListedFile) -> Markup {
    let name = shortened(&entry.name, NAME_SHOWN);
    // The name of a file may hold a colon, and an address that begins with `a:` has a scheme. The
    // escaped name has no colon.
    let address = (entry.name.len() <= LINKED_NAME_MAX).then(|| escape_segment(&entry.name));
    html! {
        tr {
            th scope="row" {
                @match (address, &entry.kind) {
                    (None, _) => (name),
                    (Some(address), ListedKind::Folder) => a href={ (address) "/" } { (name) "/" },
                    (Some(address), _) => a href=(address) { (name) },
                }
            }
            td.figure data-label="Size" { @if let ListedKind::File { bytes, .. } = entry.kind { (size(bytes)) } }
            td data-label="Kind" {
                @match &entry.kind {
                    ListedKind::Folder => "folder",
                    ListedKind::File { is_executable: true, .. } => "program",
                    ListedKind::File { .. } => "file",
                    ListedKind::Link(target) => { "link to " code { (shortened(target, NAME_SHOWN)) } },
                }
            }
        }
    }
}

impl FileView {
    fn render(&self, frame: &Frame, cache: &str) -> Markup {
        html! {
            p {
                (size(self.bytes)) @if self.is_executable { ", a program" }
                @match &self.content {
                    FileContent::Read(_) => { " · " a.button href="?download=1" { "Download" } }
                    FileContent::InNar { nar_url: Some(url), .. } => { " · " a href=(frame.link(&below(cache, url))) { "The NAR with it" } }
                    FileContent::InNar { nar_url: None, .. } => {}
                }
            }
            @match &self.content {
                FileContent::Read(Some(text)) => {
                    // Both ends of a line look the same.
                    @let lines = text.replace("\r\n", "\n");
                    @let shown = fitting(&lines, CONTENT_BYTES_MAX);
                    pre.file { code { (shown) } }
                    @if shown.len() < lines.len() || (text.len() as u64) < self.bytes { p { "The download has the rest." } }
                }
                FileContent::Read(None) => { @if self.bytes > 0 { p { "This is no text." } } }
                FileContent::InNar { substituter, path, .. } => {
                    p { "This host has the file only within its NAR, compressed with the others." }
                    @let print = Copied::default().own("nix store cat --store ").shell(substituter).own(" ").shell(path).own("\n");
                    (copyable("the command that prints the file", &print))
                }
            }
        }
    }
}

/// The beginning of a text whose markup fits.
pub(crate) fn fitting(text: &str, bytes_max: usize) -> &str {
    let mut length = 0;
    for (place, character) in text.char_indices() {
        length += match character {
            // Outside of preformatted texts, a tab is shown as an escape.
            '&' | '\t' => 5,
            '<' | '>' => 4,
            '"' => 6,
            '\n' => 1,
            hidden if is_hidden(hidden) => ESCAPE_BYTES_MAX,
            other => other.len_utf8(),
        };
        if length > bytes_max {
            return &text[..place];
        }
    }
    text
}
