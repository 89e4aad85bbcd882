//! Numbers, bytes and durations as people read them, on the status page, in reports and in the log:
//! three significant digits or all that are before the point, and a unit.

/// What a value is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of something.
    Number,
    /// A number in each second.
    PerSecond,
    /// A share of a hundred.
    Percent,
    /// A share of one, shown as one of a hundred.
    Ratio,
    /// Bytes.
    Bytes,
    /// A duration in seconds.
    Seconds,
    /// Degrees Celsius.
    Celsius,
    /// Watts.
    Watts,
    /// Joules.
    Joules,
}

/// How the names of metrics end, without `_total`.
const ENDS_OF_NAMES: [(&str, Unit); 8] = [
    ("_per_second", Unit::PerSecond),
    ("_percent", Unit::Percent),
    ("_ratio", Unit::Ratio),
    ("_bytes", Unit::Bytes),
    ("_seconds", Unit::Seconds),
    ("_celsius", Unit::Celsius),
    ("_watts", Unit::Watts),
    ("_joules", Unit::Joules),
];

impl Unit {
    /// The unit of a metric, which its name ends in.
    fn of(metric: &str) -> Unit {
        let name = metric.strip_suffix("_total").unwrap_or(metric);
        let unit = ENDS_OF_NAMES.iter().find(|(end, _)| name.ends_with(end));
        unit.map_or(Unit::Number, |(_, unit)| *unit)
    }

    /// A value with its unit.
    pub fn text(self, value: f64) -> String {
        match self {
            Unit::Number => number(value),
            Unit::PerSecond => format!("{}/s", number(value)),
            Unit::Percent => format!("{}%", number(value)),
            Unit::Ratio => Unit::Percent.text(value * 100.0),
            Unit::Bytes => bytes(value),
            Unit::Seconds => duration(value),
            Unit::Celsius => format!("{} °C", number(value)),
            Unit::Watts => format!("{} W", number(value)),
            Unit::Joules => format!("{} J", number(value)),
        }
    }
}

/// A value of this metric with its unit; a time as how long ago it was. `now` is in seconds since
/// 1970.
pub fn of_metric(metric: &str, value: f64, now: f64) -> String {
    match metric.ends_with("_time_seconds") || metric.ends_with("_timestamp_seconds") {
        true => format!("{} ago", age(now - value)),
        false => Unit::of(metric).text(value),
    }
}

/// A number with its thousands separated.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let size = value.abs();
    let decimals = match size {
        _ if size.fract() == 0.0 => 0,
        _ if size < 0.001 => return format!("{value:.2e}"),
        _ => (2.0 - size.log10().floor()).max(0.0) as usize,
    };
    let text = format!("{size:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let groups = whole.as_bytes().rchunks(3).rev();
    let groups = groups.map(|group| String::from_utf8_lossy(group));
    let whole = groups.collect::<Vec<_>>().join(",");
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{whole}{point}{fraction}")
}

/// A large number in short: `268M`.
pub fn short(value: f64) -> String {
    let scales = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    let scale = scales.into_iter().find(|(size, _)| value >= *size);
    let (size, suffix) = scale.unwrap_or((1.0, ""));
    format!("{}{suffix}", number(value / size))
}

/// Bytes in the unit in which they have at most three digits.
pub fn bytes(value: f64) -> String {
    let (size, name) = scale_of_bytes(value);
    format!("{} {name}", number(value / size))
}

/// The unit of so many bytes: its size and name.
pub fn scale_of_bytes(value: f64) -> (f64, &'static str) {
    let mut size = 1.0;
    for name in ["B", "KiB", "MiB", "GiB"] {
        if value / size < 1000.0 {
            return (size, name);
        }
        size *= 1024.0;
    }
    (size, "TiB")
}

/// A duration, from a minute on in its two largest units.
pub fn duration(seconds: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
    if seconds > 0.0 && seconds < 1.0 {
        return format!("{} ms", number(seconds * 1000.0));
    }
    let parts = UNITS.windows(2).find_map(|units| match units {
        [large, small] if seconds >= large.0 => Some((large, small)),
        _ => None,
    });
    let Some(((size, name), (small_size, small_name))) = parts else {
        return format!("{} s", number(seconds));
    };
    let whole = (seconds / size).floor();
    let rest = ((seconds - whole * size) / small_size).floor();
    match rest > 0.0 {
        true => format!("{} {name} {rest} {small_name}", number(whole)),
        false => format!("{} {name}", number(whole)),
    }
}

/// How long ago something was: whole seconds.
pub fn age(seconds: f64) -> String {
    duration(seconds.max(0.0).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_three_digits_or_all_before_its_point() {
        for (value, text) in [
            (0.0, "0"),
            (1_234_567.0, "1,234,567"),
            (-1000.0, "-1,000"),
            (1234.5, "1,234"),
            (999.6, "1,000"),
            (100.0, "100"),
            (99.96, "100"),
            (42.345, "42.3"),
            (66.04, "66"),
            (9.996, "10"),
            (1.5, "1.5"),
            (-0.0123, "-0.0123"),
            (0.001_2, "0.0012"),
            (0.000_12, "1.20e-4"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), text, "{value}");
        }
        for (value, text) in [(268e6, "268M"), (1.235e9, "1.24B"), (999.0, "999")] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn bytes_have_the_unit_in_which_they_are_short() {
        const MIB: f64 = 1_048_576.0;
        for (value, text) in [
            (0.0, "0 B"),
            (100.0, "100 B"),
            (437.0 * MIB, "437 MiB"),
            (1023.0 * MIB, "0.999 GiB"),
            (1e18, "909,495 TiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn a_duration_has_its_two_largest_units() {
        for (seconds, text, age_text) in [
            (0.0, "0 s", "0 s"),
            (0.000_308_4, "0.308 ms", "0 s"),
            (0.0125, "12.5 ms", "0 s"),
            (1.5, "1.5 s", "1 s"),
            (59.91, "59.9 s", "59 s"),
            (61.0, "1 min 1 s", "1 min 1 s"),
            (1200.9, "20 min", "20 min"),
            (7380.0, "2 h 3 min", "2 h 3 min"),
            (90_000.0, "1 d 1 h", "1 d 1 h"),
            (864_000.0, "10 d", "10 d"),
        ] {
            assert_eq!(duration(seconds), text);
            assert_eq!(age(seconds), age_text);
        }
        assert_eq!(age(-1.0), "0 s");
    }

    #[test]
    fn the_name_of_a_metric_ends_in_its_unit() {
        for (metric, value, text) in [
            ("llamacpp_memory_usage_bytes", 432_013_312.0, "412 MiB"),
            ("llamacpp_tokens_per_second", 12.345, "12.3/s"),
            ("llamacpp_prompt_seconds_total", 3725.0, "1 h 2 min"),
            ("llamacpp_kv_cache_usage_ratio", 0.125, "12.5%"),
            ("llamacpp_cpu_utilization_percent", 250.0, "250%"),
            ("llamacpp_temperature_celsius", -5.0, "-5 °C"),
            ("llamacpp_gpu_power_watts", 66.54, "66.5 W"),
            ("llamacpp_gpu_energy_joules_total", 1e6, "1,000,000 J"),
            ("process_start_time_seconds", 900.0, "1 min 40 s ago"),
            ("llamacpp_up", 1.0, "1"),
        ] {
            assert_eq!(of_metric(metric, value, 1000.0), text, "{metric} {value}");
        }
    }
}
