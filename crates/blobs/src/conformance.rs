//! What the contract promises, as code: every adapter and every wrapper runs it on an empty store.
//!
//! Each case panics with what is wrong. The store is left as the last case leaves it.

use std::collections::HashSet;
use std::future::Future;

use bytes::Bytes;
use dormer_format::PackId;
use rand::random;

use crate::{BlobKey, Blobs, Error, Result};

/// Runs every case on an empty store.
pub async fn run(blobs: &dyn Blobs) {
    case("an empty store lists nothing", an_empty_store_lists_nothing(blobs)).await;
    case("parts are stored one after the other", parts_are_stored_in_order(blobs)).await;
    case("every range is exact", every_range_is_exact(blobs)).await;
    case("a range past the end is truncated", a_range_past_the_end_is_truncated(blobs)).await;
    case("a read up to a place ends with the object", a_read_up_to_a_place_ends_with_the_object(blobs)).await;
    case("what is not there is not found", what_is_not_there_is_not_found(blobs)).await;
    case("an empty object exists", an_empty_object_exists(blobs)).await;
    case("a repeated put changes nothing", a_repeated_put_changes_nothing(blobs)).await;
    case("a deleted object is gone", a_deleted_object_is_gone(blobs)).await;
    case("deleting twice is fine", deleting_twice_is_fine(blobs)).await;
    case("bytes outlive their object", bytes_outlive_their_object(blobs)).await;
    case("reads of one object do not disturb each other", reads_do_not_disturb_each_other(blobs)).await;
    case("an object is whole as soon as it is seen", an_object_is_whole_as_soon_as_it_is_seen(blobs)).await;
    case("concurrent puts all arrive", concurrent_puts_all_arrive(blobs)).await;
}

async fn case(name: &str, outcome: impl Future<Output = Result<()>>) {
    if let Err(error) = outcome.await {
        panic!("{name}: {error:?}");
    }
}

fn fresh_key() -> BlobKey {
    BlobKey::Pack(PackId::from_bytes(random()))
}

