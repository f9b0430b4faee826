//! The history of a cache or of the installation, day by day without a gap, for pages and the API.

use dormer_api::v2::HistoryEntry;
use dormer_index::{CacheId, Day, HISTORY_DAYS, HISTORY_REPEATED_DAYS, HistoryDay, PathCounts};

use crate::app::App;
use crate::call::Call;
use crate::failure::Failure;

/// Days that a page shows.
pub(super) const PAGE_DAYS: i64 = 90;

/// What is there now, which is what the history says of today.
#[derive(Debug, Clone, Copy)]
pub(super) struct Present {
    pub(super) counts: PathCounts,
    /// Of the whole installation alone.
    pub(super) stored_bytes: Option<u64>,
    /// Whether the caller may know what was pushed and pulled.
    pub(super) shows_activity: bool,
}

/// The days that the caller asks for, with `days=`.
pub(super) fn wanted_days(call: &Call) -> Result<Option<i64>, Failure> {
    let Some(text) = call.query("days") else { return Ok(None) };
    let days = text.parse().ok().filter(|days| (1..=HISTORY_DAYS).contains(days));
    let bad = || Failure::BadRequest(format!("`days` is no number from 1 to {HISTORY_DAYS}"));
    days.map(Some).ok_or_else(bad)
}

/// The last days of a cache, or of the installation. One statement.
pub(super) async fn read(
    app: &App,
    cache: Option<CacheId>,
    present: Present,
    days: i64,
) -> Result<Vec<HistoryEntry>, Failure> {
    let today = Day::of(app.engine.now());
    // What rests has a row further back.
    let after = today.before(days + HISTORY_REPEATED_DAYS);
    let written = app.engine.index().history(cache, after).await;
    Ok(fill(&written.map_err(dormer_engine::Error::from)?, today, present, days))
}

/// Every day from the first one of which the sizes are known, at most so many. Sizes hold until the
/// next that were written.
fn fill(written: &[HistoryDay], today: Day, present: Present, days: i64) -> Vec<HistoryEntry> {
    let first = today.before(days - 1);
    let mut sizes: Option<(PathCounts, Option<u64>)> = None;
    let mut rest = written.iter().peekable();
    while let Some(day) = rest.next_if(|day| day.day < first) {
        sizes = day.counts.map(|counts| (counts, day.stored_bytes)).or(sizes);
    }
    let mut filled = Vec::new();
    for day in (first.0..=today.0).map(Day) {
        let written = rest.next_if(|written| written.day == day);
        let known = written.and_then(|written| Some((written.counts?, written.stored_bytes)));
        sizes = if day == today { Some((present.counts, present.stored_bytes)) } else { known.or(sizes) };
        let Some((counts, stored_bytes)) = sizes else { continue };
        let activity = present.shows_activity.then(|| written.map_or((0, 0), |of| (of.pushes, of.pulls)));
        filled.push(HistoryEntry {
            begins_at: day.begins_at(),
            paths: counts.paths,
            nar_bytes: counts.bytes,
            stored_bytes,
            pushes: activity.map(|(pushes, _)| pushes),
            pulls: activity.map(|(_, pulls)| pulls),
        });
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(day: i64, paths: Option<u64>, pulls: u64) -> HistoryDay {
        let counts = paths.map(|paths| PathCounts { paths, bytes: 10 * paths });
        HistoryDay { day: Day(day), counts, stored_bytes: None, pushes: 0, pulls }
    }

    #[test]
    fn days_without_a_row_hold_what_was_there_before() {
        let counts = PathCounts { paths: 9, bytes: 90 };
        let present = Present { counts, stored_bytes: None, shows_activity: true };
        let filled = |written: &[HistoryDay], days| {
            let filled = fill(written, Day(100), present, days);
            filled.iter().map(|day| (day.begins_at / 86_400, day.paths, day.pulls)).collect::<Vec<_>>()
        };
        assert_eq!(filled(&[], 90), [(100, 9, Some(0))]);
        let rows =
            [written(60, Some(3), 1), written(97, None, 7), written(98, Some(4), 0), written(100, None, 2)];
        let last = [(97, 3, Some(7)), (98, 4, Some(0)), (99, 4, Some(0)), (100, 9, Some(2))];
        assert_eq!(filled(&rows, 4), last, "what was known before the first day still holds");
        assert_eq!(filled(&rows, 41).len(), 41);
        assert_eq!(filled(&rows, 90).len(), 41, "nothing is made up before the first day");
        // Rows of a clock that was wrong once are not shown.
        assert_eq!(filled(&[written(200, Some(5), 5)], 2), [(100, 9, Some(0))]);
        let hidden = fill(&rows, Day(100), Present { shows_activity: false, ..present }, 4);
        assert!(hidden.iter().all(|day| day.pushes.is_none() && day.pulls.is_none()));
    }
}
