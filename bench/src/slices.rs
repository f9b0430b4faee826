//! What something small takes from a steady load: the load's rate in short slices, in turns with
//! and without it.
//!
//! Two runs of a minute differ by a tenth on a machine that other machines share. What slows one
//! slice slows the slices beside it too, so the sums over many slices differ by a hundredth.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::http::Connection;
use crate::push::in_parallel;

/// One slice: many units of the load, and less than the machine's moods last.
const SLICE: Duration = Duration::from_secs(2);

/// How often the visitor looks whether it is wanted.
const LOOK: Duration = Duration::from_millis(5);

/// The load in slices.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Slices {
    alone: Vec<Slice>,
    beside: Vec<Slice>,
    /// What was done beside the load, over all slices.
    pub(crate) beside_count: usize,
}

/// What one slice saw.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Slice {
    units: f64,
    wall_seconds: f64,
    /// Of the servers, with what was done beside the load.
    cpu_seconds: f64,
}

impl Slice {
    fn rate(&self) -> f64 {
        self.units / self.wall_seconds
    }
}

impl Slices {
    /// Slices of each side.
    pub(crate) fn count(&self) -> usize {
        self.beside.len()
    }

    /// The rate beside the other work as a share of the rate alone, with its standard error. Each
    /// pair of neighbours has a share of its own.
    pub(crate) fn rate(&self) -> String {
        let pairs = self.alone.iter().zip(&self.beside).map(|(alone, beside)| beside.rate() / alone.rate());
        let shares: Vec<f64> = pairs.filter(|share| share.is_finite()).collect();
        let count = shares.len() as f64;
        let mean = shares.iter().sum::<f64>() / count;
        let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / (count - 1.0);
        format!("{mean:.3} ± {:.3}", (variance / count).sqrt())
    }

    /// The same by CPU time: what a unit takes alone as a share of what it takes beside the other
    /// work, that work included. A load that fills the machine has this rate on a machine of its
    /// own. Waits for locks are not in it.
    pub(crate) fn rate_by_cpu(&self) -> String {
        let each = |slices: &[Slice]| {
            let units: f64 = slices.iter().map(|slice| slice.units).sum();
            slices.iter().map(|slice| slice.cpu_seconds).sum::<f64>() / units
        };
        format!("{:.3}", each(&self.alone) / each(&self.beside))
    }
}

/// Keeps `connections` busy with `load`, which returns the units that it did, and does `other`
/// with `pause` after each in every other slice. `cpu_seconds` is what the servers took so far.
pub(crate) fn measure(
    connect: &(dyn Fn(usize) -> Result<Connection> + Sync),
    connections: usize,
    load: &(dyn Fn(&mut Connection) -> Result<u64> + Sync),
    pause: Duration,
    other: &(dyn Fn(usize) -> Result<()> + Sync),
    cpu_seconds: &dyn Fn() -> Result<f64>,
    pairs: usize,
) -> Result<Slices> {
    let (done, is_over, is_wanted) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let loading = scope.spawn(|| {
            in_parallel(connections, |number| {
                let mut connection = connect(number)?;
                while !is_over.load(Ordering::Relaxed) {
                    done.fetch_add(load(&mut connection)?, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let visiting = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                if is_wanted.load(Ordering::Relaxed) {
                    other(count)?;
                    count += 1;
                    sleep(pause);
                } else {
                    sleep(LOOK);
                }
            }
            Ok(count)
        });
        let slice = |with_other: bool| {
            is_wanted.store(with_other, Ordering::Relaxed);
            let (cpu, units, begin) = (cpu_seconds()?, done.load(Ordering::Relaxed), Instant::now());
            sleep(SLICE);
            Ok::<_, Error>(Slice {
                units: (done.load(Ordering::Relaxed) - units) as f64,
                wall_seconds: begin.elapsed().as_secs_f64(),
                cpu_seconds: cpu_seconds()? - cpu,
            })
        };
        let mut slices = Slices::default();
        let mut all_slices = || {
            // The first slice warms both sides up and does not count.
            slice(true)?;
            for pair in 0..pairs {
                // Alone, beside, beside, alone: a rate that grows or falls favours no side.
                for with_other in if pair % 2 == 0 { [false, true] } else { [true, false] } {
                    let one = slice(with_other)?;
                    if with_other { &mut slices.beside } else { &mut slices.alone }.push(one);
                }
            }
            Ok(())
        };
        let outcome = all_slices();
        is_over.store(true, Ordering::Relaxed);
        let panicked = |_| Error::new("a thread of the benchmark panicked");
        loading.join().map_err(panicked)??;
        slices.beside_count = visiting.join().map_err(panicked)??;
        outcome.map(|()| slices)
    })
}
