//! The screen of `dormer top`.
//!
//! Invariants
//! - However the command ends (a key, a signal, an error, a panic), the terminal is as before:
//!   [`Screen`] restores it when it is dropped, and a hook does when something panics.
//! - No text of a server reaches the terminal before `terminal_text` has taken what it would obey.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormer_api::v2::{JobEntry, QueueStatus, StatusResponse, TargetEntry};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};
use tokio::sync::mpsc;

use super::watched_server::{Rates, WatchedServer, human_rate};
use crate::settings::units::{ago, counted, human_duration, human_size};
use crate::terminal_text::shown;

/// How often the thread that reads keys looks whether the screen is gone.
const LOOK: Duration = Duration::from_millis(100);

/// What the thread that reads keys tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The person wants to leave.
    Quit,
    /// The terminal has another size.
    Resized,
}

/// The whole terminal, until this is dropped.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    told: mpsc::Receiver<Told>,
    is_gone: Arc<AtomicBool>,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        let is_gone = Arc::new(AtomicBool::new(false));
        let (sender, told) = mpsc::channel(8);
        let ended = Arc::clone(&is_gone);
        // Reading keys blocks, so it has a thread of its own, which ends with the screen.
        std::thread::spawn(move || read_keys(&sender, &ended));
        Ok(Self { terminal, told, is_gone })
    }

    pub(super) fn draw(&mut self, watched: &WatchedServer) -> io::Result<()> {
        self.terminal.draw(|frame| paint(frame, watched)).map(drop)
    }

    /// Waits until the screen must be drawn again. `false`: the person wants to leave.
    pub(super) async fn is_resized(&mut self) -> bool {
        self.told.recv().await == Some(Told::Resized)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.is_gone.store(true, Ordering::Relaxed);
        ratatui::restore();
    }
}

fn read_keys(sender: &mpsc::Sender<Told>, is_gone: &AtomicBool) {
    while !is_gone.load(Ordering::Relaxed) {
        let told = match event::poll(LOOK) {
            Ok(false) => None,
            Ok(true) => match event::read() {
                Ok(Event::Key(key)) if quits(&key) => Some(Told::Quit),
                Ok(Event::Resize(..)) => Some(Told::Resized),
                Ok(_) => None,
                Err(_) => Some(Told::Quit),
            },
            // The terminal is gone.
            Err(_) => Some(Told::Quit),
        };
        // A full channel holds a change that is drawn soon, or the wish to leave.
        if told.is_some_and(|told| sender.blocking_send(told).is_err() || told == Told::Quit) {
            return;
        }
    }
}

