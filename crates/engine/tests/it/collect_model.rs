//! A small model of the collector beside pushers and a reader, checked over all interleavings.
//!
//! One chunk lies in one old pack, and no NAR needs it at the start. Two pushers reuse the chunk,
//! or store it again when they may not. A reader looks up where the chunk of a visible NAR lies,
//! reads it later, and must find its bytes; a pack that is gone makes it look once more, as
//! `Error::Reencoded` makes a client ask again. A collector runs three times, and compacts the old
//! pack when it is live: it stores a copy, moves the row, and condemns the old pack. It may be
//! suspended so long that the copy is deleted before the row moves. A push may heal the chunk at
//! any time, with other bytes in the new pack. Each step below is one transaction, or one call of
//! the store, of the real code. The rules of the real code that the model leaves out (ages, clocks)
//! only make the collector more careful.
//!
//! The model also shows which rules it needs: each planted defect must be found.

use std::collections::HashSet;

/// A rule that a planted defect leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A commit does not ask whether its pack is condemned.
    CommitIgnoresCondemned,
    /// Packs go by the marks under which they were condemned, and stamps are not looked at.
    RemovesByOldMarks,
    /// The object goes before the row.
    ObjectBeforeRow,
    /// A chunk that is stored again keeps its row in the condemned pack.
    RowStays,
    /// A compaction moves the row before it has stored the copy.
    MovesBeforeCopy,
    /// A compaction moves the row wherever it lies now.
    MovesUnchecked,
    /// A compaction does not look whether its copy was deleted meanwhile.
    MovesWithoutList,
    /// A reader believes what it looked up: when the pack is gone, it does not look again.
    LooksOnce,
}

