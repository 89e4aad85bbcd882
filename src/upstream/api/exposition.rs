//! Reads the Prometheus text format that an upstream serves, line by line: of a text of any
//! length no more than one line is held.

use std::io::{self, BufRead, BufReader, Read};

/// The longest line that is read. One with a model's name in it has some hundreds of bytes.
const LONGEST_LINE: u64 = 16 << 10;
/// The most labels of a sample that are read.
const MOST_LABELS: usize = 32;

/// One sample of an upstream's exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The name, suffix included.
    pub name: &'a str,
    /// Labels, unescaped, as they came.
    pub labels: Vec<(&'a str, String)>,
    /// The value, which may be NaN or infinite.
    pub value: f64,
}

impl Sample<'_> {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let labelled = self.labels.iter().find(|(label, _)| *label == name);
        labelled.map(|(_, value)| value.as_str())
    }
}

/// Hands every sample of `text` to `take`, and gives how many lines were passed over because
/// they are no sample: such a line costs itself and no other.
///
/// # Errors
/// The text is no exposition at all, or is cut short; or reading it failed.
pub fn read(text: impl Read, mut take: impl FnMut(&Sample)) -> Result<u64, String> {
    let mut text = BufReader::with_capacity(16 << 10, text);
    // Builds 7010 to 7100 send the whole text as one JSON string.
    let first = skip_white_space(&mut text).map_err(words)?;
    if first == Some(b'"') {
        text.consume(1);
        let unquoted = Unquoted {
            inner: text,
            pending: Vec::new(),
            ended: false,
        };
        read_lines(BufReader::with_capacity(16 << 10, unquoted), &mut take)
    } else {
        read_lines(text, &mut take)
    }
}

fn read_lines(mut text: impl BufRead, take: &mut impl FnMut(&Sample)) -> Result<u64, String> {
    let mut line = Vec::new();
    let (mut samples, mut passed_over) = (0_u64, 0_u64);
    loop {
        line.clear();
        let length = (&mut text).take(LONGEST_LINE).read_until(b'\n', &mut line);
        if length.map_err(words)? == 0 {
            break;
        }
        if line.pop_if(|last| *last == b'\n').is_none() {
            if line.len() < LONGEST_LINE as usize {
                // Half a number is a number as well.
                return Err("is cut short: its last line has no end".to_owned());
            }
            text.skip_until(b'\n').map_err(words)?;
            passed_over = passed_over.saturating_add(1);
            continue;
        }
        let Ok(line) = std::str::from_utf8(&line) else {
            passed_over = passed_over.saturating_add(1);
            continue;
        };
        // A byte order mark, as texts that went through Windows begin with.
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match sample(line) {
            Some(sample) => {
                samples = samples.saturating_add(1);
                take(&sample);
            }
            None => passed_over = passed_over.saturating_add(1),
        }
    }
    if samples == 0 && passed_over > 0 {
        return Err("is no exposition: none of its lines is a sample".to_owned());
    }
    Ok(passed_over)
}

fn words(error: io::Error) -> String {
    error.to_string()
}

/// The first byte that is no white space, unread.
fn skip_white_space(text: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let bytes = text.fill_buf()?;
        let blank = |byte: &u8| byte.is_ascii_whitespace();
        match bytes.iter().position(|byte| !blank(byte)) {
            Some(at) => {
                let first = bytes.get(at).copied();
                text.consume(at);
                return Ok(first);
            }
            None if bytes.is_empty() => return Ok(None),
            None => {
                let blank = bytes.len();
                text.consume(blank);
            }
        }
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
    // OpenMetrics lets an exemplar follow: ` # {trace_id="…"} 0.5`.
    let rest = rest.split_once(" #").map_or(rest, |(before, _)| before);
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    // A timestamp may follow, in milliseconds or, in OpenMetrics, in seconds; nothing else.
    if let Some(timestamp) = words.next() {
        timestamp.parse::<f64>().ok()?;
    }
    words.next().is_none().then_some(Sample {
        name,
        labels,
        value,
    })
}

