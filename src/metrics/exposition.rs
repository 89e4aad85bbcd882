//! Writes the Prometheus text format.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::bounds;
use crate::metrics::catalogue::{FAMILIES, Family, Read};
use crate::snapshot::histogram::Histogram;
use crate::snapshot::{Gpu, Model, ModelRequests, OwnMetrics, Snapshot};

/// The media type of what [`render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A label's name and value.
type Label<'a> = (&'static str, &'a str);

/// The most bytes of a scrape. Five hundred loaded models with every histogram have less.
pub const MAX_BYTES: usize = 16 << 20;
/// The most series of a scrape.
pub const MAX_SERIES: usize = 200_000;
/// How much of both is left to what is not about one model: it says that something is missing.
const RESERVED_BYTES: usize = 1 << 20;
const RESERVED_SERIES: usize = 10_000;
/// Longer is no series: at most six labels, each of whose bytes may be escaped.
const LONGEST_SERIES: usize = 16 << 10;
/// By how much a large text grows at once: to double it would take twice the memory.
const GROWTH: usize = 1 << 20;

/// Writes every family that has a series, in the catalogue's order.
///
/// The same snapshots give the same bytes. With more than one server, every
/// series about one has the label `server`. What would exceed [`MAX_BYTES`] or [`MAX_SERIES`]
/// is left out and counted: first of all what is about single models.
pub fn render(servers: &[Arc<Snapshot>], gpus: &[Gpu], own: &OwnMetrics) -> String {
    let mut output = Output::default();
    let several = servers.len() > 1;
    let gpus = first_of_each(gpus);
    for family in FAMILIES {
        let mut writer = Writer {
            output: &mut output,
            family,
            begun: false,
        };
        match family.read {
            Read::Exporter(read) => writer.value(&[], read(own)),
            Read::ExporterSeries(read) => {
                read(own, &mut |labels, value| {
                    writer.sample("", &[], labels, value)
                });
            }
            Read::SeriesDropped => {
                let dropped = writer.output.dropped as f64;
                writer.value(&[], Some(dropped));
            }
            Read::GpuSeries(read) => {
                for gpu in &gpus {
                    let label = [("gpu", gpu.index.as_str())];
                    read(gpu, &mut |own, value| {
                        writer.sample("", &[&label], own, value)
                    });
                }
            }
            _ => {
                if let Read::Gpu(read, _) = family.read {
                    for gpu in &gpus {
                        writer.value(&[&[("gpu", &gpu.index)]], read(gpu));
                    }
                }
                for server in servers {
                    let label = several.then_some(("server", server.server.as_str()));
                    write_server(&mut writer, server, label.as_slice());
                }
            }
        }
    }
    output.text
}

/// The first GPU of each index.
fn first_of_each(gpus: &[Gpu]) -> Vec<&Gpu> {
    let mut seen = BTreeSet::new();
    let mut first = Vec::new();
    for gpu in gpus {
        if seen.insert(bounds::cut(&gpu.index)) {
            first.push(gpu);
        }
    }
    first
}

fn write_server(writer: &mut Writer, server: &Snapshot, label: &[Label]) {
    match writer.family.read {
        Read::Server(read) => writer.value(&[label], read(server)),
        Read::ServerSeries(read) => {
            read(server, &mut |own, value| {
                writer.sample("", &[label], own, value)
            });
        }
        Read::RequestHistogram(_)
        | Read::Request(_)
        | Read::RequestSeries(_)
        | Read::Probe(_)
        | Read::ProbeSeries(_) => {
            for requests in &server.requests {
                writer.whole(|writer| write_requests(writer, requests, label));
            }
        }
        _ => {
            for model in &server.models {
                writer.whole(|writer| write_model(writer, model, label));
            }
        }
    }
}

