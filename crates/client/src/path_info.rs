//! The output of `nix path-info --json` in all the forms that Nix has used.
//!
//! | Nix | top level | paths | hashes |
//! |---|---|---|---|
//! | up to 2.18 | array, `path` in each entry, `valid: false` if unknown | full | text |
//! | since 2.19, `--json-format 1` | object by path, `null` if unknown | full | text |
//! | `--json-format 2` | `{"info": object, "storeDir", "version"}` | base names | text; `ca` is an object |
//! | later formats | the same | base names | objects `{"algorithm", "format", "hash"}` |
//!
//! Reading is lenient: the parser accepts each field in any form and ignores unknown fields.
//! Anything that would make a wrong upload (no hash, an invalid reference) is an error.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_api::{CacheName, UploadPathNarInfo};
use dormer_nix::{NarHash, StoreDir, StorePath, nix32};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// One path of the local store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The store's folder.
    pub store_dir: StoreDir,
    /// The path.
    pub path: StorePath,
    /// Hash of the NAR.
    pub nar_hash: NarHash,
    /// Size of the NAR in bytes. 0 if Nix does not know it, as for paths that old versions
    /// registered; no NAR is empty.
    pub nar_size: u64,
    /// The paths that this path refers to, perhaps including itself.
    pub references: Vec<StorePath>,
    /// The derivation that built the path, if known.
    pub deriver: Option<StorePath>,
    /// Signatures, each `name:base64`.
    pub signatures: Vec<String>,
    /// Content address in the form of narinfos, if the path has one.
    pub ca: Option<String>,
    /// The platform it was built for, if known.
    pub system: Option<String>,
    /// Fields of its narinfo that this version does not know: names and values.
    pub extra: Vec<(String, String)>,
}

impl PathInfo {
    /// The path with its folder.
    pub fn absolute_path(&self) -> String {
        self.path.to_absolute(&self.store_dir)
    }

    /// Whether one of the keys in `key_names` signed the path.
    pub fn is_signed_by(&self, key_names: &[String]) -> bool {
        self.signatures
            .iter()
            .filter_map(|signature| signature.split_once(':'))
            .any(|(key_name, _)| key_names.iter().any(|name| name == key_name))
    }

    /// The metadata for uploading the path into `cache`.
    pub fn upload_info(&self, cache: &CacheName) -> UploadPathNarInfo {
        UploadPathNarInfo {
            cache: cache.clone(),
            store_path_hash: self.path.hash(),
            store_path: self.absolute_path(),
            references: self.references.iter().map(ToString::to_string).collect(),
            system: self.system.clone(),
            deriver: self.deriver.as_ref().map(ToString::to_string),
            sigs: self.signatures.clone(),
            ca: self.ca.clone(),
            nar_hash: self.nar_hash,
            nar_size: self.nar_size,
            extra: self.extra.clone(),
        }
    }

