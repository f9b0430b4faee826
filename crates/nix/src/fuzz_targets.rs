//! One checked property per parser of foreign bytes, as plain functions. For any input, a target
//! returns, or panics because a property is broken.
//!
//! The tests of every build run the targets over `fuzz/corpus/<target>/` and over mutations of it
//! ([`mutated`]). cargo-fuzz runs the same functions for as long as you like (`fuzz/README.md`).
//!
//! Properties
//! - `nar`: the result does not depend on how the NAR is cut. The writer turns the listing and the
//!   contents of an accepted NAR into the same bytes again. A limit equal to the NAR's size changes
//!   nothing.
//! - `narinfo`: an accepted narinfo is written and read back as the same value, and passes `check`.
//! - `cache_info`: what was read is written and read back as the same value.
//! - `listing`: the result does not depend on how the listing is cut. In what a JSON parser takes
//!   for a listing, the search finds what the parser finds.
//! - `document`: an accepted address is written exactly as it was read, and stays in its folder. An
//!   accepted build trace is written and read back as the same value, in any form.
//! - `store_path`, `hash`, `signature`: an accepted text is written and read back as the same
//!   value. A text with only one spelling is written exactly as it was read. An accepted secret key
//!   signs what its public key verifies.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::nar::{
    BUILD_IDS_MAX, FolderPage, ListedNode, Listing, ListingSearch, NAME_BYTES_MAX, NarError, NarLimits,
    NarReader, Node, encode_tree, listed_build_ids,
};
use crate::{
    BuildId, BuildTrace, CacheInfo, ContentAddress, DocumentName, NarHash, NarInfo, PublicKey, SecretKey,
    Signature, StoreDir, StorePath, StorePathHash, nix32,
};

/// Longest input that the targets also feed byte by byte.
const BYTEWISE_BYTES_MAX: usize = 64 * 1024;

/// Deepest listing that `serde_json` reads: its limit is 128, and a directory takes two levels.
const LISTING_DEPTH_MAX: usize = 60;

/// How many entries of a folder the target `listing` asks for.
const LISTED_ENTRIES: usize = 3;

/// A NAR.
pub fn fuzz_nar(data: &[u8]) {
    let whole = read([data], NarLimits::default());
    if data.len() <= BYTEWISE_BYTES_MAX {
        assert_eq!(read(data.chunks(1), NarLimits::default()), whole, "fed byte by byte");
    }
    assert_eq!(read(data.chunks(13), NarLimits::default()), whole, "fed in pieces of 13 bytes");
    let Ok(listing) = whole else { return };

    let exact = NarLimits { nar_bytes_max: data.len() as u64, ..NarLimits::default() };
    assert_eq!(read([data], exact).as_ref(), Ok(&listing), "with its size as the limit");
    let unlisted = NarLimits { listing_bytes_max: 64, ..NarLimits::default() };
    assert!(read([data], unlisted).is_ok(), "without a listing");
    if let Some(root) = listing.json().and_then(|json| rebuild(data, json)) {
        assert_eq!(encode_tree(&root), data, "written again");
    }
}

/// A narinfo.
pub fn fuzz_narinfo(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let store_dir = StoreDir::default();
    let Ok(info) = NarInfo::parse(text, &store_dir) else { return };
    assert_eq!(info.check(), Ok(()));
    assert_eq!(NarInfo::parse(&info.to_text(&store_dir), &store_dir).as_ref(), Ok(&info));
    let fingerprint = info.fingerprint(&store_dir);
    assert_eq!(fingerprint.matches(';').count(), 4, "the fields of {fingerprint}");
}

/// A `nix-cache-info`.
pub fn fuzz_cache_info(data: &[u8]) {
    let info = CacheInfo::parse(data);
    assert_eq!(CacheInfo::parse(info.to_string().as_bytes()), info);
    assert_eq!(info.is_empty(), info.to_string().is_empty());
    if let Some(store_dir) = &info.store_dir {
        assert!(!store_dir.contains('\n') && store_dir.trim() == store_dir, "{store_dir:?}");
    }
}

