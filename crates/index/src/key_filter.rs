//! A Bloom filter of keys.
//!
//! Invariants
//! - "Absent" is certain: nothing is ever taken out.
//! - "Maybe" is wrong for about 1 key in 200 when a layer is full.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Bits for each key. With 7 probes, 12 bits give 0.4 % false answers; 10 would give 0.8 %.
const BITS_PER_KEY: usize = 12;

/// Probes for each key.
const PROBES: u64 = 7;

/// Smallest layer: 96 KiB, enough for 8 GB of chunks.
const CAPACITY_MIN: usize = 65_536;

/// A key: 128 bits that are spread well.
pub(crate) type Key = [u64; 2];

/// A set of keys that answers "absent" or "maybe". Grows by layers, each twice the one before, so
/// no key is ever hashed twice and nothing is read again.
#[derive(Debug)]
pub(crate) struct KeyFilter {
    layers: RwLock<Vec<Layer>>,
}

#[derive(Debug)]
struct Layer {
    words: Box<[AtomicU64]>,
    capacity: usize,
    count: AtomicU64,
}

impl KeyFilter {
    /// An empty filter with room for twice `expected` keys.
    pub(crate) fn with_room_for(expected: usize) -> Self {
        Self { layers: RwLock::new(vec![Layer::new((expected * 2).max(CAPACITY_MIN))]) }
    }

    /// Makes room for twice `expected` more keys in one layer.
    pub(crate) fn reserve(&self, expected: usize) {
        if expected * 2 > CAPACITY_MIN {
            self.layers.write().unwrap_or_else(PoisonError::into_inner).push(Layer::new(expected * 2));
        }
    }

    /// Whether the key may be there; `false` is certain.
    pub(crate) fn may_contain(&self, key: Key) -> bool {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).iter().any(|layer| layer.may_contain(key))
    }

    /// Puts a key in.
    pub(crate) fn insert(&self, key: Key) {
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        if layers.iter().any(|layer| layer.may_contain(key)) {
            return;
        }
        let full = layers.last().is_some_and(|layer| layer.insert(key));
        drop(layers);
        if full {
            let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have added a layer meanwhile.
            if let Some(last) = layers.last()
                && last.is_full()
            {
                let capacity = last.capacity * 2;
                layers.push(Layer::new(capacity));
            }
        }
    }
}

impl Layer {
    fn new(capacity: usize) -> Self {
        let words = (0..(capacity * BITS_PER_KEY).div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, capacity, count: AtomicU64::new(0) }
    }

    /// The words and bits of a key: double hashing, scaled to the size.
    fn places(&self, key: Key) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let bits = self.words.len() as u128 * 64;
        (0..PROBES).map(move |probe| {
            let hash = key[0].wrapping_add(probe.wrapping_mul(key[1] | 1));
            let bit = usize::try_from((u128::from(hash) * bits) >> 64).expect("below the count of bits");
            (&self.words[bit / 64], 1 << (bit % 64))
        })
    }

    fn may_contain(&self, key: Key) -> bool {
        self.places(key).all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Returns whether the layer is full now.
    fn insert(&self, key: Key) -> bool {
        for (word, bit) in self.places(key) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.is_full()
    }

    fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= self.capacity as u64
    }
}

/// The key of an id: its first 16 bytes are as good as random.
pub(crate) fn id_key(id: &[u8; 32]) -> Key {
    [first_word(id), first_word(&id[8..])]
}

/// The key of an object: its hash, told apart by cache.
pub(crate) fn object_key(cache: i64, hash: &[u8; 20]) -> Key {
    let cache = spread(cache.cast_unsigned());
    [first_word(hash) ^ cache, first_word(&hash[8..]).wrapping_add(cache.rotate_left(32))]
}

fn first_word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("ids are long enough"))
}

/// Finaliser of MurmurHash3: neighbouring numbers get unrelated bits.
fn spread(number: u64) -> u64 {
    let mixed = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Vec<Key> {
        (0..count).map(|_| rand::random()).collect()
    }

    #[test]
    fn an_inserted_key_is_never_absent_however_far_the_filter_grows() {
        let filter = KeyFilter::with_room_for(0);
        let known = keys(CAPACITY_MIN * 5);
        for (n, key) in known.iter().enumerate() {
            filter.insert(*key);
            assert!(filter.may_contain(*key));
            if n % 50_000 == 0 {
                assert!(known[..n].iter().all(|key| filter.may_contain(*key)));
            }
        }
        assert!(known.iter().all(|key| filter.may_contain(*key)));
        assert_eq!(filter.layers.read().unwrap().len(), 3);
    }

    #[test]
    fn unknown_keys_are_nearly_always_absent() {
        let filter = KeyFilter::with_room_for(CAPACITY_MIN / 2);
        for key in keys(CAPACITY_MIN - 1) {
            filter.insert(key);
        }
        let wrong = keys(100_000).into_iter().filter(|key| filter.may_contain(*key)).count();
        assert!(wrong < 1000, "{wrong} of 100,000");
    }

    #[test]
    fn inserting_a_key_again_does_not_fill_the_filter() {
        let filter = KeyFilter::with_room_for(0);
        for _ in 0..CAPACITY_MIN * 2 {
            filter.insert([1, 2]);
        }
        assert_eq!(filter.layers.read().unwrap().len(), 1);
    }

    #[test]
    fn threads_that_insert_at_once_lose_nothing() {
        let filter = KeyFilter::with_room_for(0);
        let known = keys(CAPACITY_MIN * 2);
        std::thread::scope(|scope| {
            for part in known.chunks(CAPACITY_MIN / 2) {
                scope.spawn(|| part.iter().for_each(|key| filter.insert(*key)));
            }
        });
        assert!(known.iter().all(|key| filter.may_contain(*key)));
    }

    #[test]
    fn one_path_in_two_caches_has_two_keys() {
        let hash = [7; 20];
        let keys: std::collections::HashSet<Key> = (0..1000).map(|cache| object_key(cache, &hash)).collect();
        assert_eq!(keys.len(), 1000);
    }
}
