//! Every page with hostile texts in every field: no text becomes markup, no address leads away, and
//! no page grows beyond its limit.

use proptest::prelude::*;

use crate::text::is_hidden;
use crate::{
    AuditRow, AuditView, CacheRow, CacheView, ClosureView, CollectionFigures, CollectionView, Contents,
    Counts, DamageView, ExpiryFigures, FileContent, FileView, FilesView, Found, Frame, HomeView, JobRow,
    JobsView, ListedFile, ListedKind, LogView, MadePlan, Note, OpenJobs, OverviewView, PAGE_BYTES_MAX,
    PastDay, PathRow, PathStay, PathView, PathsView, PinRow, PinsView, PlanView, ProblemView,
    PublishedCacheRow, PublishingView, QueueRow, Relation, RelationsView, RemoveView, Savings, ScrubFigures,
    ServerFigures, SignInView, SizedPath, SortedBy, StayEnd, StayView, TargetRow, TargetView, Visitor,
};

/// The frame of a page below a cache, for anybody.
pub(crate) fn frame() -> Frame {
    Frame {
        root: "../".to_owned(),
        visitor: Visitor::Anybody { may_sign_in: true },
        note: None,
        here: "main/".to_owned(),
        now: 1_800_000_000,
    }
}

fn signed_in(subject: &str) -> Frame {
    let visitor = Visitor::SignedIn {
        subject: Some(subject.to_owned()),
        ends_at: Some(1_800_003_600),
        form_token: "0123abcd".repeat(8),
    };
    Frame { visitor, ..frame() }
}

/// Days of which each has something.
fn history(days: usize) -> Vec<PastDay> {
    let day = |number: usize| PastDay {
        begins_at: i64::try_from(number).unwrap() * 86_400,
        paths: 7,
        path_bytes: 1 << number.min(60),
        stored_bytes: Some(1 << 20),
        activity: Some((number as u64, u64::MAX)),
    };
    (0..days.min(500)).map(day).collect()
}

