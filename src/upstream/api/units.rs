//! Sizes as people read them, in the documents of Docker Model Runner and Ollama.

/// A number of bytes with its unit: `256.35MiB`, `270.60 MB`, `512B`.
pub fn bytes(text: &str) -> Option<f64> {
    let (number, unit) = split_unit(text)?;
    match unit.strip_suffix("ib") {
        Some(prefix) => scaled(number, prefix, 1024.0),
        None => scaled(number, unit.strip_suffix('b').unwrap_or(&unit), 1000.0),
    }
}

/// A number of parameters with its unit: `361.82M`, `1.24 B`.
pub fn parameters(text: &str) -> Option<f64> {
    let (number, unit) = split_unit(text)?;
    // B is for billion.
    scaled(number, if unit == "b" { "g" } else { &unit }, 1000.0)
}

fn split_unit(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

fn scaled(number: f64, prefix: &str, base: f64) -> Option<f64> {
    let prefixes = [("", 0), ("k", 1), ("m", 2), ("g", 3), ("t", 4)];
    let (_, power) = prefixes.into_iter().find(|(known, _)| *known == prefix)?;
    Some((number * base.powi(power)).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_unit_is_read() {
        for (text, value) in [
            ("256.35MiB", 268_802_458.0),
            ("270.60 MB", 270_600_000.0),
            ("1.50GiB", 1_610_612_736.0),
            ("1.2 GB", 1_200_000_000.0),
            ("1.2GB", 1_200_000_000.0),
            ("0.5 TiB", 549_755_813_888.0),
            ("0.99TB", 990_000_000_000.0),
            ("12 kB", 12_000.0),
            ("12 KiB", 12_288.0),
            ("512B", 512.0),
            ("7", 7.0),
        ] {
            assert_eq!(bytes(text), Some(value), "{text}");
        }
        for (text, value) in [
            ("361.82M", 361_820_000.0),
            ("361.82 M", 361_820_000.0),
            ("512B", 512_000_000_000.0),
            ("1.24B", 1_240_000_000.0),
            ("8.03 B", 8_030_000_000.0),
            ("0.5T", 500_000_000_000.0),
            ("22K", 22_000.0),
        ] {
            assert_eq!(parameters(text), Some(value), "{text}");
        }
        for text in ["", "n/a", "MB", "1.2.3M", "5 parsecs", "-1M"] {
            assert_eq!((bytes(text), parameters(text)), (None, None), "{text}");
        }
    }
}
