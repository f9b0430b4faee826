//! What the modules of a push by chunks call its paths and targets.

/// Number of a path in a push, references first.
pub(super) type PathNumber = usize;
/// Number of a target in a push.
pub(super) type TargetNumber = usize;
/// One bit for each target.
pub(super) type TargetSet = u32;

/// Whether a set has a target.
pub(super) fn contains(targets: TargetSet, number: TargetNumber) -> bool {
    targets >> number & 1 == 1
}
