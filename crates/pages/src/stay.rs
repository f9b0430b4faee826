//! How long a path stays, and why: the rules of its cache, and what keeps it whatever they say.

use maud::{Markup, html};

use crate::frame::Frame;
use crate::parts::{first, path_link};
use crate::path::PinRow;
use crate::text::{bytes, counted, date, number, span};

/// Pins of other paths that a page names: with the longest names, it stays below
/// [`PAGE_BYTES_MAX`](crate::PAGE_BYTES_MAX).
const PINS_ABOVE_SHOWN: usize = 3;

/// Of a server that looks for nothing that may go.
pub(crate) const NOTHING_GOES: &str =
    "But this server does not look for what its caches keep no longer, so nothing goes by itself.";

/// What a visitor learns of pins that it may not see.
const UNSEEN_PIN: &str = "a pin, which you may not see, keeps it";

/// The rules of a cache, and what they say of a path.
#[derive(Debug, Clone)]
pub struct StayView {
    /// For how long the cache keeps a path that nobody uses; `None` is for ever.
    pub retention_seconds: Option<i64>,
    /// Most bytes of its NARs as they are downloaded.
    pub quota_bytes: Option<u64>,
    /// How many paths of a name it keeps.
    pub keep_latest: Option<u64>,
    /// Whether the cache is published: then the last push counts instead of the last use.
    pub is_published: bool,
    /// Whether the server looks for what its rules keep no longer.
    pub lets_go: bool,
    /// What they say of the path; `None` for visitors that may not know when it was used.
    pub of_path: Option<PathStay>,
}

/// What the rules say of a path.
#[derive(Debug, Clone)]
pub struct PathStay {
    /// When the path was used or pushed last, as far as it counts.
    pub counts_from: i64,
    /// The last second for which the rules keep the path by itself, and the rule that ends it.
    pub end: Option<(i64, StayEnd)>,
    /// Pins of paths that need it, directly or not; `None` for visitors that may not see pins.
    pub pins_above: Option<Vec<PinRow>>,
    /// Whether more paths may need it than the host looked at.
    pub is_cut: bool,
}

/// A rule that ends a path's stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StayEnd {
    /// The path is too old.
    Age,
    /// It is not among the newest of its name.
    Newer,
}

impl StayView {
    /// `pins` are the path's own, and `referrers` the paths that need it, as far as the visitor may
    /// know, with whether there are more.
    pub(crate) fn render(
        &self,
        frame: &Frame,
        cache: &str,
        pins: &[PinRow],
        referrers: (&[String], bool),
    ) -> Markup {
        let Some(of) = &self.of_path else { return self.rules() };
        let is_needed = !referrers.0.is_empty();
        html! {
            @if !pins.is_empty() { p { (pinned(pins)) } }
            @if is_needed { p { (needed(frame, cache, referrers)) } }
            @if let Some(above) = &of.pins_above { (pinned_above(frame, cache, above, of.is_cut)) }
            @if pins.is_empty() && !is_needed {
                p { (self.by_itself(frame, of, "It")) }
            } @else if self.has_rules() {
                p { "Without that, " (self.by_itself(frame, of, "it")) }
            }
            (self.quota())
            (self.nothing_goes())
        }
    }

    const fn has_rules(&self) -> bool {
        self.retention_seconds.is_some() || self.quota_bytes.is_some() || self.keep_latest.is_some()
    }

    /// What becomes of a path that neither a pin nor another path keeps. `it` begins the sentence.
    fn by_itself(&self, frame: &Frame, of: &PathStay, it: &str) -> Markup {
        html! {
            @match of.end {
                None if !self.has_rules() => { (it) " stays for good: the cache keeps its paths, whether they are used or not." }
                None => {
                    (it) " has no date"
                    @if let Some(count) = self.keep_latest { ": it is among the newest " (number(count)) " of its name" }
                    @if self.quota_bytes.is_some() { ", and only the quota may end its stay." } @else { ", which the cache keeps." }
                }
                Some((until, end)) => {
                    @if until < frame.now {
                        strong { (it) @if self.lets_go { " goes when the server looks through the cache next" } @else { " may go now" } }
                    } @else {
                        strong { (it) " goes after " (date(until)) } ", in " (span(until.saturating_sub(frame.now)))
                    }
                    @match end {
                        StayEnd::Newer => {
                            @if of.pins_above.is_none() { ", unless " (UNSEEN_PIN) }
                            ", because the cache keeps the newest " (number(self.keep_latest.unwrap_or(1))) " of a name, and that many are newer."
                        }
                        StayEnd::Age => {
                            ", unless " @if of.pins_above.is_none() { (UNSEEN_PIN) ", or " }
                            "somebody " @if self.is_published { "pushes it again" } @else { "uses it" } " before: "
                            "the cache keeps a path for " (span(self.retention_seconds.unwrap_or(0))) " after its last "
                            (self.counted()) ", " (date(of.counts_from)) "."
                        }
                    }
                }
            }
        }
    }