fn write_model(writer: &mut Writer, model: &Model, server: &[Label]) {
    let name = [("model", model.name.as_str())];
    let mode = model.mode.as_deref().filter(|_| model.mode_tells);
    let mode = mode.map(|mode| ("mode", mode));
    let common = [server, &name, mode.as_slice()];
    match writer.family.read {
        Read::Model(read) | Read::Gpu(_, Some(read)) => writer.value(&common, read(model)),
        Read::ModelSeries(read) => {
            read(model, &mut |own, value| {
                writer.sample("", &common, own, value)
            });
        }
        Read::ModelHistogram(read) => writer.histogram(&common, read(model)),
        _ => {}
    }
}

fn write_requests(writer: &mut Writer, of: &ModelRequests, server: &[Label]) {
    let figures = &of.figures;
    let model = [("model", of.model.as_str())];
    let source = [("source", of.source)];
    let (of_source, of_probe) = ([server, &model, &source], [server, &model]);
    match writer.family.read {
        Read::RequestHistogram(read) => writer.histogram(&of_source, read(figures)),
        Read::Request(read) => writer.value(&of_source, read(figures)),
        Read::RequestSeries(read) => {
            read(figures, &mut |own, value| {
                writer.sample("", &of_source, own, value)
            });
        }
        Read::Probe(read) => writer.value(&of_probe, read(figures)),
        Read::ProbeSeries(read) => {
            read(figures, &mut |own, value| {
                writer.sample("", &of_probe, own, value)
            });
        }
        _ => {}
    }
}

/// What has been written of a scrape.
#[derive(Default)]
struct Output {
    text: String,
    /// Series in it.
    series: usize,
    /// Series left out.
    dropped: usize,
    /// Whether there is no more room for what is about single models.
    is_full: bool,
}

impl Output {
    /// Whether so much fits, and `reserved` beside it.
    fn exceeds(&self, (bytes, series): (usize, usize)) -> bool {
        self.text.len() > MAX_BYTES.saturating_sub(bytes)
            || self.series > MAX_SERIES.saturating_sub(series)
    }
}

struct Writer<'a> {
    output: &'a mut Output,
    family: &'a Family,
    /// HELP and TYPE stand before the first sample, and nowhere if there is none.
    begun: bool,
}

impl Writer<'_> {
    /// Writes all series of one model in this family, or none of them where there is no room.
    fn whole(&mut self, write: impl FnOnce(&mut Self)) {
        let before = (self.output.text.len(), self.output.series, self.begun);
        write(self);
        let output = &mut *self.output;
        if !output.is_full && output.exceeds((RESERVED_BYTES, RESERVED_SERIES)) {
            output.is_full = true;
            output.dropped = output
                .dropped
                .saturating_add(output.series.saturating_sub(before.1));
            output.text.truncate(before.0);
            (output.series, self.begun) = (before.1, before.2);
        }
    }

    /// Writes the one series with these labels, if its value is known.
    fn value(&mut self, labels: &[&[Label]], value: Option<f64>) {
        if let Some(value) = value {
            self.sample("", labels, &[], value);
        }
    }

    /// Writes the series of a histogram with these labels, if there is one.
    fn histogram(&mut self, labels: &[&[Label]], histogram: Option<&Histogram>) {
        let Some(histogram) = histogram else {
            return;
        };
        let mut bound_text = String::new();
        for (bound, count) in histogram.cumulative() {
            bound_text.clear();
            push_number(&mut bound_text, bound);
            self.sample("_bucket", labels, &[("le", &bound_text)], count as f64);
        }
        self.sample("_sum", labels, &[], histogram.sum());
        self.sample("_count", labels, &[], histogram.count() as f64);
    }

    /// Writes a series: the labels that it shares with others and its own, by name.
    ///
    /// No two have the same name. This runs a hundred times a scrape and does without memory of
    /// its own, which musl takes long to give.
    fn sample(&mut self, suffix: &str, common: &[&[Label]], own: &[Label], value: f64) {
        let Family {
            name, kind, help, ..
        } = self.family;
        let about_a_model = self.family.read.is_about_a_model();
        if (self.output.is_full && about_a_model) || self.output.exceeds((0, 0)) {
            self.output.dropped = self.output.dropped.saturating_add(1);
            return;
        }
        self.output.series = self.output.series.saturating_add(1);
        let text = &mut self.output.text;
        if text.len() > GROWTH && text.capacity().saturating_sub(text.len()) < LONGEST_SERIES {
            text.reserve_exact(GROWTH);
        }
        if !self.begun {
            self.begun = true;
            for part in ["# HELP ", name, " "] {
                text.push_str(part);
            }
            push_escaped(text, help, &['\\', '\n']);
            for part in ["\n# TYPE ", name, " ", kind.name(), "\n"] {
                text.push_str(part);
            }
        }
        text.push_str(name);
        text.push_str(suffix);
        let labels = || common.iter().copied().chain([own]).flatten();
        let mut last = "";
        while let Some((name, value)) = labels().filter(|(name, _)| *name > last).min() {
            text.push(if last.is_empty() { '{' } else { ',' });
            text.push_str(name);
            text.push_str("=\"");
            push_escaped(text, bounds::cut(value), &['\\', '\n', '"']);
            text.push('"');
            last = name;
        }
        if !last.is_empty() {
            text.push('}');
        }
        text.push(' ');
        push_number(text, value);
        text.push('\n');
    }
}

