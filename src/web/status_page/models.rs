//! The models and GPUs of the page: what they are, and their plots.

use crate::history::{GpuHistory, ModelHistory, POINTS, Ring};
use crate::metrics::value;
use crate::snapshot::{Gpu, GpuMemory, Model};
use crate::units::{self, Unit};
use crate::web::status_page::StatusPage;
use crate::web::status_page::html::Html;
use crate::web::status_page::plot::{Line, LinePlot, write_axis, write_context_bars};
use crate::web::status_page::servers::{write_more, write_status};

/// About how many bytes a plot takes without its lines, a line its points, and a point.
const PLOT_BYTES: usize = 620;
const LINES_OF_MODEL: usize = 9;
const PLOTS_OF_MODEL: usize = 7;
const BYTES_OF_POINT: usize = 5;
/// The most points of the history that are made one, so that the plots of many models fit.
const MOST_POINTS_IN_ONE: usize = 4;
/// The share of the bytes that the GPUs get, if there are models, too.
const SHARE_OF_GPUS: usize = 4;

/// A plot: its title, its unit, and the name and metric of each line.
type PlotRow = (&'static str, Unit, &'static [(&'static str, &'static str)]);

/// The plots of a model besides the time to its first token and the context of its slots, the most
/// important first.
const PLOTS: &[PlotRow] = &[
    (
        "Tokens per second",
        Unit::Number,
        &[
            ("generated", "llamacpp_tokens_per_second"),
            ("prompt", "llamacpp_prompt_tokens_per_second"),
        ],
    ),
    (
        "Requests",
        Unit::Number,
        &[
            ("running", "llamacpp_requests_processing"),
            ("waiting", "llamacpp_requests_deferred"),
        ],
    ),
    (
        "KV cache",
        Unit::Ratio,
        &[("", "llamacpp_kv_cache_usage_ratio")],
    ),
    (
        "CPU",
        Unit::Percent,
        &[("", "llamacpp_cpu_utilization_percent")],
    ),
    (
        "Memory",
        Unit::Bytes,
        &[("", "llamacpp_memory_usage_bytes")],
    ),
];

/// Writes what is known of a model besides its plots.
fn write_facts(out: &mut Html, page: &StatusPage, model: &Model) {
    let facts = &model.facts;
    let parameters = facts
        .parameters
        .map(|count| format!("{} parameters", units::short(count)));
    let slots = match (facts.slots, facts.max_context_size) {
        (Some(slots), Some(context)) => {
            let plural = if slots == 1.0 { "" } else { "s" };
            Some(format!(
                "{slots} slot{plural} of {} tokens",
                units::number(context)
            ))
        }
        (Some(slots), None) => Some(format!("{slots} slots")),
        (None, context) => {
            context.map(|context| format!("{} tokens a slot", units::number(context)))
        }
    };
    let process = model.process.start_time.zip(page.unix_now);
    let process = process.map(|(start, now)| {
        let pid = model
            .process
            .pid
            .map(|pid| format!(" {pid}"))
            .unwrap_or_default();
        format!("process{pid} started {} ago", units::age(now - start))
    });
    let size = facts.size.map(units::bytes);
    let all = [facts.quantization.clone(), parameters, size, slots, process];
    if all.iter().any(Option::is_some) {
        out.raw("<p class=\"facts\">");
        for fact in all.into_iter().flatten() {
            out.raw("<span>").text(&fact).raw("</span> ");
        }
        out.raw("</p>\n");
    }
}

