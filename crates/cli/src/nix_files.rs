//! Edits `nix.conf` and `netrc` so that every edit can be undone.
//!
//! The added lines stand between two comment lines that name the cache. Nothing outside of them
//! ever changes, not even a missing line break at the end of a file. Pure: texts in, texts out.

use std::ops::Range;

use dormer_client::{netrc_entries, netrc_without_passwords};

/// A file of the user, with marked blocks of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MarkedFile {
    text: String,
    /// The command that the marks name.
    command: &'static str,
}

impl MarkedFile {
    /// A file with blocks of `dormer use`.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::of_command("use", text)
    }

    /// A file with blocks of another command, which sees no others.
    pub(crate) fn of_command(command: &'static str, text: impl Into<String>) -> Self {
        Self { text: text.into(), command }
    }

    fn begin(&self, name: &str) -> String {
        format!("# >>> dormer {} {name}", self.command)
    }

    fn end(&self, name: &str) -> String {
        format!("# <<< dormer {} {name}", self.command)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Sets the lines of the block `name`: in place of an existing block, else at the end. In
    /// `nix.conf`, a later `substituters =` would undo an earlier `extra-substituters =`, so a new
    /// block goes to the end.
    pub(crate) fn set(&mut self, name: &str, lines: &[String]) {
        let block = format!("{}\n{}\n{}", self.begin(name), lines.join("\n"), self.end(name));
        if let Some(range) = self.find(name) {
            self.text.replace_range(range, &block);
        } else if self.text.is_empty() || self.text.ends_with('\n') {
            self.text.push_str(&block);
            self.text.push('\n');
        } else {
            // A file without a final line break stays like that.
            self.text.push('\n');
            self.text.push_str(&block);
        }
    }

    /// Sets the lines of the block `name` in a netrc file: at the beginning, where no `default`
    /// hides them. A block that nothing hides stays in its place.
    pub(crate) fn set_in_netrc(&mut self, name: &str, lines: &[String]) {
        let is_reachable = self.find(name).is_some_and(|range| {
            netrc_entries(self.text[..range.start].lines()).iter().all(|entry| entry.host.is_some())
        });
        if is_reachable {
            self.set(name, lines);
        } else {
            self.remove(name);
            let block = format!("{}\n{}\n{}\n", self.begin(name), lines.join("\n"), self.end(name));
            self.text.insert_str(0, &block);
        }
    }

    /// Removes `name` and its lines. Returns `false` if there is no such block.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let Some(Range { mut start, mut end }) = self.find(name) else { return false };
        if self.text[end..].starts_with('\n') {
            end += 1;
        } else if self.text[..start].ends_with('\n') {
            start -= 1;
        }
        self.text.replace_range(start..end, "");
        true
    }

    /// Names of all blocks.
    pub(crate) fn names(&self) -> Vec<&str> {
        let begin = self.begin("");
        self.text
            .lines()
            .filter_map(|line| line.strip_prefix(begin.as_str()))
            .filter(|name| self.find(name).is_some())
            .collect()
    }

    /// The lines of a block without its marks. Empty if there is no such block.
    pub(crate) fn lines_of(&self, name: &str) -> Vec<&str> {
        let block = self.find(name).map(|range| &self.text[range]);
        let lines: Vec<&str> = block.unwrap_or_default().lines().collect();
        lines.get(1..lines.len().saturating_sub(1)).unwrap_or_default().to_vec()
    }

    /// The lines outside of our blocks.
    pub(crate) fn foreign_lines(&self) -> Vec<&str> {
        let blocks: Vec<Range<usize>> = self.names().into_iter().filter_map(|name| self.find(name)).collect();
        let offset = |line: &str| line.as_ptr() as usize - self.text.as_ptr() as usize;
        self.text.lines().filter(|line| !blocks.iter().any(|block| block.contains(&offset(line)))).collect()
    }

    /// The range from the first byte of the first mark to the last byte of the second.
    fn find(&self, name: &str) -> Option<Range<usize>> {
        let mut start = None;
        let mut offset = 0;
        for line in self.text.split_inclusive('\n') {
            let content = line.trim_end_matches(['\n', '\r']);
            if content == self.begin(name) {
                start = Some(offset);
            } else if let Some(start) = start
                && content == self.end(name)
            {
                return Some(start..offset + content.len());
            }
            offset += line.len();
        }
        None
    }
}

