//! How values are shown to people: with a unit, in three digits.

/// What a value is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tokens per second.
    TokensPerSecond,
    /// A number of something.
    Count,
    /// A share of a hundred.
    Percent,
    /// A share of one, shown as one of a hundred.
    Ratio,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

const BYTES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

impl Unit {
    /// A value with its unit, as far as the title of a plot does not have that.
    pub fn format(self, value: f64) -> String {
        match self {
            Unit::TokensPerSecond => three_digits(value),
            Unit::Count => grouped(value),
            Unit::Percent => format!("{}%", three_digits(value)),
            Unit::Ratio => Unit::Percent.format(value * 100.0),
            Unit::Bytes => {
                let (size, power) = self.scale(value);
                let unit = BYTES.get(power).unwrap_or(&"");
                format!("{} {unit}", three_digits(value / size))
            }
            Unit::Seconds if value > 0.0 && value < 1.0 => {
                format!("{} ms", three_digits(value * 1000.0))
            }
            Unit::Seconds => format!("{} s", three_digits(value)),
        }
    }

    /// The end of an axis on which `most` fits: 1, 2 or 5 times a power of ten.
    pub fn end_of_axis(self, most: f64) -> f64 {
        let (size, _) = self.scale(most);
        let least = match self {
            Unit::Count | Unit::TokensPerSecond => 2.0,
            Unit::Bytes => 1.0,
            Unit::Percent => return most.max(100.0),
            Unit::Ratio => return most.max(1.0),
            Unit::Seconds => 1e-3,
        };
        let most = (most / size).max(least);
        let power = 10f64.powf(most.log10().floor());
        let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * power);
        let end = steps.into_iter().find(|end| *end >= most * 0.999);
        end.unwrap_or(10.0 * power) * size
    }

    /// What a value is divided by, and the power of 1024 that it is.
    fn scale(self, value: f64) -> (f64, usize) {
        if self != Unit::Bytes {
            return (1.0, 0);
        }
        let (mut size, mut power) = (1.0, 0_usize);
        while value / size >= 1000.0 && power < BYTES.len().saturating_sub(1) {
            (size, power) = (size * 1024.0, power.saturating_add(1));
        }
        (size, power)
    }
}

/// A number with three digits, or with all that are before its point.
fn three_digits(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 99.95 => return grouped(value),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A whole number with its thousands apart.
pub fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups = groups.map(|group| String::from_utf8_lossy(group));
    let sign = if value <= -0.5 { "-" } else { "" };
    format!("{sign}{}", groups.collect::<Vec<_>>().join(","))
}

/// A time span in its two largest units.
pub fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) if minutes < 10 && rest > 0 => format!("{minutes} min {rest} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, 0) => format!("{hours} h"),
        (0, ..) => format!("{hours} h {minutes} min"),
        (1, 0, _) => "1 day".to_owned(),
        (1, ..) => format!("1 day {hours} h"),
        _ => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_unit() {
        for (unit, value, text) in [
            (Unit::TokensPerSecond, 0.0, "0"),
            (Unit::TokensPerSecond, 42.345, "42.3"),
            (Unit::TokensPerSecond, 12345.6, "12,346"),
            (Unit::Count, 1234567.0, "1,234,567"),
            (Unit::Count, 999.0, "999"),
            (Unit::Count, -1000.0, "-1,000"),
            (Unit::Percent, 12.0, "12%"),
            (Unit::Percent, 100.0, "100%"),
            (Unit::Ratio, 0.154, "15.4%"),
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Bytes, 1023.0 * 1024.0 * 1024.0, "1 GiB"),
            (Unit::Bytes, 437.0 * 1024.0 * 1024.0, "437 MiB"),
            (Unit::Seconds, 0.0123, "12.3 ms"),
            (Unit::Seconds, 1.5, "1.5 s"),
        ] {
            assert_eq!(unit.format(value), text, "{value}");
        }
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        for (unit, most, end) in [
            (Unit::Count, 0.0, 2.0),
            (Unit::Count, 3.0, 4.0),
            (Unit::TokensPerSecond, 61.2, 80.0),
            (Unit::TokensPerSecond, 200.0, 200.0),
            (Unit::Percent, 3.0, 100.0),
            (Unit::Seconds, 0.7, 0.8),
        ] {
            let found = unit.end_of_axis(most);
            assert!((found - end).abs() < 1e-9, "{most}: {found}");
        }
        assert_eq!(
            Unit::Bytes.format(Unit::Bytes.end_of_axis(3.3e8)),
            "400 MiB"
        );
    }

    #[test]
    fn a_span_has_its_two_largest_units() {
        for (seconds, text) in [
            (0.4, "0 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (1200.0, "20 min"),
            (3600.0, "1 h"),
            (7380.0, "2 h 3 min"),
            (90_000.0, "1 day 1 h"),
            (900_000.0, "10 days"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
