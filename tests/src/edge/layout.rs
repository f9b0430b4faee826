//! A published layout in a folder, taken from a lab path by path as any client could. Tests of
//! readers use it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::{Lab, parts};

/// A folder with published caches.
#[derive(Debug)]
pub struct Published {
    folder: TempDir,
}

/// The hash of a path that each cache has: its narinfo, listing and log hold script, as only a
/// holder of the bucket can publish them.
pub(crate) const HOSTILE: &str = "0123456789abcdfghijklmnpqrsvwxyz";

impl Default for Published {
    fn default() -> Self {
        Self::new()
    }
}

/// A build log, a build trace and debug info that each cache has.
pub(crate) const DOCUMENTS: [&str; 3] = [
    "log/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-x+y=.drv",
    "realisations/sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef!out.doi",
    "debuginfo/00ab3f2d5c6e7f8091a2b3c4d5e6f708192a3b4c.debug",
];

impl Published {
    /// An empty one.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("edge-").tempdir_in(parts::scratch_folder());
        Self { folder: folder.expect("a folder") }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Brings these store paths of a lab's cache, and the documents beside them. Returns how many
    /// NARs it has.
    pub fn add(&self, lab: &Lab, cache: &str, public: bool, paths: &[String]) -> usize {
        let mut nars = 0;
        for path in paths {
            let hash = &path.strip_prefix("/nix/store/").expect("a store path")[..32];
            let narinfo = self.fetch(lab, &format!("{cache}/{hash}.narinfo"));
            let url =
                narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).expect("a narinfo has a URL");
            self.fetch(lab, &format!("{cache}/{url}"));
            self.fetch(lab, &format!("{cache}/{hash}.ls"));
            nars += 1;
        }
        self.fetch(lab, &format!("{cache}/nix-cache-info"));
        for name in DOCUMENTS {
            self.write(&format!("{cache}/{name}"), format!("{{\"of\": \"{cache}\"}}").as_bytes());
        }
        self.add_hostile(cache);
        self.describe(cache, public, &[lab.public_key(cache)], &[]);
        nars
    }

    fn add_hostile(&self, cache: &str) {
        let (nar, tag) = ("0".repeat(52), "0".repeat(26));
        let narinfo = format!(
            "StorePath: /nix/store/{HOSTILE}-x\nURL: nar/{nar}-{tag}.nar.zst\nCompression: zstd\nFileSize: 1\n\
             NarHash: sha256:{nar}\nNarSize: 8\nReferences: {HOSTILE}-x\nDeriver: {HOSTILE}-x.drv\n\
             System: <img src=x onerror=alert(1)>\nSig: \"><script>alert(1)</script>:AAAA\nCA: javascript:alert(1)\n"
        );
        let script = json!({ "type": "regular", "size": 8, "narOffset": 96 });
        let link = json!({ "type": "symlink", "target": "\"><script>alert(1)</script>" });
        let entries = json!({ "<script>alert(1)": script, "javascript:alert(1)": link });
        let listing = json!({ "version": 1, "root": { "type": "directory", "entries": entries } });
        self.write(&format!("{cache}/{HOSTILE}.narinfo"), narinfo.as_bytes());
        self.write(&format!("{cache}/{HOSTILE}.ls"), listing.to_string().as_bytes());
        let log = b"\x1b]0;title\x07\x1b[31m</pre><script>alert(1)</script>\n";
        self.write(&format!("{cache}/log/{HOSTILE}-x.drv"), log);
    }

    /// Writes a cache's state document.
    pub fn describe(&self, cache: &str, public: bool, keys: &[String], revoked: &[&str]) {
        let state = json!({
            "version": 1, "cache": cache, "public": public, "store_dir": "/nix/store", "priority": 41,
            "public_keys": keys, "object_count": 3, "file_bytes": 4_096, "published_at": 1_800_000_000,
            "revoked": revoked,
        });
        self.write(&format!("{cache}/dormer-state.json"), state.to_string().as_bytes());
    }

    /// Names public caches.
    pub fn catalog(&self, caches: &[&str]) {
        let catalog = json!({ "version": 1, "caches": caches });
        self.write("dormer-caches.json", catalog.to_string().as_bytes());
    }

    /// Writes any file.
    pub fn write(&self, name: &str, content: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("names have a folder")).expect("a folder");
        fs::write(path, content).expect("a file can be written");
    }

    /// Names of all files, and where they are.
    pub fn files(&self) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("our own folder can be read") {
                let path = entry.expect("our own folder can be read").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name =
                        path.strip_prefix(self.path()).expect("it lies below").to_str().expect("UTF-8");
                    found.push((name.to_owned(), path.clone()));
                }
            }
        }
        found.sort();
        found
    }

    /// The name of some NAR of a cache, below the cache.
    pub fn some_nar(&self, cache: &str) -> String {
        let prefix = format!("{cache}/nar/");
        let files = self.files();
        let (name, _) = files
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix))
            .max_by_key(|(_, path)| fs::metadata(path).expect("it is there").len())
            .expect("a NAR was published");
        name[cache.len() + 1..].to_owned()
    }

    fn fetch(&self, lab: &Lab, name: &str) -> String {
        let reply = lab.get(&format!("/{name}"));
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        self.write(name, &reply.body);
        reply.text()
    }
}
