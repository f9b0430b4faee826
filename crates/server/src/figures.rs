//! The metrics as numbers, for pages and the API. What they say is what `/metrics` says at that
//! moment, because it is read from the same registry.

use prometheus::proto::{LabelPair, Metric, MetricFamily};

/// All metrics at one moment.
#[derive(Debug)]
pub(crate) struct Figures(Vec<MetricFamily>);

impl Figures {
    pub(crate) fn new(families: Vec<MetricFamily>) -> Self {
        Self(families)
    }

    /// A counter or gauge, all its series added.
    pub(crate) fn total(&self, name: &str) -> u64 {
        self.sum(name, |_| true)
    }

    /// The sum of those series of a counter or gauge whose labels fit.
    pub(crate) fn sum(&self, name: &str, fits: impl Fn(Labels<'_>) -> bool) -> u64 {
        let series = self.series(name).iter().filter(|one| fits(Labels(one.get_label())));
        series.map(value).fold(0, u64::saturating_add)
    }

    /// Each value of a label, with the sum of the series that have it.
    pub(crate) fn by_label(&self, name: &str, label: &str) -> Vec<(String, u64)> {
        let series = self.series(name).iter();
        series.map(|one| (Labels(one.get_label()).get(label).to_owned(), value(one))).collect()
    }

    fn series(&self, name: &str) -> &[Metric] {
        self.0.iter().find(|family| family.name() == name).map_or(&[], MetricFamily::get_metric)
    }
}

/// The labels of a series.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Labels<'a>(&'a [LabelPair]);

impl<'a> Labels<'a> {
    /// The value of a label. It is empty for a metric without this label.
    pub(crate) fn get(&self, name: &str) -> &'a str {
        self.0.iter().find(|pair| pair.name() == name).map_or("", LabelPair::value)
    }
}

/// A series is either a counter or a gauge; the other one of them is 0.
fn value(series: &Metric) -> u64 {
    let value = series.get_counter().get_value() + series.get_gauge().get_value();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bounds are checked")]
    if value.is_finite() && value >= 0.0 { value as u64 } else { 0 }
}
