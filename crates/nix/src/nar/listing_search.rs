//! Finds one path in a listing that comes in pieces. Only what is on the way to the path is looked
//! at, so memory does not grow with the listing.
//!
//! Invariants
//! - The result does not depend on how the listing is cut into pieces.
//! - Memory: one name or target, at most [`TEXT_BYTES_MAX`]. Nothing recurses, however deep the
//!   listing is.
//! - Whatever the bytes are, nothing panics: what cannot be read is not found.

use super::NAME_BYTES_MAX;

/// Longest text that is looked at, in bytes of JSON: a name in which every byte is escaped.
const TEXT_BYTES_MAX: usize = 6 * NAME_BYTES_MAX + 2;

/// Most bytes of names and targets of the entries in one answer; one entry may have more.
pub const ENTRIES_BYTES_MAX: usize = 256 * 1024;

/// Longest number or word.
const BARE_BYTES_MAX: usize = 32;

/// What a listing says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedNode {
    /// A regular file: these bytes of the NAR.
    File {
        /// Its length in bytes.
        size: u64,
        /// Whether it is executable.
        executable: bool,
        /// Position of its first byte in the NAR.
        nar_offset: u64,
    },
    /// A symbolic link to this target.
    Symlink(String),
    /// A directory.
    Directory,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderEntry {
    /// Its name.
    pub name: String,
    /// What it is.
    pub node: ListedNode,
}

/// Some entries of a folder, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FolderPage {
    /// How many entries come before these.
    pub first: usize,
    /// The entries.
    pub entries: Vec<FolderEntry>,
    /// Whether more follow.
    pub has_more: bool,
}

/// The entries of a folder that are wanted, and those found.
#[derive(Debug)]
struct Folder {
    /// Entries before the first one that is wanted.
    skip: usize,
    /// No name of a wanted entry comes before this.
    begin: String,
    wanted: usize,
    page: FolderPage,
    /// Bytes of the names and targets of the entries.
    bytes: usize,
    /// The name of the entry that is open.
    name: Option<String>,
}

/// Looks for one path.
#[derive(Debug)]
pub struct ListingSearch {
    wanted: Vec<String>,
    folder: Option<Folder>,
    /// How many of the wanted names lead to the node that is open.
    matched: usize,
    /// Open objects. The node behind `matched` names has the depth `2 + 2 * matched`, and the
    /// names in it one more.
    depth: usize,
    state: State,
    /// The text or word that is being read, if it is looked at.
    text: Vec<u8>,
    last_text: Option<String>,
    key: Option<String>,
    /// Whether the next object is the node of the next wanted name.
    is_next: bool,
    kind: Option<String>,
    size: Option<u64>,
    nar_offset: Option<u64>,
    executable: bool,
    target: Option<String>,
    is_done: bool,
    found: Option<ListedNode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Text { is_kept: bool, is_escaped: bool },
    Bare,
}

