//! What a commit does to an object, given the object that is there. Pure, and the same for all
//! databases.

use dormer_nix::{StorePath, StorePathHash};

use crate::contract::{CommitTarget, NarId, Object};

/// Most signatures kept with an object; the oldest stay.
pub(crate) const SIGNATURES_MAX: usize = 16;

/// An object as it is before a commit.
#[derive(Debug)]
pub(crate) struct Present {
    pub(crate) object: Object,
    pub(crate) nar: NarId,
    pub(crate) nar_damaged: bool,
}

/// What to do to the object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ObjectChange {
    /// Another one is there and stays.
    Keep,
    /// It is there already, all the same: only its use is written down.
    Touch(StorePathHash),
    /// Write this.
    Write {
        object: Object,
        /// A NAR that the object had until now, and that gets a grace.
        replaced: Option<NarId>,
        /// What the object referred to until now.
        old_references: Vec<StorePath>,
    },
}

/// Decides. `nar` is the NAR to be named, if its row exists already.
pub(crate) fn change_object(
    target: &CommitTarget,
    present: Option<Present>,
    nar: Option<NarId>,
) -> Option<ObjectChange> {
    let (object, only_if_same) = match target {
        CommitTarget::Object(object) => (object, false),
        CommitTarget::ObjectIfSame(object) => (object, true),
        CommitTarget::Alias { .. } => return None,
    };
    Some(change(object, only_if_same, present, nar))
}

fn change(object: &Object, only_if_same: bool, present: Option<Present>, nar: Option<NarId>) -> ObjectChange {
    let mut object = object.clone();
    let Some(present) = present else {
        object.sigs = merge_signatures(&[], &object.sigs);
        return ObjectChange::Write { object, replaced: None, old_references: Vec::new() };
    };
    let old = present.object;
    let same_nar = nar == Some(present.nar);
    // A signature vouches for path, NAR and references together.
    let same = same_nar && old.path == object.path && old.references == object.references;
    if !same && only_if_same && !present.nar_damaged {
        return ObjectChange::Keep;
    }
    if same {
        object.sigs = merge_signatures(&old.sigs, &object.sigs);
        if only_if_same {
            // The first stays; what it lacks is filled in.
            object.deriver = old.deriver.clone().or(object.deriver);
            object.ca = old.ca.clone().or(object.ca);
            object.system = old.system.clone().or(object.system);
        }
    } else {
        object.sigs = merge_signatures(&[], &object.sigs);
    }
    if same_nar && object == old {
        return ObjectChange::Touch(object.path.hash());
    }
    ObjectChange::Write {
        object,
        replaced: (!same_nar).then_some(present.nar),
        old_references: old.references,
    }
}

/// Old ones first, each once, at most [`SIGNATURES_MAX`].
fn merge_signatures(old: &[String], new: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    for signature in old.iter().chain(new) {
        if merged.len() == SIGNATURES_MAX {
            break;
        }
        if !merged.contains(signature) {
            merged.push(signature.clone());
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(sigs: &[&str]) -> Object {
        Object {
            path: "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello".parse().unwrap(),
            references: vec![],
            deriver: None,
            ca: None,
            sigs: sigs.iter().map(|sig| (*sig).to_owned()).collect(),
            system: None,
        }
    }

    fn present(object: Object, nar_damaged: bool) -> Present {
        Present { object, nar: NarId(1), nar_damaged }
    }

    #[test]
    fn the_same_object_again_is_only_touched() {
        for only_if_same in [false, true] {
            let change = change(
                &object(&["a"]),
                only_if_same,
                Some(present(object(&["a", "b"]), false)),
                Some(NarId(1)),
            );
            assert_eq!(change, ObjectChange::Touch(object(&[]).path.hash()));
        }
    }

    #[test]
    fn signatures_merge_only_for_the_same_nar_and_references() {
        let same = change(&object(&["b", "a"]), true, Some(present(object(&["a"]), false)), Some(NarId(1)));
        assert_eq!(
            same,
            ObjectChange::Write { object: object(&["a", "b"]), replaced: None, old_references: vec![] }
        );
        let other_nar = change(&object(&["b"]), false, Some(present(object(&["a"]), false)), Some(NarId(2)));
        assert_eq!(
            other_nar,
            ObjectChange::Write { object: object(&["b"]), replaced: Some(NarId(1)), old_references: vec![] }
        );
        let mut with_reference = object(&["b"]);
        with_reference.references.push(with_reference.path.clone());
        let other_references =
            change(&with_reference, false, Some(present(object(&["a"]), false)), Some(NarId(1)));
        assert_eq!(
            other_references,
            ObjectChange::Write { object: with_reference, replaced: None, old_references: vec![] }
        );
    }

    #[test]
    fn the_first_stays_unless_its_nar_is_damaged() {
        let kept = change(&object(&[]), true, Some(present(object(&[]), false)), None);
        assert_eq!(kept, ObjectChange::Keep);
        let healed = change(&object(&[]), true, Some(present(object(&[]), true)), Some(NarId(2)));
        assert_eq!(
            healed,
            ObjectChange::Write { object: object(&[]), replaced: Some(NarId(1)), old_references: vec![] }
        );
    }

    #[test]
    fn at_most_sixteen_signatures_are_kept_and_the_old_ones_win() {
        let many: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let mut expected = vec!["old".to_owned()];
        expected.extend_from_slice(&many[..15]);
        assert_eq!(merge_signatures(&["old".to_owned()], &many), expected);
    }
}
