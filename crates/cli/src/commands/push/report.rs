//! What a push reports, apart from its progress.

use std::time::Duration;

use dormer_client::{CacheRef, PathDone, PushPlan, PushSummary, TraceSummary};
use dormer_nix::{DocumentName, StoreDir, StorePath};
use serde_json::json;

use crate::error::{self, Error, Result};
use crate::printer::Printer;
use crate::settings::units::{human_duration, human_size};

/// How many paths the filter left out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LeftOut {
    pub(super) excluded: usize,
    /// Those that refer to an excluded one.
    pub(super) incomplete: usize,
}

/// Prints what a push reports, apart from its progress.
pub(super) struct PushPrinter<'a> {
    pub(super) printer: &'a Printer,
    pub(super) store_dir: &'a StoreDir,
}

impl PushPrinter<'_> {
    fn full(&self, path: &StorePath) -> String {
        path.to_absolute(self.store_dir)
    }

    /// An argument that leads to no path, before anything is pushed.
    pub(super) fn unresolved(&self, argument: &str, error: &Error) -> Result<()> {
        self.printer.message(&json!({
            "message_type": "path", "path": argument, "state": "failed", "error": error.chain(),
        }))?;
        self.printer.error(&error.chain());
        for hint in error.hints() {
            self.printer.hint(&hint);
        }
        Ok(())
    }

    pub(super) fn log(&self, derivation: &StorePath, state: &str, error: Option<&Error>) -> Result<()> {
        let path = self.full(derivation);
        let error = error.map(Error::chain);
        self.printer
            .message(&json!({ "message_type": "log", "path": path, "state": state, "error": error }))?;
        match error {
            Some(error) if state == "too-long" => {
                self.printer.warn(&format!("left out a build log: {error}"));
            }
            Some(error) => self.printer.error(&error),
            None if state == "kept" => {
                self.printer.detail(&format!("the cache has a build log already: {path}"));
            }
            None => self.printer.detail(&format!("build log: {path}")),
        }
        Ok(())
    }

    /// Build traces. The first reason for which one was refused is the answer.
    pub(super) fn traces(&self, traces: TraceSummary) -> Result<()> {
        let TraceSummary { sent, kept, is_unsupported, failed } = traces;
        let line = |name: &DocumentName, state: &str, error: Option<&str>| {
            let name = name.to_string();
            self.printer.message(
                &json!({ "message_type": "trace", "document": name, "state": state, "error": error }),
            )
        };
        for name in &sent {
            line(name, "pushed", None)?;
        }
        for name in &kept {
            line(name, "kept", None)?;
            self.printer.detail(&format!("{name}: the cache has another path for this output"));
        }
        for (name, error) in &failed {
            let error = dormer_nix::with_causes(error);
            line(name, "failed", Some(&error))?;
            self.printer.error(&error);
        }
        if !sent.is_empty() {
            self.printer.say(&format!("pushed {} build traces", sent.len()));
        }
        if is_unsupported {
            self.printer.detail("this server takes no build traces");
        }
        if failed.is_empty() { Ok(()) } else { Err(Error::TracesLost { count: failed.len() }) }
    }

    pub(super) fn plan(&self, cache: &CacheRef, plan: &PushPlan) -> Result<()> {
        for path in &plan.invalid {
            let path = self.full(path);
            self.printer.error(&Error::from(dormer_client::Error::InvalidPath { path }).chain());
        }
        self.printer.message(&json!({
            "message_type": "plan", "cache": plan.cache.as_str(), "paths": plan.path_count(),
            "missing": plan.missing.len(), "missing_bytes": plan.missing_bytes(),
            "present": plan.present.len(), "upstream": plan.upstream.len(), "invalid": plan.invalid.len(),
            "excluded": plan.excluded.len(), "incomplete": plan.incomplete.len(),
        }))?;
        self.left_out(cache, plan)?;
        for (paths, state, label) in [
            (&plan.present, "present", "already there"),
            (&plan.upstream, "upstream", "skipped, upstream has it"),
        ] {
            for path in paths {
                self.printer.message(&json!({
                    "message_type": "path", "cache": cache.to_string(), "path": self.full(path), "state": state,
                }))?;
                self.printer.detail(&format!("{label}: {}", self.full(path)));
            }
        }
        Ok(())
    }

    /// What the filter keeps out: as asked for, and because of a reference.
    fn left_out(&self, cache: &CacheRef, plan: &PushPlan) -> Result<()> {
        for excluded in &plan.excluded {
            let (path, reason) = (self.full(&excluded.path), excluded.exclusion.to_string());
            self.printer.message(&json!({
                "message_type": "path", "cache": cache.to_string(), "path": path, "state": "excluded",
                "nar_size": excluded.nar_size, "reason": reason,
            }))?;
            self.printer.detail(&format!("excluded: {path}, because {reason}"));
        }
        for incomplete in &plan.incomplete {
            let (path, reference) = (self.full(&incomplete.path), self.full(&incomplete.excluded_reference));
            self.printer.message(&json!({
                "message_type": "path", "cache": cache.to_string(), "path": path, "state": "incomplete",
                "excluded_reference": reference,
            }))?;
            self.printer.warn(&format!("not pushed: {path} refers to {reference}, which is excluded"));
        }
        Ok(())
    }

    pub(super) fn dry_run(&self, cache: &CacheRef, plan: &PushPlan) -> Result<()> {
        for info in &plan.missing {
            let path = self.full(&info.path);
            if self.printer.json {
                self.printer.message(&json!({
                    "message_type": "path", "cache": cache.to_string(), "path": path, "state": "missing",
                    "nar_size": info.nar_size,
                }))?;
            } else {
                self.printer.data(&path)?;
            }
        }
        self.printer.conclude(&format!(
            "would push {} of {}{}, {}",
            plan.missing.len(),
            error::paths(plan.path_count()),
            others(&[
                (plan.present.len(), "already there"),
                (plan.upstream.len(), "upstream"),
                (plan.excluded.len(), "excluded"),
                (plan.incomplete.len(), "incomplete"),
            ]),
            human_size(plan.missing_bytes()),
        ));
        Ok(())
    }

    pub(super) fn summary(
        &self,
        cache: &CacheRef,
        summary: &PushSummary,
        left_out: LeftOut,
        planned: usize,
        elapsed: Duration,
    ) -> Result<()> {
        let cache = cache.to_string();
        for done in summary.pushed.iter().chain(&summary.kept) {
            self.printer.message(&done_message(&cache, &self.full(&done.path), done))?;
        }
        for failed in &summary.failed {
            self.printer.message(&json!({
                "message_type": "path", "cache": cache, "path": self.full(&failed.path), "state": "failed",
                "error": failed.error.to_string(),
            }))?;
        }
        for skipped in &summary.not_tried {
            let path = self.full(&skipped.path);
            let reference = skipped.failed_reference.as_ref().map(|reference| self.full(reference));
            self.printer.message(&json!({
                "message_type": "path", "cache": cache, "path": path, "state": "not_tried",
                "failed_reference": reference,
            }))?;
            match reference {
                Some(reference) => {
                    self.printer.say(&format!("not tried: {path}, because it refers to {reference}"));
                }
                None => self.printer.detail(&format!("not tried: {path}")),
            }
        }
        self.printer.message(&json!({
            "message_type": "summary", "cache": cache, "api": api_name(summary),
            "paths": planned, "pushed": summary.pushed.len(),
            "kept": summary.kept.len(), "present": summary.present.len(), "upstream": summary.upstream.len(),
            "failed": summary.failed.len(), "not_tried": summary.not_tried.len(),
            "excluded": left_out.excluded, "incomplete": left_out.incomplete,
            "bytes_read": summary.bytes_read, "bytes_sent": summary.bytes_sent, "bytes_saved": summary.bytes_saved,
            "seconds": elapsed.as_secs_f64(),
        }))?;
        self.printer.conclude(&last_line(summary, left_out, planned, elapsed));
        Ok(())
    }
}