impl ListingSearch {
    /// Looks for the node at this path; without names, for the root.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            wanted: names.into_iter().map(Into::into).collect(),
            folder: None,
            matched: 0,
            depth: 0,
            state: State::Between,
            text: Vec::new(),
            last_text: None,
            key: None,
            is_next: false,
            kind: None,
            size: None,
            nar_offset: None,
            executable: false,
            target: None,
            is_done: false,
            found: None,
        }
    }

    /// Also reads entries, if there is a folder at the path: at most `wanted`, from number `first`
    /// on, and fewer if their texts are long. Memory then also has [`ENTRIES_BYTES_MAX`] of texts.
    #[must_use]
    pub fn with_entries(self, first: usize, wanted: usize) -> Self {
        let page = FolderPage::default();
        let folder = Folder { skip: first, begin: String::new(), wanted, page, bytes: 0, name: None };
        Self { folder: Some(folder), ..self }
    }

    /// Leaves out the entries whose names come before this text. Only after
    /// [`with_entries`](Self::with_entries).
    #[must_use]
    pub fn beginning_at(mut self, name: &str) -> Self {
        if let Some(folder) = &mut self.folder {
            name.clone_into(&mut folder.begin);
        }
        self
    }

    /// Takes the next piece of the JSON. Returns whether the search has ended.
    pub fn feed(&mut self, json: &[u8]) -> bool {
        for byte in json {
            if self.is_done {
                break;
            }
            self.take(*byte);
        }
        self.is_done
    }

    /// What the listing has at the path, with the entries of a folder.
    pub fn finish_with_entries(self) -> Option<(ListedNode, FolderPage)> {
        let page = self.folder.map(|folder| folder.page).unwrap_or_default();
        self.found.map(|node| (node, page))
    }

    /// What the listing has at the path, if anything.
    pub fn finish(self) -> Option<ListedNode> {
        self.found
    }

    fn take(&mut self, byte: u8) {
        match self.state {
            State::Text { is_kept, is_escaped } => {
                if is_kept {
                    self.keep(byte, TEXT_BYTES_MAX);
                }
                match byte {
                    b'"' if !is_escaped => {
                        self.state = State::Between;
                        self.end_text(is_kept);
                    }
                    _ => {
                        let is_escaped = byte == b'\\' && !is_escaped;
                        self.state = State::Text { is_kept, is_escaped };
                    }
                }
            }
            State::Bare if byte.is_ascii_alphanumeric() => self.keep(byte, BARE_BYTES_MAX),
            State::Bare => {
                self.state = State::Between;
                self.end_bare();
                self.take_between(byte);
            }
            State::Between => self.take_between(byte),
        }
    }

    fn take_between(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.text.clear();
                self.text.push(byte);
                self.state = State::Text { is_kept: self.looks(), is_escaped: false };
            }
            b':' => {
                self.key = self.last_text.take();
                let is_name = self.depth == self.node_depth() + 1 && self.matched < self.wanted.len();
                self.is_next = is_name && self.key.as_ref() == self.wanted.get(self.matched);
            }
            b',' => self.key = None,
            b'{' => {
                let key = self.key.take();
                if self.depth == self.node_depth() + 1
                    && self.matched == self.wanted.len()
                    && let Some(folder) = &mut self.folder
                {
                    folder.name = key;
                    self.forget_node();
                }
                self.depth += 1;
                if std::mem::take(&mut self.is_next) {
                    self.matched += 1;
                }
            }
            b'}' => {
                self.key = None;
                if self.is_in_entry() {
                    self.end_entry();
                }
                if self.depth == self.node_depth() {
                    // All of the node on the way was seen: the path leads to it, or nowhere.
                    self.is_done = true;
                    self.found = (self.matched == self.wanted.len()).then(|| self.node()).flatten();
                }
                self.depth = self.depth.saturating_sub(1);
            }
            byte if byte.is_ascii_alphanumeric() => {
                self.text.clear();
                self.text.push(byte);
                self.state = State::Bare;
            }
            _ => {}
        }
    }

    fn node_depth(&self) -> usize {
        2 + 2 * self.matched
    }

    /// Whether texts at this place matter: fields of the node on the way, and the names in it.
    fn looks(&self) -> bool {
        let is_name = self.depth == self.node_depth() + 1 && self.matched < self.wanted.len();
        let is_entry = self.folder.is_some()
            && self.matched == self.wanted.len()
            && (self.depth == self.node_depth() + 1 || self.is_in_entry());
        self.depth == self.node_depth() || is_name || is_entry
    }

    /// Whether the fields here are those of an entry that is wanted.
    fn is_in_entry(&self) -> bool {
        self.folder.is_some() && self.matched == self.wanted.len() && self.depth == self.node_depth() + 2
    }

    fn forget_node(&mut self) {
        (self.kind, self.size, self.nar_offset, self.target) = (None, None, None, None);
        self.executable = false;
    }

    fn end_entry(&mut self) {
        let node = self.node();
        // What is read after the entries belongs to the folder.
        self.forget_node();
        self.kind = Some("directory".to_owned());
        let Some(folder) = &mut self.folder else { return };
        let is_before = folder.name.as_ref().is_some_and(|name| *name < folder.begin);
        if folder.skip > 0 || is_before {
            folder.skip = folder.skip.saturating_sub(1);
            folder.page.first += 1;
            return;
        }
        let (Some(name), Some(node)) = (folder.name.take(), node) else { return };
        let target_bytes = if let ListedNode::Symlink(target) = &node { target.len() } else { 0 };
        folder.bytes += name.len() + target_bytes;
        let entries = &mut folder.page.entries;
        let is_full = folder.bytes > ENTRIES_BYTES_MAX && !entries.is_empty();
        if is_full || entries.len() == folder.wanted {
            folder.page.has_more = true;
            self.is_done = true;
            self.found = Some(ListedNode::Directory);
        } else {
            entries.push(FolderEntry { name, node });
        }
    }

    fn keep(&mut self, byte: u8, bytes_max: usize) {
        if self.text.len() < bytes_max {
            self.text.push(byte);
        } else {
            self.is_done = true;
        }
    }

    fn end_text(&mut self, is_kept: bool) {
        let text = if is_kept { serde_json::from_slice::<String>(&self.text).ok() } else { None };
        match (self.key.take(), text) {
            (None, text) => self.last_text = text,
            (Some(key), Some(text)) if self.is_at_target() || self.is_in_entry() => match key.as_str() {
                "type" => self.kind = Some(text),
                "target" => self.target = Some(text),
                _ => {}
            },
            _ => {}
        }
    }

    fn end_bare(&mut self) {
        let word = std::str::from_utf8(&self.text).unwrap_or_default();
        match self.key.take().as_deref().filter(|_| self.is_at_target() || self.is_in_entry()) {
            Some("size") => self.size = word.parse().ok(),
            Some("narOffset") => self.nar_offset = word.parse().ok(),
            Some("executable") => self.executable = word == "true",
            _ => {}
        }
    }

    fn is_at_target(&self) -> bool {
        self.matched == self.wanted.len() && self.depth == self.node_depth()
    }

    fn node(&mut self) -> Option<ListedNode> {
        match self.kind.as_deref()? {
            "regular" => Some(ListedNode::File {
                size: self.size?,
                executable: self.executable,
                nar_offset: self.nar_offset?,
            }),
            "symlink" => self.target.take().map(ListedNode::Symlink),
            "directory" => Some(ListedNode::Directory),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nar::{Listing, NarLimits, NarReader, Node, encode_tree};
    use crate::strategies;

    fn listing_of(nar: &[u8]) -> Vec<u8> {
        let mut reader = NarReader::new(NarLimits::default());
        reader.feed(nar).unwrap();
        reader.finish().ok().and_then(Listing::into_json).unwrap()
    }

    fn search(json: &[u8], names: &[String], piece: usize) -> Option<ListedNode> {
        let mut search = ListingSearch::new(names);
        json.chunks(piece).any(|piece| search.feed(piece));
        search.finish()
    }

    /// Checks every node of a tree, and names that are not there.
    fn check(nar: &[u8], json: &[u8], node: &Node, names: &mut Vec<String>, piece: usize) {
        match (search(json, names, piece), node) {
            (
                Some(ListedNode::File { size, executable, nar_offset }),
                Node::File { executable: is, contents },
            ) => {
                assert_eq!(executable, *is);
                let start = usize::try_from(nar_offset).unwrap();
                assert_eq!(&nar[start..][..usize::try_from(size).unwrap()], contents);
            }
            (Some(ListedNode::Symlink(target)), Node::Symlink(is)) => {
                assert_eq!(target, crate::nar::listing::as_text(is));
            }
            (Some(ListedNode::Directory), Node::Directory(entries)) => {
                for (name, node) in entries {
                    names.push(crate::nar::listing::as_text(name).into_owned());
                    check(nar, json, node, names, piece);
                    names.pop();
                }
            }
            (found, node) => panic!("{names:?}: {found:?}, not {node:?}"),
        }
        for missing in ["", "no such name", "entries", "type", "size"] {
            let is_there =
                matches!(node, Node::Directory(entries) if entries.contains_key(missing.as_bytes()));
            names.push(missing.to_owned());
            assert!(is_there || search(json, names, piece).is_none(), "{names:?}");
            names.pop();
        }
    }

    /// The entries of the folder at these names, in pages of this length.
    fn entries(json: &[u8], names: &[String], piece: usize, page: usize) -> Vec<FolderEntry> {
        let mut all = Vec::new();
        loop {
            let mut search = ListingSearch::new(names).with_entries(all.len(), page);
            json.chunks(piece).any(|piece| search.feed(piece));
            let (node, page) = search.finish_with_entries().expect("the folder is there");
            assert_eq!((node, page.first), (ListedNode::Directory, all.len()));
            assert!(!page.entries.is_empty() || !page.has_more, "every page leads on");
            all.extend(page.entries);
            if !page.has_more {
                return all;
            }
        }
    }

    fn check_folders(json: &[u8], node: &Node, names: &mut Vec<String>, piece: usize, page: usize) {
        let Node::Directory(children) = node else {
            let mut search = ListingSearch::new(names.iter()).with_entries(0, page);
            json.chunks(piece).any(|piece| search.feed(piece));
            let found = search.finish_with_entries().map(|(node, page)| (node, page.entries.len()));
            assert_eq!(found, self::search(json, names, piece).map(|node| (node, 0)));
            return;
        };
        let found = entries(json, names, piece, page);
        assert_eq!(found.len(), children.len());
        for (entry, (name, node)) in found.into_iter().zip(children) {
            assert_eq!(entry.name, crate::nar::listing::as_text(name));
            names.push(entry.name);
            assert_eq!(Some(entry.node), search(json, names, piece));
            check_folders(json, node, names, piece, page);
            names.pop();
        }
    }

    #[test]
    fn long_texts_make_short_pages() {
        let name = |number: usize| format!("{number}{}", "x".repeat(100_000)).into_bytes();
        let children = (0..9).map(|number| (name(number), Node::symlink("y".repeat(100_000))));
        let root = Node::directory(children.chain([(b"z".to_vec(), Node::file(b"z".to_vec()))]));
        let json = listing_of(&encode_tree(&root));
        let mut search = ListingSearch::new(Vec::<String>::new()).with_entries(0, 100);
        search.feed(&json);
        let (_, page) = search.finish_with_entries().unwrap();
        assert_eq!((page.entries.len(), page.has_more), (1, true));
        assert_eq!(entries(&json, &[], 4_096, 100).len(), 10, "the pages have all of them");
    }

    #[test]
    fn a_page_begins_at_a_name() {
        let names = ["a", "b", "ba", "c"];
        let root = Node::directory(names.map(|name| (name, Node::file("x"))));
        let json = listing_of(&encode_tree(&root));
        for (begin, first, found) in
            [("", 0, &names[..2]), ("b", 1, &names[1..3]), ("bb", 3, &names[3..]), ("d", 4, &[])]
        {
            let mut search = ListingSearch::new(Vec::<String>::new()).with_entries(0, 2).beginning_at(begin);
            json.chunks(3).any(|piece| search.feed(piece));
            let (_, page) = search.finish_with_entries().unwrap();
            let listed: Vec<&str> = page.entries.iter().map(|entry| entry.name.as_str()).collect();
            assert_eq!((page.first, listed.as_slice(), page.has_more), (first, found, first < 2), "{begin}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_folder_is_listed_in_pages(tree in strategies::node(), piece in 1_usize..40, page in 1_usize..4) {
            let json = listing_of(&encode_tree(&tree));
            check_folders(&json, &tree, &mut Vec::new(), piece, page);
        }

        #[test]
        fn every_node_is_found_however_the_listing_is_cut(tree in strategies::node(), piece in 1_usize..40) {
            let nar = encode_tree(&tree);
            check(&nar, &listing_of(&nar), &tree, &mut Vec::new(), piece);
        }

        #[test]
        fn foreign_bytes_are_not_found_and_harm_nothing(json in "[ -~]{0,80}", name in "[a-c]") {
            let _ = search(json.as_bytes(), &[name], 7);
        }
    }

    #[test]
    fn a_cut_listing_has_nothing_that_was_not_seen() {
        let tree =
            Node::directory([("a", Node::file("x")), ("b", Node::directory([("c", Node::file("y"))]))]);
        let json = listing_of(&encode_tree(&tree));
        let names = ["b".to_owned(), "c".to_owned()];
        let found = search(&json, &names, 1);
        assert!(matches!(found, Some(ListedNode::File { size: 1, .. })));
        for end in 0..json.len() - 5 {
            let cut = search(&json[..end], &names, 3);
            assert!(cut.is_none() || cut == found);
        }
    }
}