/// Every page, with this text wherever a text stands, and lists of this length.
fn pages(text: &str, length: usize) -> Vec<(&'static str, String)> {
    let owned = || text.to_owned();
    // What a host checks before it makes a page: the lengths of names, and the hash of a path.
    // Real names need no escapes; hostile ones stand in short lists only.
    let plain = |one: char| if length <= 100 || one.is_ascii_alphanumeric() { one } else { 'x' };
    let name = || text.chars().take(50).map(plain).collect::<String>();
    // Texts that a host lets be longer than a name, as long as it lets them be.
    let long = |bytes: usize| {
        let width = text.chars().next().map_or(1, char::len_utf8);
        if length > 100 { text.chars().cycle().take(bytes / width).collect() } else { owned() }
    };
    // A host refuses a longer search.
    let query = || {
        let end = text.char_indices().map(|(place, one)| place + one.len_utf8());
        text[..end.take_while(|end| *end <= 300).last().unwrap_or(0)].to_owned()
    };
    let base_name = || {
        let name: String = text.chars().take(211).map(plain).collect();
        format!("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-{name}")
    };
    let many = || vec![base_name(); length];
    let sized = || vec![SizedPath { base_name: base_name(), nar_bytes: 5 }; length];
    let pin = PinRow { name: name(), base_name: base_name(), created_at: 5, ends_at: Some(1_900_000_000) };
    let place = || format!("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5.{}", name());
    let home = HomeView {
        caches: vec![
            CacheRow { name: name(), is_public: false, counts: Some((1, 2)), newest_at: Some(3) };
            length.min(50)
        ],
        next: Some(name()),
        has_figures: true,
        is_complete: false,
        savings: Some(Savings::default()),
        history: history(length),
    };
    let row = PathRow { base_name: base_name(), nar_bytes: 7, created_at: 1, used_at: 2 };
    let cache = CacheView {
        name: name(),
        is_public: false,
        substituter: owned(),
        server: Some(owned()),
        public_keys: vec![owned(); length],
        upstream_key_names: vec![owned(); length],
        store_dir: long(1_024),
        priority: 41,
        contents: Contents::Stored(Counts { paths: 1, nar_bytes: 2, newest_at: None, is_complete: false }),
        retention_seconds: Some(86_400),
        quota_bytes: Some(1 << 40),
        keep_latest: Some(2),
        is_published: true,
        lets_go: false,
        history: history(length),
        largest: Some(sized().into_iter().take(10).collect()),
        longest_unused: Some(vec![row.clone(); length.min(10)]),
        shows_pins: true,
        shows_store: true,
    };
    let paths = PathsView {
        cache: name(),
        query: query(),
        sort: SortedBy::Age,
        paths: Some(vec![row; length.min(50)]),
        next: Some(query()),
        looked_through: Some(3_000),
        notice: Some(owned()),
    };
    let of_path = PathStay {
        counts_from: 5,
        end: Some((1_900_000_000, StayEnd::Age)),
        pins_above: Some(vec![pin.clone(); length]),
        is_cut: true,
    };
    let stay = StayView {
        retention_seconds: Some(86_400),
        quota_bytes: Some(1 << 40),
        keep_latest: Some(2),
        is_published: true,
        lets_go: false,
        of_path: Some(of_path),
    };
    let path = PathView {
        cache: name(),
        substituter: owned(),
        store_dir: long(1_024),
        base_name: base_name(),
        nar_url: Some(owned()),
        nar_hash: owned(),
        nar_bytes: 1,
        file_bytes: Some(1),
        deriver: Some(owned()),
        has_log: None,
        system: Some(owned()),
        content_address: Some(owned()),
        provenance: Some(long(20_000)),
        signatures: vec![owned(); length],
        own_keys: vec![owned(); length],
        references: many(),
        shows_closure: true,
        referrers: Some((many(), true)),
        pins: Some(vec![pin.clone(); length]),
        used_at: Some(0),
        is_public: true,
        stay: Some(stay),
        may_remove: true,
    };
    let closure = ClosureView {
        cache: name(),
        base_name: base_name(),
        paths: 1,
        nar_bytes: 1,
        largest: sized(),
        missing: many(),
        is_complete: false,
    };
    let references = RelationsView::references(name(), base_name(), &many(), 0, vec![owned(); length]);
    let next = Some("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5".to_owned());
    let referrers = RelationsView { relation: Relation::Referrers, next, ..references.clone() };
    let entry = |kind| ListedFile { name: owned(), kind };
    let file = || ListedKind::File { bytes: 1, is_executable: true };
    let entries = vec![entry(ListedKind::Folder), entry(file()), entry(ListedKind::Link(owned()))];
    let entries = entries.into_iter().cycle().take(3 * length).collect();
    let files = |names: usize, found| FilesView {
        cache: name(),
        base_name: base_name(),
        names: vec![owned(); names],
        found,
    };
    let folder = files(length.min(64), Found::Folder { first: 0, entries, has_more: true });
    let file = FileView {
        bytes: 1 << 40,
        is_executable: true,
        content: FileContent::Read(Some(text.repeat(length))),
    };
    let log = LogView {
        cache: name(),
        is_public: true,
        base_name: base_name(),
        deriver: owned(),
        log: text.as_bytes(),
        from: None,
    };
    let remove = RemoveView {
        cache: name(),
        store_dir: long(1_024),
        base_name: base_name(),
        nar_bytes: 1,
        referrers: (many(), true),
        pins: Some(vec![owned(); length]),
    };
    // As hosts of the edge show them: without sessions, and with less that they know.
    let edge = Frame { visitor: Visitor::Anybody { may_sign_in: false }, ..frame() };
    let edge_home = HomeView { has_figures: false, savings: None, history: Vec::new(), ..home.clone() };
    let contents = Contents::Published { paths: 1, file_bytes: 2, at: 3 };
    let edge_cache = CacheView {
        contents,
        server: None,
        largest: None,
        longest_unused: None,
        history: Vec::new(),
        ..cache.clone()
    };
    let edge_paths = PathsView { paths: None, ..paths.clone() };
    let edge_path = PathView {
        file_bytes: None,
        shows_closure: false,
        referrers: None,
        pins: None,
        stay: None,
        ..path.clone()
    };
    let content =
        FileContent::InNar { substituter: owned(), path: owned(), nar_url: Some("nar/x".to_owned()) };
    let edge_file = files(1, Found::File(FileView { bytes: 1, is_executable: true, content }));
    let problem = ProblemView { title: owned(), text: owned(), request: Some(owned()), from_elsewhere: true };
    let (frame, member) = (frame(), signed_in(text));
    let mut pages = operator_pages(text, &name(), length);
    pages.extend(vec![
        ("home", home.render(&member)),
        ("home of an operator", home.render_for_operator(&member)),
        ("cache", cache.render(&frame)),
        ("paths", paths.render(&frame)),
        ("path", path.render(&member)),
        ("closure", closure.render(&frame)),
        ("references", references.render(&frame)),
        ("referrers", referrers.render(&member)),
        ("folder", folder.render(&frame)),
        ("file", files(1, Found::File(file)).render(&frame)),
        ("link", files(2, Found::Link(owned())).render(&frame)),
        ("log", log.render(&frame)),
        (
            "pins",
            PinsView {
                cache: name(),
                pins: vec![pin; length.min(36)],
                after: Some(place()),
                next: Some(place()),
            }
            .render(&Frame { note: Some(Note::Unpinned), ..member.clone() }),
        ),
        ("remove", remove.render(&member)),
        ("sign in", SignInView { refused: Some(owned()), back: owned() }.render(&frame)),
        ("problem", problem.render(&frame)),
        ("home at the edge", edge_home.render(&edge)),
        ("cache at the edge", edge_cache.render(&edge)),
        ("paths at the edge", edge_paths.render(&edge)),
        ("path at the edge", edge_path.render(&edge)),
        ("file at the edge", edge_file.render(&edge)),
    ]);
    pages
}

