//! An error with its causes, for a log line, a message or a table column that people read.

use std::error::Error;

/// An error and its causes in one line, separated by colons. Omits a cause that its parent repeats.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("failed to open the store")]
        Open(#[source] Box<Failed>),
        #[error("transparent: {0}")]
        Repeats(#[source] Box<Failed>),
        #[error("no such bucket")]
        Bucket,
    }

    #[test]
    fn causes_follow_their_error_and_repetitions_are_left_out() {
        assert_eq!(with_causes(&Failed::Bucket), "no such bucket");
        let repeats = Failed::Repeats(Box::new(Failed::Bucket));
        assert_eq!(with_causes(&repeats), "transparent: no such bucket");
        let open = Failed::Open(Box::new(repeats));
        assert_eq!(with_causes(&open), "failed to open the store: transparent: no such bucket");
    }
}