fn quits(key: &KeyEvent) -> bool {
    let is_control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (is_control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// For what only the database knows, while it does not answer.
const NOT_TOLD: &str = "the database does not say now";

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

fn paint(frame: &mut Frame<'_>, watched: &WatchedServer) {
    let Some(status) = &watched.status else { return };
    let tables = |rows: usize| u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(2);
    let queues: Vec<&QueueStatus> = busy(&status.queues);
    let [head, pictures, turns, jobs, targets, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(6),
        Constraint::Length(tables(queues.len().clamp(1, 6))),
        Constraint::Min(3),
        Constraint::Length(tables(status.targets.len().clamp(1, 5))),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    paint_head(frame, head, watched, status);
    paint_rates(frame, pictures, watched);
    paint_queues(frame, turns, &queues);
    paint_jobs(frame, jobs, status);
    paint_targets(frame, targets, status.known_targets());
    frame.render_widget(Line::styled("q quits", DIM), foot);
}

fn paint_head(frame: &mut Frame<'_>, area: Rect, watched: &WatchedServer, status: &StatusResponse) {
    let up = Duration::from_secs((status.now - status.started_at).max(0).unsigned_abs());
    let first = format!(
        "{}: {}, version {}, up {}",
        watched.server,
        status.process,
        status.version,
        human_duration(up)
    );
    let requests = &status.requests;
    let second = format!(
        "{} connections, {} in flight, {} uploading; since the start {} answered, {} failed, {} refused",
        requests.connections,
        requests.in_flight,
        status.pushes.uploading,
        requests.answered,
        requests.failed,
        requests.refused
    );
    let state = match (&watched.failure, &status.not_ready) {
        (Some(failure), _) => Line::styled(format!("no answer: {}", shown(failure)), REVERSED),
        (None, Some(reason)) => Line::styled(format!("not ready: {}", shown(reason)), REVERSED),
        (None, None) => Line::raw("database and store answer"),
    };
    let lines =
        vec![Line::styled(shown(&first).into_owned(), BOLD), Line::raw(shown(&second).into_owned()), state];
    frame.render_widget(Paragraph::new(lines), area);
}

fn paint_rates(frame: &mut Frame<'_>, area: Rect, watched: &WatchedServer) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    let (reads, pushes) = match watched.now {
        Some(rates) => (
            format!(
                "reads {:.1}/s, NARs {:.1}/s, {}/s",
                rates.narinfos,
                rates.nars,
                human_rate(rates.sent_bytes)
            ),
            format!(
                "pushes {:.1}/s, {}/s, new {}/s",
                rates.pushes,
                human_rate(rates.pushed_bytes),
                human_rate(rates.new_bytes)
            ),
        ),
        None => ("reads".to_owned(), "pushes".to_owned()),
    };
    paint_picture(frame, left, reads, watched, |rates| rates.sent_bytes);
    paint_picture(frame, right, pushes, watched, |rates| rates.pushed_bytes);
}

/// The newest rates that fit, the last at the right edge.
fn paint_picture(
    frame: &mut Frame<'_>,
    area: Rect,
    title: String,
    watched: &WatchedServer,
    of: fn(&Rates) -> f64,
) {
    let block = Block::bordered().title(title);
    let columns = usize::from(block.inner(area).width);
    let skipped = watched.rates.len().saturating_sub(columns);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are never negative")]
    let values: Vec<u64> = watched.rates.iter().skip(skipped).map(|rates| of(rates).ceil() as u64).collect();
    frame.render_widget(Sparkline::default().block(block).data(&values), area);
}

/// What somebody waits for first, then what is taken the most.
fn busy(queues: &[QueueStatus]) -> Vec<&QueueStatus> {
    let mut busy: Vec<&QueueStatus> = queues
        .iter()
        .filter(|queue| queue.waiting > 0 || queue.in_use.is_some_and(|taken| taken > 0))
        .collect();
    let share = |queue: &QueueStatus| {
        let whole = u128::from(queue.limit.unwrap_or(0));
        (u128::from(queue.in_use.unwrap_or(0)) * 1_000).checked_div(whole).unwrap_or(0)
    };
    busy.sort_by_key(|queue| std::cmp::Reverse((queue.waiting, share(queue))));
    busy
}

fn table<'a>(
    title: &'a str,
    head: [&'static str; 4],
    rows: Vec<[String; 4]>,
    widths: [Constraint; 4],
    none: &'static str,
) -> Table<'a> {
    let is_empty = rows.is_empty();
    let rows: Vec<Row<'_>> = if is_empty {
        vec![Row::new([none]).style(DIM)]
    } else {
        rows.into_iter().map(|row| Row::new(row.map(|text| shown(&text).into_owned()))).collect()
    };
    let widths = if is_empty { vec![Constraint::Fill(1)] } else { widths.to_vec() };
    let head = head.join("  ");
    Table::new(rows, widths).block(Block::bordered().title(format!("{title}: {head}")))
}

/// The rows that fit into a frame. The last one says how many others there are, with those that the
/// server did not name.
fn cut(mut rows: Vec<[String; 4]>, unnamed: u64, area: Rect) -> Vec<[String; 4]> {
    let room = usize::from(area.height.saturating_sub(2)).max(1);
    let all = rows.len() as u64 + unnamed;
    if rows.len() > room || unnamed > 0 {
        rows.truncate(room - 1);
        let left = all - rows.len() as u64;
        rows.push([format!("and {left} more"), String::new(), String::new(), String::new()]);
    }
    rows
}

