//! Pictures as SVG. Each is a pure function of its numbers, and says in text what it shows.
//!
//! Positions are whole numbers, so the same figures give the same bytes everywhere. Colours are
//! classes: the style knows light and dark, and a page's policy allows no inline style.

use maud::{Markup, html};

use crate::frame::{Frame, path_address};
use crate::text::{bytes, percent};

/// Width of a picture, in units of its own.
const WIDTH: u64 = 1_000;

/// What the store saves, in bytes. The four savings add up to `path_bytes` less `stored_bytes`; one
/// is negative while more is stored than paths name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Savings {
    /// What all paths would take as they are.
    pub path_bytes: u64,
    /// What the store holds.
    pub stored_bytes: u64,
    /// Saved because paths have the same NAR.
    pub by_same_nars: i64,
    /// Saved because NARs have chunks in common.
    pub by_chunks: i64,
    /// Saved because chunks differ in hashes of store paths only.
    pub by_holes: i64,
    /// Saved by compression.
    pub by_compression: i64,
}

/// A share of a whole.
pub(crate) struct Share {
    /// Its colour in the style: `c0` to `c4`.
    pub(crate) class: &'static str,
    pub(crate) name: &'static str,
    pub(crate) bytes: u64,
}

/// What the store holds, and what it saves, as one bar.
pub fn savings(of: &Savings) -> Markup {
    let saved = |value: i64| u64::try_from(value).unwrap_or(0);
    let shares = [
        Share { class: "c0", name: "Stored", bytes: of.stored_bytes },
        Share { class: "c1", name: "Saved by compression", bytes: saved(of.by_compression) },
        Share { class: "c2", name: "Saved by holes", bytes: saved(of.by_holes) },
        Share { class: "c3", name: "Saved by chunks in common", bytes: saved(of.by_chunks) },
        Share { class: "c4", name: "Saved by paths with the same NAR", bytes: saved(of.by_same_nars) },
    ];
    let title = format!(
        "{} of paths take {} in the store: {} is saved.",
        bytes(of.path_bytes),
        bytes(of.stored_bytes),
        percent(of.path_bytes.saturating_sub(of.stored_bytes), of.path_bytes)
    );
    one_bar(&title, &shares)
}

/// Shares of a whole, as one bar with a legend. The title says in text what the bar shows.
pub(crate) fn one_bar(title: &str, shares: &[Share]) -> Markup {
    let whole: u64 = shares.iter().fold(0, |sum, share| sum.saturating_add(share.bytes));
    let mut before = 0_u64;
    let bars = shares.iter().map(|share| {
        let start = scaled(before, whole);
        before = before.saturating_add(share.bytes);
        (share.class, start, scaled(before, whole).saturating_sub(start))
    });
    html! {
        figure.picture {
            figcaption { (title) }
            svg viewBox={ "0 0 " (WIDTH) " 40" } role="img" aria-label=(title) preserveAspectRatio="none" {
                @for (class, start, width) in bars {
                    rect class=(class) x=(start) y="0" width=(width) height="40" {}
                }
            }
            dl.legend {
                @for share in shares {
                    div {
                        dt { span class={ "swatch " (share.class) } aria-hidden="true" {} (share.name) }
                        dd { (bytes(share.bytes)) " " span.quiet { (percent(share.bytes, whole)) } }
                    }
                }
            }
        }
    }
}

/// A path in a picture of sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizedPath {
    /// `<hash>-<name>`.
    pub base_name: String,
    /// Bytes of its NAR.
    pub nar_bytes: u64,
}

