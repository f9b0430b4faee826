//! `/_dormer/`: what operators look at.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::frame::{Frame, Step, escape_segment, path_address};
use crate::parts::{and_more, first, moment, size};
use crate::picture::{Share, one_bar, part_of};
use crate::text::{CUT, bytes, counted, date, number, read, shortened, span, visible, written};

/// Rows of each list that a page shows.
const JOBS_SHOWN: usize = 20;
const JOBS_IN_SHORT: usize = 8;
const QUEUES_SHOWN: usize = 24;
const SERVERS_SHOWN: usize = 20;
const TARGETS_SHOWN: usize = 8;
const PUBLISHED_CACHES_SHOWN: usize = 20;
const FINDINGS_SHOWN: usize = 20;
const ENTRIES_SHOWN: usize = 30;

/// Characters of a text that is shown, of a name and of a reason.
const NAME_CHARACTERS: usize = 60;
const REASON_CHARACTERS: usize = 100;

/// A page for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorPage {
    /// What this server does now.
    Overview,
    /// Open jobs.
    Jobs,
    /// What a collection would free.
    Collection,
    /// Edge targets.
    Publishing,
    /// What the last scrub found.
    Damage,
    /// What people did that cannot be undone.
    Audit,
}

impl OperatorPage {
    /// Every page.
    pub const ALL: [Self; 6] =
        [Self::Overview, Self::Jobs, Self::Collection, Self::Publishing, Self::Damage, Self::Audit];

    /// Its address, below the root.
    pub const fn address(self) -> &'static str {
        match self {
            Self::Overview => "_dormer/",
            Self::Jobs => "_dormer/jobs",
            Self::Collection => "_dormer/collection",
            Self::Publishing => "_dormer/publishing",
            Self::Damage => "_dormer/damage",
            Self::Audit => "_dormer/audit",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Overview => "Operation",
            Self::Jobs => "Jobs",
            Self::Collection => "Collection",
            Self::Publishing => "Publishing",
            Self::Damage => "Damage",
            Self::Audit => "Audit",
        }
    }

    /// The whole page with this content.
    fn render(self, frame: &Frame, content: &Markup) -> String {
        self.render_of(frame, "", content)
    }

    /// The same, with the server whose figures these are, if another server has others.
    fn render_of(self, frame: &Frame, server: &str, content: &Markup) -> String {
        let mut way: Vec<Step> =
            vec![(Self::Overview.address().to_owned(), Self::Overview.name().to_owned())];
        if self != Self::Overview {
            way.push((self.address().to_owned(), self.name().to_owned()));
        }
        let content = html! {
            h1 { (self.name()) }
            nav.tabs aria-label="Pages for operators" {
                @for page in Self::ALL {
                    @if page == self { strong aria-current="page" { (page.name()) } }
                    @else { a href=(frame.link(page.address())) { (page.name()) } }
                }
            }
            div data-live=[self.is_live().then(|| shortened(server, NAME_CHARACTERS))] { (content) }
        };
        frame.page(self.name(), &way, &content)
    }

    /// Whether the script reads the page again and again, to show what has changed.
    const fn is_live(self) -> bool {
        !matches!(self, Self::Audit)
    }
}

/// What a server has done since its start, and does now.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerFigures {
    /// Requests answered.
    pub answered: u64,
    /// Those answered with a 5xx.
    pub failed: u64,
    /// Those refused because of a limit.
    pub refused: u64,
    /// Requests being answered now.
    pub in_flight: u64,
    /// Open connections now.
    pub connections: u64,
    /// Narinfos that were there.
    pub narinfos: u64,
    /// Narinfos that were not.
    pub missing: u64,
    /// NARs read.
    pub nars_read: u64,
    /// Bytes of answers.
    pub sent_bytes: u64,
    /// NARs received.
    pub nars_pushed: u64,
    /// Their bytes, uncompressed.
    pub pushed_bytes: u64,
    /// Bytes of new chunks, uncompressed.
    pub new_bytes: u64,
    /// Uploads whose bytes come now.
    pub uploading: u64,
}