/// The pages for operators, with this text wherever a text stands. A host checks the names.
fn operator_pages(text: &str, name: &str, length: usize) -> Vec<(&'static str, String)> {
    let (owned, named) = (|| text.to_owned(), || name.to_owned());
    let job = JobRow {
        id: 7,
        kind: owned(),
        about: Some(named()),
        rows_done: 1,
        holder: Some(owned()),
        created_at: 1,
        stepped_at: Some(2),
        failures: 1,
        error: Some(owned()),
    };
    let in_short = TargetRow { name: named(), lag_seconds: 5, published: 6, pending: 7, has_failed: true };
    let overview = OverviewView {
        server: owned(),
        version: owned(),
        started_at: 1,
        not_ready: Some(owned()),
        figures: ServerFigures::default(),
        queues: vec![QueueRow { name: named(), waiting: 1, in_use: Some((1, 2)) }; length],
        others: vec![named(); length],
        jobs: Some(OpenJobs { open: u64::MAX, running: 1, failing: 2, first: vec![job.clone(); length] }),
        targets: Some(vec![in_short; length]),
    };
    let collection =
        |plan| CollectionView { server: owned(), last: Some((1, CollectionFigures::default())), plan };
    let made = MadePlan {
        at: 2,
        stored_bytes: 10,
        expiring: ExpiryFigures::default(),
        figures: CollectionFigures::default(),
    };
    let row = PublishedCacheRow {
        name: named(),
        published: 1,
        pending: 2,
        oldest: Some(("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5".to_owned(), 3, Some(owned()))),
    };
    let target = TargetView {
        name: named(),
        location: owned(),
        holder: Some(owned()),
        ran_at: Some(1),
        error: Some((owned(), 2)),
        lag_seconds: 3,
        cache_count: u64::MAX,
        caches: vec![row; length],
    };
    let small_target = TargetView { caches: Vec::new(), ..target.clone() };
    let scrub = ScrubFigures { findings: vec![owned(); length], ..ScrubFigures::default() };
    let entry = AuditRow {
        at: 1,
        subject: Some(owned()),
        action: owned(),
        cache: Some(named()),
        hash: Some("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5".to_owned()),
    };
    // A host refuses a longer one.
    let most = if length > 100 { AuditView::FILTER_CHARACTERS } else { text.chars().count() };
    let filter = || {
        let written = AuditView::filter(&text.chars().cycle().take(most).collect::<String>());
        written.chars().take(AuditView::FILTER_CHARACTERS).collect::<String>()
    };
    let (frame, member) = (frame(), signed_in(text));
    let silent = OverviewView { jobs: None, targets: None, ..overview.clone() };
    vec![
        ("overview", overview.render(&member)),
        ("overview without the database", silent.render(&member)),
        ("jobs", JobsView { jobs: vec![job; length], next: Some(7) }.render(&frame)),
        ("plan", collection(PlanView::Made(Box::new(made))).render(&member)),
        ("failed plan", collection(PlanView::Failed(1, owned())).render(&member)),
        (
            "publishing",
            PublishingView { targets: Some(vec![target; length.min(3)]), from: None }.render(&frame),
        ),
        (
            "publishing to many",
            PublishingView { targets: Some(vec![small_target; length]), from: None }.render(&frame),
        ),
        (
            "damage",
            DamageView { running: Some(scrub.clone()), last: Some((1, scrub)), spreading: true }
                .render(&frame),
        ),
        (
            "audit",
            AuditView {
                filters: [filter(), filter(), filter()],
                entries: vec![entry; length],
                next: Some(5),
            }
            .render(&frame),
        ),
    ]
}

/// A tag, as a browser reads it.
#[derive(Debug)]
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
}

/// The tags of a page. Whatever begins with `<` is one.
fn tags(html: &str) -> Vec<Tag> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some((_, after)) = rest.split_once('<') {
        let end = after.find(|one: char| one.is_whitespace() || one == '>').unwrap_or(after.len());
        let mut tag = Tag { name: after[..end].to_lowercase(), attributes: Vec::new() };
        rest = &after[end..];
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('>') {
                rest = after;
                break;
            }
            let end = rest.find(['=', '>', ' ']).unwrap_or(rest.len());
            if end == rest.len() {
                break;
            }
            let name = rest[..end].to_lowercase();
            rest = &rest[end..];
            let mut value = String::new();
            if let Some(after) = rest.strip_prefix('=') {
                let quoted = after.strip_prefix('"').expect("every value is in double quotes");
                let (inside, after) = quoted.split_once('"').expect("every quote ends");
                inside.clone_into(&mut value);
                rest = after;
            }
            tag.attributes.push((name, value));
        }
        tags.push(tag);
    }
    tags
}

