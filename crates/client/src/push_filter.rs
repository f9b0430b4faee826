//! What the user keeps out of a cache: names that match a pattern, and large NARs.
//!
//! Invariants
//! - A filter applies to every path that would be sent, inside a closure as well as to the paths
//!   that were named. A path that the cache has, or that an upstream key signed, is not excluded:
//!   its readers find it.
//! - Without [`PushFilter::allow_incomplete`], no path is sent of which the cache would lack a
//!   reference because of the filter: no half closure appears.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use dormer_nix::StorePath;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::path_info::PathInfo;
use crate::units::parse_size;

/// A shell pattern over the name of a store path, which follows the hash and its dash: `*-source`,
/// `linux-firmware-*`, `vm-image-?`. `*` also matches dots and dashes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(glob::Pattern);

impl NamePattern {
    /// Whether the name of `path` matches.
    pub fn matches(&self, path: &StorePath) -> bool {
        self.0.matches(path.name())
    }
}

impl FromStr for NamePattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        glob::Pattern::new(text)
            .map(Self)
            .map_err(|source| Error::NamePattern { text: text.to_owned(), source })
    }
}

impl TryFrom<String> for NamePattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.0.as_str().to_owned()
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A number of bytes as people write it: `2G`, `500 MiB`, `1000000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "u64")]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_size(text).map(Self).ok_or_else(|| Error::Size { text: text.to_owned() })
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

/// A size in a settings file: a text, or a bare number of bytes.
#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for ByteSize {
    type Error = Error;

    fn try_from(size: SizeText) -> Result<Self> {
        match size {
            SizeText::Bytes(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

/// What a push leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushFilter {
    /// Patterns of names that stay out.
    pub exclude: Vec<NamePattern>,
    /// NARs with more bytes than this stay out.
    pub exclude_larger: Option<u64>,
    /// Also send paths of which the cache then lacks a reference.
    pub allow_incomplete: bool,
}

/// Why a filter keeps a path out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclusion {
    /// The name matches this pattern.
    Name(NamePattern),
    /// The NAR has more than this number of bytes.
    Larger(u64),
}

/// A path that the filter keeps out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExcludedPath {
    /// The path.
    pub path: StorePath,
    /// Size of its NAR in bytes.
    pub nar_size: u64,
    /// Why it stays out.
    pub exclusion: Exclusion,
}

/// A path that is not sent because the filter keeps a reference of it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncompletePath {
    /// The path.
    pub path: StorePath,
    /// The excluded path that it refers to, directly or through others.
    pub excluded_reference: StorePath,
}

/// The paths of a push, sorted by a filter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Filtered {
    pub(crate) sent: Vec<PathInfo>,
    pub(crate) excluded: Vec<ExcludedPath>,
    pub(crate) incomplete: Vec<IncompletePath>,
}

impl PushFilter {
    /// Why `info` stays out, if it does.
    pub fn exclusion_of(&self, info: &PathInfo) -> Option<Exclusion> {
        if let Some(pattern) = self.exclude.iter().find(|pattern| pattern.matches(&info.path)) {
            return Some(Exclusion::Name(pattern.clone()));
        }
        self.exclude_larger.filter(|larger| info.nar_size > *larger).map(Exclusion::Larger)
    }

    /// Sorts the paths that a cache lacks. The order of each list is that of `missing`. A path that
    /// the cache has (`present`) or that an upstream key signed is sorted nowhere, but a missing
    /// path may refer through it to an excluded one.
    pub(crate) fn apply(
        &self,
        missing: Vec<PathInfo>,
        present: &[PathInfo],
        upstream: &[PathInfo],
    ) -> Filtered {
        let mut filtered = Filtered::default();
        let mut kept = Vec::with_capacity(missing.len());
        for info in missing {
            match self.exclusion_of(&info) {
                Some(exclusion) => {
                    let PathInfo { path, nar_size, .. } = info;
                    filtered.excluded.push(ExcludedPath { path, nar_size, exclusion });
                }
                None => kept.push(info),
            }
        }
        let causes = if self.allow_incomplete {
            HashMap::new()
        } else {
            excluded_references(kept.iter().chain(present).chain(upstream), &filtered.excluded)
        };
        for info in kept {
            match causes.get(&info.path) {
                Some(excluded_reference) => filtered
                    .incomplete
                    .push(IncompletePath { path: info.path, excluded_reference: excluded_reference.clone() }),
                None => filtered.sent.push(info),
            }
        }
        filtered
    }
}

/// For each of `infos` that refers to an excluded path, directly or through others of them, one
/// such path.
fn excluded_references<'a>(
    infos: impl Iterator<Item = &'a PathInfo>,
    excluded: &'a [ExcludedPath],
) -> HashMap<StorePath, StorePath> {
    let mut referrers: HashMap<&StorePath, Vec<&StorePath>> = HashMap::new();
    for info in infos {
        for reference in &info.references {
            referrers.entry(reference).or_default().push(&info.path);
        }
    }
    let mut causes = HashMap::new();
    let mut seen: HashSet<&StorePath> = excluded.iter().map(|excluded| &excluded.path).collect();
    for ExcludedPath { path: cause, .. } in excluded {
        let mut to_visit = vec![cause];
        while let Some(path) = to_visit.pop() {
            for &referrer in referrers.get(path).into_iter().flatten() {
                if seen.insert(referrer) {
                    causes.insert(referrer.clone(), cause.clone());
                    to_visit.push(referrer);
                }
            }
        }
    }
    causes
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(pattern) => write!(f, "its name matches {pattern}"),
            Self::Larger(bytes) => write!(f, "its NAR has more than {bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path whose hash is one digit, with these references.
    fn info(digit: u32, name: &str, nar_size: u64, references: &[(u32, &str)]) -> PathInfo {
        let path = |digit: u32, name: &str| format!("{digit:032}-{name}").parse().unwrap();
        PathInfo {
            store_dir: dormer_nix::StoreDir::default(),
            path: path(digit, name),
            nar_hash: "sha256-zmXdKjEbT9CFljvLnfEgdXR2zdKCgs5o9KdtD1315sQ=".parse().unwrap(),
            nar_size,
            references: references.iter().map(|(digit, name)| path(*digit, name)).collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            system: None,
            extra: Vec::new(),
        }
    }

    fn filter(exclude: &[&str], exclude_larger: Option<u64>) -> PushFilter {
        let exclude = exclude.iter().map(|text| text.parse().unwrap()).collect();
        PushFilter { exclude, exclude_larger, allow_incomplete: false }
    }

    fn names(filtered: &Filtered) -> [Vec<&str>; 3] {
        [
            filtered.sent.iter().map(|info| info.path.name()).collect(),
            filtered.excluded.iter().map(|excluded| excluded.path.name()).collect(),
            filtered.incomplete.iter().map(|incomplete| incomplete.path.name()).collect(),
        ]
    }

    /// top → middle → big, top → small, other → small.
    fn closure() -> Vec<PathInfo> {
        vec![
            info(1, "big-1.0", 5_000, &[]),
            info(2, "middle", 10, &[(1, "big-1.0"), (2, "middle")]),
            info(3, "top", 10, &[(2, "middle"), (4, "small")]),
            info(4, "small", 10, &[]),
            info(5, "other", 10, &[(4, "small")]),
        ]
    }

    #[test]
    fn what_refers_to_an_excluded_path_is_not_sent() {
        for filter in
            [filter(&["big-*"], None), filter(&[], Some(4_999)), filter(&["x", "b?g-1.[0-9]"], Some(0))]
        {
            let filter =
                PushFilter { exclude_larger: filter.exclude_larger.filter(|bytes| *bytes > 0), ..filter };
            let filtered = filter.apply(closure(), &[], &[]);
            assert_eq!(
                names(&filtered),
                [vec!["small", "other"], vec!["big-1.0"], vec!["middle", "top"]],
                "{filter:?}"
            );
            assert!(filtered.incomplete.iter().all(|one| one.excluded_reference.name() == "big-1.0"));
        }
    }

    #[test]
    fn incomplete_paths_are_sent_if_the_user_asks_for_it() {
        let filter = PushFilter { allow_incomplete: true, ..filter(&["big-*"], None) };
        let filtered = filter.apply(closure(), &[], &[]);
        assert_eq!(names(&filtered), [vec!["middle", "top", "small", "other"], vec!["big-1.0"], vec![]]);
    }

    #[test]
    fn without_a_filter_everything_is_sent() {
        assert_eq!(PushFilter::default().apply(closure(), &[], &[]).sent, closure());
        let exact = filter(&["top-*", "ig-1.0", "", "*.drv"], Some(5_000));
        assert_eq!(exact.apply(closure(), &[], &[]).sent, closure());
    }

    /// The cache has `middle` without its reference `big`, because somebody pushed it so, or an
    /// upstream key signed it.
    #[test]
    fn what_refers_to_an_excluded_path_through_another_one_is_not_sent() {
        let (middle, missing): (Vec<_>, Vec<_>) =
            closure().into_iter().partition(|info| info.path.name() == "middle");
        for (present, upstream) in [(&middle[..], &[][..]), (&[], &middle)] {
            let filtered = filter(&["big-*"], None).apply(missing.clone(), present, upstream);
            assert_eq!(names(&filtered), [vec!["small", "other"], vec!["big-1.0"], vec!["top"]]);
        }
    }

    #[test]
    fn a_circle_of_references_ends() {
        let circle =
            vec![info(1, "a", 1, &[(2, "b"), (3, "x")]), info(2, "b", 1, &[(1, "a")]), info(3, "x", 1, &[])];
        assert_eq!(names(&filter(&["x"], None).apply(circle, &[], &[])), [vec![], vec!["x"], vec!["a", "b"]]);
    }

    #[test]
    fn patterns_that_cannot_be_read_are_refused() {
        for text in ["[", "a[", "***"] {
            assert!(matches!(text.parse::<NamePattern>(), Err(Error::NamePattern { .. })), "{text}");
        }
    }

    proptest::proptest! {
        /// The promise of the filter, for any graph: a sent path has no reference among those that
        /// stay out, and nothing is lost or doubled.
        #[test]
        fn no_half_closure(edges in proptest::collection::vec((0..12_u32, 0..12_u32), 0..40), excluded in 0..12_u32) {
            let name = |digit: u32| format!("p{digit}");
            let infos: Vec<PathInfo> = (0..12).map(|digit| {
                let named: Vec<(u32, String)> =
                    edges.iter().filter(|(from, _)| *from == digit).map(|(_, to)| (*to, name(*to))).collect();
                let references: Vec<(u32, &str)> = named.iter().map(|(to, name)| (*to, name.as_str())).collect();
                info(digit, &name(digit), 1, &references)
            }).collect();
            let filtered = filter(&[&name(excluded)], None).apply(infos.clone(), &[], &[]);
            let out: HashSet<&StorePath> = filtered.excluded.iter().map(|one| &one.path)
                .chain(filtered.incomplete.iter().map(|one| &one.path)).collect();
            proptest::prop_assert!(filtered.sent.iter().all(|info| info.references.iter().all(|path| !out.contains(path))));
            let refers_to_one = |one: &IncompletePath| {
                let info = infos.iter().find(|info| info.path == one.path).unwrap();
                info.references.iter().any(|path| out.contains(path))
            };
            proptest::prop_assert!(filtered.incomplete.iter().all(refers_to_one));
            proptest::prop_assert_eq!(filtered.sent.len() + out.len(), infos.len());
        }
    }
}
