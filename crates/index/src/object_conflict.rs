//! What a commit does to an object, given the object that is there. Pure, and the same for all
//! databases.

use dormer_nix::{StorePath, StorePathHash};

use crate::contract::{CommitTarget, NarId, Object};

/// Most signatures of unknown keys kept with an object; the newest stay. If the oldest stayed,
/// anybody with a token to push could keep genuine signatures out for ever.
pub(crate) const UNKNOWN_SIGNATURES_MAX: usize = 16;

/// Most signatures kept under one name of a key, known or not; the newest stay. One name may stand
/// for keys of several algorithms, and for a key and its successor.
pub(crate) const SIGNATURES_PER_KEY_MAX: usize = 4;

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
    known_keys: &[String],
    present: Option<Present>,
    nar: Option<NarId>,
) -> Option<ObjectChange> {
    let (object, only_if_same) = match target {
        CommitTarget::Object(object) => (object, false),
        CommitTarget::ObjectIfSame(object) => (object, true),
        CommitTarget::Alias { .. } => return None,
    };
    Some(change(object, only_if_same, known_keys, present, nar))
}

fn change(
    object: &Object,
    only_if_same: bool,
    known_keys: &[String],
    present: Option<Present>,
    nar: Option<NarId>,
) -> ObjectChange {
    let mut object = object.clone();
    let Some(present) = present else {
        object.sigs = merge_signatures(&[], &object.sigs, known_keys);
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
        object.sigs = merge_signatures(&old.sigs, &object.sigs, known_keys);
        // What the one that counts does not say is filled in: the first, or with replacement the
        // new one. Only `ca` of the first is not: it tells how the path was named, which no later
        // push changes.
        let (first, second) = if only_if_same { (&old, &object) } else { (&object, &old) };
        let deriver = first.deriver.clone().or_else(|| second.deriver.clone());
        let system = first.system.clone().or_else(|| second.system.clone());
        let ca = if only_if_same { old.ca.clone() } else { object.ca.clone().or_else(|| old.ca.clone()) };
        let extra = if first.extra.is_empty() { second.extra.clone() } else { first.extra.clone() };
        object = Object { deriver, ca, system, extra, ..object };
    } else {
        object.sigs = merge_signatures(&[], &object.sigs, known_keys);
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

/// Old ones first, each once, within the limits.
pub(crate) fn merge_signatures(old: &[String], new: &[String], known_keys: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    // The new ones alone first: a push that is over the limits changes nothing the second time.
    for signature in old.iter().chain(&newest(new, known_keys)) {
        if !merged.contains(signature) {
            merged.push(signature.clone());
        }
    }
    newest(&merged, known_keys)
}

/// The newest within the limits, oldest first.
fn newest(signatures: &[String], known_keys: &[String]) -> Vec<String> {
    let mut kept: Vec<&String> = Vec::new();
    let mut unknown = 0;
    for signature in signatures.iter().rev() {
        let name = key_name(signature);
        let is_known = known_keys.iter().any(|known| known == name);
        let of_this_key = kept.iter().filter(|other| key_name(other) == name).count();
        if of_this_key == SIGNATURES_PER_KEY_MAX || (!is_known && unknown == UNKNOWN_SIGNATURES_MAX) {
            continue;
        }
        unknown += usize::from(!is_known);
        kept.push(signature);
    }
    kept.into_iter().rev().cloned().collect()
}

fn key_name(signature: &str) -> &str {
    signature.split_once(':').map_or(signature, |(name, _)| name)
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
            extra: Vec::new(),
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
                &[],
                Some(present(object(&["a", "b"]), false)),
                Some(NarId(1)),
            );
            assert_eq!(change, ObjectChange::Touch(object(&[]).path.hash()));
        }
    }

    #[test]
    fn signatures_merge_only_for_the_same_nar_and_references() {
        let same =
            change(&object(&["b", "a"]), true, &[], Some(present(object(&["a"]), false)), Some(NarId(1)));
        assert_eq!(
            same,
            ObjectChange::Write { object: object(&["a", "b"]), replaced: None, old_references: vec![] }
        );
        let other_nar =
            change(&object(&["b"]), false, &[], Some(present(object(&["a"]), false)), Some(NarId(2)));
        assert_eq!(
            other_nar,
            ObjectChange::Write { object: object(&["b"]), replaced: Some(NarId(1)), old_references: vec![] }
        );
        let mut with_reference = object(&["b"]);
        with_reference.references.push(with_reference.path.clone());
        let other_references =
            change(&with_reference, false, &[], Some(present(object(&["a"]), false)), Some(NarId(1)));
        assert_eq!(
            other_references,
            ObjectChange::Write { object: with_reference, replaced: None, old_references: vec![] }
        );
    }

    #[test]
    fn a_later_push_neither_adds_nor_changes_the_content_address() {
        let with_ca = |ca: Option<&str>| Object { ca: ca.map(str::to_owned), ..object(&[]) };
        for old in [None, Some("text:sha256:a")] {
            for new in [None, Some("text:sha256:b")] {
                let change =
                    change(&with_ca(new), true, &[], Some(present(with_ca(old), false)), Some(NarId(1)));
                assert_eq!(change, ObjectChange::Touch(object(&[]).path.hash()), "{old:?} {new:?}");
            }
        }
    }

    /// An upload by another way names fewer fields of a path that is the same.
    #[test]
    fn the_same_path_again_loses_no_field() {
        let full = |word: &str| Object {
            deriver: Some(format!("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-{word}.drv").parse().unwrap()),
            ca: Some(word.to_owned()),
            system: Some(word.to_owned()),
            extra: vec![("Provenance".to_owned(), word.to_owned())],
            ..object(&[])
        };
        let (first, second) = (full("first"), full("second"));
        let again = |new: &Object, only_if_same| {
            change(new, only_if_same, &[], Some(present(first.clone(), false)), Some(NarId(1)))
        };
        for only_if_same in [false, true] {
            assert_eq!(again(&object(&[]), only_if_same), ObjectChange::Touch(first.path.hash()));
        }
        assert_eq!(again(&second, true), ObjectChange::Touch(first.path.hash()));
        let replaced = again(&second, false);
        assert_eq!(replaced, ObjectChange::Write { object: second, replaced: None, old_references: vec![] });
    }

    #[test]
    fn the_first_stays_unless_its_nar_is_damaged() {
        let kept = change(&object(&[]), true, &[], Some(present(object(&[]), false)), None);
        assert_eq!(kept, ObjectChange::Keep);
        let healed = change(&object(&[]), true, &[], Some(present(object(&[]), true)), Some(NarId(2)));
        assert_eq!(
            healed,
            ObjectChange::Write { object: object(&[]), replaced: Some(NarId(1)), old_references: vec![] }
        );
    }

    #[test]
    fn the_newest_signatures_of_unknown_keys_stay() {
        let many: Vec<String> = (0..20).map(|n| format!("{n}:x")).collect();
        let merged = merge_signatures(&["old:x".to_owned()], &many, &[]);
        assert_eq!(merged, many[4..]);
        assert_eq!(merge_signatures(&merged, &many, &[]), merged, "the same push again changes nothing");
        let genuine = ["genuine:x".to_owned()];
        let with_genuine = merge_signatures(&merged, &genuine, &[]);
        assert_eq!((with_genuine.len(), &with_genuine[15]), (UNKNOWN_SIGNATURES_MAX, &genuine[0]));
    }

    #[test]
    fn no_number_of_others_displaces_a_signature_of_a_known_key() {
        let known = ["upstream".to_owned()];
        let flood: Vec<String> = (0..40).map(|n| format!("{n}:x")).collect();
        let genuine = ["upstream:x".to_owned()];
        let before = merge_signatures(&merge_signatures(&[], &genuine, &known), &flood, &known);
        let after = merge_signatures(&merge_signatures(&[], &flood, &known), &genuine, &known);
        for merged in [before, after] {
            assert!(merged.contains(&genuine[0]) && merged.len() == UNKNOWN_SIGNATURES_MAX + 1, "{merged:?}");
        }
    }

    #[test]
    fn signatures_are_counted_for_each_name() {
        let of_one: Vec<String> = (0..9).map(|n| format!("a:{n}")).collect();
        let merged = merge_signatures(&["b:0".to_owned()], &of_one, &[]);
        assert_eq!(merged, ["b:0", "a:5", "a:6", "a:7", "a:8"]);
        let known = merge_signatures(&["b:0".to_owned()], &of_one, &["a".to_owned()]);
        assert_eq!(known, merged, "known or not");
    }
}