/// Something that requests take turns at.
#[derive(Debug, Clone)]
pub struct QueueRow {
    /// Its name.
    pub name: String,
    /// Tasks that wait.
    pub waiting: u64,
    /// How much is taken, of how much.
    pub in_use: Option<(u64, u64)>,
}

/// A job.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// Its number.
    pub id: i64,
    /// What it does.
    pub kind: String,
    /// The cache or target that it is about.
    pub about: Option<String>,
    /// Rows so far.
    pub rows_done: u64,
    /// The process that runs it.
    pub holder: Option<String>,
    /// When it was opened.
    pub created_at: i64,
    /// When its last good step ended.
    pub stepped_at: Option<i64>,
    /// Failed steps since then.
    pub failures: u64,
    /// Why the last step failed.
    pub error: Option<String>,
}

/// Open jobs, in short.
#[derive(Debug, Clone, Default)]
pub struct OpenJobs {
    /// How many there are.
    pub open: u64,
    /// Those of them that a process runs.
    pub running: u64,
    /// Those of them whose last step failed.
    pub failing: u64,
    /// The first of them: those that fail, those that run, then the oldest.
    pub first: Vec<JobRow>,
}

/// An edge target, in short.
#[derive(Debug, Clone)]
pub struct TargetRow {
    /// Its name.
    pub name: String,
    /// Age of the oldest change that it does not have, in seconds.
    pub lag_seconds: u64,
    /// Paths that are there.
    pub published: u64,
    /// Paths to look at.
    pub pending: u64,
    /// Whether the last run failed.
    pub has_failed: bool,
}

/// `/_dormer/`
#[derive(Debug, Clone)]
pub struct OverviewView {
    /// The server that answers.
    pub server: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: i64,
    /// Why it is not ready.
    pub not_ready: Option<String>,
    /// Its counters.
    pub figures: ServerFigures,
    /// What it takes turns at.
    pub queues: Vec<QueueRow>,
    /// Processes that hold a job or a target, the answering one left out, as far as it is known.
    pub others: Vec<String>,
    /// Open jobs; `None` if the database did not name them.
    pub jobs: Option<OpenJobs>,
    /// Edge targets; `None` if the database did not name them.
    pub targets: Option<Vec<TargetRow>>,
}

