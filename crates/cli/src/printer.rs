//! The printer decides what is printed. Nothing else in this program writes to standard output or
//! standard error, except the log lines of `serve` and the screen of `top`.
//!
//! Standard output is data, and standard error is conversation. Both may close at any time: a
//! reader that has read enough (`dormer cache list | head -1`) is not a failure.
//!
//! Every line passes through `terminal_text`, because much of it comes from servers. The only
//! escape sequences in the output are the colours that this file adds.

use std::io::{self, IsTerminal as _, Write as _};

use indicatif::ProgressDrawTarget;
use serde::Serialize;

use crate::chart::{self, Bar};
use crate::error::{Error, Result};
use crate::terminal::columns_of_stdout;
use crate::terminal_text::{ShownFile, shown, shown_json};

/// How much the program prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Nothing, not even errors. The exit code is the only answer.
    Silent,
    /// Data and errors.
    Quiet,
    Default,
    /// Also what was skipped, and why.
    Verbose,
}

/// Prints data and messages.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    pub(crate) level: Level,
    /// Data as JSON lines instead of text.
    pub(crate) json: bool,
    progress: bool,
    colour: bool,
    /// The columns of standard output, if it is a terminal for charts and whole screens.
    columns: Option<usize>,
}

impl Printer {
    pub(crate) fn new(level: Level, json: bool, progress: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        // https://no-color.org: set, and not to the empty text.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            level,
            json,
            progress: progress && terminal && !dumb && level == Level::Default,
            colour: terminal && !no_color && !dumb,
            columns: (io::stdout().is_terminal() && !dumb && !json && level >= Level::Default)
                .then(columns_of_stdout),
        }
    }

    /// Whether standard output is a terminal for charts and whole screens.
    pub(crate) fn draws(&self) -> bool {
        self.columns.is_some()
    }

    /// A chart behind the data, on a terminal. Programs that read the data get none.
    pub(crate) fn chart(&self, rows: &[Bar]) -> Result<()> {
        let Some(columns) = self.columns else { return Ok(()) };
        let lines = chart::lines(rows, columns);
        if !lines.is_empty() {
            self.data("")?;
        }
        lines.iter().try_for_each(|line| self.data(line))
    }

    /// More lines of a chart. On a terminal that is too narrow for one, it is left out.
    pub(crate) fn chart_lines(&self, lines: &[String]) -> Result<()> {
        let Some(columns) = self.columns else { return Ok(()) };
        if lines.is_empty() || lines.iter().any(|line| line.chars().count() > columns) {
            return Ok(());
        }
        self.data("")?;
        lines.iter().try_for_each(|line| self.data(line))
    }

    /// A line of data, on standard output.
    pub(crate) fn data(&self, line: &str) -> Result<()> {
        self.to_stdout(&shown(line))
    }

    /// A line of data that begins with a coloured mark.
    pub(crate) fn marked_data(&self, code: &str, mark: &str, line: &str) -> Result<()> {
        self.to_stdout(&format!("{} {}", self.painted(code, mark), shown(line)))
    }

    /// Data that comes as bytes: a file. A terminal shows what it would obey.
    pub(crate) fn file_data(&self) -> FileData {
        let shown = io::stdout().is_terminal().then(ShownFile::default);
        FileData { is_silent: self.level == Level::Silent && shown.is_some(), shown }
    }

    /// Several lines of data.
    pub(crate) fn data_lines(&self, text: &str) -> Result<()> {
        text.lines().try_for_each(|line| self.data(line))
    }

    /// One JSON value as data, on one line.
    pub(crate) fn json_data<T: Serialize>(&self, value: &T) -> Result<()> {
        let text = serde_json::to_string(value).expect("our values have text keys only");
        self.to_stdout(&shown_json(&text))
    }

    /// A line of JSON on standard output, if JSON was requested.
    pub(crate) fn message<T: Serialize>(&self, message: &T) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        self.json_data(message)
    }

    /// A normal message on standard error.
    pub(crate) fn say(&self, line: &str) {
        if self.level >= Level::Default {
            to_stderr(&shown(line));
        }
    }

    /// A question, without which the program would wait for no visible reason.
    #[expect(clippy::unused_self, reason = "all output goes through a printer")]
    pub(crate) fn ask(&self, line: &str) {
        to_stderr(&shown(line));
    }

    /// A message for `--verbose` only.
    pub(crate) fn detail(&self, line: &str) {
        if self.level >= Level::Verbose {
            to_stderr(&shown(line));
        }
    }

    /// A warning about a possible mistake.
    pub(crate) fn warn(&self, line: &str) {
        if self.level >= Level::Default {
            to_stderr(&format!("{} {}", self.painted("33", "warning:"), shown(line)));
        }
    }

    /// Advice.
    pub(crate) fn hint(&self, line: &str) {
        if self.level >= Level::Quiet {
            to_stderr(&format!("{} {}", self.painted("36", "hint:"), shown(line)));
        }
    }

    /// The error that ends the program, as one line with its causes.
    pub(crate) fn error(&self, line: &str) {
        if self.level >= Level::Quiet {
            to_stderr(&format!("{} {}", self.painted("31;1", "error:"), shown(line)));
        }
    }

    /// The error that ends the program, as JSON.
    #[expect(clippy::unused_self, reason = "all output goes through a printer")]
    pub(crate) fn json_error(&self, message: &serde_json::Value) {
        to_stderr(&shown_json(&message.to_string()));
    }

    /// The last message of an action, which is complete by itself.
    pub(crate) fn conclude(&self, line: &str) {
        if self.level >= Level::Default {
            to_stderr(&self.painted("1", line));
        }
    }

    /// The target for progress bars. `None` means lines for large transfers instead.
    pub(crate) fn progress_target(&self) -> Option<ProgressDrawTarget> {
        (self.progress && !self.json).then(ProgressDrawTarget::stderr)
    }

    fn painted(&self, code: &str, text: &str) -> String {
        let text = shown(text);
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.into_owned() }
    }

    fn to_stdout(&self, line: &str) -> Result<()> {
        if self.level == Level::Silent {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::Output)
    }
}

/// A file on its way to standard output.
pub(crate) struct FileData {
    is_silent: bool,
    /// How a terminal gets it.
    shown: Option<ShownFile>,
}

impl FileData {
    /// Writes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.shown {
            _ if self.is_silent => Ok(()),
            Some(shown) => io::stdout().write_all(shown.push(bytes).as_bytes()).map_err(Error::Output),
            None => io::stdout().write_all(bytes).map_err(Error::Output),
        }
    }

    /// Writes what is left.
    pub(crate) fn finish(self) -> Result<()> {
        let rest = self.shown.filter(|_| !self.is_silent).map(ShownFile::finish).unwrap_or_default();
        let mut out = io::stdout().lock();
        out.write_all(rest.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
    }
}

/// Ignores failures: if standard error is closed, nobody reads the message.
fn to_stderr(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