    /// Reads the whole output of `nix path-info --json`. An invalid path is an error. Ordered by
    /// path.
    pub fn parse_all(json: &[u8]) -> Result<Vec<Self>> {
        let entries = match serde_json::from_slice(json).map_err(Error::PathInfoJson)? {
            Value::Array(entries) => entries.into_iter().map(|entry| (None, entry)).collect(),
            Value::Object(mut object) => {
                let store_dir = match object.get("storeDir") {
                    Some(Value::String(store_dir)) => Some(store_dir.clone()),
                    _ => None,
                };
                let by_path = match object.remove("info") {
                    Some(Value::Object(info)) => info,
                    Some(_) | None => object,
                };
                let full = |path: String| match &store_dir {
                    Some(store_dir) if !path.starts_with('/') => format!("{store_dir}/{path}"),
                    _ => path,
                };
                by_path.into_iter().map(|(path, entry)| (Some(full(path)), entry)).collect()
            }
            other => vec![(None, other)],
        };
        let mut infos =
            entries.into_iter().map(|(path, entry)| read_entry(path, entry)).collect::<Result<Vec<_>>>()?;
        infos.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        infos.dedup_by(|a, b| a.path == b.path);
        Ok(infos)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawInfo {
    path: Option<String>,
    store_dir: Option<String>,
    valid: Option<bool>,
    nar_hash: Option<RawHash>,
    nar_size: Option<u64>,
    references: Option<Vec<String>>,
    deriver: Option<String>,
    signatures: Option<Vec<RawSignature>>,
    ca: Option<RawCa>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawHash {
    Text(String),
    Parts { algorithm: String, hash: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawSignature {
    Text(String),
    Parts {
        #[serde(rename = "keyName")]
        key_name: String,
        sig: String,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawCa {
    Text(String),
    Parts { method: String, hash: RawHash },
}

fn read_entry(key: Option<String>, entry: Value) -> Result<PathInfo> {
    let raw: Option<RawInfo> = serde_json::from_value(entry).map_err(Error::PathInfoJson)?;
    let named = key.or_else(|| raw.as_ref().and_then(|raw| raw.path.clone()));
    let path_text = named.unwrap_or_else(|| "a path without a name".to_owned());
    let wrong = |field, reason: String| Error::PathInfoField { path: path_text.clone(), field, reason };
    let Some(raw) = raw.filter(|raw| raw.valid != Some(false)) else {
        return Err(Error::InvalidPath { path: path_text });
    };

    let (folder, base_name) = match path_text.rsplit_once('/') {
        Some((folder, base_name)) => (Some(folder), base_name),
        None => (None, path_text.as_str()),
    };
    let store_dir = match folder.or(raw.store_dir.as_deref()) {
        Some(folder) => {
            folder.parse().map_err(|error: dormer_nix::Error| wrong("storeDir", error.to_string()))?
        }
        None => StoreDir::default(),
    };
    // New formats have base names, old formats full paths.
    let store_path = |field, text: &str| {
        let parsed =
            if text.starts_with('/') { StorePath::parse_absolute(&store_dir, text) } else { text.parse() };
        parsed.map_err(|error| wrong(field, error.to_string()))
    };

    let path = store_path("path", base_name)?;
    let nar_hash = match raw.nar_hash {
        Some(hash) => {
            let text = hash.to_typed_nix32().map_err(|reason| wrong("narHash", reason))?;
            text.parse().map_err(|error: dormer_nix::Error| wrong("narHash", error.to_string()))?
        }
        None => return Err(wrong("narHash", "it is missing".to_owned())),
    };
    let references = raw.references.ok_or_else(|| wrong("references", "they are missing".to_owned()))?;
    let mut references =
        references.iter().map(|text| store_path("references", text)).collect::<Result<Vec<_>>>()?;
    references.sort_unstable();
    let deriver = match raw.deriver.as_deref() {
        None | Some("" | "unknown-deriver") => None,
        Some(text) => Some(store_path("deriver", text)?),
    };
    let signatures = raw.signatures.unwrap_or_default().into_iter().map(RawSignature::into_text).collect();
    let ca = match raw.ca {
        None => None,
        Some(RawCa::Text(text)) => (!text.is_empty()).then_some(text),
        Some(RawCa::Parts { method, hash }) => {
            let hash = hash.to_typed_nix32().map_err(|reason| wrong("ca", reason))?;
            Some(render_ca(&method, &hash).ok_or_else(|| wrong("ca", format!("unknown method {method:?}")))?)
        }
    };
    let nar_size = raw.nar_size.unwrap_or(0);
    let (system, extra) = (None, Vec::new());
    Ok(PathInfo { store_dir, path, nar_hash, nar_size, references, deriver, signatures, ca, system, extra })
}

/// The form of narinfos, which signatures and servers use.
fn render_ca(method: &str, hash: &str) -> Option<String> {
    let prefix = match method {
        "text" => "text:",
        "flat" => "fixed:",
        "nar" => "fixed:r:",
        "git" => "fixed:git:",
        _ => return None,
    };
    Some(format!("{prefix}{hash}"))
}

impl RawSignature {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts { key_name, sig } => format!("{key_name}:{sig}"),
        }
    }
}

impl RawHash {
    /// `algorithm:nix-base32`, from any spelling: `sha256-base64`; `sha256:` with base64, hex or
    /// nix-base32; or separate parts, in which `hash` may repeat the algorithm.
    fn to_typed_nix32(&self) -> Result<String, String> {
        let (algorithm, digest) = match self {
            Self::Text(text) => text.split_once([':', '-']).ok_or("a hash without an algorithm")?,
            Self::Parts { algorithm, hash } => {
                let digest =
                    hash.strip_prefix(algorithm.as_str()).and_then(|rest| rest.strip_prefix([':', '-']));
                (algorithm.as_str(), digest.unwrap_or(hash))
            }
        };
        let bytes = match algorithm {
            "md5" => 16,
            "sha1" => 20,
            "sha256" | "blake3" => 32,
            "sha512" => 64,
            _ => return Err(format!("unknown hash algorithm {algorithm:?}")),
        };
        let decoded = match digest.len() {
            length if length == bytes * 2 => decode_hex(digest),
            length if length == (bytes * 8).div_ceil(5) => nix32::decode(digest).ok(),
            _ => STANDARD.decode(digest).ok(),
        };
        match decoded {
            Some(decoded) if decoded.len() == bytes => Ok(format!("{algorithm}:{}", nix32::encode(&decoded))),
            _ => Err(format!("{digest:?} is not a {algorithm} hash")),
        }
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>()?;
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).ok()).collect()
}

#[cfg(test)]
mod tests {
    use dormer_nix::NarInfo;

    use super::*;

    /// The same three paths, as four real versions of Nix print them.
    const OUTPUTS: [(&str, &[u8]); 4] = [
        ("2.8", include_bytes!("../tests/data/path-info-2.8.json")),
        ("2.26", include_bytes!("../tests/data/path-info-2.26.json")),
        ("2.34 format 1", include_bytes!("../tests/data/path-info-2.34-format-1.json")),
        ("2.34 format 2", include_bytes!("../tests/data/path-info-2.34-format-2.json")),
    ];

    fn find<'a>(infos: &'a [PathInfo], name: &str) -> &'a PathInfo {
        infos.iter().find(|info| info.path.name() == name).unwrap()
    }

    #[test]
    fn every_version_of_nix_says_the_same() {
        let [oldest, newer @ ..] =
            OUTPUTS.map(|(version, json)| (version, PathInfo::parse_all(json).unwrap()));
        for (version, infos) in newer {
            for info in &infos {
                assert_eq!(info, find(&oldest.1, info.path.name()), "Nix {version}");
            }
            assert_eq!(infos.len(), 3, "Nix {version}");
        }
        let top = find(&oldest.1, "c");
        assert_eq!(top.absolute_path(), "/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c");
        assert_eq!(top.nar_hash, "sha256-zmXdKjEbT9CFljvLnfEgdXR2zdKCgs5o9KdtD1315sQ=".parse().unwrap());
        assert_eq!(top.nar_size, 208);
        assert_eq!(top.references.iter().map(StorePath::name).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(top.deriver.as_ref().unwrap().name(), "c.drv");
        assert!(top.is_signed_by(&["other-1".to_owned(), "test-1".to_owned()]));
        assert!(!top.is_signed_by(&["test".to_owned()]));
        assert!(!find(&oldest.1, "capath").is_signed_by(&["test-1".to_owned()]));
        assert_eq!(
            find(&oldest.1, "capath").ca.as_deref(),
            Some("fixed:r:sha256:1l38jfv3jhz1w0wz9za140cvnqbxzyfz33klc4g9hrk0zr2jpmn3")
        );
        assert_eq!(
            find(&oldest.1, "t.txt").ca.as_deref(),
            Some("text:sha256:193s6bfb4ncbr0d3rpb177cac43b2z2h3afxi7grcswgci346hwg")
        );
    }

    #[test]
    fn structured_hashes_and_signatures_read_like_texts() {
        let json = br#"{"version":3,"storeDir":"/gnu/store","info":{"f22352qy5d2vfxv22w7q3n7gz1ia47nx-c":{
            "version":3,"storeDir":"/gnu/store","narSize":208,"references":[],"deriver":null,"ultimate":true,
            "narHash":{"algorithm":"sha256","format":"base64","hash":"zmXdKjEbT9CFljvLnfEgdXR2zdKCgs5o9KdtD1315sQ="},
            "signatures":[{"keyName":"test-1","sig":"AAAA"}],
            "ca":{"method":"git","hash":{"algorithm":"sha1","format":"base16","hash":"da39a3ee5e6b4b0d3255bfef95601890afd80709"}}}}}"#;
        let infos = PathInfo::parse_all(json).unwrap();
        assert_eq!(infos[0].absolute_path(), "/gnu/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c");
        assert_eq!(infos[0].nar_hash, find(&PathInfo::parse_all(OUTPUTS[0].1).unwrap(), "c").nar_hash);
        assert_eq!(infos[0].signatures, ["test-1:AAAA"]);
        assert_eq!(infos[0].ca.as_deref(), Some("fixed:git:sha1:143xibwh31h9bvxzalr0sjvbbvpa6ffs"));
    }

