//! What is measured, and how: CPU seconds and peak memory from /proc, medians of repeated runs.
//!
//! On a machine that does other work too, CPU seconds are the reliable figure. Wall time is only
//! compared with a measurement taken in turns with it.

use std::fs;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// `USER_HZ`: the unit of CPU time in /proc/PID/stat, 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// The kernel's figures of a process.
#[derive(Debug, Clone, Copy)]
struct Stat {
    parent: u32,
    /// User and system time, including children that have ended.
    cpu_seconds: f64,
}

fn stat(path: &str) -> Result<Stat> {
    let stat = fs::read_to_string(path).context(|| format!("read {path}"))?;
    // The second field is the program's name in brackets and may contain anything, so counting
    // starts after it.
    let (_, fields) = stat.rsplit_once(')').ok_or_else(|| Error::new(format!("{path} has no name")))?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let number = |place: usize| fields.get(place).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let ticks: u64 = (11..15).map(number).sum();
    let parent = u32::try_from(number(1)).unwrap_or(0);
    Ok(Stat { parent, cpu_seconds: ticks as f64 / TICKS_PER_SECOND })
}

/// CPU seconds of a process since its start, user and system, including children that have ended.
pub(crate) fn process_cpu_seconds(pid: u32) -> Result<f64> {
    Ok(stat(&format!("/proc/{pid}/stat"))?.cpu_seconds)
}

/// CPU seconds of all children of this process that have ended.
pub(crate) fn children_cpu_seconds() -> Result<f64> {
    let path = "/proc/self/stat";
    let text = fs::read_to_string(path).context(|| format!("read {path}"))?;
    let (_, fields) = text.rsplit_once(')').ok_or_else(|| Error::new(format!("{path} has no name")))?;
    let fields = fields.split_ascii_whitespace().skip(13).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// CPU seconds of a process and of all its descendants.
pub(crate) fn tree_cpu_seconds(root: u32) -> Result<f64> {
    let entries = fs::read_dir("/proc").context(|| "list /proc".to_owned())?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // The time of a process that ends meanwhile counts for its parent.
    let all: Vec<(u32, Stat)> =
        pids.filter_map(|pid| Some((pid, stat(&format!("/proc/{pid}/stat")).ok()?))).collect();
    let mut tree = vec![root];
    let mut seconds = 0.0;
    while let Some(pid) = tree.pop() {
        seconds += all.iter().find(|(one, _)| *one == pid).map_or(0.0, |(_, stat)| stat.cpu_seconds);
        tree.extend(all.iter().filter(|(_, stat)| stat.parent == pid).map(|(child, _)| *child));
    }
    Ok(seconds)
}

/// CPU seconds of this thread, in nanosecond steps.
pub(crate) fn thread_cpu_seconds() -> Result<f64> {
    let path = "/proc/thread-self/schedstat";
    let text = fs::read_to_string(path).context(|| format!("read {path}"))?;
    let nanoseconds = text.split_ascii_whitespace().next().and_then(|field| field.parse::<u64>().ok());
    nanoseconds
        .map(|nanoseconds| nanoseconds as f64 / 1e9)
        .ok_or_else(|| Error::new(format!("{path} is empty")))
}

/// Runs `work` on this thread. Returns its CPU seconds and its result.
pub(crate) fn cpu_of<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let before = thread_cpu_seconds()?;
    let made = work()?;
    Ok((thread_cpu_seconds()? - before, made))
}

/// Runs `work`. Returns its wall seconds and its result.
pub(crate) fn wall_of<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let before = Instant::now();
    let made = work()?;
    Ok((before.elapsed().as_secs_f64(), made))
}

/// Largest resident memory of a process so far, in bytes.
pub(crate) fn peak_memory_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Error::new(format!("{path} has no VmHWM")))
}

/// Samples of one quantity, one for each run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle sample, or the mean of the two in the middle; NaN without samples.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[count / 2],
            count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
        }
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// "median (min–max)", for tables.
    pub(crate) fn spread(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$}–{:.decimals$})", self.median(), self.min(), self.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        let mut samples = Samples::default();
        for sample in [9.0, 1.0, 4.0, 2.0] {
            samples.push(sample);
        }
        assert!((samples.median() - 3.0).abs() < 1e-9);
        assert_eq!(samples.spread(0), "3 (1–9)");
    }

    #[test]
    fn this_process_has_cpu_time_and_memory() {
        let (seconds, _) =
            cpu_of(|| Ok((0..20_000_000_u64).fold(0, |sum, n| sum ^ n.wrapping_mul(31)))).expect("Linux");
        assert!(seconds >= 0.0);
        assert!(process_cpu_seconds(std::process::id()).expect("Linux") >= 0.0);
        assert!(peak_memory_bytes(std::process::id()).expect("Linux") > 100_000);
    }
}
