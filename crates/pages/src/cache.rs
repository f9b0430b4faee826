//! `/<cache>/`: how to use a cache, its keys, and what is in it.

use maud::{Markup, html};

use crate::frame::{Frame, cache_address, escape_segment};
use crate::parts::{Copied, and_more, copyable, counting, exact_moment, exact_size, first, visibility};
use crate::paths::PathRow;
use crate::picture::{PastDay, SizedPath, activity, growth, sizes, unused_times};
use crate::stay::NOTHING_GOES;
use crate::text::{bytes, number, shortened, span};

/// Keys and upstream names that a page shows, and keys that stand in each of its texts to copy.
const KEYS_SHOWN: usize = 4;
const KEYS_IN_TEXTS: usize = 2;

/// A cache.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each one is a fact of its own")]
pub struct CacheView {
    /// Its name.
    pub name: String,
    /// Whether everybody may read it.
    pub is_public: bool,
    /// Its address, as Nix uses it as a substituter.
    pub substituter: String,
    /// The address of the server, for `dormer login`. `None` where nothing can be pushed.
    pub server: Option<String>,
    /// Its active keys, `name:base64`.
    pub public_keys: Vec<String>,
    /// Names of keys whose paths clients need not push.
    pub upstream_key_names: Vec<String>,
    /// Its store folder.
    pub store_dir: String,
    /// Its priority.
    pub priority: i32,
    /// What it holds.
    pub contents: Contents,
    /// Seconds for which a path is kept after its last use; `None` if the page does not say so.
    pub retention_seconds: Option<i64>,
    /// Whether the last push counts instead of the last use.
    pub is_published: bool,
    /// Most bytes of its NARs as served.
    pub quota_bytes: Option<u64>,
    /// How many paths of a name it keeps.
    pub keep_latest: Option<u64>,
    /// Whether the server looks for what its rules keep no longer.
    pub lets_go: bool,
    /// Its days without a gap, the oldest first. None where the host does not know them.
    pub history: Vec<PastDay>,
    /// Its largest paths, for visitors that may list them.
    pub largest: Option<Vec<SizedPath>>,
    /// The paths that were not used for the longest time, for the same visitors.
    pub longest_unused: Option<Vec<PathRow>>,
    /// Whether the visitor may see its pins.
    pub shows_pins: bool,
    /// Whether the visitor may see what the whole store saves.
    pub shows_store: bool,
}

/// What a cache holds, as far as its host knows.
#[derive(Debug, Clone, Copy)]
pub enum Contents {
    /// In the lab, now.
    Stored(Counts),
    /// At the edge, since the last publication.
    Published {
        /// Paths.
        paths: u64,
        /// Bytes of their NARs as they are downloaded; one that several paths share counts once.
        file_bytes: u64,
        /// When the last publication ended.
        at: i64,
    },
}

/// What a cache of the lab holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Paths.
    pub paths: u64,
    /// Bytes of their NARs, uncompressed.
    pub nar_bytes: u64,
    /// When the newest path came: a path that is pushed again is as old as before.
    pub newest_at: Option<i64>,
    /// Whether everything is counted.
    pub is_complete: bool,
}

