//! Writes the snapshots as a scrape in the Prometheus text format: every family of the catalogue
//! that has a series, with the labels of its scope, up to a size limit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::bounds;
use crate::metrics::catalogue::{Exporter, FAMILIES, Family, Label, Scope, SeriesSink};
use crate::metrics::text_format::{push_header, push_number, push_series};
use crate::readings::counters::FamilyType;
use crate::snapshot::histogram::Histogram;
use crate::snapshot::{Gpu, OwnMetrics, Snapshot};

/// The media type of a scrape.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The most bytes of a scrape. A hundred and fifty loaded models with every histogram have less.
pub const MAX_BYTES: usize = 6 << 20;
/// The most series of a scrape.
pub const MAX_SERIES: usize = 200_000;
/// How much of both is reserved for series that are not about a model: they report that some are
/// missing.
const RESERVED_BYTES: usize = 1 << 20;
const RESERVED_SERIES: usize = 10_000;
/// No series is longer: at most six labels, each of whose bytes may be escaped.
const LONGEST_SERIES: usize = 16 << 10;
/// How much a large text grows at once: doubling would take twice the memory.
const GROWTH: usize = 1 << 20;

/// Writes every family that has a series, in the catalogue's order.
///
/// The same snapshots give the same bytes. What would exceed [`MAX_BYTES`] or [`MAX_SERIES`] is left
/// out and counted, series about models first.
pub fn render(servers: &[Arc<Snapshot>], gpus: &[Gpu], own: &OwnMetrics) -> String {
    let mut scrape = Scrape::default();
    let gpus = first_of_each(gpus);
    let mut has_llama_server = false;
    for family in FAMILIES {
        // They come before the count of series that are left out.
        if matches!(family.scope, Scope::Exporter(_)) && !has_llama_server {
            has_llama_server = true;
            write_llama_server_families(&mut scrape, servers);
        }
        let mut writer = FamilyWriter {
            scrape: &mut scrape,
            family,
            has_header: false,
        };
        for scope in [Some(family.scope), family.second_scope]
            .into_iter()
            .flatten()
        {
            match scope {
                Scope::Exporter(read) => {
                    let exporter = Exporter {
                        own: own.clone(),
                        series_dropped: writer.scrape.dropped,
                    };
                    read(&exporter, &mut writer.sink(&[]));
                }
                Scope::Gpu(read) => {
                    for gpu in &gpus {
                        read(gpu, &mut writer.sink(&[&[("gpu", &gpu.index)]]));
                    }
                }
                Scope::ReportedGpu(_) | Scope::Server(_) | Scope::Model(_) | Scope::Requests(_) => {
                    for server in servers {
                        write_server(&mut writer, scope, server);
                    }
                }
            }
        }
    }
    scrape.text
}

/// Writes llama-servers' own families, sorted by name, with the labels of their models.
fn write_llama_server_families(scrape: &mut Scrape, servers: &[Arc<Snapshot>]) {
    let mut families = BTreeMap::<&str, Vec<_>>::new();
    for server in servers {
        for model in &server.models {
            for family in &model.llama_server {
                let of_name = families.entry(&family.name).or_default();
                of_name.push((server.server.as_str(), model, family));
            }
        }
    }
    for (name, of_name) in families {
        let mut has_header = false;
        for (server, model, family) in of_name {
            let mode = model.mode.as_deref().map(|mode| ("mode", mode));
            let own = [("model", model.name.as_str()), ("server", server)];
            for sample in &family.samples {
                if !scrape.has_room(true) {
                    continue;
                }
                if !has_header {
                    has_header = true;
                    let family_type = family.family_type.map_or("untyped", FamilyType::name);
                    push_header(&mut scrape.text, name, &family.help, family_type);
                }
                let labels = sample.labels.iter();
                let mut labels: Vec<(&str, &str)> = labels
                    .map(|(name, of)| (name.as_str(), of.as_str()))
                    .collect();
                labels.sort_unstable();
                let common = [mode.as_slice(), &own];
                let value = |text: &mut String| text.push_str(&sample.value);
                push_series(&mut scrape.text, [name, ""], &common, &labels, value);
            }
        }
        scrape.is_full |= scrape.exceeds((RESERVED_BYTES, RESERVED_SERIES));
    }
}

/// The first GPU of each index.
fn first_of_each(gpus: &[Gpu]) -> Vec<&Gpu> {
    let mut indexes = BTreeSet::new();
    let first = gpus
        .iter()
        .filter(|gpu| indexes.insert(bounds::cut(&gpu.index)));
    first.collect()
}

