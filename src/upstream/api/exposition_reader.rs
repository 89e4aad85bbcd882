//! Reads the Prometheus text format of an upstream. Holds only one line at a time.

use std::io::{self, BufRead, BufReader, Read};

/// The longest line that is read. A line with a model's name has some hundreds of bytes.
const MAX_LINE_BYTES: u64 = 16 << 10;
/// The most labels of a sample that are read.
const MAX_LABELS: usize = 32;
/// The longest text in quotes that is read.
const MAX_QUOTED_BYTES: u64 = 1 << 20;

/// One sample of an upstream's exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The name, suffix included.
    pub name: &'a str,
    /// Labels in the order of the text, unescaped.
    pub labels: Vec<(&'a str, String)>,
    /// The value, which may be NaN or infinite.
    pub value: f64,
    /// The value's text.
    pub text: &'a str,
}

/// A line of an upstream's exposition.
#[derive(Clone, Debug, PartialEq)]
pub enum Line<'a> {
    /// A sample.
    Sample(Sample<'a>),
    /// What follows the `#` of a comment, such as HELP or TYPE.
    Comment(&'a str),
}

impl Sample<'_> {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let labelled = self.labels.iter().find(|(label, _)| *label == name);
        labelled.map(|(_, value)| value.as_str())
    }
}

/// Passes each line of `text` to `on_line`. Returns how many lines were skipped because they are
/// not valid samples.
///
/// # Errors
/// No line is a sample, the text is cut short, or it cannot be read.
pub fn read(text: impl Read, on_line: impl FnMut(Line)) -> Result<u64, String> {
    let mut text = BufReader::with_capacity(16 << 10, text);
    if first_byte(&mut text).map_err(|error| error.to_string())? != Some(b'"') {
        return read_lines(text, on_line);
    }
    // Builds 7010 to 7100 send the whole text as one JSON string.
    let mut unquoted: String = serde_json::from_reader(text.take(MAX_QUOTED_BYTES))
        .map_err(|_| "begins with a quotation mark, but is not a JSON string".to_owned())?;
    // The text is complete, so its last line is complete too.
    unquoted.push('\n');
    read_lines(unquoted.as_bytes(), on_line)
}

fn read_lines(mut text: impl BufRead, mut on_line: impl FnMut(Line)) -> Result<u64, String> {
    let mut line = Vec::new();
    let (mut samples, mut skipped) = (0_u64, 0_u64);
    loop {
        line.clear();
        let length = (&mut text)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| error.to_string())?;
        if length == 0 {
            break;
        }
        if line.pop_if(|last| *last == b'\n').is_none() {
            if line.len() < MAX_LINE_BYTES as usize {
                // A truncated number would be read as a smaller one.
                return Err("is cut short: its last line does not end".to_owned());
            }
            text.skip_until(b'\n').map_err(|error| error.to_string())?;
            skipped = skipped.saturating_add(1);
            continue;
        }
        // A byte order mark, which Windows programs put before a text.
        let line =
            std::str::from_utf8(&line).map(|line| line.trim_start_matches('\u{feff}').trim());
        match line {
            Ok("") => {}
            line => match line.ok().and_then(parse) {
                Some(line) => {
                    samples = samples.saturating_add(u64::from(matches!(line, Line::Sample(_))));
                    on_line(line);
                }
                None => skipped = skipped.saturating_add(1),
            },
        }
    }
    if samples == 0 && skipped > 0 {
        return Err("is not in the Prometheus text format: no line is a sample".to_owned());
    }
    Ok(skipped)
}

/// Skips white space; returns the byte after it, which is not read.
fn first_byte(text: &mut impl BufRead) -> io::Result<Option<u8>> {
    while let Some(&byte) = text.fill_buf()?.first() {
        if !byte.is_ascii_whitespace() {
            return Ok(Some(byte));
        }
        text.consume(1);
    }
    Ok(None)
}

fn parse(line: &str) -> Option<Line<'_>> {
    match line.strip_prefix('#') {
        Some(comment) => Some(Line::Comment(comment)),
        None => sample(line).map(Line::Sample),
    }
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut labels = Vec::new();
    if let Some(text) = rest.strip_prefix('{') {
        rest = read_labels(text, &mut labels)?;
    }
    // In OpenMetrics, an exemplar may follow: ` # {trace_id="…"} 0.5`.
    let rest = rest.split_once(" #").map_or(rest, |(before, _)| before);
    let mut words = rest.split_ascii_whitespace();
    let text = words.next()?;
    let value = text.parse().ok()?;
    // Only a timestamp may follow: in milliseconds, or in seconds in OpenMetrics.
    if let Some(timestamp) = words.next() {
        timestamp.parse::<f64>().ok()?;
    }
    words.next().is_none().then_some(Sample {
        name,
        labels,
        value,
        text,
    })
}

