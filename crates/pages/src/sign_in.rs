//! `/_dormer/sign-in`: a token becomes a session.

use maud::html;

use crate::frame::Frame;
use crate::text::shortened;

/// The form that takes a token.
#[derive(Debug, Clone, Default)]
pub struct SignInView {
    /// Why the last token did not count.
    pub refused: Option<String>,
}

impl SignInView {
    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let content = html! {
            h1 { "Sign in" }
            @if let Some(refused) = &self.refused { p.notice role="alert" { (shortened(refused, 300)) } }
            p { "Paste a token of this server. You then see the caches that it may pull from, and may change what it may change. The session ends with the token, or when you sign out." }
            form.inline method="post" action=(frame.link("_dormer/sign-in")) {
                p {
                    label for="token" { "Token" }
                    input #token type="password" name="token" required autocomplete="off" spellcheck="false" autocapitalize="off";
                }
                button { "Sign in" }
            }
            p.quiet { "The browser keeps the token in a cookie that no script can read, and sends it to this host only. " code { "dormer make-token" } " makes tokens." }
        };
        frame.page("Sign in", &[("_dormer/sign-in".to_owned(), "Sign in".to_owned())], &content)
    }
}