fn write_server(writer: &mut FamilyWriter, scope: Scope, server: &Snapshot) {
    let label = ("server", server.server.as_str());
    match scope {
        Scope::Server(read) => read(server, &mut writer.sink(&[&[label]])),
        Scope::ReportedGpu(read) => read(server, &mut writer.sink(&[&[("gpu", &server.server)]])),
        Scope::Model(read) => {
            for model in &server.models {
                let mode = model.mode.as_deref().map(|mode| ("mode", mode));
                let labels = [mode.as_slice(), &[("model", &model.name), label]];
                writer.model(&labels, |sink| read(model, sink));
            }
        }
        Scope::Requests(read) => {
            let has_source = writer.family.labels.contains(&"source");
            for of in &server.requests {
                let mode = of.mode.as_deref().map(|mode| ("mode", mode));
                let source = has_source.then_some(("source", of.source));
                let labels = [
                    mode.as_slice(),
                    &[("model", &of.model), label],
                    source.as_slice(),
                ];
                writer.model(&labels, |sink| read(&of.figures, sink));
            }
        }
        Scope::Gpu(_) | Scope::Exporter(_) => {}
    }
}

/// What has been written of a scrape.
#[derive(Default)]
struct Scrape {
    text: String,
    /// Series in it.
    series: usize,
    /// Series left out.
    dropped: u64,
    /// Whether there is no more room for series about models.
    is_full: bool,
}

impl Scrape {
    /// Whether less than this is left of the limits.
    fn exceeds(&self, (bytes, series): (usize, usize)) -> bool {
        self.text.len() > MAX_BYTES.saturating_sub(bytes)
            || self.series > MAX_SERIES.saturating_sub(series)
    }

    /// Whether there is room for one more series, which counts, or else is left out.
    fn has_room(&mut self, is_about_model: bool) -> bool {
        if (self.is_full && is_about_model) || self.exceeds((0, 0)) {
            self.dropped = self.dropped.saturating_add(1);
            return false;
        }
        self.series = self.series.saturating_add(1);
        let text = &mut self.text;
        if text.len() > GROWTH && text.capacity().saturating_sub(text.len()) < LONGEST_SERIES {
            text.reserve_exact(GROWTH);
        }
        true
    }
}

/// Writes the series of one family.
struct FamilyWriter<'a> {
    scrape: &'a mut Scrape,
    family: &'static Family,
    /// HELP and TYPE are written before the first series, and not at all if there is none.
    has_header: bool,
}

impl FamilyWriter<'_> {
    /// Takes the series of one value that is not about a model.
    fn sink<'a>(&'a mut self, labels: &'a [&'a [Label<'a>]]) -> Sink<'a> {
        Sink {
            scrape: self.scrape,
            family: self.family,
            has_header: &mut self.has_header,
            labels,
            is_about_model: false,
        }
    }

    /// Writes all series of one model in this family, or none of them if there is no room.
    fn model(&mut self, labels: &[&[Label]], read: impl FnOnce(&mut Sink)) {
        let (bytes, series, has_header) =
            (self.scrape.text.len(), self.scrape.series, self.has_header);
        let mut sink = self.sink(labels);
        sink.is_about_model = true;
        read(&mut sink);
        let scrape = &mut *self.scrape;
        if !scrape.is_full && scrape.exceeds((RESERVED_BYTES, RESERVED_SERIES)) {
            scrape.is_full = true;
            let removed = scrape.series.saturating_sub(series) as u64;
            scrape.dropped = scrape.dropped.saturating_add(removed);
            scrape.text.truncate(bytes);
            (scrape.series, self.has_header) = (series, has_header);
        }
    }
}

/// Writes the series of one family and one value of its scope.
struct Sink<'a> {
    scrape: &'a mut Scrape,
    family: &'static Family,
    has_header: &'a mut bool,
    /// The labels of the scope, sorted by name.
    labels: &'a [&'a [Label<'a>]],
    is_about_model: bool,
}

impl Sink<'_> {
    fn write(&mut self, suffix: &str, labels: &[Label], value: f64) {
        if !self.scrape.has_room(self.is_about_model) {
            return;
        }
        let text = &mut self.scrape.text;
        let Family { name, help, .. } = self.family;
        if !*self.has_header {
            *self.has_header = true;
            push_header(text, name, help, self.family.metric_type.name());
        }
        let value = |text: &mut String| push_number(text, value);
        push_series(text, [name, suffix], self.labels, labels, value);
    }
}

impl SeriesSink for Sink<'_> {
    fn series(&mut self, labels: &[Label], value: f64) {
        self.write("", labels, value);
    }

    fn histogram(&mut self, histogram: &Option<Histogram>) {
        let Some(histogram) = histogram else {
            return;
        };
        let mut bound_text = String::new();
        for (bound, count) in histogram.cumulative() {
            bound_text.clear();
            push_number(&mut bound_text, bound);
            self.write("_bucket", &[("le", &bound_text)], count as f64);
        }
        self.write("_sum", &[], histogram.sum());
        self.write("_count", &[], histogram.count() as f64);
    }
}

#[cfg(test)]
mod tests;
