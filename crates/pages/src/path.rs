//! `/<cache>/<hash>`: one store path, what it needs, what needs it, and what keeps it.

use maud::{Markup, html};

use crate::cache::{below, way_below};
use crate::files::fitting;
use crate::frame::{Frame, file_address, path_address};
use crate::parts::{Copied, and_more, copyable, exact_moment, exact_size, first, moment, path_link};
use crate::stay::StayView;
use crate::text::{CUT, counted, date, number, shortened};

/// References, referrers, signatures and pins that a page shows. With the longest names, they stay
/// below [`PAGE_BYTES_MAX`](crate::PAGE_BYTES_MAX) together.
const REFERENCES_SHOWN: usize = 28;
const REFERRERS_SHOWN: usize = 16;
const SIGNATURES_SHOWN: usize = 4;
const PINS_SHOWN: usize = 8;

/// Room for a provenance, in bytes of HTML: it has some hundred, and the narinfo has the rest.
const PROVENANCE_BYTES_MAX: usize = 2_000;

/// A store path.
#[derive(Debug, Clone)]
pub struct PathView {
    /// The cache.
    pub cache: String,
    /// The cache's address, as Nix uses it as a substituter.
    pub substituter: String,
    /// The store folder.
    pub store_dir: String,
    /// `<hash>-<name>`.
    pub base_name: String,
    /// Address of the NAR, below the cache; `None` while the NAR is damaged.
    pub nar_url: Option<String>,
    /// `sha256:…`.
    pub nar_hash: String,
    /// Bytes of the NAR, uncompressed.
    pub nar_bytes: u64,
    /// Bytes of the NAR as it is downloaded, if the host knows.
    pub file_bytes: Option<u64>,
    /// The derivation that built it.
    pub deriver: Option<String>,
    /// Whether the cache has the derivation's log; `None` if the host does not look.
    pub has_log: Option<bool>,
    /// The kind of machine it was built for.
    pub system: Option<String>,
    /// What determines the path, if its content does.
    pub content_address: Option<String>,
    /// Where its sources come from, as its builder says; anything may stand in it.
    pub provenance: Option<String>,
    /// Signatures that the path came with.
    pub signatures: Vec<String>,
    /// Names of the cache's keys, which sign every answer.
    pub own_keys: Vec<String>,
    /// What it refers to, itself left out.
    pub references: Vec<String>,
    /// Whether the host has a page of the closure.
    pub shows_closure: bool,
    /// What refers to it, and whether there is more; `None` for visitors that may not know.
    pub referrers: Option<(Vec<String>, bool)>,
    /// The pins of this path; `None` for visitors that may not know.
    pub pins: Option<Vec<PinRow>>,
    /// When it was last used, as far as is written down.
    pub used_at: Option<i64>,
    /// Whether anybody may read the cache. Addresses of the protocol take no session of a browser,
    /// so only the pages of public caches lead to them.
    pub is_public: bool,
    /// How long it stays; `None` where the host does not decide that.
    pub stay: Option<StayView>,
    /// Whether the visitor may remove it.
    pub may_remove: bool,
}

/// A pin.
#[derive(Debug, Clone)]
pub struct PinRow {
    /// Its name.
    pub name: String,
    /// `<hash>-<name>` of the path.
    pub base_name: String,
    /// When it was added last.
    pub created_at: i64,
    /// When it ends.
    pub ends_at: Option<i64>,
}

