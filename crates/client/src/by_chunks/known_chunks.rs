//! What a target is known to have, so that a chunk that several paths share is asked about and sent
//! once.
//!
//! Invariants
//! - Memory is bounded: [`PLACES`] in the tables of all targets, and the chunks that are under way.
//!   A chunk that was forgotten is asked about again, which costs 32 bytes.
//! - A chunk that is under way is never forgotten: paths wait for it.

use std::collections::HashMap;
use std::mem;

use dormer_format::ChunkId;

use super::numbers::PathNumber;

/// Places in the tables of all targets together: about 15 MiB. One target alone knows the chunks of
/// 28 GiB of NARs.
const PLACES: usize = 1 << 18;

/// What happens to a chunk.
#[derive(Debug)]
enum ChunkState {
    /// The client asks about it or sends it. These paths wait.
    UnderWay(Vec<PathNumber>),
    /// The target has it.
    There,
}

/// What a path finds out about one of its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Nobody asked about the chunk. It is under way now, and the path waits for it.
    New,
    /// The path waits for it now.
    UnderWay,
    /// The target has it.
    There,
}

/// The chunks of one target.
#[derive(Debug)]
pub(super) struct KnownChunks {
    states: HashMap<ChunkId, ChunkState>,
    /// Most chunks that are remembered.
    known_max: usize,
}

impl KnownChunks {
    /// The table of one of `targets` targets.
    pub(super) fn of_one_of(targets: usize) -> Self {
        // A table has a power of two of places, and fills seven of eight.
        let places = PLACES / targets.next_power_of_two();
        Self { states: HashMap::new(), known_max: places / 8 * 7 }
    }

    /// A path has this chunk.
    pub(super) fn look_up(&mut self, chunk: ChunkId, path: PathNumber) -> Known {
        match self.states.get_mut(&chunk) {
            Some(ChunkState::There) => Known::There,
            Some(ChunkState::UnderWay(waiting)) => {
                waiting.push(path);
                Known::UnderWay
            }
            None => {
                if self.states.len() >= self.known_max {
                    // A new table, because places that were freed can make the old one grow.
                    let states = mem::take(&mut self.states).into_iter();
                    self.states = states.filter(|(_, it)| matches!(it, ChunkState::UnderWay(_))).collect();
                }
                self.states.insert(chunk, ChunkState::UnderWay(vec![path]));
                Known::New
            }
        }
    }

    /// The target has this chunk. Returns the paths that waited for it, each as often as it has the
    /// chunk.
    pub(super) fn arrived(&mut self, chunk: ChunkId) -> Vec<PathNumber> {
        // An insertion would double a full table, although the chunk has its place.
        match self.states.get_mut(&chunk).map(|state| mem::replace(state, ChunkState::There)) {
            Some(ChunkState::UnderWay(waiting)) => waiting,
            Some(ChunkState::There) | None => Vec::new(),
        }
    }

    /// This chunk is not under way any more, and did not arrive: the next path that has it asks
    /// about it again. Returns the paths that waited for it, each as often as it has the chunk.
    pub(super) fn lost(&mut self, chunk: &ChunkId) -> Vec<PathNumber> {
        match self.states.remove(chunk) {
            Some(ChunkState::UnderWay(waiting)) => waiting,
            Some(ChunkState::There) | None => Vec::new(),
        }
    }

    /// The target may lack this chunk again.
    pub(super) fn doubt(&mut self, chunk: &ChunkId) {
        if let Some(ChunkState::There) = self.states.get(chunk) {
            self.states.remove(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ChunkId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        ChunkId::from_bytes(bytes)
    }

    #[test]
    fn a_shared_chunk_is_new_once_and_wakes_all_that_wait() {
        let mut known = KnownChunks::of_one_of(1);
        assert_eq!(known.look_up(id(1), 10), Known::New);
        assert_eq!(known.look_up(id(1), 11), Known::UnderWay);
        assert_eq!(known.look_up(id(1), 11), Known::UnderWay);
        known.doubt(&id(1));
        assert_eq!(known.arrived(id(1)), [10, 11, 11]);
        assert_eq!(known.look_up(id(1), 12), Known::There);
        known.doubt(&id(1));
        assert_eq!(known.look_up(id(1), 12), Known::New);
    }

    #[test]
    fn a_chunk_that_was_lost_on_its_way_is_new_again() {
        let mut known = KnownChunks::of_one_of(1);
        known.look_up(id(1), 10);
        known.look_up(id(1), 11);
        assert_eq!(known.lost(&id(1)), [10, 11]);
        assert_eq!(known.look_up(id(1), 12), Known::New);
        assert_eq!(known.lost(&id(1)), [12]);
        assert!(known.lost(&id(1)).is_empty());
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_under_way() {
        for targets in [1, 3, 32] {
            let mut known = KnownChunks::of_one_of(targets);
            let known_max = known.known_max;
            assert_eq!(known.look_up(id(0), 1), Known::New);
            for number in 1..2 * known_max {
                known.look_up(id(number), 1);
                known.arrived(id(number));
                assert!(known.states.len() <= known_max);
            }
            assert_eq!(known.look_up(id(0), 2), Known::UnderWay);
            assert!(targets * known.states.capacity() <= PLACES, "{targets} tables take what one takes");
        }
    }
}
