//! Plots as inline SVG: lines over the last 15 minutes, and bars.

use std::fmt::Write as _;

use crate::history::POINT_SECONDS;
use crate::units::{self, Unit};
use crate::web::status_page::html::Html;

/// The height of the area of lines, in units of its own coordinates. Its width is one a point.
const HEIGHT: f64 = 200.0;
/// The most unknown stretches that are shaded.
const MOST_GAPS: usize = 12;
/// The most bars.
const MOST_BARS: usize = 8;

/// Lines over time, with one axis.
pub struct LinePlot<'a> {
    /// What is plotted.
    pub title: &'a str,
    /// The unit of all lines.
    pub unit: Unit,
    /// At most two.
    pub lines: Vec<Line>,
    /// How many points of the history make one point of a line.
    pub step: usize,
}

/// One line.
pub struct Line {
    /// What it is; empty if it is the only one.
    pub name: &'static str,
    /// The points, oldest first; NaN is unknown.
    pub points: Vec<f32>,
    /// The metric that it is of.
    pub metric: &'static str,
    /// Its value now, if it is known.
    pub last: Option<f64>,
    /// What the value is a part of, if that is known: shown beside it.
    pub of: Option<f64>,
}

/// Writes the grid and the axis of time of all line plots, once.
pub fn write_axis(out: &mut Html, points: usize) {
    out.raw("<svg class=\"defs\" aria-hidden=\"true\"><defs><g id=\"x\"><path class=\"g\" d=\"M54 8h220M54 58h220M54 108h220\"/>");
    let minutes = points as f64 * POINT_SECONDS / 60.0;
    let labels = [
        ("<text y=\"125\" x=\"54\">−", 1.0, " min</text>"),
        (
            "<text class=\"m\" y=\"125\" x=\"127\">−",
            2.0 / 3.0,
            "</text>",
        ),
        (
            "<text class=\"m\" y=\"125\" x=\"201\">−",
            1.0 / 3.0,
            "</text>",
        ),
    ];
    for (start, share, end) in labels {
        let minute = (minutes * share).round().to_string();
        out.raw(start).text(&minute).raw(end);
    }
    out.raw("<text class=\"e\" y=\"125\" x=\"274\">now</text></g></defs></svg>\n");
}

const CLASSES: [(&str, &str); 2] = [
    ("<i class=\"a\"></i>", "<path class=\"a\" d=\""),
    ("<i class=\"b\"></i>", "<path class=\"b\" d=\""),
];