/// The API that sent something, in the words of `--api`.
fn api_name(summary: &PushSummary) -> Option<&'static str> {
    let idle = summary.pushed.is_empty() && summary.kept.is_empty() && summary.bytes_sent == 0;
    (!idle).then_some(if summary.by_chunks { "v2" } else { "attic" })
}

/// The line of JSON for a path that the server acknowledged.
fn done_message(cache: &str, path: &str, done: &PathDone) -> serde_json::Value {
    json!({
        "message_type": "path", "cache": cache, "path": path,
        "state": if done.kept { "kept" } else { "pushed" },
        "nar_size": done.nar_size, "file_size": done.file_size, "deduplicated": done.frac_deduplicated,
    })
}

/// ` (400 already there, 19 upstream)`, without zero counts.
fn others(counts: &[(usize, &str)]) -> String {
    let said: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) }
}

/// The last line, which is complete by itself.
fn last_line(summary: &PushSummary, left_out: LeftOut, planned: usize, elapsed: Duration) -> String {
    let lost = summary.failed.len() + summary.not_tried.len();
    format!(
        "pushed {} of {}{}, {} read, {} sent, {} deduplicated, {}",
        summary.pushed.len(),
        error::paths(planned),
        others(&[
            (summary.kept.len(), "not replaced"),
            (summary.present.len(), "already there"),
            (summary.upstream.len(), "upstream"),
            (left_out.excluded, "excluded"),
            (left_out.incomplete, "incomplete"),
            (lost, "lost")
        ]),
        human_size(summary.bytes_read),
        human_size(summary.bytes_sent),
        human_size(summary.bytes_saved),
        human_duration(elapsed),
    )
}

