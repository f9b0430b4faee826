//! Commands of Attic and Cachix that have another name here.

/// What another tool calls it, and the command here.
const NAMES: &[(&str, &str)] = &[
    // attic
    ("gen-completions", "dormer completions SHELL"),
    ("get-closure", "dormer push CACHE PATH --dry-run"),
    // atticd and its modes
    ("monolithic", "dormer serve"),
    ("api-server", "dormer serve"),
    ("garbage-collector", "dormer serve, which collects"),
    ("garbage-collector-once", "dormer gc"),
    ("db-migrations", "dormer serve, which upgrades its database"),
    ("check-config", "dormer config show"),
    // attic cache …, and what users of other tools try
    ("delete", "dormer cache destroy CACHE"),
    ("remove", "dormer cache remove-path CACHE PATH"),
    ("update", "dormer cache configure CACHE"),
    // cachix
    ("authtoken", "dormer login NAME URL --token-stdin"),
    ("generate-keypair", "dormer cache create CACHE, which makes a key"),
    ("watch-exec", "dormer exec CACHE -- COMMAND"),
];

/// The command here for a name that this program does not know.
pub(super) fn command_here(name: &str) -> Option<&'static str> {
    NAMES.iter().find(|(foreign, _)| *foreign == name).map(|(_, here)| *here)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::CommandLine;
    use super::*;

    #[test]
    fn each_name_is_foreign_and_each_command_is_ours() {
        let ours = CommandLine::command();
        for (name, here) in NAMES {
            assert!(ours.find_subcommand(name).is_none(), "{name}");
            assert_eq!(command_here(name), Some(*here), "{name} is there once");
            let mut command = &ours;
            let is_word = |word: &&str| {
                !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
            };
            for word in here.split([' ', ',']).skip(1).take_while(is_word) {
                match command.find_subcommand(word) {
                    Some(found) => command = found,
                    None => assert!(word.starts_with("--"), "{here}: {word}"),
                }
            }
            assert!(!std::ptr::eq(command, &raw const ours), "{here}");
        }
    }
}