    /// One path in the three versions of Nix's schema `store-object-info`, with everything that a
    /// binary cache knows of it, and the same path's narinfo.
    #[test]
    fn every_version_of_nixs_schema_says_what_the_narinfo_says() {
        const HASH: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let sig = format!("{}==", "A".repeat(86));
        let narinfo = format!(
            "StorePath: /nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c\nURL: nar/x.nar.xz\n\
             Compression: xz\nFileHash: {HASH}\nFileSize: 4096\nNarHash: {HASH}\nNarSize: 208\n\
             References: f22352qy5d2vfxv22w7q3n7gz1ia47nx-c nmar8jgdmfzm21w8yi3qdl6n61pa5aj4-a\n\
             Deriver: f22352qy5d2vfxv22w7q3n7gz1ia47ny-c.drv\nSig: one-1:{sig}\nSig: two-1:{sig}\n\
             CA: fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n"
        );
        let narinfo = NarInfo::parse(&narinfo, &StoreDir::default()).unwrap();

        let version_1 = serde_json::json!({"/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c": {
            "narHash": HASH, "narSize": 208, "deriver": "/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47ny-c.drv",
            "references": ["/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c",
                "/nix/store/nmar8jgdmfzm21w8yi3qdl6n61pa5aj4-a"],
            "ca": "fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "signatures": [format!("one-1:{sig}"), format!("two-1:{sig}")],
            "registrationTime": 23423, "ultimate": true, "closureSize": 208,
            "url": "nar/x.nar.xz", "compression": "xz", "downloadHash": HASH, "downloadSize": 4096,
            "closureDownloadSize": 4096}});
        let later = |version: u32, signatures: serde_json::Value, hash: serde_json::Value| {
            serde_json::json!({"version": version, "storeDir": "/nix/store",
                "info": {"f22352qy5d2vfxv22w7q3n7gz1ia47nx-c": {
                "version": version, "storeDir": "/nix/store", "narHash": hash, "narSize": 208,
                "path": "f22352qy5d2vfxv22w7q3n7gz1ia47nx-c",
                "deriver": "f22352qy5d2vfxv22w7q3n7gz1ia47ny-c.drv",
                "references": ["f22352qy5d2vfxv22w7q3n7gz1ia47nx-c", "nmar8jgdmfzm21w8yi3qdl6n61pa5aj4-a"],
                "ca": {"method": "nar", "hash": hash}, "signatures": signatures,
                "registrationTime": null, "lastUsageTime": null, "ultimate": false, "closureSize": 208,
                "url": "nar/x.nar.xz", "compression": "xz", "downloadHash": hash, "downloadSize": 4096,
                "closureDownloadSize": 4096}}})
        };
        let texts = serde_json::json!([format!("one-1:{sig}"), format!("two-1:{sig}")]);
        let objects = serde_json::json!([{"keyName": "one-1", "sig": sig}, {"keyName": "two-1", "sig": sig}]);
        let parts = serde_json::json!({"algorithm": "sha256", "format": "base64",
            "hash": HASH.trim_start_matches("sha256-")});
        for json in [
            version_1,
            later(2, texts, HASH.into()),
            later(3, objects.clone(), HASH.into()),
            later(3, objects, parts),
        ] {
            let infos = PathInfo::parse_all(json.to_string().as_bytes()).unwrap();
            let [info] = &infos[..] else { panic!("{json}") };
            assert_eq!((&info.store_dir, &info.path), (&StoreDir::default(), &narinfo.store_path), "{json}");
            assert_eq!((info.nar_hash, info.nar_size), (narinfo.nar_hash, narinfo.nar_size), "{json}");
            assert_eq!((&info.references, &info.deriver), (&narinfo.references, &narinfo.deriver), "{json}");
            assert_eq!((&info.signatures, &info.ca), (&narinfo.sigs, &narinfo.ca), "{json}");
        }
    }

