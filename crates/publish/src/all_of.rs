//! Several requests at once, of which none is left behind.
//!
//! A request that is given up here may still be carried out there, after the lease was given back and somebody else has written something
//! newer. So after a failure nothing more begins, and what is under way is waited for: each request ends by its own time-out.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::Result;

/// Runs all, at most `concurrency` at once; the first error, once everything that had begun is over.
pub(crate) async fn all_of<T>(
    work: impl IntoIterator<Item = impl Future<Output = Result<T>>>,
    concurrency: usize,
) -> Result<Vec<T>> {
    let mut work = work.into_iter();
    let mut under_way = FuturesUnordered::new();
    let (mut done, mut failure) = (Vec::new(), None);
    loop {
        while failure.is_none()
            && under_way.len() < concurrency.max(1)
            && let Some(next) = work.next()
        {
            under_way.push(next);
        }
        match under_way.next().await {
            None => return failure.map_or(Ok(done), Err),
            Some(Ok(one)) => done.push(one),
            Some(Err(error)) => {
                failure.get_or_insert(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::Error;

    #[tokio::test]
    async fn after_a_failure_nothing_begins_and_what_had_begun_ends() {
        let (begun, ended) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let work = (0..9_u64).map(|number| {
            let (begun, ended) = (&begun, &ended);
            async move {
                begun.borrow_mut().push(number);
                if number == 1 {
                    return Err(Error::CacheName { name: "planted".to_owned() });
                }
                for _ in 0..10 - number {
                    tokio::task::yield_now().await;
                }
                ended.borrow_mut().push(number);
                Ok(number)
            }
        });
        assert!(matches!(all_of(work, 3).await, Err(Error::CacheName { .. })));
        assert_eq!((begun.into_inner(), ended.into_inner()), (vec![0, 1, 2], vec![2, 0]));
        let all = all_of((0..9).map(|number| async move { Ok(number) }), 2).await.unwrap();
        assert_eq!(all.len(), 9);
    }
}
