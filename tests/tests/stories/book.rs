//! The book (docs/): its summary names every page, every link leads somewhere, and the commands of
//! its guides run as they are written. The tutorial ends with a path substituted from the edge.
//!
//! A block of commands begins with ```` ```sh ```` or ```` ```console ````. A block in `sh` without
//! a mark runs here: page by page, in the order of the page, each page in one shell. A block that
//! does not run says why, with one of `MARKS`: ```` ```sh,needs-account ````.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::thread;

use dormer_tests::{Lab, Machine, Nix, Run, workspace_root};

use crate::promises::tests_below;

/// Why a block of commands does not run here.
const MARKS: [&str; 6] = [
    // An account or a server elsewhere: Cloudflare, GitHub, an Attic, a bucket.
    "needs-account",
    // A Kubernetes. tests/tests/stories/deploy.rs checks the manifests.
    "needs-cluster",
    // A program that runs containers.
    "needs-containers",
    // The rights of root, for the settings of a whole machine.
    "needs-root",
    // The sources, and a compiler.
    "needs-repository",
    // Names and paths in it stand for the reader's own, or it shows an output.
    "example",
];

/// Languages of blocks that hold no commands. Another one would hide commands from these tests.
const OTHER_LANGUAGES: [&str; 6] = ["text", "toml", "ini", "json", "yaml", "nix"];

/// A page whose commands run.
struct Sitting {
    page: &'static str,
    /// What the page expects to be there: commands that run before those of the page.
    before: &'static str,
    /// What the page promises: commands that must succeed after those of the page.
    after: &'static str,
}

const SETTINGS_OF_THE_SITTING: &str = r#"
export XDG_CONFIG_HOME="$PWD/settings" XDG_CACHE_HOME="$PWD/memory" XDG_STATE_HOME="$PWD/state"
listens() { until grep -q 'listening on' "$1"; do sleep 0.2; done; }
"#;

const TUTORIAL: Sitting = Sitting {
    page: "TUTORIAL.md",
    before: "",
    // It leaves nothing behind: neither its folder, nor settings of its reader.
    after: r#"test ! -e dormer-tutorial && test ! -e "$HOME/.config" && test ! -e "$HOME/.local""#,
};

/// A Dormer stands in for Attic: it answers the same requests.
const MIGRATING: Sitting = Sitting {
    page: "MIGRATING.md",
    before: r#"
nix-store --generate-binary-cache-key team attic-keypair attic-key
nix-store --generate-binary-cache-key plain-1 plain-secret-key plain-key
old_key=$(cat attic-key) plain_key=$(cat plain-key)
dormer serve --data-dir attic --listen 127.0.0.1:8090 >attic.log 2>&1 &
dormer serve --data-dir lab >lab.log 2>&1 &
listens attic.log
listens lab.log
dormer login attic http://127.0.0.1:8090 --token-file attic/admin-token
dormer login lab http://127.0.0.1:8080 --token-file lab/admin-token --set-default
dormer cache create attic:team --public --keypair-file attic-keypair
all=$(nix-build "$EXPRESSION" -A all --argstr salt migrating --no-out-link)
dormer push attic:team "$all"
nix-store -qR "$all" >attic-paths.txt
old=http://127.0.0.1:8090/team
tool=$(nix-build "$EXPRESSION" -A tool --argstr salt plain --no-out-link --option secret-key-files "$PWD/plain-secret-key")
plain=$PWD/plain
nix copy --to "file://$plain" "$tool"
"#,
    // A reader that trusts the old key of the cache, and the new one of the other.
    after: r#"
dormer cache info team | grep -F "$old_key"
dormer use team
dormer use packages
NIX_REMOTE="$PWD/reader" nix-store --realise "$all" "$tool"
"#,
};