impl CacheView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let address = cache_address(&self.name);
        let content = html! {
            h1 { (self.name) " " (visibility(self.is_public)) }
            (search(frame, &address))
            dl.facts {
                (self.contents.render(frame))
                div { dt { "Priority" } dd { (self.priority) } }
                div { dt { "Store folder" } dd { code { (shortened(&self.store_dir, 200)) } } }
                @if let Some(seconds) = self.retention_seconds { div { dt { "Paths stay" } dd { (span(seconds)) " after the last " @if self.is_published { "push" } @else { "use" } } } }
                @if let Some(count) = self.keep_latest { div { dt { "Kept of a name" } dd { "the newest " (number(count)) } } }
                @if let Some(quota) = self.quota_bytes { div { dt { "Quota" } dd { (bytes(quota)) } } }
            }
            @if !self.lets_go && (self.retention_seconds.is_some() || self.keep_latest.is_some() || self.quota_bytes.is_some()) {
                p { (NOTHING_GOES) }
            }
            @if matches!(self.contents, Contents::Stored(Counts { is_complete: false, .. })) { (counting()) }
            p {
                a href=(frame.link(&(address.clone() + "paths"))) { "Paths" }
                @if self.shows_pins { " · " a href=(frame.link(&(address.clone() + "pins"))) { "Pins" } }
                @if self.is_public { " · " a href=(frame.link(&(address + "nix-cache-info"))) { "nix-cache-info" } }
            }
            (self.usage())
            (self.keys())
            @if self.history.len() > 1 {
                section {
                    h2 { "Day by day" }
                    (growth(&self.history))
                    (activity(&self.history))
                }
            }
            @if let Some(largest) = self.largest.as_ref().filter(|largest| !largest.is_empty()) {
                section {
                    h2 { "Largest paths" }
                    (sizes(frame, &self.name, "Sizes of the NARs, uncompressed", largest))
                    p { a href=(frame.link(&(below(&self.name, "paths?sort=size")))) { "All of them, the largest first" } }
                }
            }
            @if let Some(unused) = self.longest_unused.as_ref().filter(|unused| !unused.is_empty()) {
                section {
                    h2 { "Least used paths" }
                    (unused_times(frame, &self.name, "Time since the last use, and the size", unused))
                    p { a href=(frame.link(&(below(&self.name, "paths?sort=used")))) { "All of them, the longest unused first" } }
                }
            }
            @if self.largest.is_some() {
                section {
                    h2 { "What it saves" }
                    p {
                        "Caches share what they store, so savings by deduplication, holes and compression are those of the whole store. "
                        @if self.shows_store { a href=(frame.root) { "The first page shows them." } }
                        @else { "A token that may read every cache sees them on the first page." }
                    }
                }
            }
        };
        frame.page(&self.name, &[(cache_address(&self.name), self.name.clone())], &content)
    }

    fn usage(&self) -> Markup {
        let keys = self.fitting_keys();
        let (keys, left_out) = first(&keys, KEYS_IN_TEXTS);
        let keys = || keys.iter().map(|key| key.as_str());
        let substituter = || [self.substituter.as_str()];
        let text = Copied::default;
        let unless_public = |text| if self.is_public { "" } else { text };
        let conf = text().own("extra-substituters = ").words(substituter());
        let conf = conf.own("\nextra-trusted-public-keys = ").words(keys()).own("\n");
        let conf = conf.own(unless_public("netrc-file = /etc/nix/netrc\n"));
        let nixos = text().own("nix.settings = {\n  substituters = ").nix_list(substituter());
        let nixos = nixos.own(";\n  trusted-public-keys = ").nix_list(keys()).own(";\n");
        let nixos = nixos.own(unless_public("  netrc-file = \"/etc/nix/netrc\";\n")).own("};\n");
        let flake = text().own("nixConfig = {\n  extra-substituters = ").nix_list(substituter());
        let flake = flake.own(";\n  extra-trusted-public-keys = ").nix_list(keys()).own(";\n};\n");
        let host = netrc_host(&self.substituter);
        let netrc = text().own("machine ").plain(host).own(" login token password TOKEN\n");
        let install = text()
            .own("- uses: cachix/install-nix-action@v31\n  with:\n    extra_nix_config: |\n      extra-substituters = ")
            .words(substituter())
            .own("\n      extra-trusted-public-keys = ")
            .words(keys())
            .own("\n");
        let actions = if self.is_public {
            install
        } else {
            text()
                .own("- run: sudo mkdir -p /etc/nix && echo \"machine ")
                .plain(host)
                .own(" login token password $TOKEN\" | sudo install -m 600 /dev/stdin /etc/nix/netrc\n  env:\n    TOKEN: ${{ secrets.DORMER_TOKEN }}\n")
                .then(&install)
                .own("      netrc-file = /etc/nix/netrc\n")
        };
        html! {
            section {
                h2 #use { "Use this cache" }
                @if left_out > 0 { p { "These lines name the first of the cache's keys. Below are the others." } }
                h3 { "nix.conf" }
                (copyable("the lines for nix.conf", &conf))
                @if !self.is_public {
                    p { "The cache is private. Put a token that may pull from it into " code { "/etc/nix/netrc" } ":" }
                    (copyable("the line for netrc", &netrc))
                }
                details { summary { "NixOS" } (copyable("the lines for NixOS", &nixos)) }
                details {
                    summary { "A flake" }
                    (copyable("the lines for a flake", &flake))
                    @if !self.is_public { p { "A flake brings no token: each machine that builds it needs the netrc file above." } }
                }
                details {
                    summary { "GitHub Actions" }
                    (copyable(if self.is_public { "the step for GitHub Actions" } else { "the steps for GitHub Actions" }, &actions))
                    @if !self.is_public { p { "The secret " code { "DORMER_TOKEN" } " of the repository holds a token that may pull." } }
                }
                @if let Some(server) = &self.server {
                    details {
                        summary { "The command line, and pushing" }
                        p { "Save a token in the file " code { "token" } " first: one that may push here. To read a public cache, none is needed." }
                        @let commands = text().own("dormer login lab ").shell(server).own(" --token-file token\ndormer use ").shell(&self.name);
                        (copyable("the commands", &commands.own("\ndormer push ").shell(&self.name).own(" ./result\n")))
                    }
                }
            }
        }
    }

    fn keys(&self) -> Markup {
        html! {
            section {
                h2 { "Keys" }
                p { "Nix accepts paths from here that one of these keys signed." }
                @let keys = self.fitting_keys();
                @let (shown, _) = first(&keys, KEYS_SHOWN);
                @for key in shown { (copyable("the key", &Copied::default().plain(key))) }
                @let left = self.public_keys.len().saturating_sub(shown.len()) as u64;
                @if left > 0 { p { (and_more(left, "key", "keys")) } }
                @if !self.upstream_key_names.is_empty() {
                    p {
                        "Clients do not push paths with a signature of "
                        @let (shown, left) = first(&self.upstream_key_names, KEYS_SHOWN);
                        @for (place, name) in shown.iter().enumerate() {
                            @if place > 0 { ", " }
                            code { (shortened(name, 60)) }
                        }
                        ". " (and_more(left, "key", "keys"))
                    }
                }
            }
        }
    }

    /// A key of Nix has some 100 bytes; a page does not grow with one that has more.
    fn fitting_keys(&self) -> Vec<&String> {
        self.public_keys.iter().filter(|key| key.len() <= 200).collect()
    }
}