/// The path of a file, a line feed, and the listing in which the search looks for it.
pub fn fuzz_listing(data: &[u8]) {
    let (path, json) = split_line(data);
    let Ok(path) = std::str::from_utf8(path) else { return };
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let whole = look_up(&names, [json]);
    assert_eq!(look_up(&names, json.chunks(1)), whole, "fed byte by byte");
    assert_eq!(look_up(&names, json.chunks(13)), whole, "fed in pieces of 13 bytes");
    assert!(listed_build_ids(json).len() <= BUILD_IDS_MAX);
    assert!(whole.1.is_none_or(|(_, page)| page.entries.len() <= LISTED_ENTRIES));

    let Ok(listing) = serde_json::from_slice::<Value>(json) else { return };
    let root = &listing["root"];
    if is_listed_node(root) {
        // Without the fields that a listing does not have, and without a field that stands twice.
        let written = format!(r#"{{"version":1,"root":{root}}}"#);
        assert_eq!(look_up(&names, [written.as_bytes()]).0, walk(root, &names), "{written}");
    }
}

/// The address of a document, a line feed, and the document.
pub fn fuzz_document(data: &[u8]) {
    let (address, json) = split_line(data);
    let Ok(text) = std::str::from_utf8(address) else { return };
    let Ok(name) = text.parse::<DocumentName>() else { return };
    assert_eq!(name.to_string(), text);
    assert!(DocumentName::is_in_folder(text) && !text.contains("//") && !text.contains("/../"));
    if let DocumentName::DebugInfo(id) = &name {
        assert_eq!(BuildId::from_bytes(id.as_bytes()).as_ref(), Ok(id));
        let (folder, file) =
            id.debug_file().rsplit_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a path");
        assert_eq!(
            BuildId::of_debug_file(&folder.as_bytes()[folder.len() - 2..], file.as_bytes()).as_ref(),
            Some(id)
        );
    }
    let DocumentName::Trace(key) = name else { return };
    let Ok(trace) = BuildTrace::parse(&key, json) else { return };
    let written = trace.to_json(&[]);
    assert_eq!(BuildTrace::parse(&key, written.as_bytes()).as_ref(), Ok(&trace));
    // What is signed is the document without its signatures.
    let unsigned = BuildTrace { sigs: Vec::new(), ..trace.clone() };
    assert_eq!(unsigned.fingerprints(), trace.fingerprints());
    for text in trace.fingerprints() {
        assert!(serde_json::from_str::<Value>(&text).is_ok_and(|json| json.is_object()), "{text}");
    }
}

/// A store path with and without its folder, the folder, and the hash part.
pub fn fuzz_store_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let store_dir = StoreDir::default();
    if let Ok(path) = text.parse::<StorePath>() {
        assert_eq!(path.to_string(), text);
        assert_eq!(StorePath::new(path.hash(), path.name()).as_ref(), Ok(&path));
        assert_eq!(StorePath::parse_absolute(&store_dir, &path.to_absolute(&store_dir)), Ok(path));
    }
    if let Ok(path) = StorePath::parse_absolute(&store_dir, text) {
        assert_eq!(path.to_absolute(&store_dir), text);
    }
    if let Ok(dir) = text.parse::<StoreDir>() {
        assert_eq!(dir.as_str(), text);
        assert!(!text.ends_with('/') && !text.contains("/../"));
    }
    if let Ok(hash) = text.parse::<StorePathHash>() {
        assert_eq!(hash.to_string(), text);
    }
}

/// A hash, nix-base32, and a content address.
pub fn fuzz_hash(data: &[u8]) {
    assert_eq!(nix32::decode(&nix32::encode(data)).as_deref(), Ok(data));
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(hash) = text.parse::<NarHash>() {
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(format!("sha256:{}", hash.to_hex()).parse(), Ok(hash));
    }
    if let Ok(bytes) = nix32::decode(text) {
        assert_eq!(nix32::encode(&bytes), text);
        assert_eq!(nix32::decode_array::<32>(text).is_ok(), bytes.len() == 32);
    }
    if let Ok(address) = text.parse::<ContentAddress>() {
        let (kind, hash) = match address {
            ContentAddress::Nar(hash) => ("fixed:r:", hash),
            ContentAddress::File(hash) => ("fixed:", hash),
            ContentAddress::Text(hash) => ("text:", hash),
        };
        assert_eq!(text.strip_prefix(kind).map(str::parse), Some(Ok(hash)), "{text}");
    }
}

/// A signature, a public key, and a secret key.
pub fn fuzz_signature(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(signature) = text.parse::<Signature>() {
        assert_eq!(signature.to_string(), text);
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(key) = text.parse::<SecretKey>() {
        assert_eq!(key.expose(), text);
        assert_eq!(key.public_key().verify("message", &key.sign("message")), Ok(()));
    }
}

/// A mutation of a corpus. The same `round` always gives the same mutation, and most mutations are
/// close to a member of the corpus. Rounds below the corpus's length give its members unchanged.
pub fn mutated(corpus: &[Vec<u8>], round: u64) -> Vec<u8> {
    if let Some(member) = usize::try_from(round).ok().and_then(|round| corpus.get(round)) {
        return member.clone();
    }
    let mut dice = Dice(round.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = dice.pick(corpus).cloned().unwrap_or_default();
    for _ in 0..=dice.below(3) {
        mutate(&mut bytes, corpus, &mut dice);
    }
    bytes
}

/// Numbers that often break length fields and counters.
const NUMBERS: [u64; 12] = [0, 1, 7, 8, 9, 255, 256, 0xffff, 0xffff_ffff, 1 << 63, (1 << 63) - 1, u64::MAX];

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    let to = at + dice.below((bytes.len() - at).min(64) + 1);
    match dice.below(8) {
        0 => bytes.truncate(at),
        1 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        2 if at < bytes.len() => bytes[at] = dice.next().to_le_bytes()[0],
        3 => drop(bytes.drain(at..to)),
        4 => {
            let copy = bytes[at..to].to_vec();
            bytes.splice(at..at, copy);
        }
        5 => {
            // Aligned, like the length fields of a NAR.
            let at = at / 8 * 8;
            let number = dice.pick(&NUMBERS).copied().unwrap_or_default().to_le_bytes();
            let end = bytes.len().min(at + 8);
            bytes.splice(at..end, number);
        }
        6 => {
            let tail = dice.pick(corpus).map_or(&[][..], Vec::as_slice);
            let from = dice.below(tail.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&tail[from..]);
        }
        _ => bytes.insert(at, dice.next().to_le_bytes()[0]),
    }
}

/// xorshift64: good enough to vary inputs, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        // The remainder is below a usize.
        (self.next() >> 11) as usize % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.below(from.len())) }
    }
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: NarLimits) -> Result<Listing, NarError> {
    let mut reader = NarReader::new(limits);
    for piece in pieces {
        reader.feed(piece)?;
    }
    reader.finish()
}

