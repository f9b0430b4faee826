//! The page for what went wrong.

use maud::html;

use crate::SignInView;
use crate::frame::{Frame, Visitor};
use crate::text::shortened;

/// Something that went wrong.
#[derive(Debug, Clone)]
pub struct ProblemView {
    /// The heading.
    pub title: String,
    /// What happened, in a sentence.
    pub text: String,
    /// The id of the request, for the server's log.
    pub request: Option<String>,
}

impl ProblemView {
    /// A form came without a token that counts: its session has ended meanwhile.
    pub fn session_ended() -> Self {
        Self {
            title: "Your session has ended".to_owned(),
            text: "Nothing was changed. Sign in again, and repeat it.".to_owned(),
            request: None,
        }
    }

    /// There is no such page, or not for this visitor: the one page for both.
    pub fn nothing_here() -> Self {
        Self {
            title: "Nothing here".to_owned(),
            text: "There is no such page, or you may not see it.".to_owned(),
            request: None,
        }
    }

    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let content = html! {
            h1 { (shortened(&self.title, 100)) }
            p { (shortened(&self.text, 600)) }
            @if let Visitor::Anybody { may_sign_in: true } = frame.visitor {
                p { a href=(frame.link(&SignInView::address(&frame.here))) { "Sign in" } " with a token that may read more." }
            }
            @if let Some(request) = &self.request { p.quiet { "Request " code { (shortened(request, 130)) } } }
            p { a href=(frame.root) { "All caches" } }
        };
        frame.page(&shortened(&self.title, 100), &[], &content)
    }
}