/// Where the chunk's row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Row {
    None,
    Old,
    New,
    /// In the copy that a compaction stored.
    Copy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pusher {
    Begins,
    /// It found the chunk in the old or in the new pack.
    Found(Row),
    /// It has put a new pack; its row comes next.
    Put,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Begins,
    /// It has looked up where the chunk of a NAR lies, and reads that next. It may look twice.
    Looked {
        at: Row,
        again: bool,
    },
    /// The bytes came.
    Served {
        again: bool,
    },
    /// It found no bytes.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Collector {
    Marks,
    /// It has marked; whether the old pack was live, and condemned when the marks began.
    Judges {
        live: bool,
        was_condemned: bool,
    },
    /// The old pack is live, and its chunk was read; the copy is stored next.
    Copies,
    /// The copy is stored; the row moves next.
    Moves,
    /// With a defect: the row has moved, and the copy is stored next.
    CopiesLate,
    /// The row has moved; the old pack is condemned next.
    Condemns,
    /// The row of the old pack is gone; its object goes next.
    Deletes,
    /// With a defect: the object is gone and the row is not.
    DeletesRow,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that a step looks at")]
struct State {
    row: Row,
    old_row: bool,
    old_object: bool,
    new_object: bool,
    copy_object: bool,
    /// The copy has no row yet, and may be deleted.
    copy_doomed: bool,
    /// The chunk's stored bytes are others than those of the old pack.
    healed: bool,
    condemned: bool,
    /// A commit stamped the old pack after the collector's marks began.
    stamped: bool,
    /// NARs that need the chunk, by pusher.
    nars: [bool; 2],
    pushers: [Pusher; 2],
    reader: Reader,
    collector: Collector,
    runs_left: u8,
}

impl State {
    fn first() -> Self {
        Self {
            row: Row::Old,
            old_row: true,
            old_object: true,
            new_object: false,
            copy_object: false,
            copy_doomed: false,
            healed: false,
            condemned: false,
            stamped: false,
            nars: [false; 2],
            pushers: [Pusher::Begins; 2],
            reader: Reader::Begins,
            collector: Collector::Marks,
            runs_left: 3,
        }
    }

    /// What a commit made visible must be readable, now and always, and a reader gets it.
    fn is_broken(&self) -> bool {
        let readable = self.has_object(self.row)
            && match self.row {
                Row::Old => self.old_row,
                // The copy holds the old bytes.
                Row::Copy => !self.healed,
                Row::None | Row::New => true,
            };
        let row_without_object =
            self.old_row && !self.old_object || self.row == Row::Copy && !self.copy_object;
        row_without_object || self.nars.contains(&true) && !readable || self.reader == Reader::Failed
    }

    /// Whether the store has the pack that a row names.
    fn has_object(&self, row: Row) -> bool {
        match row {
            Row::None => false,
            Row::Old => self.old_object,
            Row::New => self.new_object,
            Row::Copy => self.copy_object,
        }
    }

    /// Every state that one step of one of them can lead to.
    fn next(&self, defect: Defect) -> Vec<Self> {
        let mut all = Vec::new();
        for n in 0..2 {
            all.extend(self.push(n, defect));
        }
        all.extend(self.read(defect));
        all.extend(self.collect(defect));
        all.extend(self.compact(defect));
        if self.copy_doomed && self.copy_object {
            // A later collection, of another process.
            all.push(Self { copy_object: false, copy_doomed: false, ..self.clone() });
        }
        if self.row == Row::Old && !self.healed {
            // A read found the chunk damaged, and a push stores it again.
            all.push(Self { row: Row::New, new_object: true, healed: true, ..self.clone() });
        }
        all
    }

    fn read(&self, defect: Defect) -> Option<Self> {
        let reader = match self.reader {
            Reader::Begins if self.nars.contains(&true) => Reader::Looked { at: self.row, again: false },
            Reader::Looked { at, again } if self.has_object(at) => Reader::Served { again },
            Reader::Looked { again: false, .. } if defect != Defect::LooksOnce => {
                Reader::Looked { at: self.row, again: true }
            }
            Reader::Looked { .. } => Reader::Failed,
            Reader::Begins | Reader::Served { .. } | Reader::Failed => return None,
        };
        Some(Self { reader, ..self.clone() })
    }

    /// Instead of going on, a collector that finds the old pack live may compact it.
    fn compact(&self, defect: Defect) -> Option<Self> {
        let mut next = self.clone();
        next.collector = match self.collector {
            Collector::Judges { live: true, was_condemned: false } if self.row == Row::Old => {
                if defect == Defect::MovesBeforeCopy {
                    next.row = Row::Copy;
                    Collector::CopiesLate
                } else {
                    Collector::Copies
                }
            }
            Collector::CopiesLate => {
                next.copy_object = true;
                Collector::Condemns
            }
            Collector::Copies => {
                (next.copy_object, next.copy_doomed) = (true, true);
                Collector::Moves
            }
            Collector::Moves => {
                let may = self.copy_doomed || defect == Defect::MovesWithoutList;
                let lies_there = self.row == Row::Old || defect == Defect::MovesUnchecked;
                if may && lies_there && self.row != Row::None {
                    next.row = Row::Copy;
                    next.copy_doomed = false;
                }
                Collector::Condemns
            }
            Collector::Condemns => {
                // By the marks of this run: nothing marked lies in the old pack now.
                next.condemned |= self.row != Row::Old && !self.stamped;
                Collector::Marks
            }
            _ => return None,
        };
        Some(next)
    }

    fn push(&self, n: usize, defect: Defect) -> Option<Self> {
        let mut next = self.clone();
        next.pushers[n] = match self.pushers[n] {
            Pusher::Begins => match self.row {
                Row::Old if !self.condemned => Pusher::Found(Row::Old),
                Row::New => Pusher::Found(Row::New),
                Row::Copy => Pusher::Found(Row::Copy),
                _ => Pusher::Put,
            },
            // The new pack of the pusher that comes second stays without chunks: the first one's
            // row wins. Both stand for one here, since neither is ever condemned while it is young.
            Pusher::Put => {
                next.new_object = true;
                let may_move = self.condemned && defect != Defect::RowStays;
                if self.row == Row::None || self.row == Row::Old && may_move {
                    next.row = Row::New;
                }
                Pusher::Found(next.row)
            }
            Pusher::Found(found) => {
                let may = match found {
                    Row::Old => self.old_row && (!self.condemned || defect == Defect::CommitIgnoresCondemned),
                    // Both are young.
                    Row::New | Row::Copy => true,
                    Row::None => false,
                };
                let may = may || defect == Defect::RowStays && found == Row::Old;
                if may {
                    next.stamped |= found == Row::Old;
                    next.nars[n] = true;
                    Pusher::Done
                } else {
                    // The client pushes again.
                    Pusher::Begins
                }
            }
            Pusher::Done => return None,
        };
        Some(next)
    }

    fn collect(&self, defect: Defect) -> Option<Self> {
        let mut next = self.clone();
        next.collector = match self.collector {
            Collector::Marks if self.runs_left == 0 || !self.old_row => return None,
            Collector::Marks => {
                next.runs_left -= 1;
                next.stamped = false;
                let live = self.row == Row::Old && self.nars.contains(&true);
                Collector::Judges { live, was_condemned: self.condemned }
            }
            Collector::Copies | Collector::Moves | Collector::CopiesLate | Collector::Condemns => {
                return None;
            }
            Collector::Judges { live: true, .. } => {
                next.condemned = false;
                Collector::Marks
            }
            Collector::Judges { live: false, was_condemned: true } => next.remove(defect),
            Collector::Judges { live: false, was_condemned: false } => {
                if defect == Defect::RemovesByOldMarks {
                    next.remove(defect)
                } else {
                    next.condemned = !self.stamped;
                    Collector::Marks
                }
            }
            Collector::Deletes => {
                next.old_object = false;
                Collector::Marks
            }
            Collector::DeletesRow => {
                next.remove_row();
                Collector::Marks
            }
        };
        Some(next)
    }

    fn remove(&mut self, defect: Defect) -> Collector {
        if defect == Defect::ObjectBeforeRow {
            self.old_object = false;
            return Collector::DeletesRow;
        }
        self.remove_row();
        Collector::Deletes
    }

    fn remove_row(&mut self) {
        self.old_row = false;
        if self.row == Row::Old {
            self.row = Row::None;
        }
    }
}

/// Walks through every reachable state; returns how many there are, and a broken one.
fn explore(defect: Defect) -> (HashSet<State>, Option<State>) {
    let mut seen = HashSet::from([State::first()]);
    let mut open = vec![State::first()];
    while let Some(state) = open.pop() {
        if state.is_broken() {
            return (seen, Some(state));
        }
        for next in state.next(defect) {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    (seen, None)
}

#[test]
fn no_interleaving_loses_a_live_chunk() {
    let (seen, broken) = explore(Defect::None);
    assert_eq!(broken, None);
    assert!(seen.len() > 200, "only {} states", seen.len());
    // The model is not idle: packs go, are spared by stamps, and both pushers end either way.
    assert!(seen.iter().any(|state| !state.old_object && state.nars == [true; 2]));
    assert!(seen.iter().any(|state| !state.old_object && state.nars == [false; 2]));
    assert!(seen.iter().any(|state| state.stamped && state.row == Row::Old && state.runs_left == 0));
    assert!(seen.iter().any(|state| state.row == Row::Copy && !state.old_object && state.nars == [true; 2]));
    assert!(
        seen.iter().any(|state| state.reader == Reader::Served { again: true }),
        "a pack goes under a reader"
    );
    let late = |state: &&State| state.collector == Collector::Moves && !state.copy_object;
    assert!(seen.iter().any(|state| late(&state)), "a copy goes before its row comes");
    let stuck = |state: &&State| state.next(Defect::None).is_empty();
    assert!(seen.iter().filter(stuck).all(|state| state.nars == [true; 2]), "every push ends well");
}

#[test]
fn every_rule_of_the_model_is_needed() {
    for defect in [
        Defect::CommitIgnoresCondemned,
        Defect::RemovesByOldMarks,
        Defect::ObjectBeforeRow,
        Defect::RowStays,
        Defect::MovesBeforeCopy,
        Defect::MovesUnchecked,
        Defect::MovesWithoutList,
    ] {
        assert!(explore(defect).1.is_some(), "{defect:?} should lose a chunk");
    }
    // Nothing is lost then, and a reader fails all the same.
    let failed = explore(Defect::LooksOnce).1.expect("a pack goes under a reader");
    assert_eq!(failed.reader, Reader::Failed);
}