/// What the page is made of, without its texts.
fn shape(html: &str) -> Vec<String> {
    let names = |tag: Tag| {
        let attributes: Vec<String> = tag.attributes.into_iter().map(|(name, _)| name).collect();
        format!("{} {}", tag.name, attributes.join(" "))
    };
    tags(html).into_iter().map(names).collect()
}

#[track_caller]
fn check(page: &str, html: &str) {
    assert!(html.len() <= PAGE_BYTES_MAX, "{page} has {} bytes", html.len());
    let mut is_preformatted = false;
    for part in html.split_inclusive("pre") {
        let obeyed =
            part.chars().find(|one| is_hidden(*one) && !(is_preformatted && matches!(one, '\n' | '\t')));
        assert_eq!(obeyed, None, "{page}: {part}");
        is_preformatted =
            if part.ends_with("</pre") { false } else { is_preformatted || part.ends_with("<pre") };
    }
    for copied in html.split("<div class=\"copyable\">").skip(1) {
        let copied = copied.split("</code>").next().unwrap_or_default();
        assert!(!copied.contains("\\u{"), "{page} offers {copied}");
    }
    let tags = tags(html);
    let scripts: Vec<&Tag> = tags.iter().filter(|tag| tag.name == "script").collect();
    assert_eq!(scripts.len(), 1, "{page}: one script");
    assert!(
        scripts[0]
            .attributes
            .iter()
            .any(|(name, value)| name == "src" && value == "../_dormer/pages/script.js")
    );
    for tag in &tags {
        assert!(
            !["style", "iframe", "object", "base", "embed"].contains(&tag.name.as_str()),
            "{page}: {tag:?}"
        );
        for (name, value) in &tag.attributes {
            assert!(!name.starts_with("on") && name != "style", "{page}: {tag:?}");
            if ["href", "src", "action"].contains(&name.as_str()) {
                // Two slashes lead to another host.
                let is_local = ["../", "?", "#"].iter().any(|start| value.starts_with(start))
                    || !value.starts_with("//")
                        && value
                            .bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%/".contains(&byte));
                assert!(is_local, "{page}: {tag:?}");
            }
        }
    }
}

const HOSTILE: [&str; 16] = [
    "<script>alert(1)</script>",
    "\"><script>alert(1)</script>",
    "\" onmouseover=\"alert(1)",
    "' onfocus='alert(1)' autofocus='",
    "</title><svg onload=alert(1)>",
    "</pre></code><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "//evil.example/x",
    "https://evil.example/",
    "<!-- ",
    "]]><!DOCTYPE x>",
    "&#x3c;script&#62;\u{202e}\0\u{1b}[31m",
    "x\u{3}\nrm -rf ~\r\n",
    "\u{2066}\u{2069}\u{200f}\u{61c}\u{2028}",
    "\u{9b}31m\u{85}\u{7f}\t",
    "a\u{200b}b\u{200d}c\u{2060}\u{feff}\u{ad}\u{fe0f}\u{e0041}",
];

/// What is made of the same pieces as a page with this text: one with a character that a terminal
/// obeys offers nothing for copying.
fn like(text: &str) -> &'static str {
    if text.chars().any(is_hidden) { "x\u{1}" } else { "x" }
}

#[test]
fn no_hostile_text_becomes_markup() {
    for text in HOSTILE {
        for ((page, html), (_, plain)) in pages(text, 3).into_iter().zip(pages(like(text), 3)) {
            check(page, &plain);
            check(page, &html);
            if page != "log" {
                assert_eq!(shape(&html), shape(&plain), "{page} with {text}");
            }
        }
    }
}

/// A name with a control character could be another command than the one that is seen.
#[test]
fn no_page_offers_a_command_that_a_terminal_could_misread() {
    let offers = |text: &str| {
        let all = pages(text, 3).into_iter();
        let offered = all.filter(|(_, html)| html.contains("data-copy"));
        offered.map(|(page, _)| page).collect::<Vec<_>>()
    };
    assert_eq!(offers("x"), ["cache", "path", "cache at the edge", "path at the edge", "file at the edge"]);
    for one in [
        "\n",
        "\u{3}",
        "\u{202e}",
        "\u{1b}[2K",
        "\u{9b}2K",
        "\t",
        "\u{2028}",
        "\u{200b}",
        "\u{feff}",
        "\u{e0041}",
    ] {
        // The line for netrc names the host alone.
        let text = &format!("https://x{one}y/");
        assert!(offers(text).is_empty(), "{text:?}: {:?}", offers(text));
        let (_, html) = pages(text, 3).into_iter().find(|(page, _)| *page == "file at the edge").unwrap();
        assert!(html.contains("Here would be the command that prints the file, but a name in it"), "{html}");
    }
}

