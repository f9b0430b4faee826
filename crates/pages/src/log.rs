//! `/<cache>/<hash>/log`: the log of the build that made a path.

use maud::html;

use crate::cache::{below, way_below};
use crate::frame::{Frame, PAGE_BYTES_MAX, escape_segment, path_address};
use crate::terminal_text::terminal_text;
use crate::text::{bytes, shortened};

/// Room for the text of a log, in bytes of HTML.
const CONTENT_BYTES_MAX: usize = PAGE_BYTES_MAX - 10_000;

/// A part of a build log.
#[derive(Debug, Clone)]
pub struct LogView<'a> {
    /// The cache.
    pub cache: String,
    /// Whether anybody may read it.
    pub is_public: bool,
    /// `<hash>-<name>` of the path.
    pub base_name: String,
    /// The derivation.
    pub deriver: String,
    /// The whole log.
    pub log: &'a [u8],
    /// The byte at which the page begins; `None` for the last page, where errors are.
    pub from: Option<usize>,
}

impl LogView<'_> {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let (hash, name) = self.base_name.split_once('-').unwrap_or((&self.base_name, ""));
        let address = path_address(&self.cache, hash);
        let start =
            self.from.map_or_else(|| part_start(self.log, self.log.len()), |from| from.min(self.log.len()));
        let end = part_end(self.log, start);
        let plain = below(&self.cache, &format!("log/{}", escape_segment(&self.deriver)));
        let mut way = way_below(&self.cache, address.clone(), name.to_owned());
        way.push((address + "/log", "log".to_owned()));
        let content = html! {
            h1 { "Build log of " (name) }
            p {
                code { (shortened(&self.deriver, 260)) } " · " (bytes(self.log.len() as u64))
                @if self.is_public { " · " a href=(frame.link(&plain)) { "All of it as text" } }
            }
            p.orders {
                @if start > 0 {
                    a href="?from=0" { "Beginning" } " "
                    a rel="prev" href={ "?from=" (part_start(self.log, start)) } { "Earlier" } " "
                }
                @if end < self.log.len() {
                    a rel="next" href={ "?from=" (end) } { "Later" } " "
                    a href="?" { "End" }
                }
            }
            @if self.log.is_empty() { p { "The log is empty." } } @else {
                pre.log { code {
                    @for part in terminal_text(&self.log[start..end]) {
                        @let classes = part.classes();
                        @if classes.is_empty() { (part.text) } @else { span class=(classes) { (part.text) } }
                    }
                } }
            }
        };
        frame.page(&format!("Build log of {name}"), &way, &content)
    }
}

/// Most bytes of HTML that a byte of a log becomes.
fn cost(byte: u8) -> usize {
    match byte {
        b'&' => 5,
        b'<' | b'>' => 4,
        b'"' => 6,
        // The start of a style: `<span class="t15 bold"></span>`.
        0x1b => 34,
        // A part of a character, or U+FFFD for a byte that is part of none.
        0x80.. => 3,
        _ => 1,
    }
}

/// Where the part that begins at `start` ends: behind the last line that fits.
fn part_end(log: &[u8], start: usize) -> usize {
    let mut length = 0;
    let fits = |byte: &u8| {
        length += cost(*byte);
        length <= CONTENT_BYTES_MAX
    };
    let end = start + log[start..].iter().copied().take_while(fits).count();
    if end == log.len() {
        return end;
    }
    let line_end = log[start..end].iter().rposition(|byte| *byte == b'\n');
    line_end.map_or(end, |place| start + place + 1)
}

/// Where the part that ends at `end` begins: at the first line that fits.
fn part_start(log: &[u8], end: usize) -> usize {
    let mut length = 0;
    let fits = |byte: &u8| {
        length += cost(*byte);
        length <= CONTENT_BYTES_MAX
    };
    let start = end - log[..end].iter().rev().copied().take_while(fits).count();
    if start == 0 {
        return 0;
    }
    let line_end = log[start..end].iter().position(|byte| *byte == b'\n').map(|place| start + place + 1);
    line_end.filter(|place| *place < end).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::frame;

    fn view(log: &[u8], from: Option<usize>) -> LogView<'_> {
        LogView {
            is_public: true,
            cache: "main".to_owned(),
            base_name: "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello".to_owned(),
            deriver: "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello.drv".to_owned(),
            log,
            from,
        }
    }

    #[test]
    fn a_long_log_is_read_part_by_part_from_its_end() {
        let log: Vec<u8> = (0..20_000).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
        let html = view(&log, None).render(&frame());
        assert!(html.contains("line 19999\n") && !html.contains("line 9999\n"), "it is the end");
        assert!(html.contains("Earlier") && !html.contains("Later"));
        let (mut start, mut seen) = (0, Vec::new());
        while start < log.len() {
            let end = part_end(&log, start);
            assert!(end > start);
            seen.extend_from_slice(&log[start..end]);
            start = end;
        }
        assert_eq!(seen, log);
        let mut end = log.len();
        while end > 0 {
            let start = part_start(&log, end);
            assert!(start < end && (start == 0 || log[start - 1] == b'\n'));
            end = start;
        }
    }

    /// Whatever a log is, a page looks at what it shows only.
    #[test]
    fn a_line_of_a_hundred_megabytes_is_a_page_like_another() {
        for piece in [
            &b"x"[..],
            b"\x1b[31m",
            b"\x1b[",
            b"\x1b]0;",
            b"\x1b",
            b"\0",
            b"\xff",
            b"\"",
            b"\r",
            b"\xe2\x80\xae",
        ] {
            let log: Vec<u8> = piece.repeat((100 << 20) / piece.len());
            for from in [None, Some(0), Some(log.len() / 2), Some(usize::MAX)] {
                let html = view(&log, from).render(&frame());
                assert!(html.len() <= PAGE_BYTES_MAX, "{piece:?} from {from:?}: {}", html.len());
                assert!(html.chars().all(|one| one == '\n' || !one.is_control()), "{piece:?} from {from:?}");
            }
        }
    }

    #[test]
    fn colours_are_classes() {
        let html = view(b"\x1b[31;1merror\x1b[0m: x <b>\n", None).render(&frame());
        assert!(html.contains("<span class=\"t1 bold\">error</span>: x &lt;b&gt;\n"), "{html}");
    }

    proptest! {
        #[test]
        fn no_log_makes_a_page_long(
            piece in proptest::collection::vec(prop_oneof![Just(b'"'), Just(0x1b), Just(b'&'), Just(0xff), Just(b'\n'), any::<u8>()], 1..40),
            from in proptest::option::of(0_usize..200_000),
        ) {
            let log: Vec<u8> = piece.iter().copied().cycle().take(150_000).collect();
            let html = view(&log, from).render(&frame());
            prop_assert!(html.len() <= PAGE_BYTES_MAX, "{}", html.len());
        }
    }
}