/// The first line, and what follows it.
fn split_line(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// The node at a path, by a search for it alone, and by one that also reads entries.
type LookedUp = (Option<ListedNode>, Option<(ListedNode, FolderPage)>);

fn look_up<'a>(names: &[&str], pieces: impl IntoIterator<Item = &'a [u8]>) -> LookedUp {
    let mut node = ListingSearch::new(names.iter().copied());
    let mut folder = ListingSearch::new(names.iter().copied()).with_entries(1, LISTED_ENTRIES);
    for piece in pieces {
        node.feed(piece);
        folder.feed(piece);
    }
    (node.finish(), folder.finish_with_entries())
}

/// Whether this is a node as listings have them, with no other field.
fn is_listed_node(node: &Value) -> bool {
    let Some(fields) = node.as_object() else { return false };
    let has_only = |known: &[&str]| fields.keys().all(|key| known.contains(&key.as_str()));
    match node["type"].as_str() {
        Some("regular") => {
            has_only(&["type", "size", "executable", "narOffset"])
                && node["size"].is_u64()
                && node["narOffset"].is_u64()
                && node.get("executable").is_none_or(Value::is_boolean)
        }
        Some("symlink") => {
            has_only(&["type", "target"])
                && node["target"].as_str().is_some_and(|target| target.len() <= NAME_BYTES_MAX)
        }
        Some("directory") => {
            let is_entry =
                |(name, node): (&String, &Value)| name.len() <= NAME_BYTES_MAX && is_listed_node(node);
            has_only(&["type", "entries"])
                && node["entries"].as_object().is_some_and(|entries| entries.iter().all(is_entry))
        }
        _ => false,
    }
}

/// The node at a path, in a listing that a JSON parser has read.
fn walk(root: &Value, names: &[&str]) -> Option<ListedNode> {
    let node = names.iter().try_fold(root, |node, name| node.get("entries")?.get(name))?;
    match node["type"].as_str()? {
        "regular" => Some(ListedNode::File {
            size: node["size"].as_u64()?,
            executable: node["executable"].as_bool().unwrap_or_default(),
            nar_offset: node["narOffset"].as_u64()?,
        }),
        "symlink" => Some(ListedNode::Symlink(node["target"].as_str()?.to_owned())),
        _ => Some(ListedNode::Directory),
    }
}

/// Rebuilds the tree of a NAR from its listing. `None` if the listing cannot describe the tree:
/// names that are not UTF-8, or directories nested too deeply.
pub(crate) fn rebuild(nar: &[u8], json: &[u8]) -> Option<Node> {
    let text = std::str::from_utf8(json).expect("a listing is UTF-8");
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return None;
    }
    match serde_json::from_str::<Value>(text) {
        Ok(listing) => {
            assert_eq!(listing["version"], 1);
            Some(rebuild_node(nar, &listing["root"]))
        }
        Err(error) => {
            assert!(
                text.matches("\"entries\":").count() > LISTING_DEPTH_MAX,
                "the listing is not JSON: {error}"
            );
            None
        }
    }
}

fn rebuild_node(nar: &[u8], node: &Value) -> Node {
    let number = |key: &str| {
        let number = node[key].as_u64().expect("a file has a size and an offset");
        usize::try_from(number).expect("the NAR is in memory, so a position in it fits")
    };
    match node["type"].as_str() {
        Some("regular") => Node::File {
            executable: node
                .get("executable")
                .is_some_and(|value| value.as_bool().expect("`executable` is a boolean")),
            contents: nar[number("narOffset")..][..number("size")].to_vec(),
        },
        Some("symlink") => Node::symlink(node["target"].as_str().expect("a link has a target")),
        Some("directory") => {
            let entries = node["entries"].as_object().expect("a directory has entries");
            let rebuilt =
                entries.iter().map(|(name, entry)| (name.clone().into_bytes(), rebuild_node(nar, entry)));
            Node::Directory(rebuilt.collect::<BTreeMap<_, _>>())
        }
        other => panic!("a node of type {other:?}"),
    }
}