    fn quota(&self) -> Markup {
        html! {
            @if let Some(quota) = self.quota_bytes {
                p { "The cache has a quota of " (bytes(quota)) ". Beyond it, the paths that were not used for the longest time go first, at any age." }
            }
        }
    }

    /// What the age of a path counts from.
    const fn counted(&self) -> &'static str {
        if self.is_published { "push" } else { "use" }
    }

    fn nothing_goes(&self) -> Markup {
        html! {
            @if self.has_rules() && !self.lets_go {
                p { (NOTHING_GOES) }
            }
        }
    }

    /// For visitors that may not know more.
    fn rules(&self) -> Markup {
        html! {
            @if self.has_rules() {
                @if let Some(seconds) = self.retention_seconds { p { "The cache keeps a path for " (span(seconds)) " after its last " (self.counted()) "." } }
                @if let Some(count) = self.keep_latest { p { "It keeps the newest " (number(count)) " of a name." } }
                (self.quota())
                (self.nothing_goes())
                p { "A pin keeps a path whatever these rules say, and so does every path that stays and needs it." }
            } @else {
                p { "It stays for good: the cache keeps its paths, whether they are used or not." }
            }
        }
    }
}

/// The pins of a path keep it until the last of them ends.
fn pinned(pins: &[PinRow]) -> Markup {
    let ends = pins.iter().map(|pin| pin.ends_at).collect::<Option<Vec<_>>>();
    let until = ends.and_then(|ends| ends.into_iter().max());
    html! {
        @match pins {
            [pin] => { "The pin " strong { (pin.name) } " keeps it" }
            pins => { "Its pins keep it" @if let Some(pin) = pins.first() { ", " strong { (pin.name) } " among them" } }
        }
        @if let Some(until) = until { " until " (date(until)) "." } @else { " for good." }
    }
}

fn needed(frame: &Frame, cache: &str, (referrers, has_more): (&[String], bool)) -> Markup {
    html! {
        "It stays as long as "
        @match referrers {
            [only] if !has_more => { (path_link(frame, cache, only)) " stays, which needs it." }
            referrers => {
                "one of the " a href="#needed-by" { @if has_more { "more than " } (counted(referrers.len() as u64, "path", "paths")) }
                " that need it stays."
            }
        }
    }
}

