//! Writes single lines of the Prometheus text format.

use std::fmt::Write as _;
use std::mem;

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
    push_escaped(text, help, is_special_in_help);
    text.push('\n');
}

/// Appends one series: the parts of its name, its labels, and what `value` appends.
///
/// `common`, one after another, and `own` are each sorted by name, and no two labels have the same
/// name. This runs for every series of a scrape, and allocates nothing: in musl that is slow.
pub fn push_series(
    text: &mut String,
    name: [&str; 2],
    common: &[&[Label]],
    own: &[Label],
    value: impl FnOnce(&mut String),
) {
    name.iter().for_each(|part| text.push_str(part));
    let mut separator = "{";
    let mut own = own.iter().peekable();
    for labels in common {
        for label in *labels {
            while let Some(before) = own.next_if(|own| own.0 < label.0) {
                push_label(text, &mut separator, before);
            }
            push_label(text, &mut separator, label);
        }
    }
    for label in own {
        push_label(text, &mut separator, label);
    }
    text.push_str(if separator == "{" { " " } else { "} " });
    value(text);
    text.push('\n');
}

/// Appends a label after `separator`, and sets that to the next one.
fn push_label(text: &mut String, separator: &mut &str, (name, value): &Label) {
    for part in [mem::replace(separator, ","), name, "=\""] {
        text.push_str(part);
    }
    push_escaped(text, bounds::cut(value), is_special_in_label);
    text.push('"');
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

/// Appends a text of which these bytes, all ASCII, would be misread: backslash, newline, quote.
fn push_escaped(text: &mut String, value: &str, is_special: fn(&u8) -> bool) {
    let mut rest = value;
    // Bytes, not characters: this runs for every label of a scrape.
    while let Some(at) = rest.as_bytes().iter().position(is_special) {
        let (before, special) = rest.split_at(at);
        text.push_str(before);
        text.push_str(match special.as_bytes().first() {
            Some(b'\\') => "\\\\",
            Some(b'\n') => "\\n",
            _ => "\\\"",
        });
        rest = special.get(1..).unwrap_or_default();
    }
    text.push_str(rest);
}

fn is_special_in_help(byte: &u8) -> bool {
    matches!(byte, b'\\' | b'\n')
}

fn is_special_in_label(byte: &u8) -> bool {
    matches!(byte, b'\\' | b'\n' | b'"')
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
