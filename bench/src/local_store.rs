//! The corpus as a local Nix store: files in a folder, and a program in place of `nix` that
//! describes them. So `dormer push` itself is measured, from reading files on.

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::corpus::{Entry, Generation};
use crate::error::{Context, Error, Result};

/// The unpacked paths of one generation.
#[derive(Debug)]
pub(crate) struct LocalStore {
    /// Holds `nix/store`.
    root: PathBuf,
    /// The folder with the program `nix`.
    pub(crate) programs: PathBuf,
    /// The paths, one a line, as `dormer push --stdin` reads them.
    pub(crate) list: PathBuf,
}

impl LocalStore {
    /// Unpacks a generation into `folder`, unless it is there already.
    pub(crate) fn unpack(folder: &Path, generation: &Generation) -> Result<Self> {
        let store =
            Self { root: folder.to_owned(), programs: folder.join("bin"), list: folder.join("paths") };
        let done = folder.join("unpacked");
        let marker = format!("{} paths", generation.entries.len());
        if fs::read_to_string(&done).is_ok_and(|text| text == marker) {
            return Ok(store);
        }
        if folder.exists() {
            fs::remove_dir_all(folder).context(|| format!("empty {}", folder.display()))?;
        }
        let paths = folder.join("nix/store");
        for folder in [&paths, &store.programs] {
            fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
        }
        let mut nar = Vec::new();
        for entry in &generation.entries {
            generation.read(entry, &mut nar)?;
            unpack(&nar, &paths.join(base_name(entry)))?;
        }
        store.describe(&paths, &generation.entries)?;
        fs::write(&done, marker).context(|| "finish the store".to_owned())?;
        Ok(store)
    }

    /// Makes a store of single files in `folder`, which `write` fills. The files are made anew.
    pub(crate) fn generate(
        folder: &Path,
        entries: &[Entry],
        mut write: impl FnMut(usize, &mut fs::File) -> std::io::Result<()>,
    ) -> Result<Self> {
        let store =
            Self { root: folder.to_owned(), programs: folder.join("bin"), list: folder.join("paths") };
        if folder.exists() {
            fs::remove_dir_all(folder).context(|| format!("empty {}", folder.display()))?;
        }
        let paths = folder.join("nix/store");
        for folder in [&paths, &store.programs] {
            fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
        }
        for (number, entry) in entries.iter().enumerate() {
            let file = paths.join(base_name(entry));
            fs::File::create(&file)
                .and_then(|mut file| write(number, &mut file))
                .context(|| format!("make {}", file.display()))?;
        }
        store.describe(&paths, entries)?;
        Ok(store)
    }

    fn describe(&self, paths: &Path, entries: &[Entry]) -> Result<()> {
        let infos: serde_json::Map<String, serde_json::Value> = entries
            .iter()
            .map(|entry| {
                let info = serde_json::json!({
                    "narHash": format!("sha256:{}", entry.nar_hash_hex), "narSize": entry.nar_size,
                    "references": entry.references, "signatures": [],
                });
                (entry.store_path.clone(), info)
            })
            .collect();
        let infos = serde_json::to_string(&infos).context(|| "describe the store".to_owned())?;
        let (described, root) = (self.root.join("infos.json"), self.root.display());
        let program = format!(
            "#!/bin/sh\ncase \"$*\" in\n*path-info*) cat {};;\n*) echo '{{\"store\":{{\"value\":\"local?root={root}\"}}}}';;\nesac\n",
            described.display()
        );
        let lines = entries.iter().map(|entry| format!("{}\n", paths.join(base_name(entry)).display()));
        let list = lines.collect::<Vec<_>>().concat();
        let nix = self.programs.join("nix");
        for (file, text) in [(&described, &infos), (&self.list, &list), (&nix, &program)] {
            fs::write(file, text).context(|| format!("write {}", file.display()))?;
        }
        fs::set_permissions(&nix, fs::Permissions::from_mode(0o755))
            .context(|| "make the program executable".to_owned())
    }
}

fn base_name(entry: &Entry) -> &str {
    entry.store_path.rsplit('/').next().unwrap_or(&entry.store_path)
}

/// Unpacks a NAR of the corpus, which is well formed.
fn unpack(nar: &[u8], to: &Path) -> Result<()> {
    let mut reader = Words { rest: nar };
    reader.expect(b"nix-archive-1")?;
    unpack_node(&mut reader, to)
}

fn unpack_node(reader: &mut Words<'_>, to: &Path) -> Result<()> {
    reader.expect(b"(")?;
    reader.expect(b"type")?;
    let making = || format!("make {}", to.display());
    match reader.word()? {
        b"regular" => {
            let mut mode = 0o444;
            let mut word = reader.word()?;
            if word == b"executable" {
                reader.expect(b"")?;
                mode = 0o555;
                word = reader.word()?;
            }
            let mut file = fs::File::create(to).context(making)?;
            if word == b"contents" {
                file.write_all(reader.word()?).context(making)?;
                word = reader.word()?;
            }
            if word != b")" {
                return Err(Error::new("a file of the corpus does not end"));
            }
            fs::set_permissions(to, fs::Permissions::from_mode(mode)).context(making)
        }
        b"symlink" => {
            reader.expect(b"target")?;
            symlink(std::ffi::OsStr::from_bytes(reader.word()?), to).context(making)?;
            reader.expect(b")")
        }
        b"directory" => {
            fs::create_dir(to).context(making)?;
            loop {
                match reader.word()? {
                    b")" => return Ok(()),
                    b"entry" => {}
                    _ => return Err(Error::new("a folder of the corpus does not end")),
                }
                reader.expect(b"(")?;
                reader.expect(b"name")?;
                let name = std::ffi::OsStr::from_bytes(reader.word()?);
                reader.expect(b"node")?;
                unpack_node(reader, &to.join(name))?;
                reader.expect(b")")?;
            }
        }
        _ => Err(Error::new("a NAR of the corpus has another type of file")),
    }
}

/// The words of a NAR: a length, bytes, and zeros up to a multiple of eight.
struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    fn word(&mut self) -> Result<&'a [u8]> {
        let ends = || Error::new("a NAR of the corpus ends too early");
        let (length, rest) = self.rest.split_first_chunk().ok_or_else(ends)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (word, _) = rest.split_at_checked(length).ok_or_else(ends)?;
        self.rest = rest.get(length.next_multiple_of(8)..).ok_or_else(ends)?;
        Ok(word)
    }

    fn expect(&mut self, expected: &[u8]) -> Result<()> {
        if self.word()? == expected {
            return Ok(());
        }
        Err(Error::new(format!("a NAR of the corpus lacks {:?}", String::from_utf8_lossy(expected))))
    }
}