/// Writes the plots of the models with a history, and of the GPUs, in at most `bytes`.
pub fn write_plots(out: &mut Html, page: &StatusPage, bytes: usize) {
    let view = page.history;
    if view.models.is_empty() && view.gpus.is_empty() {
        return;
    }
    let start = out.len();
    write_axis(out, page.points());
    // Headings and hints.
    let bytes = bytes
        .saturating_sub(out.len().saturating_sub(start))
        .saturating_sub(300);
    let of_gpus = match (view.gpus.is_empty(), view.models.is_empty()) {
        (true, _) => 0,
        (false, true) => bytes,
        (false, false) => bytes / SHARE_OF_GPUS,
    };
    let of_models = bytes.saturating_sub(of_gpus);
    let of_model = of_models.checked_div(view.models.len()).unwrap_or(0);
    let step = step_within(of_model, page.points());
    for history in &view.models {
        write_model(out, page, history, step, of_model);
    }
    if !view.gpus.is_empty() {
        out.raw("<section><h2>GPUs</h2>\n<div class=\"cards\">\n");
        let left_out = out.items(&view.gpus, of_gpus, |out, history| {
            let gpu = page.gpus.iter().find(|gpu| gpu.index == history.index);
            write_gpu(out, page, history, gpu, MOST_POINTS_IN_ONE / 2);
        });
        out.raw("</div>\n");
        let without_history = page.gpus.len().saturating_sub(view.gpus.len());
        write_more(out, left_out.saturating_add(without_history), "GPUs");
        out.raw("</section>\n");
    }
    out.raw("<p class=\"hint\">Shaded: nothing was known then. p50 and p95 are of the requests of the last minute.</p>\n");
}

/// How many points of the history are made one, so that the plots of a model have about `bytes`.
fn step_within(bytes: usize, points: usize) -> usize {
    let of_lines = bytes.saturating_sub(PLOTS_OF_MODEL.saturating_mul(PLOT_BYTES));
    let of_point = LINES_OF_MODEL.saturating_mul(BYTES_OF_POINT);
    let needed = points.saturating_mul(of_point);
    let step = needed.div_ceil(of_lines.max(1));
    step.clamp(1, MOST_POINTS_IN_ONE)
}

fn write_model(
    out: &mut Html,
    page: &StatusPage,
    history: &ModelHistory,
    step: usize,
    bytes: usize,
) {
    let start = out.len();
    let server = page
        .servers
        .iter()
        .find(|server| server.server == history.server);
    let mut models = server.iter().flat_map(|server| &server.models);
    let model = models.find(|model| history.is_of(&history.server, model));
    out.raw("<section><h2>").name(&history.key.0);
    if let Some(mode) = &history.key.1 {
        out.raw(" <small>").text(mode).raw("</small>");
    }
    if page.servers.len() > 1 {
        out.raw(" <small>at ").name(&history.server).raw("</small>");
    }
    match model {
        Some(model) => {
            out.raw(" ");
            write_status(out, model);
            out.raw("</h2>\n");
            write_facts(out, page, model);
        }
        None => {
            out.raw(" <small>until it was gone</small></h2>\n");
        }
    }
    out.raw("<div class=\"cards\">\n");
    let (known, missing): (Vec<_>, Vec<_>) = cards(page, history, model, step)
        .into_iter()
        .partition(Card::has_values);
    let bytes = bytes
        .saturating_sub(out.len().saturating_sub(start))
        .saturating_sub(300);
    let left_out = out.items(&known, bytes, |out, card| card.write(out));
    out.raw("</div>\n");
    let shown = known.len().saturating_sub(left_out);
    let left_out = titles(known.get(shown..).unwrap_or_default());
    if !left_out.is_empty() {
        out.raw("<p class=\"hint\">Known, and left out here for space: ")
            .text(&left_out);
        out.raw(". See <a href=\"metrics\">/metrics</a>.</p>\n");
    }
    let missing = titles(&missing);
    if !missing.is_empty() {
        out.raw("<p class=\"hint\">Not known: ").text(&missing);
        out.raw(". <a href=\"#absent\">Why, and what to do</a></p>\n");
    }
    out.raw("</section>\n");
}