impl LinePlot<'_> {
    /// Whether anything is known of it.
    pub fn has_values(&self) -> bool {
        self.lines
            .iter()
            .any(|line| line.last.is_some() || line.points.iter().any(|point| !point.is_nan()))
    }

    /// Writes the plot with its title and its last values.
    pub fn write(&self, out: &mut Html) {
        out.raw("<figure class=\"card\"><figcaption><b>")
            .text(self.title)
            .raw("</b> <span class=\"now\">");
        for (line, (swatch, _)) in self.lines.iter().zip(CLASSES) {
            out.raw("<span>");
            if self.lines.len() > 1 {
                out.raw(swatch).text(line.name).raw(" ");
            }
            match line.last {
                Some(last) => {
                    let exact = last.to_string();
                    out.raw("<data value=\"")
                        .text(&exact)
                        .raw("\" title=\"")
                        .text(line.metric)
                        .raw("\">");
                    out.text(&self.unit.text(last)).raw("</data>");
                }
                None => {
                    out.raw("<span class=\"none\">–</span>");
                }
            }
            if let Some(of) = line.of {
                out.raw(" <small>of ")
                    .text(&self.unit.text(of))
                    .raw("</small>");
            }
            out.raw("</span>");
        }
        out.raw("</span></figcaption>");
        self.write_svg(out);
        out.raw("</figure>\n");
    }

    /// How many points of the history are plotted.
    fn points(&self) -> usize {
        self.lines
            .iter()
            .map(|line| line.points.len())
            .max()
            .unwrap_or(0)
    }

    fn write_svg(&self, out: &mut Html) {
        let known = self.lines.iter().flat_map(|line| &line.points);
        let most = known
            .copied()
            .filter(|point| !point.is_nan())
            .fold(0.0, f32::max);
        let end = end_of_axis(self.unit, f64::from(most));
        out.raw("<svg viewBox=\"0 0 280 132\" role=\"img\"><title>")
            .text(self.title)
            .raw(" over time</title><desc>");
        out.text_of(&self.description(), 400);
        out.raw("</desc><use href=\"#x\"/><g class=\"y\">");
        for (start, share) in [
            ("<text x=\"50\" y=\"12\">", 1.0),
            ("<text x=\"50\" y=\"62\">", 0.5),
            ("<text x=\"50\" y=\"112\">", 0.0),
        ] {
            let label = self.unit.text(end * share);
            out.raw(start).text(&label).raw("</text>");
        }
        let width = self.points().saturating_sub(1).to_string();
        out.raw("</g><svg x=\"54\" y=\"8\" width=\"220\" height=\"100\" preserveAspectRatio=\"none\" viewBox=\"0 0 ");
        out.text(&width).raw(" 200\">");
        self.write_gaps(out);
        for (line, (_, path)) in self.lines.iter().zip(CLASSES).rev() {
            let path_data = path_data(&line.points, end, self.step);
            if !path_data.is_empty() {
                out.raw(path).text_of(&path_data, usize::MAX).raw("\"/>");
            }
        }
        out.raw("</svg></svg>");
    }

    /// Shades the time of which no line has a value.
    fn write_gaps(&self, out: &mut Html) {
        let is_gap = |index: usize| {
            let mut points = self.lines.iter().filter_map(|line| line.points.get(index));
            points.all(|point| point.is_nan())
        };
        let mut start = None;
        let mut gaps = Vec::new();
        for index in 0..=self.points() {
            match (index < self.points() && is_gap(index), start) {
                (true, None) => start = Some(index),
                (false, Some(from)) => {
                    gaps.push((from, index));
                    start = None;
                }
                _ => {}
            }
        }
        // The longest ones.
        gaps.sort_by_key(|(from, to)| from.saturating_sub(*to));
        for (from, to) in gaps.into_iter().take(MOST_GAPS) {
            let x = from.saturating_sub(1).to_string();
            let width = to
                .saturating_sub(from)
                .saturating_add(usize::from(from > 0))
                .to_string();
            out.raw("<rect class=\"u\" height=\"200\" x=\"").text(&x);
            out.raw("\" width=\"").text(&width).raw("\"/>");
        }
    }

    /// What the plot shows, in words.
    fn description(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let known = || line.points.iter().copied().filter(|point| !point.is_nan());
            let name = match line.name {
                "" => "Value",
                name => name,
            };
            let now = line
                .last
                .map_or_else(|| "not known".to_owned(), |last| self.unit.text(last));
            let _ = write!(text, "{name}: now {now}");
            if known().next().is_some() {
                let format = |value: f32| self.unit.text(f64::from(value));
                let (least, most) = (
                    known().fold(f32::MAX, f32::min),
                    known().fold(0.0, f32::max),
                );
                let _ = write!(text, ", lowest {}, highest {}", format(least), format(most));
            }
            let unknown = line.points.len().saturating_sub(known().count());
            if unknown > 0 {
                let _ = write!(
                    text,
                    ", not known for {}",
                    units::duration(unknown as f64 * POINT_SECONDS)
                );
            }
            text += ". ";
        }
        text
    }
}

/// The end of an axis on which `most` fits: one significant digit in the unit of its labels.
fn end_of_axis(unit: Unit, most: f64) -> f64 {
    let (size, least) = match unit {
        Unit::Percent => return most.max(100.0),
        Unit::Ratio => return most.max(1.0),
        Unit::Bytes => (units::scale_of_bytes(most).0, 1.0),
        Unit::Seconds => (1.0, 1e-3),
        _ => (1.0, 2.0),
    };
    let most = (most / size).max(least);
    let power = 10f64.powf(most.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * power);
    let end = steps.into_iter().find(|end| *end >= most * 0.999);
    end.unwrap_or(10.0 * power) * size
}

/// The line of these points as the data of an SVG path, `step` points of the history to one of it.
/// A gap begins a new line.
fn path_data(points: &[f32], end: f64, step: usize) -> String {
    let step = step.max(1);
    let mut data = String::new();
    // The position that the path has reached, and the length of its level end.
    let mut at: Option<(usize, i64)> = None;
    let mut level = 0_usize;
    for (index, chunk) in points.chunks(step).enumerate() {
        let known = chunk.iter().filter(|point| !point.is_nan());
        let count = known.clone().count();
        let x = index.saturating_mul(step);
        if count == 0 {
            finish_level(&mut data, &mut level);
            at = None;
            continue;
        }
        let mean = known.map(|point| f64::from(*point)).sum::<f64>() / count as f64;
        let y = (HEIGHT - (mean / end).clamp(0.0, 1.0) * HEIGHT).round() as i64;
        match at {
            None => {
                // A dot, if no point follows.
                let _ = write!(data, "M{x} {y}h0");
            }
            Some((_, last)) if last == y => level = level.saturating_add(step),
            Some((_, last)) => {
                finish_level(&mut data, &mut level);
                let by = y.saturating_sub(last);
                let separator = if by < 0 { "" } else { " " };
                let _ = write!(data, "l{step}{separator}{by}");
            }
        }
        at = Some((x, y));
    }
    finish_level(&mut data, &mut level);
    data
}

