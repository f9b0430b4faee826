//! Compares clocks. Tokens expire by the server's clock. Stores refuse requests that were signed
//! with a wrong clock. Objects age by the clock.

use std::time::{Duration, SystemTime};

use super::finding::Finding;

const SUBJECT: &str = "clock";
/// Tokens that one machine makes and another verifies tolerate this difference.
const SKEW_MAX: Duration = Duration::from_secs(30);
/// Object stores refuse signatures that are a quarter of an hour off.
const SKEW_REFUSED: Duration = Duration::from_mins(10);

const ADVICE: &str = "run a time service on both machines: systemd-timesyncd, chrony, or the cloud's own";

/// The times on other clocks, and our time at the same moment.
#[derive(Debug, Default)]
pub(super) struct Clocks(Vec<(&'static str, Duration, bool)>);

impl Clocks {
    /// Records the present time of another clock.
    pub(super) fn saw(&mut self, whose: &'static str, time: SystemTime) {
        self.compare(whose, time, SystemTime::now());
    }

    fn compare(&mut self, whose: &'static str, theirs: SystemTime, ours: SystemTime) {
        let (skew, is_ahead) = match theirs.duration_since(ours) {
            Ok(skew) => (skew, false),
            Err(error) => (error.duration(), true),
        };
        self.0.push((whose, skew, is_ahead));
    }

    /// One finding for each clock. None if there is no clock to compare with.
    pub(super) fn check(&self) -> Vec<Finding> {
        self.0.iter().map(|(whose, skew, is_ahead)| describe(whose, *skew, *is_ahead)).collect()
    }
}

fn describe(whose: &str, skew: Duration, is_ahead: bool) -> Finding {
    let message =
        format!("ours is {} s {} {whose}", skew.as_secs(), if is_ahead { "ahead of" } else { "behind" });
    if skew >= SKEW_REFUSED {
        return Finding::fail(SUBJECT, message, [ADVICE]);
    }
    if skew >= SKEW_MAX {
        return Finding::warn(SUBJECT, message, [ADVICE]);
    }
    Finding::ok(SUBJECT, format!("our clock agrees with {whose}"))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn clocks_are_compared_in_both_directions() {
        let now = SystemTime::now();
        let mut clocks = Clocks::default();
        clocks.compare("a", now + Duration::from_secs(2), now);
        clocks.compare("b", now - Duration::from_secs(90), now);
        clocks.compare("c", now + Duration::from_hours(1), now);
        let findings = clocks.check();
        let statuses: Vec<Status> = findings.iter().map(|finding| finding.status).collect();
        assert_eq!(statuses, [Status::Ok, Status::Warn, Status::Fail]);
        assert_eq!(findings[1].message, "ours is 90 s ahead of b");
        assert_eq!(findings[2].message, "ours is 3600 s behind c");
    }
}
