//! The result of a check.

use crate::error::Error;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    /// The part works, but should be set up differently.
    Warn,
    /// The part does not work, or is not safe.
    Fail,
}

impl Status {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of the report, and advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) subject: &'static str,
    pub(super) status: Status,
    pub(super) message: String,
    pub(super) advice: Vec<String>,
}

impl Finding {
    pub(super) fn ok(subject: &'static str, message: impl Into<String>) -> Self {
        Self { subject, status: Status::Ok, message: message.into(), advice: Vec::new() }
    }

    pub(super) fn warn<const N: usize>(
        subject: &'static str,
        message: impl Into<String>,
        advice: [&str; N],
    ) -> Self {
        Self { status: Status::Warn, advice: advice.map(str::to_owned).into(), ..Self::ok(subject, message) }
    }

    pub(super) fn fail<const N: usize>(
        subject: &'static str,
        message: impl Into<String>,
        advice: [&str; N],
    ) -> Self {
        Self { status: Status::Fail, ..Self::warn(subject, message, advice) }
    }

    /// A failure, with the advice that any command would give.
    pub(super) fn error(subject: &'static str, error: &Error) -> Self {
        Self { advice: error.hints(), ..Self::fail(subject, error.chain(), []) }
    }
}
