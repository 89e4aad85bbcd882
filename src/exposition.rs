//! Writes the Prometheus text format.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::catalogue::{FAMILIES, Family, Read};
use crate::histogram::Histogram;
use crate::itself::Itself;
use crate::snapshot::{Model, RequestsOf, Snapshot};

/// The media type of what [`render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A label's name and value.
type Label<'a> = (&'static str, &'a str);

/// Writes every family that has a series, in the catalogue's order.
///
/// The same snapshots give the same bytes. With more than one server, every
/// series about one has the label `server`.
pub fn render(servers: &[Arc<Snapshot>], itself: &Itself) -> String {
    let mut text = String::with_capacity(16 * 1024);
    let several = servers.len() > 1;
    for family in FAMILIES {
        let mut writer = Writer {
            text: &mut text,
            family,
            begun: false,
        };
        match family.read {
            Read::Exporter(read) => writer.value(&[], read(itself)),
            Read::ExporterSeries(read) => {
                read(itself, &mut |own, value| writer.sample("", &[], own, value));
            }
            Read::GpuSeries(read) => {
                for gpu in &itself.gpus {
                    let label = [("gpu", gpu.index.as_str())];
                    read(gpu, &mut |own, value| {
                        writer.sample("", &[&label], own, value)
                    });
                }
            }
            _ => {
                if let Read::Gpu(read, _) = family.read {
                    for gpu in &itself.gpus {
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
    text
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
                write_requests(writer, requests, label);
            }
        }
        _ => {
            for model in &server.models {
                write_model(writer, model, label);
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

fn write_requests(writer: &mut Writer, of: &RequestsOf, server: &[Label]) {
    let figures = &of.figures;
    let model = [("model", of.model.as_str())];
    let source = [("source", of.source.label())];
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

struct Writer<'a> {
    text: &'a mut String,
    family: &'a Family,
    /// HELP and TYPE stand before the first sample, and nowhere if there is none.
    begun: bool,
}

impl Writer<'_> {
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
        if !self.begun {
            self.begun = true;
            for part in ["# HELP ", name, " "] {
                self.text.push_str(part);
            }
            push_escaped(self.text, help, &['\\', '\n']);
            for part in ["\n# TYPE ", name, " ", kind.name(), "\n"] {
                self.text.push_str(part);
            }
        }
        self.text.push_str(name);
        self.text.push_str(suffix);
        let labels = || common.iter().copied().chain([own]).flatten();
        let mut last = "";
        while let Some((name, value)) = labels().filter(|(name, _)| *name > last).min() {
            self.text.push(if last.is_empty() { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            push_escaped(self.text, value, &['\\', '\n', '"']);
            self.text.push('"');
            last = name;
        }
        if !last.is_empty() {
            self.text.push('}');
        }
        self.text.push(' ');
        push_number(self.text, value);
        self.text.push('\n');
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
    while let Some(at) = rest.find(special) {
        text.push_str(&rest[..at]);
        text.push_str(match rest.as_bytes()[at] {
            b'\\' => "\\\\",
            b'\n' => "\\n",
            _ => "\\\"",
        });
        rest = &rest[at + 1..];
    }
    text.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::PER_TOKEN_SECONDS;
    use crate::snapshot::{Model, Status};

    fn number(value: f64) -> String {
        let mut text = String::new();
        push_number(&mut text, value);
        text
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
        let text = render(&[snapshot("h:1", Model::default())], &Itself::default());
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
        let text = render(&[snapshot("h:1", model)], &Itself::default());
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
        let text = render(&two, &Itself::default());
        assert!(text.contains("llamacpp_slots{model=\"m\",server=\"a:1\"} 1\nllamacpp_slots{model=\"m\",server=\"b:1\"} 1\n"));
        assert!(!render(&two[..1], &Itself::default()).contains("server=\"a:1\""));
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
        let text = render(&[snapshot("h:1", model)], &Itself::default());
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
            status: Some(Status::Running),
            ..Model::default()
        };
        let text = render(&[snapshot("h:1", model)], &Itself::default());
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
        let itself = Itself {
            gpus: vec![gpu("0"), gpu("1")],
            ..Itself::default()
        };
        let model = Model {
            name: "m".to_owned(),
            gpu_utilization: Some(7.0),
            ..Model::default()
        };
        let servers = [snapshot("a:1", model), snapshot("b:1", Model::default())];
        let text = render(&servers, &itself);
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
        let itself = Itself::read();
        assert_eq!(render(&servers, &itself), render(&servers, &itself));
    }
}
