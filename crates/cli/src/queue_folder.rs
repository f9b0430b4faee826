//! Where the queue of this user is.

use std::path::{Path, PathBuf};

use clap::Args;
use dormer_client::Variables;

use crate::error::{Error, Result};

/// The variable with the folder of the queue.
const QUEUE_DIR_VARIABLE: &str = "DORMER_QUEUE_DIR";

/// The queue of root, in which the daemon of Nix puts builds. A fixed folder, because the daemon, a
/// service and `sudo` have different homes.
const QUEUE_OF_ROOT: &str = "/var/lib/dormer-queue";

/// The folder of the queue, for all commands that use it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct QueueDirArgs {
    /// Folder of the queue [env: DORMER_QUEUE_DIR] [default: /var/lib/dormer-queue for root, else
    /// ~/.local/state/dormer/queue]
    #[arg(long, value_name = "DIR")]
    pub(crate) queue_dir: Option<PathBuf>,
}

impl QueueDirArgs {
    /// The folder of the queue.
    pub(crate) fn folder(&self, variables: Variables<'_>) -> Result<PathBuf> {
        folder_of(self.queue_dir.as_deref(), rustix::process::geteuid().is_root(), variables)
    }
}

fn folder_of(argument: Option<&Path>, is_root: bool, variables: Variables<'_>) -> Result<PathBuf> {
    let absolute = |name| variables(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(folder) =
        argument.map(Path::to_owned).or_else(|| variables(QUEUE_DIR_VARIABLE).map(PathBuf::from))
    {
        return std::path::absolute(&folder).map_err(Error::io("look up", &folder));
    }
    if is_root {
        return Ok(QUEUE_OF_ROOT.into());
    }
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.map(|state| state.join("dormer/queue")).ok_or_else(|| {
        Error::usage(
            "this user has no home, so there is no place for the queue",
            "set DORMER_QUEUE_DIR, or use --queue-dir",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_one_queue() {
        let folder = |argument: Option<&str>, is_root, variables: &[(&str, &str)]| {
            let variables = |name: &str| {
                variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
            };
            folder_of(argument.map(Path::new), is_root, &variables).map(|path| path.display().to_string())
        };
        let all = [("HOME", "/h"), ("XDG_STATE_HOME", "/s"), ("DORMER_QUEUE_DIR", "/q")];
        assert_eq!(folder(Some("/a"), true, &all).unwrap(), "/a");
        assert_eq!(folder(None, true, &all).unwrap(), "/q");
        assert_eq!(folder(None, true, &all[..2]).unwrap(), "/var/lib/dormer-queue");
        assert_eq!(folder(None, false, &all[..2]).unwrap(), "/s/dormer/queue");
        assert_eq!(
            folder(None, false, &[("HOME", "/h"), ("XDG_STATE_HOME", "s")]).unwrap(),
            "/h/.local/state/dormer/queue"
        );
        assert!(folder(None, false, &[]).is_err());
    }
}