/// Reads labels up to the brace that ends them; returns what follows it.
fn read_labels<'a>(mut text: &'a str, labels: &mut Vec<(&'a str, String)>) -> Option<&'a str> {
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some(rest);
        }
        if labels.len() == MAX_LABELS {
            return None;
        }
        let (name, rest) = text.split_once('=')?;
        let rest = rest.trim_start().strip_prefix('"')?;
        let mut value = String::new();
        let mut chars = rest.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                c => value.push(c),
            }
        }
        text = chars.as_str();
        labels.push((name.trim(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, labels and value of a sample.
    type OwnedSample = (String, Vec<(String, String)>, f64);

    fn samples(text: &str) -> Result<(Vec<OwnedSample>, u64), String> {
        let mut samples = Vec::new();
        let skipped = read(text.as_bytes(), |line| {
            let Line::Sample(sample) = line else {
                return;
            };
            let labels = sample.labels.iter();
            let labels = labels.map(|(name, value)| ((*name).to_owned(), value.clone()));
            samples.push((sample.name.to_owned(), labels.collect(), sample.value));
        })?;
        Ok((samples, skipped))
    }

    /// The values of a text without invalid lines.
    fn values(text: &str) -> Vec<f64> {
        let (samples, skipped) = samples(text).unwrap();
        assert_eq!(skipped, 0, "{text}");
        samples.into_iter().map(|(_, _, value)| value).collect()
    }

    #[test]
    fn names_labels_and_values_are_read() {
        let text = "# HELP a:b x\n# TYPE a:b counter\na:b 1.23457e+06\n\
                    c{p=\"}\\\"0\\n\",q=\"1\"} 7 1700000000000\nd NaN\n";
        let (samples, _) = samples(text).unwrap();
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(samples[0], ("a:b".to_owned(), vec![], 1_234_570.0));
        assert_eq!(samples[1].1, [label("p", "}\"0\n"), label("q", "1")]);
        assert_eq!(samples[1].2, 7.0);
        assert!(samples[2].2.is_nan());
    }

    #[test]
    fn every_form_of_a_sample_line_is_read() {
        for line in [
            "a 1000000",
            "a 1e+006",
            "a 1e6\r",
            "a 1e6 1700000000000",
            "a 1e6 1700000000.123",
            "a{} 1e6",
            "a{b=\"c\",} 1e6",
            "a 1e6 # {trace_id=\"x\"} 0.5 1700000000.1",
            "a{b=\"x # y\"} 1e6 # {} 0.5",
            "\ta\t1e6  ",
            "a{b=\"c\",\td=\"e\"\t}\t1e6",
            "\u{feff}a 1e6",
            "\u{feff}# TYPE a counter\r\na 1e6\r",
        ] {
            assert_eq!(values(&format!("{line}\n")), [1e6], "{line}");
        }
    }

    #[test]
    fn an_invalid_line_is_skipped_and_the_others_count() {
        let long = format!("a{{b=\"{}\"}} 1", "x".repeat(40_000));
        let labels = (0..40).map(|number| format!("l{number}=\"\","));
        let many_labels = format!("a{{{}}} 1", labels.collect::<String>());
        for line in [
            "a 1.#INF",
            "a -1.#IND",
            "a -nan(ind)",
            "a 1,5",
            "a",
            "a b",
            "a 1 2 3",
            "a 1 soon",
            "9a 1",
            "a{ 1",
            "a{b} 1",
            "a{b=\"c} 1",
            "{\"error\":1}",
            "<html>",
            &long,
            &many_labels,
        ] {
            let text = format!("# TYPE\nb 1\n{line}\n#\nc 2\n");
            let (samples, skipped) = samples(&text).unwrap();
            let values: Vec<_> = samples.iter().map(|(_, _, value)| *value).collect();
            assert_eq!((values.as_slice(), skipped), (&[1.0, 2.0][..], 1), "{line}");
        }
    }

    #[test]
    fn a_text_in_quotes_is_read() {
        assert_eq!(values("\"# TYPE a counter\\na 3\\nb 4\\n\"\n"), [3.0, 4.0]);
        assert_eq!(values("\"a 3\\nb 4\""), [3.0, 4.0]);
        let (samples, _) = samples(r#"  "a{b=\"\u00fc\ud83e\udd99\/\"} 1\r\n" "#).unwrap();
        assert_eq!(samples[0].1[0].1, "ü🦙/");
        for text in [
            "\"x",
            "\"a 1\\n",
            "\"a 1\\n\" 2",
            "\"a 1\\x\\n\"",
            "\"a \\ud800\\n\"",
            "\"a \\ud800\\u0041\\n\"",
            "\"Not Found\"",
        ] {
            assert!(read(text.as_bytes(), |_| {}).is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_without_samples_has_none() {
        for text in ["# No active runners\n", "", "\n", "\"\""] {
            assert_eq!(samples(text), Ok((Vec::new(), 0)), "{text:?}");
        }
    }

    #[test]
    fn another_format_or_a_text_cut_short_is_an_error() {
        for text in [
            "<html><body>\n</html>\n",
            "{\"error\":1}\n",
            "a 1\nb 2",
            "a 1\nb",
            "# HELP",
            "404 page not found\n",
        ] {
            assert!(samples(text).is_err(), "{text:?}");
        }
        let invalid = b"a 1\nb{c=\"\xff\"} 2\n".as_slice();
        assert_eq!(read(invalid, |_| {}), Ok(1));
        assert!(read(b"\x1f\x8b\x08\xff\n\xfe\n".as_slice(), |_| {}).is_err());
    }
}
