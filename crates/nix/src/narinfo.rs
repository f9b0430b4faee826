//! narinfo: the text with which a binary cache describes a store path.
//!
//! Reading is strict where a mistake would hurt: it refuses a cut text (references may be missing),
//! a repeated field and an invalid path. It keeps unknown fields within bounds, because Nix adds
//! fields over time (Determinate Nix has `Provenance`), and drops those beyond. Writing keeps Nix's
//! order of fields, with the unknown ones at the end. A value can never add a line of its own.

use std::fmt::Write as _;

use crate::error::{Error, Result};
use crate::hash::NarHash;
use crate::signature::{fingerprint, sorted};
use crate::store_path::{StoreDir, StorePath};
use crate::text::{excerpt, is_line};

/// Longest narinfo that the parser reads, in bytes. At about 60 bytes a reference, 4 MiB hold
/// 65,000 references.
pub const NARINFO_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most unknown fields that are kept of a narinfo.
const EXTRA_FIELDS_MAX: usize = 16;

/// Most bytes of all unknown fields that are kept. A `Provenance` has some hundred.
const EXTRA_BYTES_MAX: usize = 16 * 1024;

/// Longest name of an unknown field, in bytes.
const EXTRA_NAME_BYTES_MAX: usize = 64;

/// The compression that Nix assumes if the narinfo names none.
const COMPRESSION_DEFAULT: &str = "bzip2";

/// What Nix wrote as the deriver if it did not know the derivation.
const DERIVER_UNKNOWN: &str = "unknown-deriver";

/// A store path, the place of its NAR, and what is known about both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The store path.
    pub store_path: StorePath,
    /// URL of the file, relative to the cache.
    pub url: String,
    /// How the file is compressed: `none`, `zstd`, `xz`, …
    pub compression: String,
    /// Hash of the compressed file, as served.
    pub file_hash: Option<NarHash>,
    /// Size of the compressed file in bytes.
    pub file_size: Option<u64>,
    /// Hash of the NAR.
    pub nar_hash: NarHash,
    /// Size of the NAR in bytes; never 0.
    pub nar_size: u64,
    /// The set of paths that the path refers to, perhaps including itself. Parsing and writing sort
    /// the set.
    pub references: Vec<StorePath>,
    /// The derivation that built the path.
    pub deriver: Option<StorePath>,
    /// The kind of machine that built the path; only old versions of Nix write this field.
    pub system: Option<String>,
    /// For a content-addressed path, the content that determines the path.
    pub ca: Option<String>,
    /// Signatures in their original order. They are texts, so that a signature of an unknown form
    /// is passed on.
    pub sigs: Vec<String>,
    /// Fields that this parser does not know, such as `Provenance`: names and values, in their
    /// original order. A signature covers none of them.
    pub extra: Vec<(String, String)>,
}

impl NarInfo {
    /// Reads the narinfo of a cache for `store_dir`.
    pub fn parse(text: &str, store_dir: &StoreDir) -> Result<Self> {
        if text.len() > NARINFO_BYTES_MAX {
            return Err(Error::NarInfoTooLarge { bytes: text.len(), max: NARINFO_BYTES_MAX });
        }
        let mut fields = Fields::default();
        let mut rest = text;
        let mut line_number = 0;
        while !rest.is_empty() {
            let (line, after) = rest.split_once('\n').ok_or(Error::NarInfoTruncated)?;
            rest = after;
            line_number += 1;
            let (name, value) = line
                .split_once(':')
                .filter(|_| is_line(line))
                .ok_or_else(|| Error::NarInfoLine { line: line_number, text: excerpt(line) })?;
            fields.take(name, value.strip_prefix(' ').unwrap_or(value), store_dir)?;
        }
        fields.finish()
    }