const UPGRADING: Sitting = Sitting {
    page: "UPGRADING.md",
    before: r#"
export DORMER_DATA_DIR="$PWD/data"
data=$DORMER_DATA_DIR
dormer serve >server.log 2>&1 & server=$!
listens server.log
dormer login lab http://127.0.0.1:8080 --token-file "$data/admin-token"
all=$(nix-build "$EXPRESSION" -A all --argstr salt upgrading --no-out-link)
dormer push main "$all"
"#,
    after: r#"
dormer use main
NIX_REMOTE="$PWD/reader" nix-store --realise "$all"
"#,
};

const OPERATING: Sitting = Sitting {
    page: "OPERATING.md",
    before: r#"
export DORMER_DATA_DIR="$PWD/data"
dormer serve >server.log 2>&1 &
listens server.log
dormer login lab http://127.0.0.1:8080 --token-file "$DORMER_DATA_DIR/admin-token"
nix-build "$EXPRESSION" -A all --argstr salt operating
dormer push main ./result
"#,
    after: "",
};

const SITTINGS: [Sitting; 4] = [TUTORIAL, MIGRATING, UPGRADING, OPERATING];

/// Longest time of a page. A page takes some seconds.
const SITTING_SECONDS_MAX: &str = "240";

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    /// Of its first line, from 1.
    line: usize,
    language: String,
    marks: Vec<String>,
    text: String,
}

/// A page without its blocks and without code in its lines, and its blocks.
fn parse(page: &str) -> (Vec<String>, Vec<Block>) {
    let (mut prose, mut blocks) = (Vec::new(), Vec::new());
    let mut open: Option<(Block, usize)> = None;
    for (number, line) in page.lines().enumerate() {
        let text = line.trim_start();
        match (&mut open, text.strip_prefix("```")) {
            (None, Some(info)) => {
                let mut words = info.trim().split(',').map(str::to_owned);
                let language = words.next().unwrap();
                let block = Block { line: number + 1, language, marks: words.collect(), text: String::new() };
                open = Some((block, line.len() - text.len()));
            }
            (Some(_), Some(_)) => blocks.push(open.take().unwrap().0),
            (Some((block, indent)), None) => {
                let _ = writeln!(block.text, "{}", line.get(*indent..).unwrap_or_default());
            }
            (None, None) => prose.push(line.to_owned()),
        }
    }
    assert!(open.is_none(), "a block does not end: {open:?}");
    (prose, blocks)
}

/// All Markdown files below a folder, by their paths in the repository.
fn pages_below(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    for entry in fs::read_dir(workspace_root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(workspace_root()).unwrap();
        if path.is_dir() {
            pages.extend(pages_below(name.to_str().unwrap()));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
        }
    }
    pages
}

/// The targets of the links in a line, pictures included.
fn links(line: &str) -> Vec<String> {
    // What stands in code is no link.
    let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let targets = outside.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook name them.
fn anchors(prose: &[String]) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose.iter().filter(|line| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
        let name: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let copies = (1..).map(|copy| format!("{name}-{copy}"));
        let free = std::iter::once(name.clone()).chain(copies).find(|name| !anchors.contains(name));
        anchors.insert(free.unwrap());
    }
    anchors
}

