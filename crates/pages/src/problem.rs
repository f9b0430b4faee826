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
    /// Whether the browser may have kept a session back, because a page of another site led here.
    pub from_elsewhere: bool,
}

impl ProblemView {
    /// A form came without a token that counts: its session has ended meanwhile.
    pub fn session_ended() -> Self {
        Self {
            title: "Your session has ended".to_owned(),
            text: "Nothing was changed. Sign in again, and repeat it.".to_owned(),
            request: None,
            from_elsewhere: false,
        }
    }

    /// There is no such page, or not for this visitor: the one page for both.
    pub fn nothing_here() -> Self {
        Self {
            title: "Nothing here".to_owned(),
            text: "There is no such page, or you may not see it.".to_owned(),
            request: None,
            from_elsewhere: false,
        }
    }

    /// The page.
    pub fn render(&self, frame: &Frame) -> String {
        let content = html! {
            h1 { (shortened(&self.title, 100)) }
            p { (shortened(&self.text, 600)) }
            @if let Visitor::Anybody { may_sign_in: true } = frame.visitor {
                p { a href=(frame.link(&SignInView::address(&frame.here))) { "Sign in" } " with a token that may read more." }
                @if self.from_elsewhere {
                    // An empty address is that of the page itself.
                    p { "Are you signed in, and did a link of another site lead you here? Browsers send no session with such a link. " a href="" { "Open this page again" } "." }
                }
            }
            @if let Some(request) = &self.request { p.quiet { "Request " code { (shortened(request, 130)) } } }
            p { a href=(frame.root) { "All caches" } }
        };
        frame.page(&shortened(&self.title, 100), &[], &content)
    }
}
