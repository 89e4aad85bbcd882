//! Writes single lines of the Prometheus text format.

use std::fmt::Write as _;

use crate::bounds;
use crate::metrics::catalogue::Label;

/// Appends the HELP and TYPE lines of a family; no HELP line if that is empty.
pub fn push_header(text: &mut String, name: &str, help: &str, metric_type: &str) {
    if !help.is_empty() {
        push_help(text, name, help);
    }
    for part in ["# TYPE ", name, " ", metric_type, "\n"] {
        text.push_str(part);
    }
}

fn push_help(text: &mut String, name: &str, help: &str) {
    for part in ["# HELP ", name, " "] {
        text.push_str(part);
    }
    push_escaped(text, help, &['\\', '\n']);
    text.push('\n');
}

/// Appends one series: the parts of its name, its labels, sorted by name, and what `value` appends.
///
/// No two labels have the same name. This runs for every series of a scrape, and allocates
/// nothing: in musl that is slow.
pub fn push_series(
    text: &mut String,
    name: [&str; 2],
    common: &[&[Label]],
    own: &[Label],
    value: impl FnOnce(&mut String),
) {
    name.iter().for_each(|part| text.push_str(part));
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
    value(text);
    text.push('\n');
}

/// Appends `number` so that it reads back exactly; integers up to 2^53 without exponent.
pub fn push_number(text: &mut String, number: f64) {
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

    fn number(value: f64) -> String {
        let mut text = String::new();
        push_number(&mut text, value);
        text
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
}
