//! Every `dormer` in a block of commands of README.md and the book is a command line that this
//! program takes. tests/tests/stories/book.rs runs the blocks that can run; most others need what a
//! test has not, and a flag that was renamed would stay in them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::Parser as _;
use clap::error::ErrorKind;

use super::CommandLine;

/// A key, for one that only the reader has.
const KEY: &str = "6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// The simple commands of a script, each as its words. It knows quotes, comments, continued lines,
/// substitutions and redirections, as far as the pages use them.
fn commands(script: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut signs = script.replace("\\\n", " ").chars().collect::<Vec<_>>().into_iter().peekable();
    let mut is_redirection = false;
    while let Some(sign) = signs.next() {
        match sign {
            '\'' => {
                let quoted: String = signs.by_ref().take_while(|c| *c != '\'').collect();
                word.get_or_insert_default().push_str(&quoted);
            }
            '"' => {
                let quoted: String = signs.by_ref().take_while(|c| *c != '"').collect();
                word.get_or_insert_default().push_str(&quoted);
            }
            '$' if signs.peek() == Some(&'(') => {
                let inner: String = signs.by_ref().take_while(|c| *c != ')').collect();
                let _ = write!(word.get_or_insert_default(), "${inner})");
            }
            '#' if word.is_none() => while signs.next_if(|c| *c != '\n').is_some() {},
            ' ' | '\n' | '|' | ';' | '&' | '<' | '>' => {
                // `2>file`, `>file` and `>&1` are no words of the command.
                if let Some(whole) = word.take()
                    && !std::mem::take(&mut is_redirection)
                    && !(matches!(sign, '<' | '>') && whole.bytes().all(|byte| byte.is_ascii_digit()))
                {
                    words.push(whole);
                }
                match sign {
                    '<' | '>' => {
                        while signs.next_if(|c| matches!(c, '>' | '<' | '&' | ' ')).is_some() {}
                        is_redirection = true;
                    }
                    ' ' => {}
                    _ => commands.push(std::mem::take(&mut words)),
                }
            }
            sign => word.get_or_insert_default().push(sign),
        }
    }
    if let Some(whole) = word.filter(|_| !is_redirection) {
        words.push(whole);
    }
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

/// The words from `dormer` on, if the command runs it, perhaps by `sudo`, in a container, or with
/// variables.
fn of_dormer(words: &[String]) -> Option<Vec<String>> {
    let is_before = |before: &[String]| match before {
        [] => true,
        [.., last] if matches!(last.as_str(), "--" | "sudo" | "exec") => true,
        [first, option, _user] if first == "sudo" && option == "-u" => true,
        all => all.iter().all(|word| word.split_once('=').is_some_and(|(name, _)| !name.contains('-'))),
    };
    // In a container, `dormer` may be the container's name.
    let at = words.iter().position(|word| word == "/bin/dormer");
    let at = at.or_else(|| (0..words.len()).find(|&at| words[at] == "dormer" && is_before(&words[..at])))?;
    Some(words[at..].iter().map(|word| with_values(word)).collect())
}

/// A word with a value of the right form in place of what stands for one.
fn with_values(word: &str) -> String {
    match word.strip_suffix(":…") {
        Some(name) => format!("{name}:{KEY}"),
        None if word.starts_with('$') && word.ends_with("_key") => format!("key-1:{KEY}"),
        None => word.to_owned(),
    }
}

/// The commands in the blocks of a page: all of a script, and those behind prompts of a transcript.
fn scripts(page: &str) -> Vec<String> {
    let mut scripts = Vec::new();
    let mut open: Option<(&str, String)> = None;
    let mut is_continued = false;
    for line in page.lines().map(str::trim_start) {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                let language = info.split(',').next().unwrap_or_default();
                open = Some((language, String::new()));
                is_continued = false;
            }
            (Some(_), Some(_)) => scripts.extend(open.take().map(|(_, script)| script)),
            (Some((language, script)), None) => {
                let behind_prompt = line.strip_prefix("$ ").or(line.strip_prefix("# "));
                let typed = match *language {
                    "sh" => Some(line),
                    "console" if is_continued => Some(line),
                    "console" => behind_prompt,
                    _ => None,
                };
                let Some(typed) = typed else { continue };
                script.push_str(typed);
                script.push('\n');
                is_continued = typed.ends_with(['\\', '|']);
            }
            (None, None) => {}
        }
    }
    scripts
}

#[test]
fn every_command_in_a_block_of_the_pages_is_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    for entry in fs::read_dir(root.join("docs")).expect("the pages are there") {
        let path = entry.expect("the folder can be read").path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page is text");
        for words in scripts(&text).iter().flat_map(|script| commands(script)) {
            let Some(line) = of_dormer(&words) else { continue };
            count += 1;
            if let Err(error) = CommandLine::try_parse_from(&line)
                && !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
            {
                wrong.push(format!("{}: {}: {error}", page.display(), line.join(" ")));
            }
        }
    }
    assert!(count > 60, "only {count} command lines were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn scripts_are_read_as_a_shell_reads_them() {
    let script = "A=b dormer push main ./result  # all\nsudo -u dormer dormer gc >x.log 2>&1 & lab=$!\ndormer import t --from \
                  'a b' \\\n  --stdin <list\nkubectl exec deploy/dormer -- /bin/dormer doctor | head -1\n";
    let found: Vec<String> =
        commands(script).iter().filter_map(|words| of_dormer(words)).map(|line| line.join(" ")).collect();
    assert_eq!(
        found,
        [
            "dormer push main ./result",
            "dormer gc",
            "dormer import t --from a b --stdin",
            "/bin/dormer doctor"
        ]
    );
    let page =
        "```console\n$ dormer stats\n3 paths\n# dormer gc \\\n    --dry-run\n```\n```toml\n# dormer x\n```\n";
    let found: Vec<_> = scripts(page).iter().flat_map(|script| commands(script)).collect();
    assert_eq!(found, [vec!["dormer", "stats"], vec!["dormer", "gc", "--dry-run"]]);
}