impl PathView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let (hash, name) = self.base_name.split_once('-').unwrap_or((&self.base_name, ""));
        let address = path_address(&self.cache, hash);
        let link = |rest: &str| frame.link(&format!("{address}{rest}"));
        let content = html! {
            h1 { (name) }
            p.store-path { code { (shortened(&self.store_dir, 200)) "/" (self.base_name) } }
            @if self.nar_url.is_none() {
                p.notice role="status" { "Bytes of this path are damaged, so nobody can download it. The next push of the same path heals it." }
            }
            p {
                a href=(frame.link(&file_address(&self.cache, hash, []))) { "Files" }
                @if self.has_log != Some(false) { " · " a href=(link("/log")) { "Build log" } @if self.has_log.is_none() { " (if there is one)" } }
                @if self.is_public { " · " a href=(link(".narinfo")) { "narinfo" } }
                @if let Some(url) = self.nar_url.as_ref().filter(|_| self.is_public) { " · " a href=(frame.link(&below(&self.cache, url))) { "NAR" } }
            }
            dl.facts {
                div { dt { "Size" } dd { (exact_size(self.nar_bytes)) } }
                @if let Some(bytes) = self.file_bytes { div { dt { "Download" } dd { (exact_size(bytes)) } } }
                @if self.shows_closure { div { dt { "Closure" } dd { a href=(link("/closure")) { "show" } } } }
                @if let Some(at) = self.used_at { div { dt { "Last used" } dd { (exact_moment(frame, at)) } } }
                @if let Some(system) = &self.system { div { dt { "System" } dd { (shortened(system, 100)) } } }
            }
            (self.commands())
            (self.references(frame, link))
            @if let Some(stay) = &self.stay { (self.keeping(frame, stay, &link("/pin"), &link("/unpin"))) }
            (self.origin(frame))
            @if self.may_remove {
                section {
                    h2 { "Remove" }
                    p { "The next page says what the removal does before it happens." }
                    p { a.button.danger href=(link("/remove")) { "Remove this path" } }
                }
            }
        };
        frame.page(name, &way_below(&self.cache, address.clone(), name.to_owned()), &content)
    }

    fn commands(&self) -> Markup {
        let path = format!("{}/{}", self.store_dir, self.base_name);
        let to_cache = |command| Copied::default().own(command).shell(&self.substituter);
        let fetch = to_cache("nix copy --from ").own(" ").shell(&path).own("\n");
        let closure = to_cache("nix path-info --store ").own(" --recursive --closure-size --human-readable ");
        let closure = closure.shell(&path).own("\n");
        html! {
            section {
                h2 { "Commands" }
                (copyable("the command that fetches the path", &fetch))
                (copyable("the command that shows the closure", &closure))
            }
        }
    }

    fn references(&self, frame: &Frame, link: impl Fn(&str) -> String) -> Markup {
        html! {
            section {
                h2 { "Refers to " (counted(self.references.len() as u64, "other path", "other paths")) }
                @let (references, left) = first(&self.references, REFERENCES_SHOWN);
                @if !references.is_empty() { (links(frame, &self.cache, references)) }
                @if left > 0 {
                    p { a href=(link("/references")) { "All " (number(self.references.len() as u64)) " of them" } }
                }
            }
            @if let Some((referrers, has_more)) = &self.referrers {
                section {
                    h2 #needed-by { "Needed by" }
                    @if referrers.is_empty() { p { "No path in this cache refers to it." } } @else {
                        @let (referrers, left) = first(referrers, REFERRERS_SHOWN);
                        (links(frame, &self.cache, referrers))
                        @if *has_more || left > 0 { p { a href=(link("/referrers")) { "All of them" } } }
                    }
                }
            }
        }
    }

    fn keeping(&self, frame: &Frame, stay: &StayView, pin: &str, unpin: &str) -> Markup {
        let own_pins = self.pins.as_deref().unwrap_or_default();
        let (referrers, has_more) =
            self.referrers.as_ref().map_or((&[][..], false), |(all, more)| (&all[..], *more));
        html! {
            section {
                h2 { "How long it stays" }
                (stay.render(frame, &self.cache, own_pins, (referrers, has_more)))
                @if let Some(pins) = &self.pins {
                    @if !pins.is_empty() {
                        @let (shown, left) = first(pins, PINS_SHOWN);
                        table {
                            thead { tr { th scope="col" { "Pin" } th scope="col" { "Since" } th scope="col" { "Until" } th scope="col" { span.unseen { "Remove" } } } }
                            tbody {
                                @for row in shown {
                                    tr {
                                        th scope="row" { (row.name) }
                                        td { (moment(frame, row.created_at)) }
                                        td { @if let Some(at) = row.ends_at { (date(at)) } @else { "for ever" } }
                                        td {
                                            form method="post" action=(unpin) {
                                                (frame.form_token())
                                                input type="hidden" name="name" value=(row.name);
                                                button aria-label={ "Remove the pin " (row.name) } { "Remove" }
                                            }
                                        }
                                    }
                                }
                            }
                        }
                        // The host may know of more than it told.
                        @if left > 0 { p { "And more pins: " a href=(frame.link(&below(&self.cache, "pins"))) { "all of the cache" } } }
                    }
                    form.inline method="post" action=(pin) {
                        (frame.form_token())
                        p { label for="pin-name" { "Name of a pin" } input #pin-name name="name" required maxlength="50" pattern="[A-Za-z0-9][A-Za-z0-9\\-_+]*" autocomplete="off" spellcheck="false"; }
                        p { label for="pin-days" { "Days (empty: for ever)" } input #pin-days name="days" type="number" min="1" max="36500"; }
                        button { "Pin this path" }
                    }
                }
            }
        }
    }

    fn hash(&self) -> &str {
        self.base_name.split('-').next().unwrap_or_default()
    }

    fn origin(&self, frame: &Frame) -> Markup {
        html! {
            section {
                h2 { "Where it comes from" }
                dl.facts.long {
                    div { dt { "NAR" } dd { code { (shortened(&self.nar_hash, 100)) } } }
                    @if let Some(deriver) = &self.deriver { div { dt { "Built by" } dd { code { (shortened(deriver, 260)) } } } }
                    @if let Some(text) = &self.content_address { div { dt { "Content address" } dd { code { (shortened(text, 200)) } } } }
                    @if let Some(text) = &self.provenance {
                        @let shown = fitting(text, PROVENANCE_BYTES_MAX);
                        div { dt { "Provenance, as its builder says" } dd { code { (shown) @if shown.len() < text.len() { (CUT) } } } }
                    }
                    @let (own_keys, left) = first(&self.own_keys, SIGNATURES_SHOWN);
                    @for name in own_keys {
                        div { dt { "Signed here with" } dd { code { (shortened(name, 100)) } } }
                    }
                    @if left > 0 { div { dt { "Signed here with" } dd { (and_more(left, "key", "keys")) } } }
                    @let (signatures, left) = first(&self.signatures, SIGNATURES_SHOWN);
                    @for signature in signatures {
                        div { dt { "Came with" } dd { code { (shortened(signature, 120)) } } }
                    }
                    @if left > 0 {
                        div { dt { "Came with" } dd { a href=(frame.link(&(path_address(&self.cache, self.hash()) + "/references#signatures"))) { (counted(left, "more signature", "more signatures")) } } }
                    }
                }
            }
        }
    }
}

/// Links to paths of a cache.
pub(crate) fn links(frame: &Frame, cache: &str, base_names: &[String]) -> Markup {
    html! {
        ul.paths { @for base_name in base_names { li { (path_link(frame, cache, base_name)) } } }
    }
}
