//! Durations in Go's format, or a plain number of seconds.

use std::time::Duration;

use crate::bounds::BoundedDuration;

const FORMS: &str =
    "use 5s, 500ms, 1m30s, 1.5s or a number of seconds, above zero and at most a year";

/// Parses a duration above zero.
///
/// # Errors
/// `text` is not a valid duration; the error lists the accepted forms.
pub fn parse(text: &str) -> Result<Duration, String> {
    let seconds = match text.parse::<f64>() {
        // Rust also parses "inf", "1e3" and "+5", which are not accepted here.
        Ok(seconds)
            if text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.') =>
        {
            seconds
        }
        _ => parse_units(text).ok_or(FORMS)?,
    };
    if seconds > BoundedDuration::MAX.get().as_secs_f64() {
        return Err(FORMS.to_owned());
    }
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| FORMS)?;
    // Less than a nanosecond is rounded to zero.
    if duration.is_zero() {
        Err(FORMS.to_owned())
    } else {
        Ok(duration)
    }
}

fn parse_units(mut text: &str) -> Option<f64> {
    let mut seconds = 0.0;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let number = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = text[number..].find(|c: char| c.is_ascii_digit() || c == '.');
        let end = unit.map_or(text.len(), |length| number.saturating_add(length));
        let scale = match &text[number..end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += text[..number].parse::<f64>().ok()? * scale;
        text = &text[end..];
    }
    Some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_and_plain_seconds_are_parsed() {
        for (text, milliseconds) in [
            ("5s", 5_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1.5s", 1_500),
            ("2h", 7_200_000),
            ("250000us", 250),
            ("1s500ms", 1_500),
            ("5", 5_000),
            ("0.25", 250),
        ] {
            assert_eq!(
                parse(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn invalid_durations_are_rejected() {
        for text in [
            "",
            "0",
            "0s",
            "-5s",
            "+5",
            "5 s",
            "s",
            "5x",
            "5s5",
            "inf",
            "NaN",
            "1e3",
            "1e3s",
            "1..5s",
            "99999h",
            "١s",
            "0.0000000001s",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