    #[test]
    fn every_method_and_algorithm_of_nixs_schema_makes_a_content_address() {
        let hex = |bytes: &[u8]| {
            let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            digits.map(|digit| char::from_digit(u32::from(digit), 16).unwrap()).collect::<String>()
        };
        for (method, prefix) in
            [("flat", "fixed:"), ("nar", "fixed:r:"), ("text", "text:"), ("git", "fixed:git:")]
        {
            for (algorithm, bytes) in
                [("blake3", 32), ("md5", 16), ("sha1", 20), ("sha256", 32), ("sha512", 64)]
            {
                let digest: Vec<u8> = (0..bytes).collect();
                let expected = format!("{prefix}{algorithm}:{}", nix32::encode(&digest));
                for hash in [
                    serde_json::json!(format!("{algorithm}-{}", STANDARD.encode(&digest))),
                    serde_json::json!(format!("{algorithm}:{}", nix32::encode(&digest))),
                    serde_json::json!({"algorithm": algorithm, "format": "base16", "hash": hex(&digest)}),
                ] {
                    let json = serde_json::json!({"/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c": {
                        "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
                        "references": [], "ca": {"method": method, "hash": hash}}});
                    let infos = PathInfo::parse_all(json.to_string().as_bytes()).unwrap();
                    assert_eq!(infos[0].ca.as_deref(), Some(&*expected), "{json}");
                }
            }
        }
    }

