//! Small charts of sizes, for a terminal: a pure function from rows to lines.

use crate::settings::units::human_size;

/// Longest label, in characters; a longer one is cut.
const LABEL_MAX: usize = 36;

/// Longest and shortest bar, in characters. A terminal without room for the shortest gets no chart.
const BAR_MAX: usize = 40;
const BAR_MIN: usize = 10;

/// Rows of a chart.
const ROWS_MAX: usize = 12;

/// Characters for the size behind the label.
const SIZE_WIDTH: usize = 10;

/// A row of a chart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bar {
    label: String,
    bytes: u64,
}

impl Bar {
    pub(crate) fn new(label: impl Into<String>, bytes: u64) -> Self {
        Self { label: label.into(), bytes }
    }
}

/// The lines of a chart that fits a terminal of so many columns. Nothing is drawn if all rows are
/// empty.
pub(crate) fn lines(rows: &[Bar], columns: usize) -> Vec<String> {
    let rows = &rows[..rows.len().min(ROWS_MAX)];
    let largest = rows.iter().map(|row| row.bytes).max().unwrap_or(0);
    let label = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0).min(LABEL_MAX);
    let room = columns.saturating_sub(label + SIZE_WIDTH + 4).min(BAR_MAX);
    if largest == 0 || room < BAR_MIN {
        return Vec::new();
    }
    let line = |row: &Bar| {
        let text = shortened(&row.label);
        let size = human_size(row.bytes);
        format!("{text:<label$}  {size:>SIZE_WIDTH$}  {}", bar(row.bytes, largest, room))
            .trim_end()
            .to_owned()
    };
    rows.iter().map(line).collect()
}

fn shortened(label: &str) -> String {
    match label.char_indices().nth(LABEL_MAX) {
        Some(_) => label.chars().take(LABEL_MAX - 1).chain(['…']).collect(),
        None => label.to_owned(),
    }
}

/// A bar in eighths of a character. What is there is seen.
fn bar(part: u64, whole: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let all = u128::try_from(width).unwrap_or(0) * 8;
    let filled = (u128::from(part) * all).div_ceil(u128::from(whole.max(1))).min(all);
    let (full, rest) =
        (usize::try_from(filled / 8).unwrap_or(width), usize::try_from(filled % 8).unwrap_or(0));
    format!("{}{}", "█".repeat(full), EIGHTHS[rest])
}

/// A column for each value, of eight heights, on one line.
pub(crate) fn columns_of(values: &[u64]) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = u128::from(values.iter().copied().max().unwrap_or(0).max(1));
    let height = |value: &u64| usize::try_from((u128::from(*value) * 7).div_ceil(largest)).unwrap_or(7);
    values.iter().map(|value| HEIGHTS[height(value).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share_and_fit_the_terminal() {
        let rows = [
            Bar::new("stored", 900 << 20),
            Bar::new("saved by holes", 450 << 20),
            Bar::new("little", 1),
            Bar::new("nothing", 0),
        ];
        insta::assert_snapshot!(lines(&rows, 80).join("\n"), @r"
        stored           900.0 MiB  ████████████████████████████████████████
        saved by holes   450.0 MiB  ████████████████████
        little                 1 B  ▏
        nothing                0 B
        ");
        for columns in [38, 50, 80, 500] {
            let widest = lines(&rows, columns).iter().map(|line| line.chars().count()).max();
            assert!(widest.is_some_and(|widest| widest <= columns.min(80)), "{columns}: {widest:?}");
        }
        assert_eq!(lines(&rows, 30), Vec::<String>::new(), "no room");
        assert_eq!(lines(&rows[3..], 80), Vec::<String>::new(), "nothing to show");
        assert_eq!(lines(&[], 80), Vec::<String>::new());
    }

    #[test]
    fn labels_are_cut_and_rows_are_few() {
        let rows = vec![Bar::new("é".repeat(300), u64::MAX); 50];
        let shown = lines(&rows, 200);
        assert_eq!(shown.len(), ROWS_MAX);
        assert!(shown[0].starts_with(&format!("{}…  ", "é".repeat(LABEL_MAX - 1))), "{}", shown[0]);
    }
}