/// `page`'s folder and a relative path, without `..`.
fn resolved(page: &Path, target: &str) -> PathBuf {
    let mut path = page.parent().unwrap().to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{target} leaves the repository"),
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

#[test]
fn the_summary_names_every_page_once() {
    let docs = pages_below("docs");
    let summary = Path::new("docs/SUMMARY.md");
    let (prose, _) = parse(&docs[summary]);
    let mut named: Vec<PathBuf> =
        prose.iter().flat_map(|line| links(line)).map(|target| resolved(summary, &target)).collect();
    named.sort();
    let pages: Vec<PathBuf> = docs.into_keys().filter(|page| page != summary).collect();
    assert_eq!(named, pages, "docs/SUMMARY.md against the pages that are there");

    let book = fs::read_to_string(workspace_root().join("docs/book.toml")).unwrap();
    let book: toml::Table = book.parse().unwrap();
    let sections: Vec<&str> = book.keys().map(String::as_str).collect();
    assert_eq!(sections, ["book", "build", "output"], "mdBook refuses others");
    assert_eq!(book["book"]["src"].as_str(), Some("."));
    assert_eq!(book["build"]["create-missing"].as_bool(), Some(false));
    // In the folder that no commit holds.
    assert_eq!(book["build"]["build-dir"].as_str(), Some("../target/book"));
}

#[test]
fn every_link_and_anchor_leads_somewhere() {
    let mut pages = pages_below("docs");
    for name in ["README.md", "CHANGELOG.md", "bench/README.md"] {
        pages.insert(name.into(), fs::read_to_string(workspace_root().join(name)).unwrap());
    }
    let parsed: BTreeMap<&PathBuf, Vec<String>> =
        pages.iter().map(|(name, page)| (name, parse(page).0)).collect();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (page, prose) in &parsed {
        for target in prose.iter().flat_map(|line| links(line)) {
            if target.contains("://") {
                continue;
            }
            count += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let mut place = if path.is_empty() { (*page).clone() } else { resolved(page, path) };
            if page.starts_with("docs") && !place.starts_with("docs") {
                wrong.push(format!("{}: {target} is no page of the book", page.display()));
            }
            if page.starts_with("docs") && !page.ends_with("SUMMARY.md") && place.ends_with("README.md") {
                wrong.push(format!("{}: mdBook calls {target} index.html: name its folder", page.display()));
            }
            if !workspace_root().join(&place).exists() {
                wrong.push(format!("{}: there is no {target}", page.display()));
                continue;
            }
            if place.starts_with("docs") && workspace_root().join(&place).is_dir() {
                place.push("README.md");
            }
            let has_anchor = || parsed.get(&place).is_some_and(|prose| anchors(prose).contains(anchor));
            if !anchor.is_empty() && !has_anchor() {
                wrong.push(format!("{}: {target} has no such heading", page.display()));
            }
        }
    }
    assert!(count > 100, "{count} links");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn links_and_blocks_are_read_as_they_are_meant() {
    let page = "# A `b` c?\nSee [x](y.md#z) and `[no](link)`, ![p](p.png)\n- item\n\n  ```sh,example\n  one\n    \
                two\n  ```\n# A b c\n";
    let (prose, blocks) = parse(page);
    assert_eq!(links(&prose[1]), ["y.md#z", "p.png"]);
    assert_eq!(anchors(&prose).into_iter().collect::<Vec<_>>(), ["a-b-c", "a-b-c-1"]);
    let block = &blocks[0];
    assert_eq!((block.line, block.language.as_str()), (5, "sh"));
    assert_eq!((&block.marks, block.text.as_str()), (&vec!["example".to_owned()], "one\n  two\n"));
    assert_eq!(resolved(Path::new("docs/adr/1.md"), "../A.md"), Path::new("docs/A.md"));
}

#[test]
fn every_block_of_commands_runs_or_says_why_not() {
    let mut wrong = Vec::new();
    for (page, text) in pages_below("docs") {
        let name = page.strip_prefix("docs").unwrap().to_str().unwrap();
        let runs = SITTINGS.iter().any(|sitting| sitting.page == name);
        for block in parse(&text).1 {
            let place = format!("{}:{}", page.display(), block.line);
            let is_known = block.marks.iter().all(|mark| MARKS.contains(&mark.as_str()));
            match (block.language.as_str(), block.marks.len()) {
                ("sh", 0) if runs => {}
                ("sh", 0) => {
                    wrong.push(format!("{place}: no test runs this page: add a `Sitting`, or a mark"));
                }
                ("console", 0) => {
                    wrong.push(format!("{place}: a transcript does not run: make it `sh`, or add a mark"));
                }
                ("sh" | "console", 1) if is_known => {}
                ("sh" | "console", _) => wrong.push(format!("{place}: one of {MARKS:?}, please")),
                (language, 0) if OTHER_LANGUAGES.contains(&language) => {
                    let is_command =
                        |line: &str| ["$ ", "# dormer ", "dormer "].iter().any(|p| line.starts_with(p));
                    if language == "text" && block.text.lines().any(is_command) {
                        wrong.push(format!("{place}: commands in a block of text"));
                    }
                }
                (language, _) => wrong.push(format!("{place}: `{language}` is no language of the book")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The table of the guide to migrating says which test tries each step.
#[test]
fn every_step_of_the_migration_names_a_test_that_exists() {
    let page = fs::read_to_string(workspace_root().join("docs/MIGRATING.md")).unwrap();
    let table = page.split("| step there |").nth(1).unwrap().split("\n\n").next().unwrap();
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert!(rows.len() >= 15, "{rows:?}");
    let mut tests = BTreeSet::new();
    for folder in ["crates", "tests/tests"] {
        tests_below(&workspace_root().join(folder), &mut tests);
    }
    for row in rows {
        let name = row.rsplit("<br>`").next().unwrap().trim_end_matches("` |");
        assert!(tests.contains(name), "no such test: {row}");
    }
}

/// Runs the commands of a page in an empty folder of a machine. The shell has a network of its own,
/// so that ports are free as the page takes them, and its servers end with it.
fn sit(lab: &Lab, machine: &Machine, sitting: &Sitting) -> Run {
    let page = fs::read_to_string(workspace_root().join("docs").join(sitting.page)).unwrap();
    let folder = lab.folder().join("sittings").join(sitting.page);
    let tools = folder.join("tools");
    let desk = folder.join("desk");
    for folder in [&tools, &desk] {
        fs::create_dir_all(folder).unwrap();
    }
    // The usual programs of a machine.
    machine.run("busybox", &["--install", "-s", tools.to_str().unwrap()]).succeeds();
    let mut script = format!(
        "set -eu\nPATH={}:{}:$PATH\nip link set lo up\nEXPRESSION={}\ncd {}\n",
        lab.folder().join("bin").display(),
        tools.display(),
        machine.expression(),
        desk.display()
    );
    if !sitting.before.is_empty() {
        script.push_str(SETTINGS_OF_THE_SITTING);
        script.push_str(sitting.before);
    }
    script.push_str("set -x\n");
    let blocks = parse(&page).1.into_iter().filter(|block| block.language == "sh" && block.marks.is_empty());
    for block in blocks {
        // Shown beside what failed.
        let _ = writeln!(script, ": docs/{}:{}\n{}", sitting.page, block.line, block.text);
    }
    script.push_str(sitting.after);
    let script_path = folder.join("commands.sh");
    fs::write(&script_path, script).unwrap();

    let inside = machine.command("busybox", &["sh", script_path.to_str().unwrap()]);
    let mut command = Command::new("timeout");
    command.args([
        "--kill-after=5",
        SITTING_SECONDS_MAX,
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        command.arg("--map-root-user");
    }
    command.arg(inside.get_program()).args(inside.get_args()).env_clear();
    command.envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Run::of(&mut command)
}

#[test]
fn the_tutorial_runs_as_it_is_written() {
    let lab = Lab::start();
    let machine = lab.machine("laptop", Nix::OLDEST);
    let run = sit(&lab, &machine, &TUTORIAL);
    let said = run.succeeds();
    // What the readers say: the one of the lab, and the one of the edge, after the lab was gone.
    for line in ["The greeting is in /nix/store/", "CI built this, with /nix/store/"] {
        assert!(said.contains(line), "{run}");
    }
}

#[test]
fn the_guides_to_migrating_upgrading_and_operating_run_as_they_are_written() {
    let lab = Lab::start();
    let machine = lab.machine("operator", Nix::NEWEST);
    // Each waits most of its time.
    thread::scope(|scope| {
        for sitting in [MIGRATING, UPGRADING, OPERATING] {
            let (lab, machine) = (&lab, &machine);
            scope.spawn(move || sit(lab, machine, &sitting).succeeds());
        }
    });
}