    #[test]
    fn paths_that_are_not_valid_are_named() {
        for json in [
            r#"[{"path":"/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47ny-c","valid":false}]"#,
            r#"{"/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47ny-c":null}"#,
            r#"{"info":{"f22352qy5d2vfxv22w7q3n7gz1ia47ny-c":null},"storeDir":"/nix/store","version":2}"#,
        ] {
            let error = PathInfo::parse_all(json.as_bytes()).unwrap_err();
            assert!(
                matches!(&error, Error::InvalidPath { path } if path == "/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47ny-c"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_would_make_a_wrong_upload_is_an_error() {
        let good = concat!(
            r#"{"/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c":{"narHash":"sha256-zmXdKjEbT9CFljvLnfEgdXR2zdKCgs5o9KdtD1315sQ=","#,
            r#""narSize":208,"references":["/nix/store/nmar8jgdmfzm21w8yi3qdl6n61pa5aj4-a"],"ca":null}}"#
        );
        assert_eq!(PathInfo::parse_all(good.as_bytes()).unwrap().len(), 1);
        // The client can find out a size, but not a hash.
        let without_size = PathInfo::parse_all(good.replace("narSize", "other").as_bytes()).unwrap();
        assert_eq!(without_size[0].nar_size, 0);
        for (from, to) in [
            ("narHash", "other"),
            ("references", "other"),
            ("sha256-", "sha1-"),
            ("sha256-", "sha512-"),
            ("sha256-z", "sha256-"),
            ("208", "-1"),
            ("nx-c\"", "nx\""),
            ("/nix/store/nmar", "/gnu/store/nmar"),
            ("\"ca\":null", "\"ca\":{\"method\":\"x\",\"hash\":\"sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=\"}"),
            ("null}}", "null}"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            assert!(PathInfo::parse_all(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn upload_metadata_is_what_attic_sends() {
        let infos = PathInfo::parse_all(OUTPUTS[0].1).unwrap();
        let json = serde_json::to_string(&find(&infos, "b").upload_info(&"main".parse().unwrap())).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"cache":"main","store_path_hash":"az2abhwyv78n2ax1c04abka45ygrwfgh","#,
                r#""store_path":"/nix/store/az2abhwyv78n2ax1c04abka45ygrwfgh-b","#,
                r#""references":["nmar8jgdmfzm21w8yi3qdl6n61pa5aj4-a"],"system":null,"#,
                r#""deriver":"3gca4zd80z62hqlkw2672qf8nxlw9gwc-b.drv","#,
                r#""sigs":["test-1:wOqHdmspwrH6KjWzEmRBYiMh3A78C7eGJzfiU/vRt/e/cIj0iH6d1extkQkGXN9K2wmgZFzbAY0LPZYtt5ToAw=="],"#,
                r#""ca":null,"nar_hash":"sha256:65c6448982926ac23fe695184704f173a651c5674c9af491fb7d793c4fcd53bc","nar_size":168}"#
            )
        );
    }

    proptest::proptest! {
        /// Anything that Nix may print one day gives an error at worst.
        #[test]
        fn reading_never_panics(
            output in 0..4_usize, at in proptest::prelude::any::<proptest::sample::Index>(), piece in "[\\PC\"{}:,0-9é-]{0,6}",
        ) {
            let text = std::str::from_utf8(OUTPUTS[output].1).unwrap();
            let at = at.index(text.len());
            let end = (at + piece.len()).min(text.len());
            let _ = PathInfo::parse_all(format!("{}{piece}{}", &text[..at], &text[end..]).as_bytes());
        }
    }
}
