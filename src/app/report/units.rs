//! Values with their units, for people.

/// `value` of this metric, whose name ends in its unit. `now` is in seconds since 1970.
pub fn with_unit(metric: &str, value: f64, now: f64) -> String {
    let name = metric.strip_suffix("_total").unwrap_or(metric);
    let ends = |unit: &str| name.ends_with(unit);
    if ends("_time_seconds") || ends("_timestamp_seconds") {
        return format!("{} ago", duration((now - value).max(0.0)));
    }
    if ends("_bytes") {
        bytes(value)
    } else if ends("_per_second") {
        format!("{}/s", number(value))
    } else if ends("_seconds") {
        duration(value)
    } else if ends("_percent") {
        format!("{}%", number(value))
    } else if ends("_ratio") {
        format!("{}%", number(value * 100.0))
    } else if ends("_celsius") {
        format!("{} °C", number(value))
    } else if ends("_watts") {
        format!("{} W", number(value))
    } else if ends("_joules") {
        format!("{} J", number(value))
    } else {
        number(value)
    }
}

/// A number with three significant digits after the point at most, and its thousands separated.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let size = value.abs();
    let decimals = match size {
        _ if value.fract() == 0.0 || size >= 1000.0 => 0,
        _ if size >= 100.0 => 1,
        _ if size >= 1.0 => 2,
        _ if size >= 0.001 => 4,
        _ => return format!("{value:.2e}"),
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = whole.trim_start_matches('-');
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        let left = digits.len().saturating_sub(index);
        if index > 0 && left.is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

/// A number below 1000 with two significant digits.
fn two_digits(value: f64) -> String {
    match value {
        v if v >= 10.0 => number(v.round()),
        v if v >= 1.0 => number((v * 10.0).round() / 10.0),
        v => number((v * 100.0).round() / 100.0),
    }
}

/// Bytes in the largest unit of which there is one at least.
pub fn bytes(value: f64) -> String {
    const UNITS: [(f64, &str); 4] = [
        (1_099_511_627_776.0, "TiB"),
        (1_073_741_824.0, "GiB"),
        (1_048_576.0, "MiB"),
        (1024.0, "KiB"),
    ];
    let unit = UNITS.iter().find(|(size, _)| value >= *size);
    match unit {
        Some((size, name)) => format!("{} {name}", number(value / size)),
        None => format!("{} B", number(value)),
    }
}

/// A duration in seconds, in the units that people use.
pub fn duration(seconds: f64) -> String {
    let parts = |large: f64, name: &str, small: f64, small_name: &str| {
        let whole = (seconds / large).floor();
        let rest = ((seconds - whole * large) / small).floor();
        match rest > 0.0 {
            true => format!("{} {name} {rest} {small_name}", number(whole)),
            false => format!("{} {name}", number(whole)),
        }
    };
    match seconds {
        s if s >= 86_400.0 => parts(86_400.0, "d", 3600.0, "h"),
        s if s >= 3600.0 => parts(3600.0, "h", 60.0, "min"),
        s if s >= 60.0 => parts(60.0, "min", 1.0, "s"),
        s if s >= 1.0 || s == 0.0 => format!("{} s", number(s)),
        s => format!("{} ms", two_digits(s * 1000.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_units_of_their_names() {
        for (metric, value, text) in [
            ("llamacpp_memory_usage_bytes", 432_013_312.0, "412 MiB"),
            ("llamacpp_memory_usage_bytes", 100.0, "100 B"),
            ("llamacpp_tokens_per_second", 12.345, "12.35/s"),
            ("llamacpp_generated_tokens_total", 1_234_567.0, "1,234,567"),
            ("llamacpp_prompt_seconds_total", 3725.0, "1 h 2 min"),
            ("llamacpp_prompt_seconds_total", 0.0125, "13 ms"),
            ("llamacpp_prompt_seconds_total", 0.000_308_4, "0.31 ms"),
            ("llamacpp_prompt_seconds_total", 0.001_94, "1.9 ms"),
            ("llamacpp_kv_cache_usage_ratio", 0.125, "12.5%"),
            ("llamacpp_temperature_celsius", -5.0, "-5 °C"),
            ("llamacpp_gpu_power_watts", 66.04, "66.04 W"),
            ("process_start_time_seconds", 900.0, "1 min 40 s ago"),
            ("llamacpp_up", 1.0, "1"),
            ("x", 1234.5, "1,234"),
            ("x", 0.00012, "1.20e-4"),
            ("x", f64::NAN, "NaN"),
        ] {
            assert_eq!(with_unit(metric, value, 1000.0), text, "{metric} {value}");
        }
    }
}