    /// Writes the narinfo for a cache of `store_dir`. Writing drops control characters in values;
    /// [`NarInfo::check`] refuses them.
    pub fn to_text(&self, store_dir: &StoreDir) -> String {
        let mut text = String::with_capacity(512 + 64 * (self.references.len() + 2 * self.sigs.len()));
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{name}: {value}").expect("a string takes all text");
        };
        line("StorePath", &format_args!("{store_dir}/{}", self.store_path));
        line("URL", &plain(&self.url));
        line("Compression", &plain(&self.compression));
        if let Some(hash) = &self.file_hash {
            line("FileHash", hash);
        }
        if let Some(size) = &self.file_size {
            line("FileSize", size);
        }
        line("NarHash", &self.nar_hash);
        line("NarSize", &self.nar_size);
        let references: Vec<&str> = sorted(&self.references).into_iter().map(StorePath::base_name).collect();
        line("References", &references.join(" "));
        if let Some(deriver) = &self.deriver {
            line("Deriver", deriver);
        }
        if let Some(system) = &self.system {
            line("System", &plain(system));
        }
        for sig in &self.sigs {
            line("Sig", &plain(sig));
        }
        if let Some(ca) = &self.ca {
            line("CA", &plain(ca));
        }
        for (name, value) in &self.extra {
            line(name, &plain(value));
        }
        text
    }

    /// Checks that every free-text value can be written and read back. Needed for values that do
    /// not come from [`NarInfo::parse`].
    pub fn check(&self) -> Result<()> {
        let required = [("URL", &self.url), ("Compression", &self.compression)];
        let optional = [("System", &self.system), ("CA", &self.ca)];
        let texts = required
            .into_iter()
            .chain(optional.into_iter().filter_map(|(field, value)| Some((field, value.as_ref()?))))
            .chain(self.sigs.iter().map(|sig| ("Sig", sig)))
            .chain(self.extra.iter().map(|(_, value)| ("of a future version", value)));
        for (field, value) in texts {
            line_value(field, value)?;
        }
        let is_kept = |(name, value): &&(String, String)| is_extra_name(name) && !value.is_empty();
        if let Some((name, _)) = self.extra.iter().find(|field| !is_kept(field)) {
            return Err(Error::NarInfoValue { field: "of a future version", value: excerpt(name) });
        }
        let extra_bytes: usize = self.extra.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.extra.len() > EXTRA_FIELDS_MAX || extra_bytes > EXTRA_BYTES_MAX {
            let value = format!("{} fields of {extra_bytes} bytes", self.extra.len());
            return Err(Error::NarInfoValue { field: "of a future version", value });
        }
        if self.nar_size == 0 {
            return Err(Error::NarInfoValue { field: "NarSize", value: "0".to_owned() });
        }
        Ok(())
    }

    /// The text that a signature of this path signs.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> String {
        fingerprint(store_dir, &self.store_path, &self.nar_hash, self.nar_size, &self.references)
    }
}

/// The value of the field `Deriver`.
enum Deriver {
    Unknown,
    Known(StorePath),
}

/// The fields read so far.
#[derive(Default)]
struct Fields {
    store_path: Option<StorePath>,
    url: Option<String>,
    compression: Option<String>,
    file_hash: Option<NarHash>,
    file_size: Option<u64>,
    nar_hash: Option<NarHash>,
    nar_size: Option<u64>,
    references: Option<Vec<StorePath>>,
    deriver: Option<Deriver>,
    system: Option<String>,
    ca: Option<String>,
    sigs: Vec<String>,
    extra: Vec<(String, String)>,
    extra_bytes: usize,
}