impl OverviewView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let of = &self.figures;
        let facts: [(&str, Markup); 12] = [
            ("Requests answered", html! { (number(of.answered)) }),
            ("Failed", html! { (number(of.failed)) }),
            ("Refused by a limit", html! { (number(of.refused)) }),
            ("Being answered", html! { (number(of.in_flight)) }),
            ("Connections", html! { (number(of.connections)) }),
            ("Narinfos found", html! { (number(of.narinfos)) }),
            ("Narinfos missing", html! { (number(of.missing)) }),
            ("NARs read", html! { (number(of.nars_read)) }),
            ("Sent", size(of.sent_bytes)),
            ("NARs pushed", html! { (number(of.nars_pushed)) }),
            ("Pushed, new of it", html! { (size(of.pushed_bytes)) ", " (size(of.new_bytes)) }),
            ("Uploading", html! { (number(of.uploading)) }),
        ];
        let content = html! {
            @match &self.not_ready {
                None => p role="status" { "Database and object store answer." },
                Some(reason) => p.notice role="status" { "This server is not ready: " (shortened(reason, REASON_CHARACTERS)) "." },
            }
            section {
                h2 { "This server" }
                p {
                    (shortened(&self.server, NAME_CHARACTERS)) ", version " (shortened(&self.version, NAME_CHARACTERS))
                    ", started " (moment(frame, self.started_at)) ". The figures count from then on, and are those of /metrics."
                }
                dl.facts { @for (name, value) in &facts { div { dt { (name) } dd { (value) } } } }
                @if !self.queues.is_empty() {
                    h3 { "Turns and memory" }
                    table.wide {
                        thead { tr { th scope="col" { "What" } th scope="col" { "In use" } th.figure scope="col" { "Waiting" } } }
                        @let (queues, left) = first(&self.queues, QUEUES_SHOWN);
                        tbody {
                            @for queue in queues {
                                tr {
                                    th scope="row" { (shortened(&queue.name, NAME_CHARACTERS)) }
                                    td data-label="In use" {
                                        @if let Some((part, whole)) = queue.in_use {
                                            (amount(&queue.name, part)) " of " (amount(&queue.name, whole)) (part_of(part, whole))
                                        }
                                    }
                                    td.figure data-label="Waiting" { (number(queue.waiting)) }
                                }
                            }
                        }
                    }
                    @if left > 0 { p { (and_more(left, "of them", "of them")) " /metrics has all." } }
                }
            }
            section {
                h2 { "Other servers" }
                @if self.jobs.is_none() || self.targets.is_none() {
                    (not_told("which servers hold jobs and targets"))
                } @else if self.others.is_empty() {
                    p { "None holds a job or a target now. Servers know of each other by nothing else." }
                } @else {
                    p { "These hold a job or a target now. Servers know of each other by nothing else." }
                }
                @if !self.others.is_empty() {
                    @let (others, left) = first(&self.others, SERVERS_SHOWN);
                    ul { @for name in others { li { (shortened(name, NAME_CHARACTERS)) } } }
                    @if left > 0 { p { (and_more(left, "server", "servers")) } }
                }
            }
            section {
                h2 { "Jobs" }
                @match &self.jobs { Some(open) => (open.render(frame)), None => (not_told("which jobs are open")) }
            }
            section {
                h2 { "Edge targets" }
                @let targets = neediest_first(self.targets.as_deref().unwrap_or_default());
                @if self.targets.is_none() { (not_told(TARGETS_NOT_TOLD)) }
                @else if targets.is_empty() { p { "Nothing was published yet." } }
                @else {
                    @let (shown, left) = first(&targets, TARGETS_SHOWN);
                    table.wide {
                        thead { tr { th scope="col" { "Target" } th.figure scope="col" { "Published" } th.figure scope="col" { "Pending" } th scope="col" { "Lag" } } }
                        tbody {
                            @for target in shown {
                                tr {
                                    th scope="row" {
                                        (target_link(frame, &target.name))
                                        @if target.has_failed { " " span.tag.private { "failed" } }
                                    }
                                    td.figure data-label="Published" { (number(target.published)) }
                                    td.figure data-label="Pending" { (number(target.pending)) }
                                    td data-label="Lag" { (lag_text(target.lag_seconds)) }
                                }
                            }
                        }
                    }
                    @if left > 0 { p { a href=(frame.link(OperatorPage::Publishing.address())) { (and_more(left, "target", "targets")) } } }
                }
            }
        };
        OperatorPage::Overview.render_of(frame, &self.server, &content)
    }
}

/// Targets that fail before those that do not, and those with the longest lag first: what is cut
/// off needs nobody.
fn neediest_first(targets: &[TargetRow]) -> Vec<&TargetRow> {
    let mut targets: Vec<&TargetRow> = targets.iter().collect();
    targets.sort_by_key(|target| std::cmp::Reverse((target.has_failed, target.lag_seconds)));
    targets
}

/// For what only the database knows, while it does not answer: an empty list would be a lie.
fn not_told(what: &str) -> Markup {
    html! { p.notice role="status" { "The database does not say now " (what) "." } }
}

const TARGETS_NOT_TOLD: &str = "how far targets are";

/// Memory is in bytes, everything else is counted.
fn amount(name: &str, value: u64) -> String {
    if name.contains("memory") { bytes(value) } else { number(value) }
}

fn lag_text(seconds: u64) -> String {
    if seconds == 0 { "none".to_owned() } else { span(i64::try_from(seconds).unwrap_or(i64::MAX)) }
}

impl OpenJobs {
    fn render(&self, frame: &Frame) -> Markup {
        let (shown, _) = first(&self.first, JOBS_IN_SHORT);
        let left = self.open.saturating_sub(shown.len() as u64);
        html! {
            @if self.open > 0 {
                p { (counted(self.open, "job is open", "jobs are open")) ": " (number(self.failing)) " failing, " (number(self.running)) " running. The others wait." }
            }
            (jobs(frame, shown))
            @if left > 0 { p { a href=(frame.link(OperatorPage::Jobs.address())) { (and_more(left, "job", "jobs")) } } }
        }
    }
}