/// Paths of a cache by size, each with a bar. The list is the text of the picture: the bars are for
/// the eye alone.
pub fn sizes(frame: &Frame, cache: &str, caption: &str, paths: &[SizedPath]) -> Markup {
    let largest = paths.iter().map(|path| path.nar_bytes).max().unwrap_or(0);
    html! {
        figure.picture {
            figcaption { (caption) }
            ol.bars {
                @for path in paths {
                    @let (hash, name) = path.base_name.split_once('-').unwrap_or((&path.base_name, ""));
                    li {
                        a href=(frame.link(&path_address(cache, hash))) { (name) " " span.hash { (hash.get(..8).unwrap_or(hash)) } }
                        " " span.amount { (bytes(path.nar_bytes)) }
                        svg viewBox={ "0 0 " (WIDTH) " 10" } preserveAspectRatio="none" aria-hidden="true" focusable="false" {
                            rect.track x="0" y="0" width=(WIDTH) height="10" {}
                            rect.c0 x="0" y="0" width=(scaled(path.nar_bytes, largest)) height="10" {}
                        }
                    }
                }
            }
        }
    }
}

/// How much of something is taken, as a bar. The text beside it says the same.
pub(crate) fn part_of(part: u64, whole: u64) -> Markup {
    html! {
        svg.part viewBox={ "0 0 " (WIDTH) " 10" } preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            rect.track x="0" y="0" width=(WIDTH) height="10" {}
            rect.c0 x="0" y="0" width=(scaled(part, whole)) height="10" {}
        }
    }
}

/// A part of a whole in units of the picture. What is there is seen.
fn scaled(part: u64, whole: u64) -> u64 {
    let width = u128::from(part) * u128::from(WIDTH);
    let width = width.checked_div(u128::from(whole)).unwrap_or(0);
    u64::try_from(width).unwrap_or(WIDTH).max(u64::from(part > 0)).min(WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::frame;

    #[test]
    fn savings_are_told_in_text() {
        let of = Savings {
            path_bytes: 10_000 << 20,
            stored_bytes: 900 << 20,
            by_same_nars: 3_000 << 20,
            by_chunks: 1_500 << 20,
            by_holes: 3_000 << 20,
            by_compression: 1_600 << 20,
        };
        let html = savings(&of).into_string();
        let title = "9.7 GiB of paths take 900.0 MiB in the store: 91 % is saved.";
        assert!(html.contains(&format!("role=\"img\" aria-label=\"{title}\"")), "{html}");
        for text in ["Saved by holes</dt><dd>2.9 GiB <span class=\"quiet\">30 %", "Stored</dt><dd>900.0 MiB"]
        {
            assert!(html.contains(text), "{text} in {html}");
        }
        // The bar is whole and has no gap.
        for rect in [
            "x=\"0\" y=\"0\" width=\"90\"",
            "x=\"90\" y=\"0\" width=\"160\"",
            "x=\"700\" y=\"0\" width=\"300\"",
        ] {
            assert!(html.contains(rect), "{rect} in {html}");
        }
    }

    #[test]
    fn nothing_and_less_than_nothing_are_pictures_too() {
        let html = savings(&Savings::default()).into_string();
        assert!(html.contains("0 bytes of paths take 0 bytes in the store: 0 % is saved."), "{html}");
        let html = savings(&Savings { by_chunks: -5, stored_bytes: 5, ..Savings::default() }).into_string();
        assert!(
            html.contains("<rect class=\"c0\" x=\"0\" y=\"0\" width=\"1000\"") && !html.contains("=\"-"),
            "{html}"
        );
        let html = savings(&Savings {
            path_bytes: u64::MAX,
            stored_bytes: u64::MAX,
            by_holes: i64::MAX,
            ..Savings::default()
        });
        assert!(html.into_string().contains("16383.9 PiB"));
    }

    #[test]
    fn sizes_are_a_list_with_bars() {
        let path = |name: &str, nar_bytes| SizedPath { base_name: format!("0123456789-{name}"), nar_bytes };
        let html =
            sizes(&frame(), "main", "The largest", &[path("big", 4 << 20), path("small", 1)]).into_string();
        assert!(html.contains("<figcaption>The largest</figcaption>"), "{html}");
        assert!(
            html.contains(
                "big <span class=\"hash\">01234567</span></a> <span class=\"amount\">4.0 MiB</span>"
            ),
            "{html}"
        );
        assert!(
            html.contains("width=\"1000\" height=\"10\"") && html.contains("width=\"1\" height=\"10\""),
            "{html}"
        );
        assert!(html.contains("aria-hidden=\"true\""), "the bars say nothing that the list does not");
    }
}