/// The value of a setting of `nix.conf` outside of our blocks. The last line counts.
pub(crate) fn find_nix_setting<'a>(file: &'a MarkedFile, name: &str) -> Option<&'a str> {
    file.foreign_lines().into_iter().rev().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The words of a list setting (`substituters` with its `extra-` form) outside of our blocks.
pub(crate) fn nix_list_contains(file: &MarkedFile, name: &str, word: &str) -> bool {
    file.foreign_lines().into_iter().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_once('=').is_some_and(|(key, value)| {
            key.trim().trim_start_matches("extra-") == name
                && value.split_whitespace().any(|item| item == word)
        })
    })
}

/// Whether a line of the user gives a password for this host. curl takes the first matching entry,
/// so an entry behind `default` counts for nothing.
pub(crate) fn netrc_has_machine(file: &MarkedFile, host: &str) -> bool {
    let entries = netrc_entries(file.foreign_lines());
    entries.iter().take_while(|entry| entry.host.is_some()).any(|entry| entry.host == Some(host))
}

/// One line of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Removed(String),
    Added(String),
}

impl Change {
    pub(crate) fn line(&self) -> &str {
        match self {
            Self::Removed(line) | Self::Added(line) => line,
        }
    }
}

/// The changed lines. Our edits change one run of lines, so comparing common beginnings and ends is
/// enough.
pub(crate) fn changes(before: &str, after: &str) -> Vec<Change> {
    changes_shown(before, after, |text| text.lines().map(str::to_owned).collect())
}

/// The changed lines of a netrc file without passwords, fit to be shown. The lines of others are
/// among them where an entry of ours moves.
pub(crate) fn netrc_changes(before: &str, after: &str) -> Vec<Change> {
    changes_shown(before, after, netrc_without_passwords)
}

/// `shown` gives one text for each line. A line that differs only in its password has changed, too.
fn changes_shown(before: &str, after: &str, shown: impl Fn(&str) -> Vec<String>) -> Vec<Change> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let run = |text: &str, lines: usize| shown(text).into_iter().take(lines - tail).skip(head);
    let removed = run(before, old.len()).map(Change::Removed);
    removed.chain(run(after, new.len()).map(Change::Added)).collect()
}

#[cfg(test)]
mod tests {
    use dormer_client::{netrc_hidden_hosts, netrc_password};

    use super::*;

