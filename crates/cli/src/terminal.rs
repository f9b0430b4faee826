//! The terminal that progress is drawn on.

use std::io;

use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// While it lives, Ctrl-C and its like leave no `^C` on the screen.
///
/// Bars reach to the right edge, so that a `^C` which the terminal writes behind them lands on the next line. The bars do
/// not know: they clear from there upwards, and the first of them stays.
#[derive(Debug)]
pub(crate) struct SilentKeys(());

impl SilentKeys {
    /// `None` if there is nothing to silence.
    pub(crate) fn on_stderr() -> Option<Self> {
        let mut modes = foreground_modes()?;
        if !modes.local_modes.contains(LocalModes::ECHOCTL) {
            return None;
        }
        modes.local_modes.remove(LocalModes::ECHOCTL);
        tcsetattr(io::stderr(), OptionalActions::Now, &modes).ok().map(|()| Self(()))
    }
}

impl Drop for SilentKeys {
    fn drop(&mut self) {
        if let Some(mut modes) = foreground_modes() {
            modes.local_modes.insert(LocalModes::ECHOCTL);
            // Best effort: the terminal may be gone.
            let _ = tcsetattr(io::stderr(), OptionalActions::Now, &modes);
        }
    }
}

/// The terminal's modes, if they are ours to change: a background job would be stopped for it, and a shell sets its own.
fn foreground_modes() -> Option<Termios> {
    let is_ours = tcgetpgrp(io::stderr()).is_ok_and(|group| group == getpgrp());
    if is_ours { tcgetattr(io::stderr()).ok() } else { None }
}