impl Fields {
    fn take(&mut self, name: &str, value: &str, store_dir: &StoreDir) -> Result<()> {
        match name {
            "StorePath" => once("StorePath", &mut self.store_path, || {
                StorePath::parse_absolute(store_dir, value).map_err(|source| in_field("StorePath", source))
            }),
            "URL" => once("URL", &mut self.url, || line_value("URL", value)),
            "Compression" => once("Compression", &mut self.compression, || line_value("Compression", value)),
            "FileHash" => once("FileHash", &mut self.file_hash, || hash("FileHash", value)),
            "FileSize" => once("FileSize", &mut self.file_size, || number("FileSize", value)),
            "NarHash" => once("NarHash", &mut self.nar_hash, || hash("NarHash", value)),
            "NarSize" => once("NarSize", &mut self.nar_size, || match number("NarSize", value)? {
                0 => Err(Error::NarInfoValue { field: "NarSize", value: excerpt(value) }),
                size => Ok(size),
            }),
            "References" => once("References", &mut self.references, || references(value)),
            "Deriver" => once("Deriver", &mut self.deriver, || match value {
                DERIVER_UNKNOWN => Ok(Deriver::Unknown),
                path => path.parse().map(Deriver::Known).map_err(|source| in_field("Deriver", source)),
            }),
            "System" => once("System", &mut self.system, || line_value("System", value)),
            "CA" => once("CA", &mut self.ca, || line_value("CA", value)),
            "Sig" => {
                self.sigs.push(line_value("Sig", value)?);
                Ok(())
            }
            name => {
                let bytes = self.extra_bytes + name.len() + value.len();
                let fits = self.extra.len() < EXTRA_FIELDS_MAX && bytes <= EXTRA_BYTES_MAX;
                if fits && is_extra_name(name) && !value.is_empty() {
                    self.extra_bytes = bytes;
                    self.extra.push((name.to_owned(), value.to_owned()));
                }
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<NarInfo> {
        let missing = |field| Error::NarInfoMissing { field };
        Ok(NarInfo {
            store_path: self.store_path.ok_or_else(|| missing("StorePath"))?,
            url: self.url.ok_or_else(|| missing("URL"))?,
            compression: self.compression.unwrap_or_else(|| COMPRESSION_DEFAULT.to_owned()),
            file_hash: self.file_hash,
            file_size: self.file_size,
            nar_hash: self.nar_hash.ok_or_else(|| missing("NarHash"))?,
            nar_size: self.nar_size.ok_or_else(|| missing("NarSize"))?,
            references: self.references.unwrap_or_default(),
            deriver: match self.deriver {
                Some(Deriver::Known(path)) => Some(path),
                Some(Deriver::Unknown) | None => None,
            },
            system: self.system,
            ca: self.ca,
            sigs: self.sigs,
            extra: self.extra,
        })
    }
}

/// Whether a field that is not known may have this name: one that no reader takes for another's.
fn is_extra_name(name: &str) -> bool {
    const KNOWN: [&str; 12] = [
        "StorePath",
        "URL",
        "Compression",
        "FileHash",
        "FileSize",
        "NarHash",
        "NarSize",
        "References",
        "Deriver",
        "System",
        "Sig",
        "CA",
    ];
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=EXTRA_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_plain)
        && !KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn once<T>(field: &'static str, slot: &mut Option<T>, read: impl FnOnce() -> Result<T>) -> Result<()> {
    if slot.is_some() {
        return Err(Error::NarInfoDuplicate { field });
    }
    *slot = Some(read()?);
    Ok(())
}

fn in_field(field: &'static str, source: Error) -> Error {
    Error::NarInfoField { field, source: Box::new(source) }
}

fn hash(field: &'static str, value: &str) -> Result<NarHash> {
    value.parse().map_err(|source| in_field(field, source))
}

/// Reads digits only; `parse` alone would accept a sign.
fn number(field: &'static str, value: &str) -> Result<u64> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or_else(|| Error::NarInfoValue { field, value: excerpt(value) })
}

/// A text that is not empty and fits on one line.
fn line_value(field: &'static str, value: &str) -> Result<String> {
    if value.is_empty() || !is_line(value) {
        return Err(Error::NarInfoValue { field, value: excerpt(value) });
    }
    Ok(value.to_owned())
}

fn references(value: &str) -> Result<Vec<StorePath>> {
    let mut paths = value
        .split(' ')
        .filter(|name| !name.is_empty())
        .map(|name| name.parse().map_err(|source| in_field("References", source)))
        .collect::<Result<Vec<StorePath>>>()?;
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

/// A value without its control characters. Nearly every value has none and is borrowed.
fn plain(value: &str) -> std::borrow::Cow<'_, str> {
    if is_line(value) { value.into() } else { value.chars().filter(|char| !char.is_control()).collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ContentAddress, strategies};

    /// As `nix copy --to file://…` of Nix 2.8.0 writes it.
    const OF_NIX: &str = include_str!("../tests/data/with-references.narinfo");

    const MINIMAL: &str = "StorePath: /nix/store/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a\n\
                           URL: nar/x\n\
                           NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n\
                           NarSize: 1\n";

    fn parse(text: &str) -> Result<NarInfo> {
        NarInfo::parse(text, &StoreDir::default())
    }

    #[test]
    fn a_narinfo_of_nix_is_written_back_byte_by_byte() {
        for text in [OF_NIX, include_str!("../tests/data/leaf.narinfo")] {
            assert_eq!(parse(text).unwrap().to_text(&StoreDir::default()), text);
        }
        let info = parse(OF_NIX).unwrap();
        assert!(info.references.len() >= 2);
        assert!(info.references.contains(&info.store_path), "the path refers to itself");
        assert!(info.file_hash.is_some() && info.file_size.is_some() && info.deriver.is_some());
    }

    /// Every field of Nix's `narinfo.md`, in the order of its example, with a query in the URL and
    /// the path itself among the references.
    #[test]
    fn every_field_of_nixs_manual_is_read_and_written_back() {
        let signature = format!("{}==", "A".repeat(86));
        let text = format!(
            "StorePath: /nix/store/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a\n\
             URL: nar/0mdq.nar.xz?sha256=0mdq\n\
             Compression: xz\n\
             FileHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n\
             FileSize: 4096\n\
             NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n\
             NarSize: 34878\n\
             References: 1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a 2k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-b\n\
             Deriver: 2k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-b.drv\n\
             Sig: one-1:{signature}\n\
             Sig: two-1:{signature}\n\
             CA: fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n"
        );
        let info = parse(&text).unwrap();
        assert_eq!(info.to_text(&StoreDir::default()), text);
        assert_eq!(info.check(), Ok(()));
        assert_eq!((info.url.as_str(), info.compression.as_str()), ("nar/0mdq.nar.xz?sha256=0mdq", "xz"));
        assert_eq!((info.file_size, info.nar_size), (Some(4096), 34878));
        assert_eq!(info.file_hash, Some(NarHash::digest(b"")));
        let names: Vec<&str> = info.references.iter().map(StorePath::name).collect();
        assert_eq!((names, info.deriver.as_ref().map(StorePath::name)), (vec!["a", "b"], Some("b.drv")));
        assert_eq!(info.sigs.len(), 2);
        assert!(info.ca.is_some_and(|ca| ca.parse() == Ok(ContentAddress::Nar(info.nar_hash))));
        // Words of a list are separated by white space, however much.
        let spaced = text.replace("-a 2k8c", "-a  2k8c").replace("URL: ", "URL:");
        assert_eq!(parse(&spaced).unwrap().to_text(&StoreDir::default()), text);
    }

    #[test]
    fn what_is_missing_has_nixs_defaults() {
        let info = parse(MINIMAL).unwrap();
        assert_eq!(info.compression, "bzip2");
        assert!(info.references.is_empty() && info.sigs.is_empty());
        assert_eq!((info.file_hash, info.file_size, info.deriver), (None, None, None));
        assert_eq!(parse(&format!("{MINIMAL}Deriver: unknown-deriver\n")).unwrap().deriver, None);
        assert!(parse(&format!("{MINIMAL}References:\nReferencesX: y\nFuture: z: z\n")).is_ok());
    }

    #[test]
    fn fields_of_future_versions_are_kept_within_bounds() {
        let provenance = r#"{"pname":"x: y","type":"flake"}"#;
        let text = format!("{MINIMAL}Provenance: {provenance}\nFuture:z\nEmpty:\nod d: x\nsig: x\n");
        let info = parse(&text).unwrap();
        let kept = [("Provenance", provenance), ("Future", "z")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(info.extra, kept);
        assert!(
            info.to_text(&StoreDir::default()).ends_with(&format!("Provenance: {provenance}\nFuture: z\n"))
        );
        assert_eq!(info.check(), Ok(()));
        let many = (0..40).map(|n| format!("F{n}: x\n")).collect::<Vec<_>>().concat();
        assert_eq!(parse(&format!("{MINIMAL}{many}")).unwrap().extra.len(), EXTRA_FIELDS_MAX);
        let long = format!("{MINIMAL}A: {}\nB: x\n", "x".repeat(EXTRA_BYTES_MAX));
        assert_eq!(parse(&long).unwrap().extra, [("B".to_owned(), "x".to_owned())]);
        for (name, value) in
            [("Sig", "x"), ("a:b", "x"), ("a\nSig", "x"), ("", "x"), ("X", ""), ("X", "a\nb")]
        {
            let mut info = parse(MINIMAL).unwrap();
            info.extra = vec![(name.to_owned(), value.to_owned())];
            assert!(info.check().is_err(), "{name:?} {value:?}");
        }
        // What does not come from a narinfo has the same bounds.
        for (count, length) in [(EXTRA_FIELDS_MAX + 1, 1), (1, EXTRA_BYTES_MAX)] {
            let mut info = parse(MINIMAL).unwrap();
            info.extra = (0..count).map(|number| (format!("F{number}"), "x".repeat(length))).collect();
            assert!(info.check().is_err(), "{count} {length}");
        }
    }

    #[test]
    fn a_cut_narinfo_is_refused_wherever_it_is_cut_within_a_line() {
        for end in 1..OF_NIX.len() {
            if OF_NIX.as_bytes()[end - 1] != b'\n' {
                assert_eq!(parse(&OF_NIX[..end]), Err(Error::NarInfoTruncated), "{end}");
            }
        }
    }

    #[test]
    fn every_required_field_is_required_and_none_may_stand_twice() {
        for field in ["StorePath", "URL", "NarHash", "NarSize"] {
            let without: String = MINIMAL
                .split_inclusive('\n')
                .filter(|line| !line.starts_with(&format!("{field}:")))
                .collect();
            assert_eq!(parse(&without), Err(Error::NarInfoMissing { field }));
        }
        for line in OF_NIX.split_inclusive('\n').filter(|line| !line.starts_with("Sig:")) {
            assert!(
                matches!(parse(&format!("{OF_NIX}{line}")), Err(Error::NarInfoDuplicate { field }) if line.starts_with(field)),
                "{line}"
            );
        }
        assert_eq!(parse(&format!("{MINIMAL}Sig: a\nSig: b\nSig: a\n")).unwrap().sigs, ["a", "b", "a"]);
    }

    #[test]
    fn values_that_are_none_are_refused() {
        for line in [
            "NarSize: 0",
            "NarSize: -1",
            "NarSize: +1",
            "NarSize: 18446744073709551616",
            "NarSize: 1 ",
            "NarSize:",
            "FileSize: x",
            "FileHash: sha512:x",
            "NarHash: 0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "URL: ",
            "URL: a\tb",
            "StorePath: /gnu/store/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a",
            "StorePath: 1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a",
            "References: /nix/store/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a",
            "References: x",
            "Deriver: x",
            "Deriver: ",
            "no colon",
            "",
            "Compression: none\r",
        ] {
            let name = line.split(':').next().unwrap_or_default();
            let others: String = MINIMAL
                .split_inclusive('\n')
                .filter(|other| name.is_empty() || !other.starts_with(&format!("{name}:")))
                .collect();
            let error = parse(&format!("{others}{line}\n")).unwrap_err();
            assert!(!matches!(error, Error::NarInfoMissing { .. }), "{line:?}: {error}");
        }
    }

    #[test]
    fn an_oversized_narinfo_is_refused() {
        let text = format!("{MINIMAL}X: {}\n", "x".repeat(NARINFO_BYTES_MAX));
        assert!(matches!(parse(&text), Err(Error::NarInfoTooLarge { .. })));
    }

    #[test]
    fn a_value_cannot_add_a_line() {
        let mut info = parse(MINIMAL).unwrap();
        info.sigs = vec!["a:b\nURL: http://elsewhere/".to_owned()];
        info.ca = Some("fixed\r\nSig: c".to_owned());
        assert!(matches!(info.check(), Err(Error::NarInfoValue { field: "CA", .. })));
        info.ca = None;
        assert!(matches!(info.check(), Err(Error::NarInfoValue { field: "Sig", .. })));
        let read = parse(&info.to_text(&StoreDir::default())).unwrap();
        assert_eq!(read.url, info.url);
        assert_eq!(read.sigs, ["a:bURL: http://elsewhere/"]);
    }

    proptest! {
        #[test]
        fn parse_undoes_to_text(info in strategies::nar_info(), store_dir in strategies::store_dir()) {
            prop_assert_eq!(info.check(), Ok(()));
            prop_assert_eq!(NarInfo::parse(&info.to_text(&store_dir), &store_dir), Ok(info));
        }
    }
}
