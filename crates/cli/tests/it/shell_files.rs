//! What packages install beside the binary: scripts that complete command lines, and manual pages.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::test_home::TestHome;

/// The words that bash offers when the tabulator is pressed at the end of a line.
fn offered(home: &TestHome, line: &[&str]) -> Vec<String> {
    // As bash does: the words of the line, then the function that the script registered.
    const PRESS: &str = r#"
        source dormer.bash
        function=$(complete -p dormer | sed 's/.* -F \([^ ]*\) .*/\1/')
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        "$function" dormer "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", PRESS, "bash"]).args(line).current_dir(home.folder.path());
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let home = TestHome::new();
    let script = home.command(&["completions", "bash"]).output().unwrap();
    assert!(script.status.success() && script.stderr.is_empty());
    fs::write(home.path("dormer.bash"), script.stdout).unwrap();
    for (line, expected) in [
        (&["dormer", "pu"][..], &["push", "publish"][..]),
        (&["dormer", "cache", "cr"], &["create"]),
        (&["dormer", "queue", "re"], &["retry"]),
        (&["dormer", "push", "main", "--exclude"], &["--exclude", "--exclude-larger"]),
        (&["dormer", "exec", "--by", ""], &["auto", "hook", "store"]),
        (&["dormer", "completions", "f"], &["fish"]),
    ] {
        assert_eq!(offered(&home, line), expected, "{line:?}");
    }
}

#[test]
fn every_shell_gets_a_script_that_knows_every_command() {
    let home = TestHome::new();
    let help = home.run(&["--help"]);
    let commands: BTreeSet<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(commands.len() > 30, "{commands:?}");
    for (shell, begin) in [("bash", "_dormer()"), ("zsh", "#compdef dormer"), ("fish", "# Print an optspec")]
    {
        let script = home.command(&["completions", shell]).output().unwrap();
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(script.starts_with(begin), "{shell}: {}", &script[..200]);
        for command in &commands {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
    }
    assert!(home.run(&["completions", "ksh"]).starts_with("exit code: 2"));
}

#[test]
fn manual_pages_are_set_without_a_warning() {
    let home = TestHome::new();
    let written = home.run(&["man", "--to", "share/man/man1"]);
    assert!(written.starts_with("exit code: 0"), "{written}");
    let mut pages: Vec<PathBuf> =
        fs::read_dir(home.path("share/man/man1")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    let names: Vec<&str> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
    for name in ["dormer.1", "dormer-serve.1", "dormer-cache-create.1", "dormer-edge-serve.1"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"dormer-make-token.1"), "a hidden command has no page");

    let mut groff = Command::new("groff");
    let set = groff.args(["-k", "-man", "-ww", "-Tutf8", "-P-cbou"]).args(&pages).output();
    let set = set.expect("groff is there: apt-get install groff-base");
    let complaints = String::from_utf8_lossy(&set.stderr);
    assert!(set.status.success() && complaints.is_empty(), "{complaints}");
    let text = String::from_utf8_lossy(&set.stdout);
    for line in ["dormer-cache-create - Create a cache", "dormer push main ./result"] {
        assert!(text.contains(line), "{line} is in no page");
    }
}