/// Appends `number` so that it reads back exactly; integers up to 2^53 without exponent.
fn push_number(text: &mut String, number: f64) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let size = number.abs();
    let _ = if number.is_nan() {
        write!(text, "NaN")
    } else if number.is_infinite() {
        write!(text, "{}Inf", if number > 0.0 { '+' } else { '-' })
    } else if number.fract() == 0.0 && size <= EXACT {
        write!(text, "{}", number as i64)
    } else if (1e-5..EXACT).contains(&size) {
        write!(text, "{number}")
    } else {
        write!(text, "{number:e}")
    };
}

/// Appends a text of which these characters would be misread: backslash, newline, quote.
fn push_escaped(text: &mut String, value: &str, special: &[char]) {
    let mut rest = value;
    while let Some((before, after)) = rest.split_once(special) {
        text.push_str(before);
        text.push_str(match rest.as_bytes().get(before.len()) {
            Some(b'\\') => "\\\\",
            Some(b'\n') => "\\n",
            _ => "\\\"",
        });
        rest = after;
    }
    text.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::ModelStatus;
    use crate::snapshot::histogram::{LATENCY_SECONDS, PER_TOKEN_SECONDS, TOKENS};
    use crate::snapshot::{GpuMemory, Model, RequestFigures};

    fn number(value: f64) -> String {
        let mut text = String::new();
        push_number(&mut text, value);
        text
    }

    fn own_metrics() -> OwnMetrics {
        OwnMetrics {
            resident_bytes: Some(4_194_304.0),
            cpu_seconds: Some(1.5),
            ..OwnMetrics::default()
        }
    }

    fn snapshot(server: &str, model: Model) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            server: server.to_owned(),
            up: Some(true),
            models: vec![model],
            ..Snapshot::default()
        })
    }

    #[test]
    fn numbers_read_back_exactly() {
        for value in [
            0.0,
            0.1,
            1.0 / 3.0,
            1e-7,
            1.23457e6,
            5e-324,
            1.7976931348623157e308,
            -2.5,
            123456789.125,
        ] {
            assert_eq!(number(value).parse::<f64>().unwrap(), value, "{value}");
        }
    }

    #[test]
    fn integers_have_no_exponent_up_to_two_to_the_53rd() {
        assert_eq!(number(9_007_199_254_740_992.0), "9007199254740992");
        assert_eq!(number(-1e15), "-1000000000000000");
        assert_eq!(number(1e300), "1e300");
        assert_eq!(number(f64::INFINITY), "+Inf");
    }

    #[test]
    fn a_family_without_series_leaves_no_trace() {
        let text = render(
            &[snapshot("h:1", Model::default())],
            &[],
            &OwnMetrics::default(),
        );
        assert!(!text.contains("llamacpp_tokens_per_second"), "{text}");
        assert!(
            text.contains("# TYPE llamacpp_up gauge\nllamacpp_up 1\n"),
            "{text}"
        );
    }

    #[test]
    fn label_values_are_escaped() {
        let model = Model {
            name: "a\"b\\c\nd".to_owned(),
            slots: Some(2.0),
            ..Model::default()
        };
        let text = render(&[snapshot("h:1", model)], &[], &OwnMetrics::default());
        assert!(
            text.contains(r#"llamacpp_slots{model="a\"b\\c\nd"} 2"#),
            "{text}"
        );
    }

    #[test]
    fn several_servers_are_told_apart_and_one_needs_no_name() {
        let model = || Model {
            name: "m".to_owned(),
            slots: Some(1.0),
            ..Model::default()
        };
        let two = [snapshot("a:1", model()), snapshot("b:1", model())];
        let text = render(&two, &[], &OwnMetrics::default());
        assert!(text.contains("llamacpp_slots{model=\"m\",server=\"a:1\"} 1\nllamacpp_slots{model=\"m\",server=\"b:1\"} 1\n"));
        assert!(!render(&two[..1], &[], &OwnMetrics::default()).contains("server=\"a:1\""));
    }

    #[test]
    fn a_histogram_has_buckets_sum_and_count() {
        let mut histogram = Histogram::new(PER_TOKEN_SECONDS);
        histogram.observe(0.02, 3);
        let model = Model {
            name: "m".to_owned(),
            batch_latency: Some(histogram),
            ..Model::default()
        };
        let text = render(&[snapshot("h:1", model)], &[], &OwnMetrics::default());
        assert!(
            text.contains("llamacpp_batch_latency_seconds_bucket{le=\"0.01\",model=\"m\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("llamacpp_batch_latency_seconds_bucket{le=\"0.025\",model=\"m\"} 3\n")
        );
        assert!(
            text.contains("llamacpp_batch_latency_seconds_bucket{le=\"+Inf\",model=\"m\"} 3\n")
        );
        assert!(text.contains("llamacpp_batch_latency_seconds_sum{model=\"m\"} 0.06\n"));
        assert!(text.contains("llamacpp_batch_latency_seconds_count{model=\"m\"} 3\n"));
    }

    #[test]
    fn a_state_set_has_one_one() {
        let model = Model {
            name: "m".to_owned(),
            status: Some(ModelStatus::Running),
            ..Model::default()
        };
        let text = render(&[snapshot("h:1", model)], &[], &OwnMetrics::default());
        assert_eq!(text.matches("llamacpp_status{").count(), 7);
        assert!(text.contains("llamacpp_status{model=\"m\",status=\"running\"} 1\n"));
    }

    #[test]
    fn gpus_belong_to_the_machine_and_are_told_once() {
        let gpu = |index: &str| crate::snapshot::Gpu {
            index: index.to_owned(),
            utilization: Some(40.0),
            ..crate::snapshot::Gpu::default()
        };
        let model = Model {
            name: "m".to_owned(),
            gpu_utilization: Some(7.0),
            ..Model::default()
        };
        let servers = [snapshot("a:1", model), snapshot("b:1", Model::default())];
        let text = render(&servers, &[gpu("0"), gpu("1")], &own_metrics());
        let series: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("llamacpp_gpu_utilization_percent"))
            .collect();
        assert_eq!(
            series,
            [
                "llamacpp_gpu_utilization_percent{gpu=\"0\"} 40",
                "llamacpp_gpu_utilization_percent{gpu=\"1\"} 40",
                "llamacpp_gpu_utilization_percent{model=\"m\",server=\"a:1\"} 7",
            ]
        );
        assert!(text.contains("llamacpp_gpu_info{driver=\"\",gpu=\"1\",name=\"\",uuid=\"\"} 1\n"));
    }

    #[test]
    fn the_same_snapshot_renders_to_the_same_bytes() {
        let servers = [snapshot(
            "h:1",
            Model {
                name: "m".to_owned(),
                slots: Some(4.0),
                ..Model::default()
            },
        )];
        let rendered = || render(&servers, &[], &own_metrics());
        assert_eq!(rendered(), rendered());
    }

    /// A loaded model with every value and histogram, and a name of so many bytes.
    fn full_model(number: usize, name_bytes: usize) -> Model {
        let mut histogram = Histogram::new(PER_TOKEN_SECONDS);
        histogram.observe(0.02, 1_000_000_000_000);
        let some = Some(1_234_567_890_123.0);
        let memory = GpuMemory {
            vram: some,
            gtt: None,
        };
        Model {
            name: format!("{number:03}{}", "n".repeat(name_bytes.saturating_sub(3))),
            status: Some(ModelStatus::Running),
            quantization: Some("Q4_K - Medium".to_owned()),
            tokens_per_second: some,
            prompt_tokens_per_second: some,
            batch_latency: Some(histogram),
            batch_size: some,
            optimal_batch_size: some,
            memory_usage: some,
            total_memory: some,
            cpu_utilization: some,
            threads: some,
            kv_cache_usage: some,
            kv_cache_limit: some,
            kv_cache_ratio: some,
            process_cpu_seconds: some,
            process_gpu_memory: vec![("0".to_owned(), memory)],
            size: some,
            parameters: some,
            context_size: some,
            max_context_size: some,
            context_tokens: (0..4).map(|slot| (slot, 1e6)).collect(),
            slots: some,
            slots_busy: some,
            requests_processing: some,
            requests_deferred: some,
            prompt_tokens: some,
            prompt_tokens_cached: some,
            prompt_seconds: some,
            generated_tokens: some,
            generation_seconds: some,
            decode_calls: some,
            draft_tokens: some,
            draft_tokens_accepted: some,
            max_sequence_tokens: some,
            ..Model::default()
        }
    }

    /// The requests of a model, with all histograms.
    fn full_requests(model: &Model) -> ModelRequests {
        let histogram = |bounds| {
            let mut histogram = Histogram::new(bounds);
            histogram.observe(0.02, 1_000_000_000_000);
            Some(histogram)
        };
        ModelRequests {
            model: model.name.clone(),
            source: "records",
            figures: Arc::new(RequestFigures {
                first_token: histogram(LATENCY_SECONDS),
                duration: histogram(LATENCY_SECONDS),
                per_token: histogram(PER_TOKEN_SECONDS),
                prompt_tokens: histogram(TOKENS),
                generated_tokens: histogram(TOKENS),
                record_gaps: Some(0),
                ..RequestFigures::default()
            }),
        }
    }

    fn full_server(models: usize, name_bytes: usize) -> Arc<Snapshot> {
        let models: Vec<_> = (0..models)
            .map(|number| full_model(number, name_bytes))
            .collect();
        Arc::new(Snapshot {
            server: "model-runner.docker.internal:80".to_owned(),
            up: Some(true),
            requests: models.iter().map(full_requests).collect(),
            models,
            ..Snapshot::default()
        })
    }

    fn dropped(text: &str) -> usize {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("llamacpp_exporter_series_dropped "));
        line.unwrap().parse().unwrap()
    }

    fn series(text: &str) -> usize {
        text.lines().filter(|line| !line.starts_with('#')).count()
    }

    #[test]
    fn five_hundred_loaded_models_with_every_histogram_fit() {
        let servers = [full_server(500, 40), full_server(0, 0)];
        let text = render(&servers, &[], &OwnMetrics::default());
        assert_eq!(dropped(&text), 0, "{} bytes", text.len());
        println!("{} series, {} bytes", series(&text), text.len());
    }

    #[test]
    fn a_scrape_that_is_too_large_is_cut_and_says_so() {
        for name_bytes in [512, 40] {
            let whole: usize = 1500 / if name_bytes == 512 { 3 } else { 1 };
            let servers = [full_server(whole, name_bytes), full_server(0, 0)];
            let text = render(&servers, &[], &own_metrics());
            assert!(text.len() <= MAX_BYTES && series(&text) <= MAX_SERIES);
            assert!(text.capacity() < MAX_BYTES + 2 * GROWTH);
            let one = render(
                &[full_server(1, name_bytes), full_server(0, 0)],
                &[],
                &own_metrics(),
            );
            let none = render(&[full_server(0, 0), full_server(0, 0)], &[], &own_metrics());
            let of_each = series(&one) - series(&none);
            let all = series(&none) + whole * of_each;
            assert_eq!(series(&text) + dropped(&text), all, "every series counts");
            assert!(dropped(&text) > 0);
            // What is about the servers and the exporter is whole, and so is each histogram.
            for line in [
                "llamacpp_up{",
                "process_resident_memory_bytes ",
                "llamacpp_exporter_build_info{",
            ] {
                assert!(text.contains(&format!("\n{line}")), "{line}");
            }
            let count = |end: &str| {
                let start = format!("llamacpp_batch_latency_seconds{end}{{");
                text.lines().filter(|line| line.starts_with(&start)).count()
            };
            assert_eq!(
                count("_bucket"),
                count("_sum") * (PER_TOKEN_SECONDS.len() + 1)
            );
            assert_eq!(count("_sum"), count("_count"));
        }
    }

    #[test]
    fn no_two_series_have_the_same_labels() {
        let memory = GpuMemory {
            vram: Some(1.0),
            gtt: Some(2.0),
        };
        let model = |name: &str, mode: Option<&str>, tells: bool| Model {
            name: name.to_owned(),
            mode: mode.map(str::to_owned),
            mode_tells: tells,
            status: Some(ModelStatus::Idle),
            context_tokens: vec![(3, 1.0), (3, 2.0)],
            process_gpu_memory: vec![("0".to_owned(), memory), ("0".to_owned(), memory)],
            ..Model::default()
        };
        let long = "n".repeat(600);
        let models = vec![
            model("a", None, false),
            model("a", Some("embedding"), false),
            model("b", Some("completion"), true),
            model("b", Some("embedding"), true),
            model(&format!("{long}1"), None, false),
            model(&format!("{long}2"), None, false),
        ];
        let mut requests: Vec<_> = models.iter().map(full_requests).collect();
        requests.extend(requests.clone());
        let cell = crate::snapshot::Cell::new(Snapshot::default());
        cell.publish(Arc::new(Snapshot {
            server: "h:1".to_owned(),
            models,
            requests,
            ..Snapshot::default()
        }));
        let gpu = |name: &str| Gpu {
            index: "0".to_owned(),
            name: Some(name.to_owned()),
            utilization: Some(1.0),
            ..Gpu::default()
        };
        let gpus = [gpu("first"), gpu("second")];
        let text = render(&[cell.load()], &gpus, &OwnMetrics::default());
        let labels = |line: &str| line.rsplit_once(' ').unwrap().0.to_owned();
        let all: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(labels)
            .collect();
        let unique: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), unique.len(), "{text}");
        // The first one wins.
        assert!(text.contains("llamacpp_context_tokens{model=\"a\",slot=\"3\"} 1\n"));
        assert!(text.contains("name=\"first\"") && !text.contains("name=\"second\""));
        // Models a and nnn…, and both modes of b.
        assert_eq!(text.matches("llamacpp_status{").count(), 4 * 7);
        assert!(text.contains(&format!("model=\"{}\"", "n".repeat(512))));
    }
}
