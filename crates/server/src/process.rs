//! The kernel's figures about this process: memory, open files, CPU time, start. Every Prometheus
//! client uses these names.
//!
//! The `prometheus` crate's own collector would bring a second `rustix`; these are three small
//! files.

use std::fs;
use std::time::SystemTime;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge};

#[derive(Debug)]
pub(crate) struct Process {
    memory: IntGauge,
    open_files: IntGauge,
    open_files_max: IntGauge,
    threads: IntGauge,
    start: Gauge,
}

impl Process {
    pub(crate) fn new() -> Self {
        let gauge = |name, help| IntGauge::new(name, help).expect("well-formed names");
        let start =
            Gauge::new("process_start_time_seconds", "When the process started, in seconds since 1970")
                .expect("a well-formed name");
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        start.set(now.as_secs_f64());
        Self {
            memory: gauge("process_resident_memory_bytes", "Memory that the process has now"),
            open_files: gauge("process_open_fds", "Open files and connections now"),
            open_files_max: gauge(
                "process_max_fds",
                "Most open files and connections that the system allows",
            ),
            threads: gauge("process_threads", "Threads now"),
            start,
        }
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [&self.memory, &self.open_files, &self.open_files_max, &self.threads, &self.start]
    }

    /// Where there is no `/proc`, all stay zero.
    fn look(&self) {
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let number = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_ascii_whitespace().next()?.parse::<i64>().ok()
            };
            self.memory.set(number("VmRSS:").unwrap_or(0) * 1024);
            self.threads.set(number("Threads:").unwrap_or(0));
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            self.open_files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
        if let Ok(limits) = fs::read_to_string("/proc/self/limits") {
            let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
            let soft = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
            self.open_files_max.set(soft.unwrap_or(0));
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.look();
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