impl Contents {
    fn render(&self, frame: &Frame) -> Markup {
        html! {
            @match *self {
                Self::Stored(counts) => {
                    div { dt { "Paths" } dd { (number(counts.paths)) } }
                    div { dt { "Size" } dd { (exact_size(counts.nar_bytes)) } }
                    div { dt { "Last new path" } dd { @if let Some(at) = counts.newest_at { (exact_moment(frame, at)) } @else { "none yet" } } }
                }
                Self::Published { paths, file_bytes, at } => {
                    div { dt { "Paths" } dd { (number(paths)) } }
                    div { dt { "Size, compressed" } dd { (exact_size(file_bytes)) } }
                    div { dt { "Published" } dd { @if at > 0 { (exact_moment(frame, at)) } @else { "nothing yet" } } }
                }
            }
        }
    }
}

/// The host of an address as netrc files name it: without port and brackets.
fn netrc_host(url: &str) -> &str {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or("");
    match authority.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or(""),
    }
}

/// The text in the empty field of the search for a path.
pub(crate) fn search_hint(frame: &Frame) -> &'static str {
    if frame.has_sessions() { "name, hash or store path" } else { "hash or store path" }
}

/// The form that finds a path.
fn search(frame: &Frame, address: &str) -> Markup {
    html! {
        form.search method="get" action=(frame.link(&format!("{address}paths"))) role="search" {
            label for="q" { "Find a path" }
            input #q type="search" name="q" maxlength="300" placeholder=(search_hint(frame)) autocomplete="off" spellcheck="false";
            button { "Search" }
        }
    }
}

/// The way to a page below a cache.
pub(crate) fn way_below(cache: &str, address: String, name: String) -> Vec<crate::frame::Step> {
    vec![(cache_address(cache), cache.to_owned()), (address, name)]
}

/// An address below a cache's.
pub(crate) fn below(cache: &str, rest: &str) -> String {
    format!("{}/{rest}", escape_segment(cache))
}

#[cfg(test)]
mod tests {
    use super::netrc_host;

    #[test]
    fn netrc_files_name_hosts_without_port_and_brackets() {
        for (url, host) in [
            ("https://cache.example.org/main", "cache.example.org"),
            ("http://127.0.0.1:8080/main", "127.0.0.1"),
            ("http://[::1]:8080/main", "::1"),
            ("http://[fd00::7]/main", "fd00::7"),
        ] {
            assert_eq!(netrc_host(url), host);
        }
    }
}
