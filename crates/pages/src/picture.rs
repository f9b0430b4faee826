//! Pictures as SVG. Each is a pure function of its numbers, and says in text what it shows.
//!
//! Positions are whole numbers, so the same figures give the same bytes everywhere. Colours are
//! classes: the style knows light and dark, and a page's policy allows no inline style.

use std::cmp::Ordering;
use std::fmt::Write as _;

use maud::{Markup, html};

use crate::frame::{Frame, path_address};
use crate::paths::PathRow;
use crate::text::{bytes, counted, day, number, percent, span};

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
    one_bar("savings", &title, &shares)
}

/// Shares of a whole, as one bar with a legend. The title says in text what the bar shows. `id`
/// names the title in the page.
pub(crate) fn one_bar(id: &str, title: &str, shares: &[Share]) -> Markup {
    let whole: u64 = shares.iter().fold(0, |sum, share| sum.saturating_add(share.bytes));
    let mut before = 0_u64;
    let bars = shares.iter().map(|share| {
        let start = scaled(before, whole);
        before = before.saturating_add(share.bytes);
        (share.class, start, scaled(before, whole).saturating_sub(start))
    });
    html! {
        figure.picture {
            figcaption #(id) { (title) }
            svg viewBox={ "0 0 " (WIDTH) " 40" } role="img" aria-labelledby=(id) preserveAspectRatio="none" {
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
    let bars = paths.iter().map(|path| (path.base_name.as_str(), path.nar_bytes, bytes(path.nar_bytes)));
    path_bars(frame, cache, caption, "c0", &bars.collect::<Vec<_>>())
}

/// Paths of a cache by the time for which nobody has used them, in the same way.
pub(crate) fn unused_times(frame: &Frame, cache: &str, caption: &str, paths: &[PathRow]) -> Markup {
    let bars = paths.iter().map(|path| {
        let seconds = frame.now.saturating_sub(path.used_at).max(0);
        let amount = format!("{} · {}", span(seconds), bytes(path.nar_bytes));
        (path.base_name.as_str(), seconds.unsigned_abs(), amount)
    });
    path_bars(frame, cache, caption, "c2", &bars.collect::<Vec<_>>())
}

/// Paths, each with the length of its bar and a text.
fn path_bars(
    frame: &Frame,
    cache: &str,
    caption: &str,
    class: &'static str,
    paths: &[(&str, u64, String)],
) -> Markup {
    let longest = paths.iter().map(|(_, length, _)| *length).max().unwrap_or(0);
    html! {
        figure.picture {
            figcaption { (caption) }
            ol.bars {
                @for (base_name, length, amount) in paths {
                    @let (hash, name) = base_name.split_once('-').unwrap_or((base_name, ""));
                    li {
                        a href=(frame.link(&path_address(cache, hash))) { (name) " " span.hash { (hash.get(..8).unwrap_or(hash)) } }
                        " " span.amount { (amount) }
                        svg viewBox={ "0 0 " (WIDTH) " 10" } preserveAspectRatio="none" aria-hidden="true" focusable="false" {
                            rect.track x="0" y="0" width=(WIDTH) height="10" {}
                            rect class=(class) x="0" y="0" width=(scaled(*length, longest)) height="10" {}
                        }
                    }
                }
            }
        }
    }
}

/// A day of a cache, or of a whole store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PastDay {
    /// When the day begins.
    pub begins_at: i64,
    /// Paths in the end.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed.
    pub path_bytes: u64,
    /// Bytes in the store, of a whole store.
    pub stored_bytes: Option<u64>,
    /// Paths that were pushed and NARs that were pulled, for visitors that may know.
    pub activity: Option<(u64, u64)>,
}

/// Days that a picture shows.
const DAYS_SHOWN: usize = 90;

/// Height of a picture of days, in units of its own.
const HEIGHT: u64 = 100;

/// How something grew, day by day without a gap, the oldest first. Nothing, while there are not two
/// days.
pub fn growth(days: &[PastDay]) -> Markup {
    let days = &days[days.len().saturating_sub(DAYS_SHOWN)..];
    let [first, .., last] = days else { return html! {} };
    let verb = match last.path_bytes.cmp(&first.path_bytes) {
        Ordering::Less => "shrank",
        Ordering::Equal => "went",
        Ordering::Greater => "grew",
    };
    let title = format!(
        "From {} to {}, the paths {verb} from {} to {}: then {}, now {}.",
        day(first.begins_at),
        day(last.begins_at),
        bytes(first.path_bytes),
        bytes(last.path_bytes),
        counted(first.paths, "path", "paths"),
        number(last.paths)
    );
    let stored = |day: &PastDay| day.stored_bytes.unwrap_or(0);
    let largest = days.iter().map(|day| day.path_bytes.max(stored(day))).max().unwrap_or(0);
    let line = |of: &dyn Fn(&PastDay) -> u64| -> String {
        let steps = days.len().saturating_sub(1).max(1) as u64;
        let point = |(place, day): (usize, &PastDay)| {
            let y = HEIGHT - of_height(of(day), largest);
            format!("L{} {y}", place as u64 * WIDTH / steps)
        };
        days.iter().enumerate().map(point).collect()
    };
    let (paths, stored) = (line(&|day| day.path_bytes), last.stored_bytes.map(|_| line(&stored)));
    html! {
        figure.picture {
            figcaption #growth { (title) }
            svg.growth viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-labelledby="growth" preserveAspectRatio="none" {
                path.area.c0 d={ "M0 " (HEIGHT) (paths) "L" (WIDTH) " " (HEIGHT) "Z" } {}
                path.line.c0 d={ "M" (paths.get(1..).unwrap_or_default()) } {}
                @if let Some(stored) = &stored { path.line.c1 d={ "M" (stored.get(1..).unwrap_or_default()) } {} }
            }
            (ends(first, last))
            @if let Some(stored) = last.stored_bytes {
                dl.legend {
                    div { dt { span.swatch.c0 aria-hidden="true" {} "Paths, uncompressed" } dd { (bytes(last.path_bytes)) } }
                    div { dt { span.swatch.c1 aria-hidden="true" {} "Stored" } dd { (bytes(stored)) } }
                }
            }
        }
    }
}

/// What was pushed and pulled, day by day, as in [`growth`]. Nothing, if the visitor may not know.
pub(crate) fn activity(days: &[PastDay]) -> Markup {
    let days = &days[days.len().saturating_sub(DAYS_SHOWN)..];
    let of = |pick: fn((u64, u64)) -> u64| -> Option<Vec<u64>> {
        days.iter().map(|day| day.activity.map(pick)).collect()
    };
    html! {
        @if let (Some(pushes), Some(pulls)) = (of(|(pushes, _)| pushes), of(|(_, pulls)| pulls)) {
            (bars("pushed", days, "Paths pushed", "c1", &pushes))
            (bars("pulled", days, "NARs pulled", "c0", &pulls))
        }
    }
}

/// A bar for each day.
fn bars(id: &str, days: &[PastDay], name: &str, class: &'static str, counts: &[u64]) -> Markup {
    let busiest = days.iter().zip(counts).max_by_key(|(_, count)| **count);
    let (Some((busy_day, most)), [first, .., last]) = (busiest, days) else { return html! {} };
    let sum = counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    let mut title = format!("{name}: {} since {}", number(sum), day(first.begins_at));
    if *most > 0 {
        let _ = write!(title, ", {} on the busiest day, {}", number(*most), day(busy_day.begins_at));
    }
    title.push('.');
    let count = counts.len() as u64;
    let bar = |(place, value): (usize, &u64)| {
        let (place, height) = (place as u64, of_height(*value, *most));
        let (start, end) = (place * WIDTH / count, (place + 1) * WIDTH / count);
        // A gap of a fifth tells the days apart.
        let width = (end - start) - (end - start) / 5;
        if height == 0 { String::new() } else { format!("M{start} {HEIGHT}v-{height}h{width}v{height}z") }
    };
    let path: String = counts.iter().enumerate().map(bar).collect();
    html! {
        figure.picture {
            figcaption #(id) { (title) }
            svg.days viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-labelledby=(id) preserveAspectRatio="none" {
                @if !path.is_empty() { path class=(class) d=(path) {} }
            }
            (ends(first, last))
        }
    }
}

/// The days at both ends of a picture, below it.
fn ends(first: &PastDay, last: &PastDay) -> Markup {
    html! { p.ends aria-hidden="true" { span { (day(first.begins_at)) } span { (day(last.begins_at)) } } }
}

/// A part of a whole in units of the height. What is there is seen.
fn of_height(part: u64, whole: u64) -> u64 {
    let height = scaled(part, whole) * HEIGHT / WIDTH;
    height.max(u64::from(part > 0))
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
        let title = "9.8 GiB of paths take 900.0 MiB in the store: 91 % is saved.";
        assert!(html.contains(&format!("<figcaption id=\"savings\">{title}</figcaption>")), "{html}");
        assert!(html.contains("role=\"img\" aria-labelledby=\"savings\""), "said once: {html}");
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
        assert!(html.contains("0 B of paths take 0 B in the store: 0 % is saved."), "{html}");
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
        assert!(html.into_string().contains("16384.0 PiB"));
    }

    fn past(day: i64, path_bytes: u64, activity: Option<(u64, u64)>) -> PastDay {
        PastDay {
            begins_at: 1_800_000_000 + day * 86_400,
            paths: 2,
            path_bytes,
            stored_bytes: None,
            activity,
        }
    }

    #[test]
    fn growth_is_a_line_from_the_first_day_to_the_last() {
        assert_eq!(growth(&[]).into_string() + &growth(&[past(0, 5, None)]).into_string(), "");
        let days = [past(0, 0, None), past(1, 1 << 20, None), past(2, 2 << 20, None)];
        let html = growth(&days).into_string();
        let title = "From 2027-01-15 to 2027-01-17, the paths grew from 0 B to 2.0 MiB: then 2 paths, now 2.";
        assert!(html.contains(&format!("<figcaption id=\"growth\">{title}</figcaption>")), "{html}");
        assert!(html.contains("role=\"img\" aria-labelledby=\"growth\""), "{html}");
        assert!(html.contains("d=\"M0 100L500 50L1000 0\""), "{html}");
        assert!(html.contains("d=\"M0 100L0 100L500 50L1000 0L1000 100Z\""), "{html}");
        assert!(!html.contains("Stored"), "what is stored belongs to all caches");
        let stored = days.map(|day| PastDay { stored_bytes: Some(1 << 20), ..day });
        let html = growth(&stored).into_string();
        assert!(
            html.contains("d=\"M0 50L500 50L1000 50\"") && html.contains("Stored</dt><dd>1.0 MiB"),
            "{html}"
        );
        assert!(growth(&[past(0, 9, None), past(1, 3, None)]).into_string().contains("shrank"));
        let empty = growth(&[past(0, 0, None), past(1, 0, None)]).into_string();
        assert!(
            empty.contains("the paths went from 0 B to 0 B") && empty.contains("M0 100L1000 100"),
            "{empty}"
        );
        let most = growth(&[past(0, u64::MAX, None); 2]).into_string();
        assert!(most.contains("M0 0L1000 0"), "{most}");
    }

    #[test]
    fn activity_is_a_bar_for_each_day_for_those_that_may_know() {
        assert_eq!(activity(&[past(0, 1, None), past(1, 1, None)]).into_string(), "");
        let days = [past(0, 1, Some((0, 4))), past(1, 1, Some((1_000, 2)))];
        let html = activity(&days).into_string();
        for title in [
            "Paths pushed: 1,000 since 2027-01-15, 1,000 on the busiest day, 2027-01-16.",
            "NARs pulled: 6 since 2027-01-15, 4 on the busiest day, 2027-01-15.",
        ] {
            assert!(html.contains(&format!("\">{title}</figcaption>")), "{title} in {html}");
        }
        assert!(html.contains("d=\"M500 100v-100h400v100z\""), "{html}");
        assert!(html.contains("d=\"M0 100v-100h400v100zM500 100v-50h400v50z\""), "{html}");
        let quiet = activity(&[past(0, 1, Some((0, 0))), past(1, 1, Some((0, 0)))]).into_string();
        assert!(quiet.contains("Paths pushed: 0 since 2027-01-15.") && !quiet.contains("<path"), "{quiet}");
        let year: Vec<PastDay> = (0..400).map(|day| past(day, 7, Some((7, 7)))).collect();
        let html = growth(&year).into_string() + &activity(&year).into_string();
        assert!(html.len() < 9_000 && html.contains("Paths pushed: 630 since"), "{}: {html}", html.len());
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
