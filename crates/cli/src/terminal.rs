//! Settings of the terminal for drawing progress.

use std::io;

use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

/// Columns of a terminal that does not tell its size.
const COLUMNS_DEFAULT: u16 = 80;

/// The columns of the terminal that standard output is.
pub(crate) fn columns_of_stdout() -> usize {
    let told = tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
    usize::from(if told == 0 { COLUMNS_DEFAULT } else { told })
}

/// While this exists, Ctrl-C and similar keys print no `^C` on the screen.
///
/// Bars reach to the right edge, so a `^C` after them would land on the next line. The bars would
/// not know that: they would clear from there upwards, and the first bar would stay.
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
            // Best effort, because the terminal may be gone.
            let _ = tcsetattr(io::stderr(), OptionalActions::Now, &modes);
        }
    }
}

/// The terminal's modes, if this process may change them. Changing them would stop a background
/// job, and a shell sets its own modes.
fn foreground_modes() -> Option<Termios> {
    let is_ours = tcgetpgrp(io::stderr()).is_ok_and(|group| group == getpgrp());
    if is_ours { tcgetattr(io::stderr()).ok() } else { None }
}
