//! The cursor of the job: what it does, and what it has reached.

use dormer_nix::StorePathHash;

use crate::Result;
use crate::columns::{array, corrupt};

/// What the job does, and what it has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) phase: Phase,
    /// Whether a step of this pass left objects behind that it freed.
    pub(super) again: bool,
    /// Bytes that count for the quota: so far while they are added up, and after that those that
    /// are left. Each step asks the rules how many are too much: they may change meanwhile.
    pub(super) bytes: u64,
    /// Last use of the last object, or NAR of the last grace.
    pub(super) number: i64,
    /// Row number of the last object, where objects come in the order of their use, or of the last
    /// document.
    pub(super) id: i64,
    /// The last object or grace, where they come in the order of their hashes; `None` before the
    /// first one.
    pub(super) hash: Option<StorePathHash>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Rules = 0,
    SumObjects = 1,
    SumGraces = 2,
    CutGraces = 3,
    Quota = 4,
    Documents = 5,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Rules, Self::SumObjects, Self::SumGraces, Self::CutGraces, Self::Quota, Self::Documents];
}

impl Cursor {
    pub(super) fn at(phase: Phase, bytes: u64) -> Self {
        Self { phase, again: false, bytes, number: i64::MIN, id: 0, hash: None }
    }

    pub(super) fn after(&self) -> &[u8] {
        self.hash.as_ref().map_or(&[], |hash| hash.as_bytes().as_slice())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let flags = [self.phase as u8, u8::from(self.again)];
        [
            &flags[..],
            &self.bytes.to_le_bytes(),
            &self.number.to_le_bytes(),
            &self.id.to_le_bytes(),
            self.after(),
        ]
        .concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let cut = || corrupt("jobs", "a cursor is cut short");
        let (flags, rest) = bytes.split_first_chunk::<2>().ok_or_else(cut)?;
        let (sum, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let (number, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let (id, hash) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let phase = Phase::ALL.get(usize::from(flags[0]));
        let phase = *phase.ok_or_else(|| corrupt("jobs", "a cursor past the end"))?;
        let hash = if hash.is_empty() { None } else { Some(array("jobs", hash)?) };
        Ok(Self {
            phase,
            again: flags[1] != 0,
            bytes: u64::from_le_bytes(*sum),
            number: i64::from_le_bytes(*number),
            id: i64::from_le_bytes(*id),
            hash: hash.map(StorePathHash::from_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back() {
        for phase in Phase::ALL {
            let cursor = Cursor::at(phase, 7);
            assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
            let hash = Some(StorePathHash::from_bytes([9; 20]));
            let cursor = Cursor { again: true, number: -5, id: 6, hash, ..cursor };
            let encoded = cursor.encode();
            assert_eq!(Cursor::decode(&encoded).unwrap(), cursor);
            assert!(Cursor::decode(&encoded[..encoded.len() - 1]).is_err());
        }
        assert!(Cursor::decode(&[]).is_err());
        assert!(Cursor::decode(&[9; 26]).is_err());
    }
}
