//! The `dormer` binary: server, client and admin tool in one.
//!
//! Layer: the top; everything else is below. Where to look
//! - `commands`: one file per command, with its options, its run and its output.
//! - `context`: what every command needs.
//! - `settings`: the server's settings, from one table of keys.
//! - `installation`: what `dormer serve` finds or makes before it listens.
//! - `listening`, `signals`, `service_manager`: how a server begins and ends.
//! - `telemetry`: log lines and traces. `open_files`: the limit of open files.
//! - `push_transfer`: the flags of pushes.
//! - `queue_drain`, `queue_folder`: what the commands around the queue share.
//! - `printer`: decides what is printed. `terminal_text`: what a terminal must not obey.
//!   `progress`: draws a push. `chart`: bars behind the data, on a terminal.
//! - `error`: exit codes and hints.

#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::bare_urls,
    reason = "the comments on commands and flags are their help texts: [SERVER:]CACHE is no link there"
)]

mod chart;
mod commands;
mod context;
mod error;
mod holder;
mod installation;
mod listening;
mod nix_files;
mod nix_version;
mod open_files;
mod printer;
mod progress;
mod push_transfer;
mod queue_drain;
mod queue_folder;
mod secret_file;
mod service_manager;
mod settings;
mod signals;
mod static_place;
mod telemetry;
mod terminal;
mod terminal_text;
mod tokens;

use std::pin::Pin;
use std::process::ExitCode;

use crate::commands::CommandLine;
use crate::context::Context;
use crate::printer::Printer;

fn main() -> ExitCode {
    let words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if commands::is_early(&words) {
        return commands::run_early(&words);
    }
    let command_line = CommandLine::of_process();
    let printer = command_line.printer();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            printer.error(&format!("failed to start threads: {error}"));
            return ExitCode::from(error::EXIT_FAILURE);
        }
    };
    let context = Context::new(printer.clone(), command_line.command.endpoint());
    // Boxed as a trait object: each of tokio's ways to run it would be compiled with all commands.
    let command: Pin<Box<dyn Future<Output = _>>> = Box::pin(commands::run(command_line.command, &context));
    let result = runtime.block_on(command);
    // Reads of the local store that nobody needs any more must not delay the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => fail(&printer, &error),
    }
}

fn fail(printer: &Printer, error: &error::Error) -> ExitCode {
    if !error.is_broken_pipe() {
        let hints = error.hints();
        if printer.json {
            let message = serde_json::json!({
                "message_type": "error",
                "message": error.chain(),
                "hints": hints,
                "exit_code": error.exit_code(),
            });
            printer.json_error(&message);
        } else {
            printer.error(&error.chain());
            for hint in &hints {
                printer.hint(hint);
            }
        }
    }
    ExitCode::from(error.exit_code())
}