/// A plot of a model.
enum Card<'a> {
    Lines(LinePlot<'a>),
    /// The tokens in each slot, and how many it can hold.
    Context(&'a [(u64, f64)], Option<f64>),
}

impl Card<'_> {
    fn title(&self) -> &str {
        match self {
            Card::Lines(plot) => plot.title,
            Card::Context(..) => "Context by slot",
        }
    }

    fn has_values(&self) -> bool {
        match self {
            Card::Lines(plot) => plot.has_values(),
            Card::Context(slots, _) => !slots.is_empty(),
        }
    }

    fn write(&self, out: &mut Html) {
        match self {
            Card::Lines(plot) => plot.write(out),
            Card::Context(slots, size) => write_context_bars(out, slots, *size),
        }
    }
}

fn titles(cards: &[Card]) -> String {
    let titles: Vec<_> = cards
        .iter()
        .map(|card| card.title().to_lowercase())
        .collect();
    titles
        .join(", ")
        .replace("kv ", "KV ")
        .replace("cpu", "CPU")
}

/// All plots of a model, the most important first.
fn cards<'a>(
    page: &StatusPage,
    history: &ModelHistory,
    model: Option<&'a Model>,
    step: usize,
) -> Vec<Card<'a>> {
    let is_current = model.is_some();
    let line = |(name, metric): (&'static str, &'static str)| Line {
        name,
        metric,
        points: history
            .ring(metric)
            .map_or_else(Vec::new, |ring| points(page, ring, is_current)),
        last: model.and_then(|model| value::of_model(metric, model)),
        of: match metric {
            "llamacpp_memory_usage_bytes" => {
                model.and_then(|model| value::of_model("llamacpp_total_memory_bytes", model))
            }
            _ => None,
        },
    };
    let plot = |(title, unit, lines): PlotRow| {
        let lines = lines.iter().copied().map(line).collect();
        Card::Lines(LinePlot {
            title,
            unit,
            lines,
            step,
        })
    };
    let last = history.last_first_token().filter(|_| is_current);
    let quantile = |(index, name)| Line {
        name,
        metric: "llamacpp_first_token_latency_seconds",
        points: points(page, &history.first_token()[index], is_current),
        last: last.map(|last| last[index]),
        of: None,
    };
    let first_token = Card::Lines(LinePlot {
        title: "Time to first token",
        unit: Unit::Seconds,
        lines: [(0, "p50"), (1, "p95")].map(quantile).into(),
        step,
    });
    let slots = model.map_or(&[][..], |model| &model.slots.context_tokens);
    let size = model.and_then(|model| model.facts.max_context_size);
    let mut cards: Vec<_> = PLOTS.iter().copied().map(plot).collect();
    cards.splice(2..2, [first_token, Card::Context(slots, size)]);
    cards
}

fn write_gpu(
    out: &mut Html,
    page: &StatusPage,
    history: &GpuHistory,
    gpu: Option<&Gpu>,
    step: usize,
) {
    let name = gpu.and_then(|gpu| gpu.name.as_deref()).unwrap_or_default();
    let sum = |memory: GpuMemory| memory.kinds().map(|(_, bytes)| bytes).reduce(|a, b| a + b);
    let used = gpu.and_then(|gpu| sum(gpu.memory_used));
    let total = gpu.and_then(|gpu| sum(gpu.memory_total));
    let busy = gpu.and_then(|gpu| gpu.utilization);
    let plots = [
        (
            "busy",
            Unit::Percent,
            "llamacpp_gpu_utilization_percent",
            &history.utilization,
            busy,
            None,
        ),
        (
            "memory",
            Unit::Bytes,
            "llamacpp_gpu_memory_used_bytes",
            &history.memory_used,
            used,
            total,
        ),
    ];
    for (what, unit, metric, ring, last, of) in plots {
        let title = format!("GPU {} {what} {name}", history.index);
        let plot = LinePlot {
            title: title.trim_end(),
            unit,
            lines: vec![Line {
                name: "",
                metric,
                points: points(page, ring, gpu.is_some()),
                last,
                of,
            }],
            step,
        };
        if plot.has_values() {
            plot.write(out);
        }
    }
}

fn points(page: &StatusPage, ring: &Ring, is_current: bool) -> Vec<f32> {
    let mut points = ring.points(page.history.now, is_current);
    points.split_off(POINTS.saturating_sub(page.points()))
}