    fn lines(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    const FILES: [&str; 6] = [
        "",
        "\n",
        "experimental-features = nix-command\n",
        "no line break at the end",
        "dos = 1\r\nlines = 2\r\n",
        "a = 1\n\n\n# >>> dormer use half a block\nb = 2",
    ];

    #[test]
    fn taking_back_restores_every_byte() {
        for text in FILES {
            let mut file = MarkedFile::new(text);
            file.set("lab:main", &lines(&["x = 1", "y = 2"]));
            file.set("lab:other", &lines(&["z = 3"]));
            file.set("lab:main", &lines(&["x = 4"]));
            assert_eq!(file.names(), ["lab:main", "lab:other"]);
            assert!(file.text().contains("x = 4") && !file.text().contains("y = 2"));
            for order in [["lab:main", "lab:other"], ["lab:other", "lab:main"]] {
                let mut file = file.clone();
                assert!(file.remove(order[0]) && file.remove(order[1]));
                assert_eq!(file.text(), text);
                assert!(!file.remove(order[0]));
            }
        }
    }

    #[test]
    fn setting_the_same_again_changes_nothing() {
        for text in FILES {
            let mut file = MarkedFile::new(text);
            file.set("lab:main", &lines(&["x = 1"]));
            let once = file.clone();
            file.set("lab:main", &lines(&["x = 1"]));
            assert_eq!(file, once);
        }
    }

    #[test]
    fn lines_that_others_add_around_and_inside_are_respected() {
        let mut file = MarkedFile::new("a = 1\n");
        file.set("lab:main", &lines(&["x = 1"]));
        let mut file = MarkedFile::new(format!("{}b = 2\n", file.text()));
        assert_eq!(file.foreign_lines(), ["a = 1", "b = 2"]);
        assert!(file.remove("lab:main"));
        assert_eq!(file.text(), "a = 1\nb = 2\n");
    }

    #[test]
    fn settings_are_found_outside_of_our_blocks_only() {
        let mut file =
            MarkedFile::new("netrc-file = /a\n substituters=http://a  http://b # http://c\nnetrc-file=/b\n");
        file.set("lab:main", &lines(&["netrc-file = /ours", "extra-substituters = http://d"]));
        assert_eq!(find_nix_setting(&file, "netrc-file"), Some("/b"));
        assert!(nix_list_contains(&file, "substituters", "http://b"));
        assert!(!nix_list_contains(&file, "substituters", "http://c"));
        assert!(!nix_list_contains(&file, "substituters", "http://d"));
    }

    #[test]
    fn entries_of_a_netrc_are_found_in_any_layout() {
        let file = MarkedFile::new("machine a login x password y\nmachine\n  b\n login z\n# machine c\n");
        assert!(netrc_has_machine(&file, "a") && netrc_has_machine(&file, "b"));
        assert!(!netrc_has_machine(&file, "c") && !netrc_has_machine(&file, "x"));
    }

    /// Where a `default` of the user stands, ours is in front, and goes without a trace.
    #[test]
    fn no_default_hides_an_entry_of_ours() {
        for text in [
            "",
            "default login a password b",
            "machine x password y\ndefault\n login a password b\nmachine h password hidden\n",
            "# default\nmachine x login default password y\n",
        ] {
            let entry = |token: &str| lines(&[&format!("machine h login dormer password {token}")]);
            let mut file = MarkedFile::new(text);
            assert!(!netrc_has_machine(&file, "h"), "{text}");
            file.set_in_netrc("lab", &entry("one"));
            file.set_in_netrc("lab", &entry("two"));
            assert_eq!(netrc_password(file.text(), "h"), Some("two"), "{text}");
            assert!(file.remove("lab"));
            assert_eq!(file.text(), text);
            // An entry at the end, from before, moves.
            file.set("lab", &entry("old"));
            file.set_in_netrc("lab", &entry("new"));
            assert_eq!(netrc_password(file.text(), "h"), Some("new"), "{text}");
        }
        assert_eq!(netrc_hidden_hosts("machine a\ndefault\nmachine b\nmachine c\n"), ["b", "c"]);
        assert!(netrc_hidden_hosts("machine default password default\nmachine b\n").is_empty());
    }

    #[test]
    fn the_lines_of_a_block_are_those_that_were_set() {
        let mut file = MarkedFile::new("a = 1\n");
        file.set("lab:main", &lines(&["x = 1", "y = 2"]));
        assert_eq!(file.lines_of("lab:main"), ["x = 1", "y = 2"]);
        assert!(file.lines_of("lab:other").is_empty());
    }

    #[test]
    fn changes_are_the_lines_that_differ() {
        let removed = |line: &str| Change::Removed(line.to_owned());
        let added = |line: &str| Change::Added(line.to_owned());
        assert_eq!(changes("a\nb\nc\n", "a\nx\ny\nc\n"), [removed("b"), added("x"), added("y")]);
        assert_eq!(changes("", "a\n"), [added("a")]);
        assert_eq!(changes("a\na\n", "a\n"), [removed("a")]);
        assert_eq!(changes("a\n", "a\n"), []);
        // A new password is a change, although both lines look the same.
        let (old, new) = ("machine h password one\nb\n", "machine h password two\nb\n");
        let shown = "machine h password [redacted]";
        assert_eq!(netrc_changes(old, new), [removed(shown), added(shown)]);
    }
}