/// Reads labels up to the brace that ends them, and gives what stands behind it.
fn read_labels<'a>(mut text: &'a str, labels: &mut Vec<(&'a str, String)>) -> Option<&'a str> {
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some(rest);
        }
        if labels.len() == MOST_LABELS {
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

/// The text of a JSON string whose opening quote has been read.
struct Unquoted<R> {
    inner: R,
    /// Bytes of a character that did not fit the last buffer.
    pending: Vec<u8>,
    ended: bool,
}

impl<R: BufRead> Unquoted<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let byte = self.inner.fill_buf()?.first().copied();
        self.inner.consume(1);
        byte.ok_or_else(|| broken("is cut short: its quotation mark is missing"))
    }

    /// The number of a `\u` escape.
    fn unit(&mut self) -> io::Result<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = char::from(self.byte()?).to_digit(16);
            unit = unit << 4 | digit.ok_or_else(|| broken("is in quotes, but no JSON string"))?;
        }
        Ok(unit)
    }

    /// The character behind a backslash.
    fn escaped(&mut self) -> io::Result<char> {
        let wrong = || broken("is in quotes, but no JSON string");
        Ok(match self.byte()? {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let unit = self.unit()?;
                if (0xd800..0xdc00).contains(&unit) {
                    if (self.byte()?, self.byte()?) != (b'\\', b'u') {
                        return Err(wrong());
                    }
                    let units = [unit as u16, self.unit()? as u16];
                    let pair = char::decode_utf16(units).next();
                    pair.and_then(Result::ok).ok_or_else(wrong)?
                } else {
                    char::from_u32(unit).ok_or_else(wrong)?
                }
            }
            other @ (b'"' | b'\\' | b'/') => char::from(other),
            _ => return Err(wrong()),
        })
    }
}

impl<R: BufRead> Read for Unquoted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(place) = buffer.get_mut(filled) {
            if let Some(byte) = self.pending.pop() {
                *place = byte;
            } else if self.ended {
                break;
            } else {
                match self.byte()? {
                    b'"' => {
                        self.ended = true;
                        if skip_white_space(&mut self.inner)?.is_some() {
                            return Err(broken("goes on behind its quotation mark"));
                        }
                        // So the text is whole: its last line ends here.
                        *place = b'\n';
                    }
                    b'\\' => {
                        let mut utf8 = [0; 4];
                        let character = self.escaped()?.encode_utf8(&mut utf8);
                        self.pending.extend(character.bytes().rev());
                        continue;
                    }
                    byte => *place = byte,
                }
            }
            filled = filled.saturating_add(1);
        }
        Ok(filled)
    }
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sample says, on its own.
    type Told = (String, Vec<(String, String)>, f64);

    fn samples(text: &str) -> Result<(Vec<Told>, u64), String> {
        let mut samples = Vec::new();
        let passed_over = read(text.as_bytes(), |sample| {
            let labels = sample.labels.iter();
            let labels = labels.map(|(name, value)| ((*name).to_owned(), value.clone()));
            samples.push((sample.name.to_owned(), labels.collect(), sample.value));
        })?;
        Ok((samples, passed_over))
    }

    /// The values of a text in which every line is understood.
    fn values(text: &str) -> Vec<f64> {
        let (samples, passed_over) = samples(text).unwrap();
        assert_eq!(passed_over, 0, "{text}");
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
    fn every_way_to_write_a_line_is_read() {
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
    fn a_line_that_is_no_sample_costs_itself_and_no_other() {
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
            let (samples, passed_over) = samples(&text).unwrap();
            let values: Vec<_> = samples.iter().map(|(_, _, value)| *value).collect();
            assert_eq!(
                (values.as_slice(), passed_over),
                (&[1.0, 2.0][..], 1),
                "{line}"
            );
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
    fn what_is_no_exposition_or_is_cut_short_is_refused() {
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
