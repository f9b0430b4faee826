//! Buffers that are used again: a read into a fresh one costs zeroing it and a page fault for every
//! 4 KiB, together more than the copy out of the page cache itself.
//!
//! Invariants
//! - A buffer goes back only when the last `Bytes` over it is gone, so nobody sees it change.
//! - At most [`FREE_BYTES_MAX`] lie idle; what comes back beyond that is freed.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Smallest class; smaller reads come from plain memory, where the allocator reuses pages itself.
const CLASS_BYTES_MIN: usize = 64 * 1024;

/// Largest class. The engine reads in windows of about this size.
const CLASS_BYTES_MAX: usize = 1024 * 1024;

/// 64, 128, 256, 512 KiB and 1 MiB.
const CLASSES: usize = (CLASS_BYTES_MAX / CLASS_BYTES_MIN).ilog2() as usize + 1;

/// Idle memory kept: what about 8 readers hold between two reads.
pub const FREE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A pool of buffers; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct BufferPool {
    free: Arc<Mutex<Free>>,
}

#[derive(Debug, Default)]
struct Free {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

/// A buffer on loan: initialised memory whose first `len` bytes count.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    len: usize,
    /// Where it goes back to; `None` for one of no class.
    home: Option<(BufferPool, usize)>,
}

impl BufferPool {
    /// A buffer of `len` bytes with any contents.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        let Some(class) = class_of(len) else {
            return Buffer { memory: vec![0; len], len, home: None };
        };
        let kept = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = free.classes[class].pop();
            free.bytes -= kept.as_ref().map_or(0, Vec::len);
            kept
        };
        let memory = kept.unwrap_or_else(|| vec![0; CLASS_BYTES_MIN << class]);
        Buffer { memory, len, home: Some((self.clone(), class)) }
    }

    fn put_back(&self, class: usize, memory: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.bytes + memory.len() <= FREE_BYTES_MAX {
            free.bytes += memory.len();
            free.classes[class].push(memory);
        }
    }
}

/// The smallest class that holds `len` bytes without wasting more than it is worth.
fn class_of(len: usize) -> Option<usize> {
    if !(CLASS_BYTES_MIN / 2..=CLASS_BYTES_MAX).contains(&len) {
        return None;
    }
    Some(len.div_ceil(CLASS_BYTES_MIN).next_power_of_two().ilog2() as usize)
}

impl Buffer {
    /// The bytes to read into.
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// Freezes it; the memory returns to the pool with the last clone.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((pool, class)) = self.home.take() {
            pool.put_back(class, std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_bytes(pool: &BufferPool) -> usize {
        let free = pool.free.lock().unwrap();
        assert_eq!(free.bytes, free.classes.iter().flatten().map(Vec::len).sum::<usize>());
        free.bytes
    }

    #[test]
    fn a_buffer_has_the_length_asked_for_in_every_class() {
        let pool = BufferPool::default();
        for len in [1, 32_767, 32_768, 65_536, 65_537, 131_072, 500_000, 1_048_576, 1_048_577, 3_000_000] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.as_mut().len(), len);
            assert_eq!(buffer.into_bytes().len(), len);
        }
    }

    #[test]
    fn a_buffer_comes_back_only_with_the_last_clone() {
        let pool = BufferPool::default();
        let bytes = pool.take(100_000).into_bytes();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(free_bytes(&pool), 0);
        drop(slice);
        assert_eq!(free_bytes(&pool), 131_072);
        drop(pool.take(70_000));
        assert_eq!(free_bytes(&pool), 131_072, "the same memory was used again");
    }

    #[test]
    fn idle_memory_is_bounded() {
        let pool = BufferPool::default();
        let loans: Vec<_> = (0..40).map(|_| pool.take(CLASS_BYTES_MAX)).collect();
        drop(loans);
        assert_eq!(free_bytes(&pool), FREE_BYTES_MAX);
        drop(pool.take(CLASS_BYTES_MAX + 1));
        assert_eq!(free_bytes(&pool), FREE_BYTES_MAX, "what has no class is freed");
    }
}