fn jobs(frame: &Frame, jobs: &[JobRow]) -> Markup {
    html! {
        @if jobs.is_empty() { p { "No job is open." } } @else {
            table.wide {
                thead { tr { th scope="col" { "Job" } th scope="col" { "About" } th.figure scope="col" { "Rows done" } th scope="col" { "Opened" } th scope="col" { "State" } } }
                tbody {
                    @for job in first(jobs, JOBS_SHOWN).0 {
                        tr {
                            th scope="row" { (job.id) " " (shortened(&job.kind, 30)) }
                            td data-label="About" { @if let Some(about) = &job.about { (shortened(about, NAME_CHARACTERS)) } }
                            td.figure data-label="Rows done" { (number(job.rows_done)) }
                            td data-label="Opened" { (moment(frame, job.created_at)) }
                            td data-label="State" {
                                @match &job.holder {
                                    Some(holder) => { "run by " (shortened(holder, 40)) },
                                    None => "waiting",
                                }
                                @if let Some(at) = job.stepped_at { ", last step " (moment(frame, at)) }
                                @if let Some(error) = &job.error {
                                    " " span.bad { (counted(job.failures, "failed try", "failed tries")) ", the last: " (shortened(error, REASON_CHARACTERS)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `/_dormer/jobs`
#[derive(Debug, Clone)]
pub struct JobsView {
    /// Open jobs after those of the page before, the oldest first.
    pub jobs: Vec<JobRow>,
    /// Where the next page begins.
    pub next: Option<i64>,
}

impl JobsView {
    /// Jobs on a page.
    pub const ROWS: usize = JOBS_SHOWN;

    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let content = html! {
            p { "Work over a whole cache, target or store. Any server takes a waiting job up, and goes on where the last one stopped." }
            (jobs(frame, &self.jobs))
            @if let Some(next) = self.next { p { a.button rel="next" href={ "?after=" (next) } { "More" } } }
        };
        OperatorPage::Jobs.render(frame, &content)
    }
}

/// Packs that have something in common.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackFigures {
    /// How many.
    pub packs: u64,
    /// Bytes of them in the store.
    pub bytes: u64,
}

/// What becomes of the packs of the store.
#[derive(Debug, Clone, Copy, Default)]
pub struct CollectionFigures {
    /// NARs without a name.
    pub nars: u64,
    /// Their bytes, uncompressed.
    pub nar_bytes: u64,
    /// Packs that nothing needs, of which no collection knew before.
    pub condemned: PackFigures,
    /// Packs that were condemned before and wait for the longest upload.
    pub waiting: PackFigures,
    /// Packs that are freed.
    pub freed: PackFigures,
    /// Packs that are rewritten.
    pub compacted: PackFigures,
    /// Bytes that the rewriting writes.
    pub written_bytes: u64,
}

/// What the rules of caches let go, before a collection.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExpiryFigures {
    /// Paths that expire.
    pub paths: u64,
    /// Their bytes, as a quota counts them.
    pub bytes: u64,
    /// Caches that let something go.
    pub caches: u64,
    /// Caches that were too large to look at.
    pub caches_left_out: u64,
}

/// A plan, as it was when it was made.
#[derive(Debug, Clone, Copy)]
pub struct MadePlan {
    /// When it was begun.
    pub at: i64,
    /// Bytes of all packs that it looked at.
    pub stored_bytes: u64,
    /// What the rules of caches let go.
    pub expiring: ExpiryFigures,
    /// What a collection would do.
    pub figures: CollectionFigures,
}

/// A plan that was asked for.
#[derive(Debug, Clone)]
pub enum PlanView {
    /// Nobody asked for one since the server started.
    None,
    /// It is being made since then.
    Running(i64),
    /// It was made.
    Made(Box<MadePlan>),
    /// It could not be made: when it was begun, and why.
    Failed(i64, String),
}

/// `/_dormer/collection`
#[derive(Debug, Clone)]
pub struct CollectionView {
    /// The server that answers: each has a plan of its own.
    pub server: String,
    /// When the last collection ended, and what it did.
    pub last: Option<(i64, CollectionFigures)>,
    /// What the next one would do.
    pub plan: PlanView,
}

impl CollectionView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let content = html! {
            section {
                h2 { "What a collection would free" }
                p.quiet { "Each server has a plan of its own. This is what " (shortened(&self.server, NAME_CHARACTERS)) " knows." }
                @match &self.plan {
                    PlanView::None => p { "No plan was made since this server started. A plan reads the recipes of all paths and changes nothing." },
                    PlanView::Running(since) => p role="status" { "A plan is being made since " (date(*since)) ". Load this page again to see it." },
                    PlanView::Failed(at, reason) => p.notice role="status" { "The plan of " (date(*at)) " failed: " (shortened(reason, REASON_CHARACTERS)) },
                    PlanView::Made(plan) => {
                        @if self.last.is_some_and(|(ended_at, _)| ended_at >= plan.at) {
                            p.notice role="status" { "A collection ended after this plan of " (date(plan.at)) ", so the plan holds no longer." }
                        } @else {
                            (picture(plan))
                        }
                        (plan_facts(&plan.figures, Some(&plan.expiring)))
                    },
                }
                @if !matches!(self.plan, PlanView::Running(_)) {
                    form.inline method="post" action=(frame.link("_dormer/collection")) {
                        (frame.form_token())
                        button { "Make a plan" }
                    }
                }
            }
            section {
                h2 { "The last collection" }
                @match &self.last {
                    None => p { "None has ended yet." },
                    Some((at, report)) => {
                        p { "Ended " (moment(frame, *at)) "." }
                        (plan_facts(report, None))
                    },
                }
            }
        };
        OperatorPage::Collection.render_of(frame, &self.server, &content)
    }
}

/// The packs of the store by what becomes of them, all of the moment of the plan.
fn picture(plan: &MadePlan) -> Markup {
    let MadePlan { at, stored_bytes, figures: of, .. } = *plan;
    let leaving = [of.compacted.bytes, of.condemned.bytes, of.waiting.bytes, of.freed.bytes];
    let kept = leaving.iter().fold(stored_bytes, |kept, part| kept.saturating_sub(*part));
    let title = format!(
        "Planned {}: of {} in packs, {} is needed where it is, {} is rewritten, {} waits for its end, {} is freed.",
        date(at),
        bytes(stored_bytes),
        bytes(kept),
        bytes(of.compacted.bytes),
        bytes(of.condemned.bytes.saturating_add(of.waiting.bytes)),
        bytes(of.freed.bytes)
    );
    one_bar(
        "plan",
        &title,
        &[
            Share { class: "c0", name: "Needed", bytes: kept },
            Share {
                class: "c1",
                name: "Rewritten, because little of it is needed",
                bytes: of.compacted.bytes,
            },
            Share { class: "c2", name: "Condemned by it", bytes: of.condemned.bytes },
            Share { class: "c3", name: "Condemned before, waiting", bytes: of.waiting.bytes },
            Share { class: "c4", name: "Freed", bytes: of.freed.bytes },
        ],
    )
}

/// What a plan would do, or with no `expiring`, what a collection did.
fn plan_facts(of: &CollectionFigures, expiring: Option<&ExpiryFigures>) -> Markup {
    let is_plan = expiring.is_some();
    let packs = |figures: PackFigures| {
        format!("{}, {}", counted(figures.packs, "pack", "packs"), bytes(figures.bytes))
    };
    let rows = [
        (
            if is_plan { "NARs to remove, uncompressed" } else { "NARs removed, uncompressed" },
            format!("{}, {}", number(of.nars), bytes(of.nar_bytes)),
        ),
        (if is_plan { "To condemn" } else { "Condemned" }, packs(of.condemned)),
        ("Condemned before, waiting for the longest upload", packs(of.waiting)),
        (if is_plan { "To free" } else { "Freed" }, packs(of.freed)),
        (
            if is_plan { "To rewrite" } else { "Rewritten" },
            format!("{}, into {}", packs(of.compacted), bytes(of.written_bytes)),
        ),
    ];
    html! {
        dl.facts {
            @if let Some(of) = expiring {
                div {
                    dt { "Paths that expire" }
                    dd {
                        (number(of.paths)) @if of.paths > 0 { " of " (counted(of.caches, "cache", "caches")) ", " (bytes(of.bytes)) }
                        @if of.caches_left_out > 0 { "; " (counted(of.caches_left_out, "cache is", "caches are")) " too large to look at" }
                    }
                }
            }
            @for (name, value) in &rows { div { dt { (name) } dd { (value) } } }
        }
    }
}

/// An edge target.
#[derive(Debug, Clone)]
pub struct TargetView {
    /// Its name.
    pub name: String,
    /// Its location.
    pub location: String,
    /// The process that publishes to it.
    pub holder: Option<String>,
    /// When the last run ended.
    pub ran_at: Option<i64>,
    /// Why the last run failed, and when.
    pub error: Option<(String, i64)>,
    /// Age of the oldest change that it does not have, in seconds.
    pub lag_seconds: u64,
    /// How many caches it has.
    pub cache_count: u64,
    /// Its caches as far as the host names them, those that wait first.
    pub caches: Vec<PublishedCacheRow>,
}

/// A cache in a target.
#[derive(Debug, Clone)]
pub struct PublishedCacheRow {
    /// Its name.
    pub name: String,
    /// Paths that are there.
    pub published: u64,
    /// Paths to look at.
    pub pending: u64,
    /// The oldest of these: its hash, since when it waits, and what for.
    pub oldest: Option<(String, i64, Option<String>)>,
}

/// The link to a target, whatever comes before it by then.
fn target_link(frame: &Frame, name: &str) -> Markup {
    let address = format!("{}{}", OperatorPage::Publishing.address(), from_target(name));
    html! { a href=(frame.link(&address)) { (shortened(name, NAME_CHARACTERS)) } }
}

/// The query of the page that begins at a target.
fn from_target(name: &str) -> String {
    format!("?from={}", escape_segment(name))
}

/// `/_dormer/publishing`
#[derive(Debug, Clone)]
pub struct PublishingView {
    /// All targets; `None` if the database did not tell in time.
    pub targets: Option<Vec<TargetView>>,
    /// The name that the page begins at. The lag of targets changes between two pages and their
    /// names do not, so a reader that goes on misses none.
    pub from: Option<String>,
}

impl PublishingView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let mut all: Vec<&TargetView> = self.targets.iter().flatten().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        let failing: Vec<&TargetView> = all.iter().copied().filter(|of| of.error.is_some()).collect();
        let from = self.from.as_deref().unwrap_or_default();
        let from = all.partition_point(|target| target.name.as_str() < from);
        let (targets, left) = first(&all[from..], TARGETS_SHOWN);
        let content = html! {
            @match &self.targets {
                None => (not_told(TARGETS_NOT_TOLD)),
                Some(all) if all.is_empty() => p { "Nothing was published yet." },
                Some(_) if targets.is_empty() => p role="status" { "Nothing here." },
                Some(_) => {},
            }
            @if from > 0 { p { a rel="first" href="?" { "The first targets" } } }
            @if targets.len() < all.len() && !failing.is_empty() {
                @let (failing, left) = first(&failing, TARGETS_SHOWN);
                p.notice role="status" {
                    "The last run failed for "
                    @for (place, target) in failing.iter().enumerate() {
                        @if place > 0 { ", " }
                        (target_link(frame, &target.name))
                    }
                    ". " (and_more(left, "target", "targets"))
                }
            }
            @for target in targets {
                section {
                    h2 { (shortened(&target.name, NAME_CHARACTERS)) }
                    p {
                        (shortened(&target.location, 80)) ". Lag: " (lag_text(target.lag_seconds)) ". "
                        @match target.ran_at { Some(at) => { "Last run " (moment(frame, at)) ". " }, None => "No run has ended yet. " }
                        @if let Some(holder) = &target.holder { "Being published to by " (shortened(holder, 40)) "." }
                    }
                    @if let Some((error, at)) = &target.error {
                        p.notice role="status" { "The last run failed " (moment(frame, *at)) ": " (shortened(error, REASON_CHARACTERS)) }
                    }
                    @let (caches, _) = first(&target.caches, PUBLISHED_CACHES_SHOWN / targets.len().max(1));
                    @let left = target.cache_count.saturating_sub(caches.len() as u64);
                    table.wide {
                        thead { tr { th scope="col" { "Cache" } th.figure scope="col" { "Published" } th.figure scope="col" { "Pending" } th scope="col" { "Waits longest" } } }
                        tbody {
                            @for cache in caches {
                                tr {
                                    th scope="row" { (shortened(&cache.name, NAME_CHARACTERS)) }
                                    td.figure data-label="Published" { (number(cache.published)) }
                                    td.figure data-label="Pending" { (number(cache.pending)) }
                                    td data-label="Waits longest" {
                                        @if let Some((hash, since, reason)) = &cache.oldest {
                                            a href=(frame.link(&path_address(&cache.name, hash))) { span.hash { (hash.get(..8).unwrap_or(hash)) } }
                                            " since " (moment(frame, *since)) ": "
                                            @match reason { Some(reason) => (shortened(reason, REASON_CHARACTERS)), None => "not looked at yet" }
                                        }
                                    }
                                }
                            }
                        }
                    }
                    @if left > 0 { p { (and_more(left, "cache", "caches")) " dormer publish status names all." } }
                }
            }
            @if let Some(next) = all.get(from + targets.len()) {
                p { a.button rel="next" href=(from_target(&next.name)) { (and_more(left, "target", "targets")) } }
            }
        };
        OperatorPage::Publishing.render(frame, &content)
    }
}

/// What a scrub found so far, or in all.
#[derive(Debug, Clone, Default)]
pub struct ScrubFigures {
    /// Packs, chunks and NARs that were checked.
    pub checked: [u64; 3],
    /// Stored bytes that were read.
    pub bytes_read: u64,
    /// Damaged packs, chunks and NARs.
    pub damaged: [u64; 3],
    /// Packs that are missing.
    pub packs_lost: u64,
    /// The first findings.
    pub findings: Vec<String>,
}

/// `/_dormer/damage`
#[derive(Debug, Clone)]
pub struct DamageView {
    /// The scrub that is open now.
    pub running: Option<ScrubFigures>,
    /// When the last one ended, and what it found.
    pub last: Option<(i64, ScrubFigures)>,
    /// Jobs that look which paths need damaged bytes.
    pub spreading: bool,
}

impl DamageView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let content = html! {
            p { "A path that needs damaged bytes counts as missing. A push of any path that shares them heals them." }
            @if self.spreading { p.notice role="status" { "Damaged bytes were found: a job looks which paths need them." } }
            @if let Some(running) = &self.running {
                section { h2 { "The scrub that runs" } (scrubbed(running)) }
            }
            section {
                h2 { "The last scrub" }
                @match &self.last {
                    None => p { "None has ended yet. dormer scrub begins one." },
                    Some((at, found)) => { p { "Ended " (moment(frame, *at)) "." } (scrubbed(found)) },
                }
            }
        };
        OperatorPage::Damage.render(frame, &content)
    }
}

fn scrubbed(of: &ScrubFigures) -> Markup {
    let is_sound = of.damaged == [0; 3] && of.packs_lost == 0;
    let three = |[packs, chunks, nars]: [u64; 3]| {
        format!(
            "{}, {}, {}",
            counted(packs, "pack", "packs"),
            counted(chunks, "chunk", "chunks"),
            counted(nars, "NAR", "NARs")
        )
    };
    html! {
        dl.facts {
            div { dt { "Checked" } dd { (three(of.checked)) } }
            div { dt { "Read" } dd { (size(of.bytes_read)) } }
            div { dt { "Damaged" } dd class=(if is_sound { "good" } else { "bad" }) { @if is_sound { "nothing" } @else { (three(of.damaged)) } } }
            div { dt { "Missing packs" } dd { (number(of.packs_lost)) } }
        }
        @if !of.findings.is_empty() {
            @let (findings, left) = first(&of.findings, FINDINGS_SHOWN);
            ul { @for finding in findings { li { (shortened(finding, 150)) } } }
            @if left > 0 { p { "And more: dormer scrub --json names a hundred." } }
        }
    }
}

/// An entry of the audit.
#[derive(Debug, Clone)]
pub struct AuditRow {
    /// When.
    pub at: i64,
    /// The subject of the token.
    pub subject: Option<String>,
    /// What was done.
    pub action: String,
    /// In which cache, if its name is known.
    pub cache: Option<String>,
    /// To which path.
    pub hash: Option<String>,
}

/// `/_dormer/audit`
#[derive(Debug, Clone)]
pub struct AuditView {
    /// The filters: cache, action, actor, each as [`AuditView::filter`] has it. Empty ones filter
    /// nothing.
    pub filters: [String; 3],
    /// Entries that fit, the newest first.
    pub entries: Vec<AuditRow>,
    /// Where the next page begins.
    pub next: Option<i64>,
}

impl AuditView {
    /// Entries on a page.
    pub const ROWS: usize = ENTRIES_SHOWN;

    /// Longest filter, in characters.
    pub const FILTER_CHARACTERS: usize = 400;

    /// A filter as the page shows it, whatever a browser sends: the page's form and its links send
    /// the same one again.
    pub fn filter(text: &str) -> String {
        visible(text.trim_matches(|one: char| one.is_ascii_whitespace()))
    }

    /// What a filter looks for: what the page shows of an entry finds the entry, also if it has
    /// characters that only an escape shows.
    pub fn wanted(filter: &str) -> String {
        read(filter)
    }

    /// The beginning of an actor that the page cut: a filter for what the page shows finds it.
    pub fn cut(filter: &str) -> Option<&str> {
        filter.strip_suffix(CUT)
    }

    /// The names of the filters in an address.
    pub const FILTERS: [&'static str; 3] = ["cache", "action", "actor"];

    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let labels = ["Cache", "Action", "Actor"];
        let mut query = String::from("?");
        for (name, value) in Self::FILTERS.iter().zip(&self.filters) {
            if !value.is_empty() {
                let _ =
                    write!(query, "{name}={}&", escape_segment(&shortened(value, Self::FILTER_CHARACTERS)));
            }
        }
        let content = html! {
            p { "What people did that cannot be undone, the newest first. The actor is the subject of the token. A filter that ends with " (CUT) " finds actors by their beginning, and " code { "\\u{202e}" } " in a filter is the character of this number." }
            form.filters method="get" action=(frame.link(OperatorPage::Audit.address())) role="search" {
                @for ((name, label), value) in Self::FILTERS.iter().zip(labels).zip(&self.filters) {
                    div {
                        label for=(name) { (label) }
                        input id=(name) name=(name) value=(shortened(value, Self::FILTER_CHARACTERS)) maxlength=(Self::FILTER_CHARACTERS) autocomplete="off" spellcheck="false" list=[(*name == "action").then_some("actions")];
                    }
                }
                datalist #actions { option value="remove path" {} option value="delete cache" {} }
                button { "Filter" }
            }
            @if self.entries.is_empty() {
                p role="status" { @if self.next.is_some() { "Nothing so far: older entries follow." } @else { "Nothing here." } }
            } @else {
                table.wide {
                    thead { tr { th scope="col" { "When" } th scope="col" { "Actor" } th scope="col" { "Action" } th scope="col" { "Cache" } th scope="col" { "Path" } } }
                    tbody {
                        @for entry in first(&self.entries, ENTRIES_SHOWN).0 {
                            tr {
                                th scope="row" { (date(entry.at)) }
                                td data-label="Actor" { @match &entry.subject { Some(subject) => (written(subject, NAME_CHARACTERS)), None => span.quiet { "not named" } } }
                                td data-label="Action" { (written(&entry.action, 30)) }
                                td data-label="Cache" { @if let Some(cache) = &entry.cache { (written(cache, NAME_CHARACTERS)) } }
                                td data-label="Path" { @if let Some(hash) = &entry.hash { code { (shortened(hash, 40)) } } }
                            }
                        }
                    }
                }
            }
            @if let Some(next) = self.next { p { a.button rel="next" href={ (query) "before=" (next) } { "Older" } } }
        };
        OperatorPage::Audit.render(frame, &content)
    }
}