fn paint_queues(frame: &mut Frame<'_>, area: Rect, queues: &[&QueueStatus]) {
    let amount = |name: &str, value: Option<u64>| match value {
        Some(value) if name.contains("memory") => human_size(value),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    let rows = queues.iter().map(|queue| {
        let taken = amount(&queue.name, queue.in_use);
        let of =
            queue.limit.map_or_else(String::new, |limit| format!("of {}", amount(&queue.name, Some(limit))));
        [queue.name.clone(), taken, of, format!("{} waiting", queue.waiting)]
    });
    let widths =
        [Constraint::Fill(2), Constraint::Length(12), Constraint::Length(14), Constraint::Length(14)];
    let rows = cut(rows.collect(), 0, area);
    let table = table("turns", ["what", "in use", "of", "waiting"], rows, widths, "nothing waits");
    frame.render_widget(table, area);
}

fn paint_jobs(frame: &mut Frame<'_>, area: Rect, status: &StatusResponse) {
    let about = |job: &&JobEntry| {
        let name = job.cache.as_ref().or(job.target.as_ref());
        name.map_or_else(|| job.kind.clone(), |name| format!("{} {name}", job.kind))
    };
    let state = |job: &&JobEntry| match (&job.error, &job.holder) {
        (Some(error), _) => format!("{} failed: {error}", job.failures),
        (None, Some(holder)) => holder.clone(),
        (None, None) => "waiting".to_owned(),
    };
    let (shown, none) = match status.known_jobs() {
        Some(jobs) => (jobs, "no jobs are open"),
        None => (&[][..], NOT_TOLD),
    };
    let mut shown: Vec<&JobEntry> = shown.iter().collect();
    // Those that fail come first, so that none of them is cut off.
    shown.sort_by_key(|job| job.error.is_none());
    let rows = shown.iter().map(|job| {
        let done = counted(job.rows_done, "row", "rows");
        [about(job), done, ago(status.now, job.created_at), state(job)]
    });
    let widths = [Constraint::Fill(2), Constraint::Length(14), Constraint::Length(18), Constraint::Fill(2)];
    let counts = status.job_counts.unwrap_or_default();
    let title = match (counts.failing, status.job_counts) {
        (0, None) if status.more_jobs => "jobs, the oldest".to_owned(),
        (0, _) => "jobs".to_owned(),
        (failing, _) => format!("jobs, {failing} failing"),
    };
    // An earlier server does not count those that it leaves out.
    let unnamed = counts.open.saturating_sub(shown.len() as u64);
    let rows = cut(rows.collect(), unnamed, area);
    let table = table(&title, ["kind", "done", "opened", "run by"], rows, widths, none);
    frame.render_widget(table, area);
}

fn paint_targets(frame: &mut Frame<'_>, area: Rect, targets: Option<&[TargetEntry]>) {
    let (targets, none) = match targets {
        Some(targets) => (targets, "nothing was published yet"),
        None => (&[][..], NOT_TOLD),
    };
    let lag = |target: &&TargetEntry| match target.lag_seconds {
        0 => "no lag".to_owned(),
        seconds => format!("lag {}", human_duration(Duration::from_secs(seconds))),
    };
    let mut targets: Vec<&TargetEntry> = targets.iter().collect();
    targets.sort_by_key(|target| std::cmp::Reverse((target.error.is_some(), target.lag_seconds)));
    let rows = targets.iter().map(|target| {
        let failed = if target.error.is_some() { ", the last run failed" } else { "" };
        [
            target.name.clone(),
            format!("{} published", target.published),
            format!("{} pending", target.pending),
            format!("{}{failed}", lag(target)),
        ]
    });
    let widths = [Constraint::Fill(1), Constraint::Length(20), Constraint::Length(18), Constraint::Fill(1)];
    let head = ["target", "published", "pending", "lag"];
    let table = table("publishing", head, cut(rows.collect(), 0, area), widths, none);
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use dormer_api::v2::JobCounts;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::commands::watched_server::tests::{later, status, without_database};

    fn painted(watched: &WatchedServer, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| paint(frame, watched)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        let text = rows.map(|row| {
            row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
        });
        text.collect::<Vec<_>>().join("\n")
    }

    fn watched() -> WatchedServer {
        let mut watched = WatchedServer::new("lab".to_owned());
        let begin = Instant::now();
        watched.answer(status(), begin);
        watched.answer(later(), begin + Duration::from_secs(10));
        watched
    }

    #[test]
    fn the_screen_shows_reads_pushes_turns_jobs_and_targets() {
        insta::assert_snapshot!("top_screen", painted(&watched(), 100, 24));
    }

    #[test]
    fn what_the_database_does_not_say_is_no_empty_table() {
        let mut silent = watched();
        silent.status = Some(without_database());
        let text = painted(&silent, 100, 24);
        assert_eq!(text.matches(NOT_TOLD).count(), 2, "{text}");
        assert!(!text.contains("no jobs are open") && !text.contains("nothing was published"), "{text}");
    }

    /// Nobody may miss the one that fails because others come before it.
    #[test]
    fn what_does_not_fit_is_told_and_does_not_fail() {
        let mut many = watched();
        if let Some(status) = &mut many.status {
            let (job, target) = (status.jobs[0].clone(), status.targets[0].clone());
            let named = |number: usize| {
                let error = (number == 19).then(|| "no route".to_owned());
                let of = |kind: &str| format!("{kind}-{number:02}");
                (
                    JobEntry { kind: of("job"), error: error.clone(), ..job.clone() },
                    TargetEntry { name: of("target"), error, lag_seconds: number as u64, ..target.clone() },
                )
            };
            (status.jobs, status.targets) = (0..20).map(named).unzip();
        }
        let text = painted(&many, 120, 30);
        assert!(text.contains("job-19") && text.contains("job-00") && !text.contains("job-18"), "{text}");
        assert!(text.contains("target-19") && text.contains("target-18"), "{text}");
        let told = |name: &str| text.matches(name).count();
        assert_eq!(text.matches("and 16 more").count(), 1, "of 20 targets, five rows: {text}");
        assert_eq!(told("target-"), 4, "{text}");
        assert!(text.contains(&format!("and {} more", 20 - told("job-"))), "{text}");
        // The server names twenty of them.
        if let Some(status) = &mut many.status {
            status.more_jobs = true;
            status.job_counts = Some(JobCounts { open: 50, running: 1, failing: 3 });
        }
        let text = painted(&many, 120, 60);
        assert!(text.contains("jobs, 3 failing: kind") && text.contains("and 30 more"), "{text}");
        assert_eq!(text.matches("job-").count(), 20, "{text}");
        // An earlier one names the oldest.
        if let Some(status) = &mut many.status {
            status.job_counts = None;
        }
        assert!(painted(&many, 120, 60).contains("jobs, the oldest: kind"));
    }

    #[test]
    fn what_a_server_says_is_not_obeyed_and_a_small_terminal_is_no_panic() {
        let mut hostile = watched();
        let evil = "\u{1b}]0;title\u{7}\u{202e}";
        if let Some(status) = &mut hostile.status {
            status.process = evil.to_owned();
            status.jobs[0].error = Some(evil.to_owned());
            status.targets[0].name = evil.to_owned();
            status.queues[0].name = evil.to_owned();
        }
        hostile.failure = Some(evil.to_owned());
        let text = painted(&hostile, 160, 30);
        assert!(text.contains("\\u{1b}]0;title"), "{text}");
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{7}') && !text.contains('\u{202e}'),
            "{text:?}"
        );
        for (width, height) in [(1, 1), (3, 40), (200, 2), (20, 10)] {
            painted(&hostile, width, height);
        }
    }

    #[test]
    fn q_escape_and_control_c_quit() {
        let key = |code, modifiers| KeyEvent::new(code, modifiers);
        assert!(quits(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(quits(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(quits(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!quits(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
    }
}