fn pinned_above(frame: &Frame, cache: &str, pins: &[PinRow], is_cut: bool) -> Markup {
    html! {
        @if !pins.is_empty() {
            p { "Pinned paths that need it, directly or not:" }
            ul {
                @let (shown, left) = first(pins, PINS_ABOVE_SHOWN);
                @for pin in shown {
                    li {
                        (path_link(frame, cache, &pin.base_name)) ", by the pin " strong { (pin.name) } ", "
                        @if let Some(at) = pin.ends_at { "until " (date(at)) } @else { "for good" }
                    }
                }
                @if left > 0 || is_cut { li { "…and maybe more" } }
            }
        } @else if is_cut {
            p { "More paths need it, directly or not, than this page looks at. Some of them may be pinned." }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::frame;

    const DAY: i64 = 86_400;

    fn text(markup: &Markup) -> String {
        let mut text = String::new();
        let mut is_tag = false;
        for one in markup.0.chars() {
            match one {
                '<' => is_tag = true,
                '>' => is_tag = false,
                one if !is_tag => text.push(one),
                _ => {}
            }
        }
        text
    }

    fn pin(name: &str, ends_at: Option<i64>) -> PinRow {
        let base_name = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-system".to_owned();
        PinRow { name: name.to_owned(), base_name, created_at: 0, ends_at }
    }

    /// What a page says of a path for all that may keep it, or let it go.
    #[test]
    fn a_path_has_a_date_or_a_reason_to_stay() {
        let now = frame().now;
        let of_path = PathStay {
            counts_from: now - DAY,
            end: Some((now + 2 * DAY, StayEnd::Age)),
            pins_above: Some(Vec::new()),
            is_cut: false,
        };
        let weekly = StayView {
            retention_seconds: Some(3 * DAY),
            quota_bytes: None,
            keep_latest: None,
            is_published: false,
            lets_go: true,
            of_path: Some(of_path.clone()),
        };
        let none = StayView { retention_seconds: None, ..weekly.clone() };
        let with = |change: &dyn Fn(&mut PathStay), rules: &StayView| {
            let mut of_path = of_path.clone();
            change(&mut of_path);
            StayView { of_path: Some(of_path), ..rules.clone() }
        };
        let say = |view: &StayView, pins: &[PinRow], referrers: &[&str], has_more| {
            let referrers: Vec<String> = referrers.iter().map(|name| (*name).to_owned()).collect();
            text(&view.render(&frame(), "main", pins, (&referrers, has_more)))
        };
        let alone = |view: &StayView| say(view, &[], &[], false);

        let dated = alone(&weekly);
        assert!(
            dated.starts_with("It goes after 2027-01-17 08:00 UTC, in 2 days, unless somebody uses it"),
            "{dated}"
        );
        assert!(dated.ends_with("for 3 days after its last use, 2027-01-14 08:00 UTC."), "{dated}");
        let published = alone(&StayView { is_published: true, ..weekly.clone() });
        assert!(published.contains("pushes it again") && published.contains("its last push"), "{published}");
        let late = alone(&with(&|of| of.end = Some((now - 1, StayEnd::Age)), &weekly));
        assert!(late.starts_with("It goes when the server looks through the cache next, unless"), "{late}");
        let idle = StayView { lets_go: false, ..with(&|of| of.end = Some((now - 1, StayEnd::Age)), &weekly) };
        let idle = alone(&idle);
        assert!(idle.starts_with("It may go now, unless somebody uses it"), "{idle}");
        assert!(idle.ends_with("keep no longer, so nothing goes by itself."), "{idle}");
        let two = StayView { keep_latest: Some(2), ..none.clone() };
        let old = alone(&with(&|of| of.end = Some((now + DAY, StayEnd::Newer)), &two));
        assert!(
            old.ends_with("because the cache keeps the newest 2 of a name, and that many are newer."),
            "{old}"
        );
        let new = alone(&with(&|of| of.end = None, &two));
        assert_eq!(new, "It has no date: it is among the newest 2 of its name, which the cache keeps.");
        let quota =
            alone(&with(&|of| of.end = None, &StayView { quota_bytes: Some(1 << 30), ..none.clone() }));
        assert!(quota.starts_with("It has no date, and only the quota may end its stay."), "{quota}");
        assert!(quota.contains("a quota of 1.0 GiB"), "{quota}");
        let good = "It stays for good: the cache keeps its paths, whether they are used or not.";
        assert_eq!(alone(&with(&|of| of.end = None, &none)), good);
        assert_eq!(alone(&StayView { of_path: None, ..none.clone() }), good);
        let stranger = alone(&StayView { of_path: None, keep_latest: Some(2), ..weekly.clone() });
        assert!(
            stranger.contains("for 3 days after its last use.It keeps the newest 2 of a name."),
            "{stranger}"
        );

        assert!(!stranger.contains("by itself"), "{stranger}");
        let stranger =
            alone(&StayView { of_path: None, is_published: true, lets_go: false, ..weekly.clone() });
        assert!(stranger.contains("for 3 days after its last push.But this server"), "{stranger}");

        let ends = [pin("a", Some(now + DAY)), pin("b", Some(now + 3 * DAY))];
        let pinned = say(&weekly, &ends, &[], false);
        assert!(
            pinned.starts_with(
                "Its pins keep it, a among them until 2027-01-18 08:00 UTC.Without that, it goes"
            ),
            "{pinned}"
        );
        let for_good = say(&weekly, &[pin("a", None)], &[], false);
        assert!(for_good.starts_with("The pin a keeps it for good."), "{for_good}");
        let needed = say(&weekly, &[], &["1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-curl"], false);
        assert!(
            needed.starts_with("It stays as long as curl 1k8c1hiy stays, which needs it.Without that, it"),
            "{needed}"
        );
        let many = say(&none, &[], &["h-a", "h-b"], true);
        assert_eq!(many, "It stays as long as one of the more than 2 paths that need it stays.");
        let above = with(&|of| of.pins_above = Some(vec![pin("release", None); 9]), &weekly);
        let above = say(&above, &[], &["h-a", "h-b"], false);
        assert!(above.contains("directly or not:system 1k8c1hiy, by the pin release, for good"), "{above}");
        assert!(above.contains("…and maybe more"), "{above}");
        let cut = say(&with(&|of| of.is_cut = true, &weekly), &[], &["h-a"], true);
        assert!(cut.contains("than this page looks at"), "{cut}");
        let unpinned = say(&with(&|of| of.pins_above = None, &weekly), &[], &[], false);
        assert!(
            unpinned
                .contains(", in 2 days, unless a pin, which you may not see, keeps it, or somebody uses it"),
            "{unpinned}"
        );
        let newer = |of: &mut PathStay| {
            of.end = Some((now + DAY, StayEnd::Newer));
            of.pins_above = None;
        };
        let unpinned = alone(&with(&newer, &two));
        assert!(unpinned.contains(", unless a pin, which you may not see, keeps it, because"), "{unpinned}");
    }
}
