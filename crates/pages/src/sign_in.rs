//! `/_dormer/sign-in`: a token becomes a session.

use maud::html;

use crate::frame::{Frame, escape_segment};
use crate::text::shortened;

/// The form that takes a token.
#[derive(Debug, Clone, Default)]
pub struct SignInView {
    /// Why the last token did not count.
    pub refused: Option<String>,
    /// The page to come back to, as its address gave it: anything may stand in it.
    pub back: String,
}

/// Longest address that a visitor comes back to, in bytes.
const BACK_BYTES_MAX: usize = 400;

impl SignInView {
    /// The address of the form, below the root, for a visitor that comes from this page.
    pub(crate) fn address(here: &str) -> String {
        match Self::way_back(here) {
            "" => "_dormer/sign-in".to_owned(),
            back => format!("_dormer/sign-in?back={}", escape_segment(back)),
        }
    }

    /// An address below the root that a visitor may be led to: the one given, if it is of a page of
    /// this host as such pages link to each other, else that of the first page. What follows `../`
    /// never is another host; a browser would still resolve dots, and take `\` for a slash.
    pub fn way_back(given: &str) -> &str {
        let path = given.split('?').next().unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%/?&=+".contains(&byte);
        let is_good = given.len() <= BACK_BYTES_MAX
            && given.bytes().all(is_plain)
            && !given.starts_with("_dormer/sign-")
            && !path.split('/').rev().skip(1).any(str::is_empty)
            && !path.split('/').any(|segment| matches!(undotted(segment).as_str(), "." | ".."));
        if is_good { given } else { "" }
    }

    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let content = html! {
            h1 { "Sign in" }
            @if let Some(refused) = &self.refused { p.notice role="alert" { (shortened(refused, 300)) } }
            p { "Paste a token of this server. You then see the caches that it may pull from, and may change what it may change. The session ends with the token, or when you sign out." }
            form.inline method="post" action=(frame.link("_dormer/sign-in")) {
                input type="hidden" name="back" value=(Self::way_back(&self.back));
                p {
                    label for="token" { "Token" }
                    input #token type="password" name="token" required autocomplete="off" spellcheck="false" autocapitalize="off";
                }
                button { "Sign in" }
            }
            p.quiet { "The browser keeps the token in a cookie that no script can read, and sends it to this host only. " code { "dormer token create" } " makes tokens." }
        };
        frame.page("Sign in", &[("_dormer/sign-in".to_owned(), "Sign in".to_owned())], &content)
    }
}

/// Browsers take escaped dots for dots.
fn undotted(segment: &str) -> String {
    segment.replace("%2e", ".").replace("%2E", ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visitor_comes_back_to_pages_of_this_host_alone() {
        for good in
            ["main/", "main/paths?q=a%2Fb&sort=age", "a%2Bb/1k8c/files/bin/x", "_dormer/audit?actor=x"]
        {
            assert_eq!(SignInView::way_back(good), good);
        }
        for bad in [
            "",
            "/",
            "//evil.example/",
            "/main/",
            "https://evil.example/",
            "https:evil.example",
            "javascript:alert(1)",
            "\\\\evil.example",
            "../main/",
            "main/../../x",
            "main/%2e%2E/x",
            "main/./x",
            "main//x",
            "main/\r\nSet-Cookie:x",
            "main/\u{e9}",
            "main/#x",
            "_dormer/sign-in",
            "_dormer/sign-out",
            &"x".repeat(BACK_BYTES_MAX + 1),
        ] {
            assert_eq!(SignInView::way_back(bad), "", "{bad:?}");
        }
        assert_eq!(SignInView::address("main/?x=1"), "_dormer/sign-in?back=main%2F%3Fx%3D1");
        assert_eq!(SignInView::address("//evil"), "_dormer/sign-in");
    }
}
