//! Build traces: which store path an output of a content-addressed derivation became. Before Nix
//! 2.35, they were called realisations.
//!
//! Two documents say the same thing, and a cache may hold both for one output:
//!
//! - `realisations/…` holds the whole entry, with its id, and signatures as `name:base64`;
//! - `build-trace-v2/…` holds the value alone (Nix) or the key and the value, and signatures as
//!   `{"keyName", "sig"}`. Nix reads the value. An entry is written in the form in which it came.
//!
//! Reading takes either spelling of a signature. Unknown fields are ignored, as Nix does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::document_name::TraceKey;
use crate::error::{Error, Result};
use crate::signature::signature_key_name;
use crate::store_path::StorePath;
use crate::text::excerpt;

/// Longest build trace that the parser reads, in bytes. A usual one has some hundred bytes; the
/// rest is room for signatures, and for what old versions of Nix list as dependent realisations.
pub const BUILD_TRACE_BYTES_MAX: usize = 256 * 1024;

/// A build trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildTrace {
    /// What was built.
    pub key: TraceKey,
    /// The store path that it became.
    pub out_path: StorePath,
    /// What Nix up to 2.33 says that the output was built from: ids and paths. Empty for
    /// [`TraceKey::Derivation`].
    pub dependents: BTreeMap<String, StorePath>,
    /// Signatures in their original order, as `name:base64`, of any algorithm.
    pub sigs: Vec<String>,
    /// Whether a document of a [`TraceKey::Derivation`] repeats its key.
    pub is_keyed: bool,
}

/// A signature in either spelling.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum SignatureJson {
    Text(String),
    #[serde(rename_all = "camelCase")]
    Parts {
        key_name: String,
        sig: String,
    },
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Value {
    out_path: StorePath,
    #[serde(default)]
    signatures: Vec<SignatureJson>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    drv_path: StorePath,
    output_name: String,
}

#[derive(Deserialize, Serialize)]
struct Keyed {
    key: Key,
    value: Value,
}

/// The fields in the order of their names, as Nix writes and signs them.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Realisation {
    #[serde(default)]
    dependent_realisations: BTreeMap<String, StorePath>,
    id: String,
    out_path: StorePath,
    #[serde(default)]
    signatures: Vec<SignatureJson>,
}

impl BuildTrace {
    /// Reads the document of `key`.
    pub fn parse(key: &TraceKey, json: &[u8]) -> Result<Self> {
        if json.len() > BUILD_TRACE_BYTES_MAX {
            return Err(Error::BuildTraceTooLarge { bytes: json.len(), max: BUILD_TRACE_BYTES_MAX });
        }
        Self::parse_stored(key, json)
    }

    /// Reads the document of `key` that [`Self::to_json`] wrote. It may be longer than what came:
    /// signatures were added.
    pub fn parse_stored(key: &TraceKey, json: &[u8]) -> Result<Self> {
        let other_key = |key: &str| Error::BuildTraceKey { text: excerpt(key) };
        let (value, dependents, is_keyed) = match key {
            TraceKey::Hash { .. } => {
                let found: Realisation = read(json)?;
                if TraceKey::parse_id(&found.id).as_ref() != Some(key) {
                    return Err(other_key(&found.id));
                }
                let mut dependents = found.dependent_realisations.keys();
                if let Some(bad) = dependents.find(|id| TraceKey::parse_id(id).is_none()) {
                    return Err(other_key(bad));
                }
                let value = Value { out_path: found.out_path, signatures: found.signatures };
                (value, found.dependent_realisations, false)
            }
            TraceKey::Derivation { .. } => match read::<Keyed>(json) {
                Ok(Keyed { key: found, value }) => {
                    let named = TraceKey::of_derivation(found.drv_path.base_name(), &found.output_name);
                    if named.as_ref() != Some(key) {
                        return Err(other_key(&format!("{}/{}", found.drv_path, found.output_name)));
                    }
                    (value, BTreeMap::new(), true)
                }
                Err(_) => (read(json)?, BTreeMap::new(), false),
            },
        };
        let sigs = value.signatures.into_iter().map(|signature| match signature {
            SignatureJson::Text(text) => text,
            SignatureJson::Parts { key_name, sig } => format!("{key_name}:{sig}"),
        });
        let sigs: Vec<String> = sigs.collect();
        for signature in &sigs {
            signature_key_name(signature)?;
        }
        Ok(Self { key: key.clone(), out_path: value.out_path, dependents, sigs, is_keyed })
    }