fn finish_level(data: &mut String, level: &mut usize) {
    if *level > 0 {
        let _ = write!(data, "h{level}");
        *level = 0;
    }
}

/// Writes the tokens in each slot as bars, of `size` tokens each.
pub fn write_context_bars(out: &mut Html, slots: &[(u64, f64)], size: Option<f64>) {
    let fullest = slots.iter().map(|(_, tokens)| *tokens).fold(0.0, f64::max);
    let end = size.unwrap_or(fullest).max(fullest).max(1.0);
    out.raw("<figure class=\"card\"><figcaption><b>Context by slot</b> <span class=\"now\"><span>fullest <b>");
    out.text(&units::number(fullest)).raw("</b> <small>");
    if let Some(size) = size {
        out.raw("of ").text(&units::number(size)).raw(" ");
    }
    out.raw("tokens</small></span></span></figcaption>");
    let shown = slots.len().min(MOST_BARS);
    let pitch = (120.0 / shown.max(1) as f64).clamp(20.0, 60.0);
    let height = (pitch * shown as f64 + 12.0).max(132.0).to_string();
    out.raw("<svg role=\"img\" viewBox=\"0 0 280 ")
        .text(&height);
    out.raw("\"><title>Tokens in each slot</title><desc>");
    for (id, tokens) in slots.iter().take(MOST_BARS) {
        let text = format!("Slot {id}: {}. ", units::number(*tokens));
        out.text(&text);
    }
    out.raw("</desc>");
    let mut middle = 6.0 + pitch / 2.0;
    for (id, tokens) in slots.iter().take(MOST_BARS) {
        let (y, top) = (
            format!("{:.1}", middle + 4.0),
            format!("{:.1}", middle - 7.0),
        );
        let width = format!("{:.1}", (tokens / end).clamp(0.0, 1.0) * 156.0);
        out.raw("<text class=\"e\" x=\"48\" y=\"")
            .text(&y)
            .raw("\">slot ");
        out.text(&id.to_string())
            .raw("</text><rect class=\"t\" x=\"54\" width=\"156\" y=\"");
        out.text(&top)
            .raw("\"/><rect class=\"f\" x=\"54\" width=\"")
            .text(&width);
        out.raw("\" y=\"")
            .text(&top)
            .raw("\"/><text class=\"v\" x=\"274\" y=\"");
        out.text(&y)
            .raw("\">")
            .text(&units::number(*tokens))
            .raw("</text>");
        middle += pitch;
    }
    out.raw("</svg>");
    if slots.len() > MOST_BARS {
        let more = slots.len().saturating_sub(MOST_BARS).to_string();
        out.raw("<p class=\"more\">and ")
            .text(&more)
            .raw(" more slots</p>");
    }
    out.raw("</figure>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;
    const POINTS: usize = crate::history::POINTS;

    #[test]
    fn a_path_is_relative_and_has_gaps() {
        let points = [NAN, 1.0, 1.0, 1.0, 2.0, NAN, 0.0];
        assert_eq!(path_data(&points, 2.0, 1), "M1 100h0h2l1-100M6 200h0");
        assert_eq!(path_data(&points, 2.0, 2), "M0 100h0h2l2-100l2 200");
        assert_eq!(path_data(&[NAN; 3], 2.0, 1), "");
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        for (unit, most, end) in [
            (Unit::Number, 0.0, "2"),
            (Unit::Number, 3.0, "4"),
            (Unit::Number, 61.2, "80"),
            (Unit::Number, 200.0, "200"),
            (Unit::Percent, 3.0, "100%"),
            (Unit::Ratio, 0.3, "100%"),
            (Unit::Seconds, 0.7, "800 ms"),
            (Unit::Bytes, 3.3e8, "400 MiB"),
        ] {
            assert_eq!(unit.text(end_of_axis(unit, most)), end, "{most}");
        }
    }

    #[test]
    fn a_plot_says_in_words_what_it_shows() {
        let mut points = vec![NAN; POINTS - 12];
        points.extend([3.0; 12]);
        let plot = LinePlot {
            title: "Requests",
            unit: Unit::Number,
            lines: vec![Line {
                name: "running",
                points,
                metric: "llamacpp_requests_processing",
                last: Some(3.0),
                of: None,
            }],
            step: 1,
        };
        let mut out = Html::default();
        plot.write(&mut out);
        let html = out.finish();
        for part in [
            "running: now 3, lowest 3, highest 3, not known for 14 min. ",
            "<data value=\"3\" title=\"llamacpp_requests_processing\">3</data>",
            "<rect class=\"u\" height=\"200\" x=\"0\" width=\"168\"/>",
            "M168 50h0h11",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
    }
}