#[cfg(test)]
mod tests {
    use dormer_client::NotTriedPath;

    use super::*;

    fn path(name: &str) -> StorePath {
        format!("f22352qy5d2vfxv22w7q3n7gz1ia47nx-{name}").parse().unwrap()
    }

    #[test]
    fn the_last_line_stands_alone() {
        let mut summary = PushSummary {
            present: vec![path("a")],
            upstream: vec![path("b"), path("c")],
            bytes_read: 40_055_603,
            bytes_sent: 40_055_603,
            bytes_saved: 12 << 20,
            ..PushSummary::default()
        };
        let elapsed = Duration::from_millis(9_420);
        insta::assert_snapshot!(last_line(&summary, LeftOut::default(), 3, elapsed), @"pushed 0 of 3 paths (1 already there, 2 upstream), 38.2 MiB read, 38.2 MiB sent, 12.0 MiB deduplicated, 9.4 s");
        summary.not_tried = vec![NotTriedPath { path: path("d"), failed_reference: None }];
        insta::assert_snapshot!(last_line(&summary, LeftOut::default(), 4, elapsed), @"pushed 0 of 4 paths (1 already there, 2 upstream, 1 lost), 38.2 MiB read, 38.2 MiB sent, 12.0 MiB deduplicated, 9.4 s");
    }

    #[test]
    fn a_path_that_the_cache_kept_as_it_was_is_not_called_pushed() {
        let done = |kept| PathDone {
            path: path("a"),
            nar_size: 1,
            kind: dormer_api::UploadPathResultKind::Uploaded,
            file_size: None,
            frac_deduplicated: None,
            kept,
        };
        assert_eq!(done_message("main", "/p", &done(false))["state"], "pushed");
        assert_eq!(done_message("main", "/p", &done(true))["state"], "kept");
        let summary = PushSummary { kept: vec![done(true)], ..PushSummary::default() };
        insta::assert_snapshot!(last_line(&summary, LeftOut::default(), 1, Duration::from_millis(100)), @"pushed 0 of 1 path (1 not replaced), 0 B read, 0 B sent, 0 B deduplicated, 0.1 s");
    }

    #[test]
    fn what_is_left_out_is_counted_apart() {
        let left_out = LeftOut { excluded: 2, incomplete: 1 };
        insta::assert_snapshot!(last_line(&PushSummary::default(), left_out, 3, Duration::from_millis(100)), @"pushed 0 of 3 paths (2 excluded, 1 incomplete), 0 B read, 0 B sent, 0 B deduplicated, 0.1 s");
    }
}