    /// Reads what `nix realisation info --json` prints: an entry for each output. An entry without
    /// a key is a path that Nix knows no trace of; it is left out.
    pub fn parse_listed(json: &[u8]) -> Result<Vec<Self>> {
        let entries: Vec<serde_json::Value> = read(json)?;
        let keyed = entries.iter().filter_map(|entry| {
            let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            let key = if let Some(id) = text(&entry["id"]) {
                TraceKey::parse_id(&id)
            } else {
                let derivation = text(&entry["key"]["drvPath"])?;
                TraceKey::of_derivation(&derivation, &text(&entry["key"]["outputName"])?)
            };
            Some((key?, entry.to_string()))
        });
        keyed.map(|(key, entry)| Self::parse(&key, entry.as_bytes())).collect()
    }

    /// Writes the document, with these signatures after its own.
    pub fn to_json(&self, more: &[String]) -> String {
        let sigs = self.sigs.iter().chain(more);
        let json = match &self.key {
            TraceKey::Hash { hash, output } => serde_json::to_string(&Realisation {
                dependent_realisations: self.dependents.clone(),
                id: format!("sha256:{hash}!{output}"),
                out_path: self.out_path.clone(),
                signatures: sigs.map(|text| SignatureJson::Text(text.clone())).collect(),
            }),
            TraceKey::Derivation { derivation, output } => {
                let parts = |text: &String| {
                    let (key_name, sig) = text.split_once(':').unwrap_or((text, ""));
                    SignatureJson::Parts { key_name: key_name.to_owned(), sig: sig.to_owned() }
                };
                let value = Value { out_path: self.out_path.clone(), signatures: sigs.map(parts).collect() };
                let key = Key { drv_path: derivation.clone(), output_name: output.clone() };
                if self.is_keyed {
                    serde_json::to_string(&Keyed { key, value })
                } else {
                    serde_json::to_string(&value)
                }
            }
        };
        json.expect("structs of strings are JSON")
    }