#[test]
fn no_page_grows_beyond_its_limit() {
    for (text, length) in [
        ("x".repeat(250), 3_000),
        ("\"".repeat(211), 3_000),
        ("\"".repeat(9_000), 300),
        ("\u{1f980}".repeat(250), 3_000),
        ("\u{202e}".repeat(250), 3_000),
        ("\u{e0041}".repeat(250), 3_000),
        ("a".to_owned(), 20_000),
    ] {
        for (page, html) in pages(&text, length) {
            // A host checks these before it makes a page: their lengths are limited there.
            let has_long_name = text.chars().count() > 250 && page != "file";
            assert!(has_long_name || html.len() <= PAGE_BYTES_MAX, "{page} has {} bytes", html.len());
        }
    }
}

#[test]
fn a_real_page_is_small() {
    for (page, html) in pages("hello-2.12.1", 20) {
        assert!(html.len() < 32_000, "{page} has {} bytes", html.len());
    }
}

/// What a screen reader and a keyboard need.
#[test]
fn pages_have_a_language_a_title_one_heading_and_labels() {
    for (page, html) in pages("x", 3) {
        assert!(html.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{page}");
        let tags = tags(&html);
        let count = |name: &str| tags.iter().filter(|tag| tag.name == name).count();
        assert_eq!([count("h1"), count("main"), count("title")], [1, 1, 1], "{page}");
        assert!(html.contains("href=\"#main\"") && html.contains("id=\"main\""), "{page}");
        let attribute = |tag: &Tag, wanted: &str| {
            tag.attributes.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
        };
        for input in tags.iter().filter(|tag| tag.name == "input") {
            if attribute(input, "type").as_deref() == Some("hidden") {
                continue;
            }
            let id = attribute(input, "id").unwrap_or_else(|| panic!("{page}: {input:?} has no id"));
            let is_labelled = |tag: &Tag| tag.name == "label" && attribute(tag, "for").as_ref() == Some(&id);
            assert!(tags.iter().any(is_labelled), "{page}: {input:?} has no label");
        }
        for form in tags.iter().filter(|tag| tag.name == "form") {
            let is_post = attribute(form, "method").as_deref() == Some("post");
            let is_sign_in = attribute(form, "action").as_deref() == Some("../_dormer/sign-in");
            assert!(
                !is_post || is_sign_in || html.contains("name=\"form_token\" value=\"0123abcd"),
                "{page}"
            );
        }
        for image in tags.iter().filter(|tag| tag.name == "img") {
            assert!(attribute(image, "alt").is_some(), "{page}: {image:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_the_texts_are_the_markup_is_the_same(
        text in prop_oneof![
            "[<>\"'&=/ a-z:;()\\\\-]{1,40}",
            proptest::sample::select(&HOSTILE[..]).prop_flat_map(|part| (any::<String>(), Just(part)))
                .prop_map(|(random, part)| format!("{}{part}", random.chars().take(20).collect::<String>())),
        ],
    ) {
        let plain = pages(like(&text), 2);
        for ((page, html), (_, plain)) in pages(&text, 2).into_iter().zip(plain) {
            check(page, &html);
            if page != "log" {
                prop_assert_eq!(shape(&html), shape(&plain), "{} with {}", page, text);
            }
        }
    }
}

#[test]
fn counts_that_leave_something_out_say_so() {
    let note = "still counts what was here before an upgrade";
    let all = pages("x", 3);
    let page = |wanted: &str| &all.iter().find(|(name, _)| *name == wanted).unwrap().1;
    assert!(page("home").contains(note) && page("cache").contains(note));
    assert!(!page("cache at the edge").contains(note), "nothing is counted there");
    let home = HomeView {
        caches: vec![
            CacheRow { name: "read".to_owned(), is_public: true, counts: Some((0, 0)), newest_at: None },
            CacheRow { name: "unread".to_owned(), is_public: false, counts: None, newest_at: None },
        ],
        next: None,
        has_figures: true,
        is_complete: true,
        savings: None,
        history: Vec::new(),
    };
    let home = home.render(&frame());
    assert!(!home.contains(note) && home.matches("none yet").count() == 1, "{home}");
    assert!(home.contains("href=\"../read/\"") && !home.contains("href=\"../unread/\""), "{home}");
}

#[test]
fn what_the_database_does_not_say_is_no_empty_list() {
    let empty = OverviewView {
        server: "lab".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: 1,
        not_ready: None,
        figures: ServerFigures::default(),
        queues: Vec::new(),
        others: Vec::new(),
        jobs: Some(OpenJobs::default()),
        targets: Some(Vec::new()),
    };
    let unknown = "The database does not say now";
    let nothing = ["No job is open.", "Nothing was published yet.", "None holds a job or a target now."];
    let see = |view: &OverviewView| view.render(&signed_in("ada"));
    let html = see(&empty);
    assert!(nothing.iter().all(|text| html.contains(text)) && !html.contains(unknown), "{html}");
    let html = see(&OverviewView { jobs: None, targets: None, ..empty.clone() });
    assert!(!nothing.iter().any(|text| html.contains(text)), "{html}");
    assert_eq!(html.matches(unknown).count(), 3, "{html}");
    // What is known of one is shown without the other.
    let html = see(&OverviewView { targets: None, others: vec!["lab 2".to_owned()], ..empty });
    assert!(html.contains(nothing[0]) && html.contains("<li>lab 2</li>"), "{html}");
    assert_eq!(html.matches(unknown).count(), 2, "{html}");
    let html = PublishingView { targets: None, from: None }.render(&signed_in("ada"));
    assert!(html.contains(unknown) && !html.contains(nothing[1]), "{html}");
}

/// Nobody may miss the one target that fails because eight others come before it.
#[test]
fn what_a_list_leaves_out_is_told_and_needs_nobody() {
    let row = |number: u64| TargetRow {
        name: format!("target-{number:02}"),
        lag_seconds: number % 2 * 60 * number,
        published: 1,
        pending: 0,
        has_failed: number == 20,
    };
    let overview = OverviewView {
        server: "lab".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: 1,
        not_ready: None,
        figures: ServerFigures::default(),
        queues: vec![QueueRow { name: "reads".to_owned(), waiting: 0, in_use: None }; 25],
        others: vec!["lab 2".to_owned(); 22],
        jobs: Some(OpenJobs::default()),
        targets: Some((1..=20).map(row).collect()),
    };
    let html = overview.render(&signed_in("ada"));
    let shown: Vec<&str> = html.split(">target-").skip(1).filter_map(|rest| rest.get(..2)).collect();
    assert_eq!(shown, ["20", "19", "17", "15", "13", "11", "09", "07"], "it fails, or has the longest lag");
    for text in ["And 12 more targets.", "And 1 more of them.", "And 2 more servers."] {
        assert!(html.contains(text), "{text} in {html}");
    }
    let target = |number: u64| TargetView {
        name: format!("target-{number:02}"),
        location: "s3://x".to_owned(),
        holder: None,
        ran_at: Some(1),
        error: (number == 20).then(|| ("no route".to_owned(), 1)),
        lag_seconds: row(number).lag_seconds,
        cache_count: 0,
        caches: Vec::new(),
    };
    let link = "<a href=\"../_dormer/publishing?from=target-20\">target-20</a>";
    assert!(html.contains(link), "it leads to that target: {html}");
    // Whatever becomes of the lag meanwhile, a reader that goes on sees each target once.
    let (mut seen, mut from) = (Vec::new(), None);
    for lag in [0, 7_000, 100] {
        let lagging = |number: u64| TargetView { lag_seconds: lag * (number % 3), ..target(number) };
        let view = PublishingView { targets: Some((1..=20).rev().map(lagging).collect()), from: from.take() };
        let html = view.render(&signed_in("ada"));
        assert!(html.contains("The last run failed for ") && html.contains(link), "{html}");
        seen.extend(html.split("<h2>target-").skip(1).filter_map(|rest| rest.get(..2)?.parse::<u64>().ok()));
        let next = html.split_once("rel=\"next\" href=\"?from=").map(|(_, rest)| rest);
        from = next.and_then(|rest| rest.split('"').next()).map(str::to_owned);
    }
    assert_eq!((seen, from), ((1..=20).collect(), None));
    // A target that is gone by then is no end of the list.
    let view =
        PublishingView { targets: Some((1..=20).map(target).collect()), from: Some("target-18x".to_owned()) };
    let html = view.render(&signed_in("ada"));
    assert!(html.contains("<h2>target-19") && !html.contains("<h2>target-18"), "{html}");
}

/// Nobody may miss the job that fails because twenty others are older.
#[test]
fn the_overview_says_how_many_jobs_it_leaves_out() {
    let job = |number: i64| JobRow {
        id: number,
        kind: format!("job-{number:02}"),
        about: None,
        rows_done: 0,
        holder: None,
        created_at: 1,
        stepped_at: None,
        failures: 0,
        error: None,
    };
    let see = |open: u64, first: i64| {
        let jobs = OpenJobs { open, running: 2, failing: 3, first: (1..=first).map(job).collect() };
        let view = OverviewView {
            server: "lab".to_owned(),
            version: "0.1.0".to_owned(),
            started_at: 1,
            not_ready: None,
            figures: ServerFigures::default(),
            queues: Vec::new(),
            others: Vec::new(),
            jobs: Some(jobs),
            targets: Some(Vec::new()),
        };
        view.render(&signed_in("ada"))
    };
    let html = see(31, 20);
    assert_eq!(html.matches(" job-").count(), 8, "{html}");
    for text in [
        "31 jobs are open: 3 failing, 2 running.",
        "<a href=\"../_dormer/jobs\">And 23 more jobs.</a>",
        "1 job-01",
    ] {
        assert!(html.contains(text), "{text} in {html}");
    }
    let html = see(8, 8);
    assert!(html.matches(" job-").count() == 8 && !html.contains("more job"), "{html}");
}

/// A list that `first` cuts tells how much of it is left.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test reads the source of the pages")]
fn no_page_cuts_a_list_in_another_way() {
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let sources = sources.map(|file| file.unwrap().path());
    // These cut no lists.
    let is_page = |file: &std::path::PathBuf| {
        !["tests.rs", "terminal_text.rs", "log.rs"].iter().any(|other| file.ends_with(other))
            && file.extension().is_some_and(|kind| kind == "rs")
    };
    for file in sources.filter(is_page) {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(".take("), "{} cuts a list without a word", file.display());
    }
}

#[test]
fn a_page_says_what_was_done_in_words_of_its_own() {
    for note in Note::ALL {
        assert_eq!(Note::in_query(note.parameter()), Some(note));
        assert_eq!(Note::in_query(&format!("after=x&{}", note.parameter())), Some(note));
        let html = ProblemView::nothing_here().render(&Frame { note: Some(note), ..signed_in("ada") });
        assert_eq!(html.matches("<p class=\"note\" role=\"status\">").count(), 1, "{html}");
    }
    for none in ["", "done", "done=", "done=all", "x-done=pinned", "done=pinned%20", "DONE=pinned"] {
        assert_eq!(Note::in_query(none), None, "{none}");
    }
}

#[test]
fn pins_behind_others_are_unpinned_where_they_are_shown() {
    let pin = PinRow { name: "b".to_owned(), base_name: "h-b".to_owned(), created_at: 5, ends_at: None };
    let see = |pins: &[PinRow], after: Option<&str>| {
        let (pins, after) = (pins.to_vec(), after.map(str::to_owned));
        PinsView { cache: "main".to_owned(), pins, after, next: None }.render(&signed_in("ada"))
    };
    let field = "name=\"after\" value=\"h.a&amp;&lt;\"";
    let html = see(std::slice::from_ref(&pin), Some("h.a&<"));
    assert!(html.contains(field) && html.contains("The first pins"), "{html}");
    let html = see(&[pin], None);
    assert!(!html.contains("name=\"after\"") && !html.contains("The first pins"), "{html}");
    // The last pin of a later page was removed.
    let html = see(&[], Some("h.a"));
    assert!(html.contains("No more pins.") && !html.contains("Nothing is pinned."), "{html}");
    assert!(html.contains("The first pins"), "{html}");
    assert!(see(&[], None).contains("Nothing is pinned."));
}

#[test]
fn a_job_says_how_far_it_is_and_who_goes_on() {
    let job = JobRow {
        id: 7,
        kind: "delete-cache".to_owned(),
        about: Some("cache old".to_owned()),
        rows_done: 1_234_567,
        holder: Some("process 12 on lab".to_owned()),
        created_at: 1_800_000_000 - 7_200,
        stepped_at: Some(1_800_000_000 - 3),
        failures: 0,
        error: None,
    };
    let see = |job: &JobRow| JobsView { jobs: vec![job.clone()], next: None }.render(&signed_in("ada"));
    let html = see(&job);
    for text in [
        "7 delete-cache",
        "cache old",
        ">1,234,567<",
        "2 hours ago",
        "run by process 12 on lab",
        "3 seconds ago",
    ] {
        assert!(html.contains(text), "{text} in {html}");
    }
    assert!(html.contains("goes on where the last one stopped") && !html.contains("failed"), "{html}");
    let broken = JobRow { holder: None, failures: 2, error: Some("no room".to_owned()), ..job };
    let html = see(&broken);
    assert!(html.contains("waiting") && html.contains("2 failed tries, the last: no room"), "{html}");
}

/// Caches share what they store, so a cache has no savings of its own.
#[test]
fn a_cache_leads_its_owner_to_the_savings_of_the_store() {
    let all = pages("x", 3);
    let page = |wanted: &str| &all.iter().find(|(name, _)| *name == wanted).unwrap().1;
    let (owner, edge) = (page("cache"), page("cache at the edge"));
    assert!(owner.contains("What it saves") && owner.contains("<a href=\"../\">The first page shows them."));
    assert!(!edge.contains("What it saves"), "{edge}");
}

/// Behind a load balancer, the script of a page waits for the server that it shows.
#[test]
fn a_page_that_other_servers_fill_otherwise_names_its_server() {
    let named: Vec<&str> = operator_pages("lab", "lab", 2)
        .into_iter()
        .filter(|(_, html)| html.contains("data-live=\"lab\""))
        .map(|(page, _)| page)
        .collect();
    assert_eq!(named, ["overview", "overview without the database", "plan", "failed plan"]);
}

/// What a page shows of an actor, pasted into its filter, finds the actor; no filter loses its end.
#[test]
fn the_audit_keeps_its_filters_whole_however_long_they_are() {
    let actor = "repo:company/nixpkgs-with-a-long-name:ref:refs/heads/".to_owned() + &"branch".repeat(20);
    let entry = AuditRow {
        at: 1,
        subject: Some(actor.clone()),
        action: "remove path".to_owned(),
        cache: None,
        hash: None,
    };
    let filters = [String::new(), String::new(), actor.clone()];
    let html = AuditView { filters, entries: vec![entry], next: Some(5) }.render(&signed_in("ada"));
    assert!(html.contains(&format!("value=\"{actor}\"")), "the field has all of it: {html}");
    let next = format!("?actor={}&amp;before=5", crate::escape_segment(&actor));
    assert!(html.contains(&next), "{next} in {html}");
    let tags = tags(&html);
    let field = tags.iter().find(|tag| tag.attributes.contains(&("id".to_owned(), "actor".to_owned())));
    let most = field.unwrap().attributes.iter().find(|(name, _)| name == "maxlength").unwrap();
    assert!(most.1.parse::<usize>().unwrap() >= actor.chars().count(), "{field:?}");
    let (_, shown) = html.split_once("data-label=\"Actor\">").unwrap();
    let shown = shown.split('<').next().unwrap();
    let start = AuditView::cut(shown).expect("so long an actor is cut");
    assert!(actor.starts_with(start) && start.chars().count() < AuditView::FILTER_CHARACTERS, "{shown}");
    assert_eq!(AuditView::cut("ada"), None);
}

/// A browser sends what it was shown: in the table, in the field of the form, or in the link.
#[test]
fn what_the_audit_shows_of_an_actor_finds_it_also_if_only_escapes_can_be_seen() {
    let long = "\u{e0041}".repeat(200);
    for actor in [
        "ada",
        "a\u{202e}b\u{200b}",
        r"a\u{202e}b",
        r"a\b",
        " a  b\u{a0}",
        "a…",
        "\u{85}",
        "a\tb",
        long.as_str(),
    ] {
        let entry = AuditRow {
            at: 1,
            subject: Some(actor.to_owned()),
            action: "remove path".to_owned(),
            cache: None,
            hash: None,
        };
        let see = |filter: &str| {
            let filters = [String::new(), String::new(), filter.to_owned()];
            AuditView { filters, entries: vec![entry.clone()], next: Some(5) }.render(&signed_in("ada"))
        };
        let html = see("");
        let (_, shown) = html.split_once("data-label=\"Actor\">").unwrap();
        let shown = shown.split('<').next().unwrap();
        let finds = |text: &str| {
            let filter = AuditView::filter(text);
            let is_taken = filter.chars().count() <= AuditView::FILTER_CHARACTERS;
            is_taken
                && match AuditView::cut(&filter) {
                    Some(start) => actor.starts_with(&AuditView::wanted(start)),
                    None => AuditView::wanted(&filter) == actor,
                }
        };
        assert!(finds(shown), "{actor:?} is shown as {shown}");
        assert_eq!(shown.ends_with('…'), actor == long, "{shown}");
        let html = see(&AuditView::filter(shown));
        let tags = tags(&html);
        let field = tags.iter().find(|tag| tag.attributes.contains(&("id".to_owned(), "actor".to_owned())));
        let (_, sent) = field.unwrap().attributes.iter().find(|(name, _)| name == "value").unwrap();
        assert!(finds(sent), "{actor:?} is in the field as {sent}");
        let next = format!("?actor={}&amp;before=5", crate::escape_segment(shown));
        assert!(html.contains(&next), "{next} in {html}");
    }
}

#[test]
fn a_plan_shows_the_packs_of_its_own_moment_until_a_collection_ends() {
    let figures =
        CollectionFigures { freed: crate::PackFigures { packs: 2, bytes: 4 << 20 }, ..Default::default() };
    let expiring = ExpiryFigures { paths: 7, bytes: 1 << 20, caches: 1, caches_left_out: 2 };
    let plan = MadePlan { at: 1_700_000_000, stored_bytes: 10 << 20, expiring, figures };
    let see = |last| {
        let (server, plan) = ("lab".to_owned(), PlanView::Made(Box::new(plan)));
        CollectionView { server, last, plan }.render(&signed_in("ada"))
    };
    let html = see(Some((1_600_000_000, figures)));
    assert!(html.contains("of 10.0 MiB in packs, 6.0 MiB is needed where it is"), "{html}");
    assert!(
        html.contains("Paths that expire</dt><dd>7 of 1 cache, 1.0 MiB; 2 caches are too large"),
        "{html}"
    );
    assert_eq!(html.matches("role=\"img\"").count(), 1, "what was done is no share of what is there");
    assert!(html.contains("Freed</dt><dd>2 packs, 4.0 MiB"), "{html}");
    let late = see(Some((1_700_000_000, figures)));
    assert!(late.contains("so the plan holds no longer.") && !late.contains("role=\"img\""), "{late}");
}