/// Bytes that differ at every place, so that a shifted read shows.
fn pattern(len: usize) -> Bytes {
    (0..len).map(|place| (place.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect()
}

async fn an_empty_store_lists_nothing(blobs: &dyn Blobs) -> Result<()> {
    assert_eq!(blobs.list().await?, []);
    Ok(())
}

async fn parts_are_stored_in_order(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    let whole = pattern(300_000);
    let mut parts = Vec::new();
    let mut rest = whole.clone();
    for len in (0..).map(|n| n * 7 % 1000) {
        if rest.len() <= len {
            break;
        }
        parts.push(rest.split_to(len));
    }
    parts.push(rest);
    blobs.put(&key, &parts).await?;
    assert_eq!(blobs.head(&key).await?, 300_000);
    assert_eq!(blobs.get_range(&key, 0..300_000).await?, whole);
    assert_eq!(blobs.list().await?, [key]);
    Ok(())
}

async fn every_range_is_exact(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    let whole = pattern(3_000_000);
    blobs.put(&key, std::slice::from_ref(&whole)).await?;
    for (start, end) in [
        (0, 1),
        (2_999_999, 3_000_000),
        (1, 70_000),
        (65_536, 131_072),
        (100, 1_048_676),
        (5, 2_000_000),
        (0, 3_000_000),
    ] {
        let got = blobs.get_range(&key, start as u64..end as u64).await?;
        assert!(got == whole[start..end], "range {start}..{end} has other bytes");
    }
    Ok(())
}

async fn a_range_past_the_end_is_truncated(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    blobs.put(&key, &[pattern(100_000)]).await?;
    // The second time the object is open already.
    for _ in 0..2 {
        for range in [0..100_001, 99_999..100_001, 100_000..100_001, 5_000_000..5_000_001, 0..200_000] {
            let got = blobs.get_range(&key, range.clone()).await;
            assert!(matches!(got, Err(Error::Truncated { .. })), "{range:?}: {got:?}");
        }
    }
    Ok(())
}

async fn a_read_up_to_a_place_ends_with_the_object(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    let whole = pattern(100_000);
    blobs.put(&key, std::slice::from_ref(&whole)).await?;
    for (start, end) in [(0, 10), (0, 100_000), (0, 131_072), (99_999, 5_000_000), (70_000, 100_001)] {
        let got = blobs.get_up_to(&key, start as u64..end as u64).await?;
        assert!(got == whole[start..end.min(100_000)], "range {start}..{end} has other bytes");
    }
    let behind = blobs.get_up_to(&key, 100_000..100_001).await;
    assert!(matches!(behind, Err(Error::Truncated { .. })), "{behind:?}");
    assert!(matches!(blobs.get_up_to(&fresh_key(), 0..1).await, Err(Error::NotFound { .. })));
    Ok(())
}

async fn what_is_not_there_is_not_found(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    assert!(matches!(blobs.head(&key).await, Err(Error::NotFound { .. })));
    assert!(matches!(blobs.get_range(&key, 0..1).await, Err(Error::NotFound { .. })));
    Ok(())
}

async fn an_empty_object_exists(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    blobs.put(&key, &[]).await?;
    assert_eq!(blobs.head(&key).await?, 0);
    assert!(matches!(blobs.get_range(&key, 0..1).await, Err(Error::Truncated { .. })));
    assert!(blobs.list().await?.contains(&key));
    Ok(())
}

/// A caller that got an error may put the same object again, though it may be there.
async fn a_repeated_put_changes_nothing(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    for _ in 0..2 {
        blobs.put(&key, &[pattern(1000)]).await?;
        assert_eq!(blobs.get_range(&key, 0..1000).await?, pattern(1000));
    }
    assert_eq!(blobs.list().await?.iter().filter(|listed| **listed == key).count(), 1);
    Ok(())
}

async fn a_deleted_object_is_gone(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    let other = fresh_key();
    blobs.put(&key, &[pattern(1000)]).await?;
    blobs.put(&other, &[pattern(10)]).await?;
    blobs.get_range(&key, 0..1000).await?;
    blobs.delete(&key).await?;
    assert!(matches!(blobs.get_range(&key, 0..1).await, Err(Error::NotFound { .. })));
    assert!(matches!(blobs.head(&key).await, Err(Error::NotFound { .. })));
    assert!(!blobs.list().await?.contains(&key));
    assert_eq!(blobs.get_range(&other, 0..10).await?, pattern(10));
    Ok(())
}

async fn deleting_twice_is_fine(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    blobs.delete(&key).await?;
    blobs.put(&key, &[pattern(1)]).await?;
    blobs.delete(&key).await?;
    blobs.delete(&key).await
}

/// What was handed out never changes, whatever happens to the object or to buffers.
async fn bytes_outlive_their_object(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    let whole = pattern(400_000);
    blobs.put(&key, std::slice::from_ref(&whole)).await?;
    let held = blobs.get_range(&key, 0..200_000).await?;
    let slice = held.slice(1000..2000);
    drop(held);
    for _ in 0..20 {
        assert_eq!(blobs.get_range(&key, 200_000..400_000).await?, whole[200_000..]);
    }
    blobs.delete(&key).await?;
    assert_eq!(slice, whole[1000..2000]);
    Ok(())
}

async fn reads_do_not_disturb_each_other(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    let whole = pattern(2_000_000);
    blobs.put(&key, std::slice::from_ref(&whole)).await?;
    let read = |n: usize| {
        let (start, end) = (n * 13_007, n * 13_007 + 90_000 + n);
        let whole = &whole;
        async move {
            let got = blobs.get_range(&key, start as u64..end as u64).await?;
            assert!(got == whole[start..end], "range {start}..{end} has other bytes");
            Ok(got)
        }
    };
    // All answers are held until the last one came.
    let answers = join_all((0..100).map(read)).await.into_iter().collect::<Result<Vec<Bytes>>>()?;
    for (n, got) in answers.iter().enumerate() {
        assert!(*got == whole[n * 13_007..n * 13_007 + 90_000 + n], "an answer changed while it was held");
    }
    Ok(())
}

async fn an_object_is_whole_as_soon_as_it_is_seen(blobs: &dyn Blobs) -> Result<()> {
    let key = fresh_key();
    let whole = pattern(8_000_000);
    let watch = async {
        loop {
            match blobs.head(&key).await {
                Err(Error::NotFound { .. }) => tokio::task::yield_now().await,
                Err(error) => return Err(error),
                Ok(size) => {
                    assert_eq!(size, 8_000_000);
                    return blobs.get_range(&key, 7_999_000..8_000_000).await;
                }
            }
        }
    };
    let parts: Vec<Bytes> = whole.chunks(100_000).map(Bytes::copy_from_slice).collect();
    let (stored, tail) = tokio::join!(blobs.put(&key, &parts), watch);
    stored?;
    assert_eq!(tail?, whole[7_999_000..]);
    Ok(())
}

async fn concurrent_puts_all_arrive(blobs: &dyn Blobs) -> Result<()> {
    let keys: Vec<BlobKey> = (0..20).map(|_| fresh_key()).collect();
    let put = |(n, key): (usize, BlobKey)| async move { blobs.put(&key, &[pattern(1000 + n)]).await };
    join_all(keys.iter().copied().enumerate().map(put)).await.into_iter().collect::<Result<()>>()?;
    let listed: HashSet<BlobKey> = blobs.list().await?.into_iter().collect();
    for (n, key) in keys.iter().enumerate() {
        assert!(listed.contains(key));
        assert_eq!(blobs.get_range(key, 0..1000 + n as u64).await?, pattern(1000 + n));
    }
    Ok(())
}

/// Polls all futures together. They borrow the store, so they cannot be tasks.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, outcome) in &mut futures {
            if outcome.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => *outcome = Some(done),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    futures.into_iter().filter_map(|(_, outcome)| outcome).collect()
}