    /// The texts of which a signature may cover either: the document without its signatures, as a
    /// version of Nix reads it. There are two for a realisation with dependent realisations: since
    /// 2.33, Nix reads none, and checks signatures as if there were none.
    pub fn fingerprints(&self) -> Vec<String> {
        match &self.key {
            TraceKey::Hash { hash, output } => {
                let text = |dependents: &BTreeMap<String, StorePath>| {
                    let dependents = serde_json::to_string(dependents).expect("a map of strings is JSON");
                    // All values are valid names, so none needs an escape.
                    format!(
                        r#"{{"dependentRealisations":{dependents},"id":"sha256:{hash}!{output}","outPath":"{}"}}"#,
                        self.out_path
                    )
                };
                let mut texts = vec![text(&self.dependents)];
                if !self.dependents.is_empty() {
                    texts.push(text(&BTreeMap::new()));
                }
                texts
            }
            TraceKey::Derivation { derivation, output } => vec![format!(
                r#"{{"key":{{"drvPath":"{derivation}","outputName":"{output}"}},"value":{{"outPath":"{}"}}}}"#,
                self.out_path
            )],
        }
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| Error::BuildTrace { reason: excerpt(&error.to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DocumentName, SecretKey};

    const DRV: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello.drv";
    const OUT: &str = "2k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello";

    fn key(name: &str) -> TraceKey {
        match name.parse() {
            Ok(DocumentName::Trace(key)) => key,
            other => panic!("{other:?}"),
        }
    }

    fn hash_key() -> TraceKey {
        key(&format!("realisations/sha256:{}!out.doi", "ab".repeat(32)))
    }

    fn derivation_key() -> TraceKey {
        key(&format!("build-trace-v2/{DRV}/out.doi"))
    }

    fn signature(name: &str) -> String {
        SecretKey::generate(name, [7; 32]).unwrap().sign("x").to_string()
    }

    #[test]
    fn a_realisation_is_written_back_as_nix_writes_it() {
        let (a, b) = (signature("a"), signature("b"));
        let id = format!("sha256:{}!out", "ab".repeat(32));
        let json =
            format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{OUT}","signatures":["{a}"]}}"#);
        let trace = BuildTrace::parse(&hash_key(), json.as_bytes()).unwrap();
        assert_eq!((trace.out_path.base_name(), &trace.sigs), (OUT, &vec![a.clone()]));
        assert_eq!(trace.to_json(&[]), json);
        assert_eq!(
            trace.fingerprints(),
            [format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{OUT}"}}"#)]
        );
        let both =
            BuildTrace::parse(&hash_key(), trace.to_json(std::slice::from_ref(&b)).as_bytes()).unwrap();
        assert_eq!(both.sigs, [a, b]);
        // Neither signatures nor dependent realisations need be there.
        let short = format!(r#"{{"id":"{id}","outPath":"{OUT}","new":[1]}}"#);
        assert!(BuildTrace::parse(&hash_key(), short.as_bytes()).unwrap().sigs.is_empty());
    }

    #[test]
    fn what_a_realisation_depends_on_is_signed_with_and_without() {
        let id = format!("sha256:{}!out", "ab".repeat(32));
        let other = format!("sha256:{}!dev", "cd".repeat(32));
        let json =
            format!(r#"{{"dependentRealisations":{{"{other}":"{OUT}"}},"id":"{id}","outPath":"{OUT}"}}"#);
        let trace = BuildTrace::parse(&hash_key(), json.as_bytes()).unwrap();
        let [with, without] = &trace.fingerprints()[..] else { panic!("two texts") };
        assert_eq!(*with, json);
        assert_eq!(*without, format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{OUT}"}}"#));
    }

    #[test]
    fn a_build_trace_stays_in_the_form_in_which_it_came() {
        let a = signature("a");
        let (name, sig) = a.split_once(':').unwrap();
        let value = format!(r#"{{"outPath":"{OUT}","signatures":[{{"keyName":"{name}","sig":"{sig}"}}]}}"#);
        let keyed = format!(r#"{{"key":{{"drvPath":"{DRV}","outputName":"out"}},"value":{value}}}"#);
        for (json, is_keyed) in [(&value, false), (&keyed, true)] {
            let trace = BuildTrace::parse(&derivation_key(), json.as_bytes()).unwrap();
            assert_eq!((trace.is_keyed, &trace.sigs), (is_keyed, &vec![a.clone()]));
            assert_eq!(trace.to_json(&[]), *json);
            let text = format!(
                r#"{{"key":{{"drvPath":"{DRV}","outputName":"out"}},"value":{{"outPath":"{OUT}"}}}}"#
            );
            assert_eq!(trace.fingerprints(), [text]);
        }
        let as_text = format!(r#"{{"outPath":"{OUT}","signatures":["{a}"]}}"#);
        assert_eq!(BuildTrace::parse(&derivation_key(), as_text.as_bytes()).unwrap().to_json(&[]), value);
    }

    /// Otherwise a trace that was taken could not be read any more.
    #[test]
    fn what_signatures_made_longer_is_still_read() {
        let value = format!(r#"{{"outPath":"{OUT}"}}"#);
        let mut trace = BuildTrace::parse(&derivation_key(), value.as_bytes()).unwrap();
        let long = "A".repeat(6_000);
        trace.sigs = (0..60).map(|number| format!("key-{number}:{long}")).collect();
        let json = trace.to_json(&[]);
        assert!(json.len() > BUILD_TRACE_BYTES_MAX);
        assert!(BuildTrace::parse(&derivation_key(), json.as_bytes()).is_err());
        assert_eq!(BuildTrace::parse_stored(&derivation_key(), json.as_bytes()).unwrap(), trace);
    }

    /// The three versions of Nix's JSON schema for build traces, and the value alone, as a binary
    /// cache has it.
    #[test]
    fn a_build_trace_is_read_in_every_version_of_nixs_schema() {
        let a = signature("a");
        let (name, sig) = a.split_once(':').unwrap();
        let object = format!(r#"{{"keyName":"{name}","sig":"{sig}"}}"#);
        let id = format!("sha256:{}!out", "ab".repeat(32));
        let other = format!("sha256:{}!dev_2-x", "cd".repeat(32));
        let first = format!(
            r#"{{"id":"{id}","outPath":"{OUT}","dependentRealisations":{{"{other}":"{OUT}"}},"signatures":["{a}"]}}"#
        );
        let keyed = |signature: &str| {
            format!(
                r#"{{"key":{{"drvPath":"{DRV}","outputName":"out"}},"value":{{"outPath":"{OUT}","signatures":[{signature}]}}}}"#
            )
        };
        let value = format!(r#"{{"outPath":"{OUT}","signatures":[{object}]}}"#);
        for (key, json) in [
            (hash_key(), first),
            (derivation_key(), keyed(&format!("\"{a}\""))),
            (derivation_key(), keyed(&object)),
            (derivation_key(), value),
        ] {
            let trace = BuildTrace::parse(&key, json.as_bytes()).unwrap();
            assert_eq!((&trace.key, trace.out_path.base_name()), (&key, OUT), "{json}");
            assert_eq!(trace.sigs, std::slice::from_ref(&a), "{json}");
            assert_eq!(BuildTrace::parse(&key, trace.to_json(&[]).as_bytes()), Ok(trace));
        }
    }

    #[test]
    fn what_is_no_trace_of_the_key_is_refused() {
        let id = format!("sha256:{}!out", "ab".repeat(32));
        let other = format!("sha256:{}!out", "cd".repeat(32));
        for (key, json) in [
            (hash_key(), String::new()),
            (hash_key(), "[]".to_owned()),
            (hash_key(), format!(r#"{{"id":"{other}","outPath":"{OUT}"}}"#)),
            (hash_key(), format!(r#"{{"id":"{id}","outPath":"/nix/store/{OUT}"}}"#)),
            (hash_key(), format!(r#"{{"id":"{id}"}}"#)),
            (hash_key(), format!(r#"{{"id":"{id}","outPath":"{OUT}","signatures":["x"]}}"#)),
            (hash_key(), format!(r#"{{"id":"{id}","outPath":"{OUT}","signatures":[1]}}"#)),
            (hash_key(), format!(r#"{{"id":"{id}","outPath":"{OUT}","id":"{id}"}}"#)),
            (
                hash_key(),
                format!(r#"{{"dependentRealisations":{{"x":"{OUT}"}},"id":"{id}","outPath":"{OUT}"}}"#),
            ),
            (derivation_key(), "{}".to_owned()),
            (
                derivation_key(),
                format!(
                    r#"{{"key":{{"drvPath":"{DRV}","outputName":"dev"}},"value":{{"outPath":"{OUT}"}}}}"#
                ),
            ),
            (
                derivation_key(),
                format!(
                    r#"{{"outPath":"{OUT}","signatures":[{{"keyName":"a b","sig":"{}"}}]}}"#,
                    "A".repeat(86) + "=="
                ),
            ),
            (derivation_key(), " ".repeat(BUILD_TRACE_BYTES_MAX + 1)),
        ] {
            assert!(BuildTrace::parse(&key, json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn what_nix_lists_is_read_and_paths_without_a_trace_are_left_out() {
        let hash = "ab".repeat(32);
        let old = format!(
            r#"{{"dependentRealisations":{{}},"id":"sha256:{hash}!out","outPath":"{OUT}","signatures":["k:AAAA"]}}"#
        );
        let new = format!(
            r#"{{"key":{{"drvPath":"{DRV}","outputName":"out"}},"value":{{"outPath":"{OUT}","signatures":[]}}}}"#
        );
        let listed = format!(r#"[{{"opaquePath":"/nix/store/{OUT}"}},{old},{new}]"#);
        let traces = BuildTrace::parse_listed(listed.as_bytes()).unwrap();
        let written: Vec<String> = traces.iter().map(|trace| trace.to_json(&[])).collect();
        assert_eq!(written, [old, new]);
        assert_eq!(BuildTrace::parse_listed(b"[]").unwrap(), []);
        for bad in ["", "{}", &format!(r#"[{{"id":"sha256:{hash}!out","outPath":"x"}}]"#)] {
            assert!(BuildTrace::parse_listed(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
