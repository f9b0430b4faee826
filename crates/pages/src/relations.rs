//! `/<cache>/<hash>/references` and `/referrers`: all that a path needs, and all that needs it.

use maud::html;

use crate::cache::way_below;
use crate::frame::{Frame, path_address};
use crate::parts::{and_more, first};
use crate::path::links;
use crate::text::{counted, number, shortened};

/// Signatures that the page shows: as many as the lab keeps of a path.
const SIGNATURES_SHOWN: usize = 16;

/// Which relation to a path a page lists, and which part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// What the path refers to, itself left out.
    References {
        /// How many come before those of this page.
        from: usize,
        /// How many there are in all.
        count: usize,
    },
    /// What refers to the path. Their number is not known.
    Referrers,
}

impl Relation {
    /// The last segment of the page's address.
    pub const fn segment(self) -> &'static str {
        match self {
            Self::References { .. } => "references",
            Self::Referrers => "referrers",
        }
    }
}

/// A page of paths that refer to a path, or that it refers to.
#[derive(Debug, Clone)]
pub struct RelationsView {
    /// The cache.
    pub cache: String,
    /// `<hash>-<name>` of the path.
    pub base_name: String,
    /// What is listed.
    pub relation: Relation,
    /// The paths of this page, [`RelationsView::ROWS`] at most.
    pub paths: Vec<String>,
    /// All signatures that the path came with, on the page of references.
    pub signatures: Vec<String>,
    /// The hash behind which the next page of referrers begins.
    pub next: Option<String>,
}

impl RelationsView {
    /// Paths on a page.
    pub const ROWS: usize = 50;

    /// A page of all references, from one on, with the signatures that the path came with.
    pub fn references(
        cache: String,
        base_name: String,
        all: &[String],
        from: usize,
        signatures: Vec<String>,
    ) -> Self {
        let from = from.min(all.len());
        let paths = first(&all[from..], Self::ROWS).0.to_vec();
        let relation = Relation::References { from, count: all.len() };
        Self { cache, base_name, relation, paths, signatures, next: None }
    }

    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let (hash, name) = self.base_name.split_once('-').unwrap_or((&self.base_name, ""));
        let address = path_address(&self.cache, hash);
        let segment = self.relation.segment();
        let mut way = way_below(&self.cache, address.clone(), name.to_owned());
        way.push((format!("{address}/{segment}"), segment.to_owned()));
        let title = match self.relation {
            Relation::References { .. } => format!("What {name} refers to"),
            Relation::Referrers => format!("What refers to {name}"),
        };
        let next = match self.relation {
            Relation::References { from, count } => {
                let end = from + self.paths.len();
                (end < count).then(|| format!("?from={end}"))
            }
            Relation::Referrers => self.next.as_ref().map(|next| format!("?after={next}")),
        };
        let content = html! {
            h1 { (title) }
            @match self.relation {
                Relation::References { from, count } if !self.paths.is_empty() => {
                    p { (number(from as u64 + 1)) " to " (number((from + self.paths.len()) as u64)) " of " (counted(count as u64, "other path", "other paths")) "." }
                }
                _ if self.paths.is_empty() => p role="status" { "Nothing here." },
                _ => p { "Paths in this cache that need it directly, by their hashes." },
            }
            (links(frame, &self.cache, first(&self.paths, Self::ROWS).0))
            @if let Some(next) = next { p { a.button rel="next" href=(next) { "More" } } }
            @if !self.signatures.is_empty() {
                section {
                    h2 #signatures { "Signatures" }
                    @let (shown, left) = first(&self.signatures, SIGNATURES_SHOWN);
                    ul { @for signature in shown { li { code { (shortened(signature, 120)) } } } }
                    @if left > 0 { p { (and_more(left, "signature", "signatures")) " The narinfo names them." } }
                }
            }
        };
        frame.page(&title, &way, &content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::frame;

    #[test]
    fn references_are_paged_to_the_last_one() {
        let all: Vec<String> = (0..120).map(|number| format!("{number:032}-name")).collect();
        let page = |from| {
            let signatures = vec!["key:signature".to_owned(); 9];
            RelationsView::references("main".to_owned(), all[0].clone(), &all, from, signatures)
                .render(&frame())
        };
        let first = page(0);
        assert!(
            first.contains("1 to 50 of 120 other paths.") && first.contains("href=\"?from=50\""),
            "{first}"
        );
        let last = page(100);
        assert!(last.contains(&format!("main/{:032}\"", 119)) && !last.contains("rel=\"next\""), "{last}");
        assert!(page(usize::MAX).contains("Nothing here."));
        assert_eq!(first.matches("key:signature").count(), 9);
    }
}
