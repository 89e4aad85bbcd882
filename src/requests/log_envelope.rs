//! What a logging system has put around a line of llama-server, taken off.
//!
//! One table of formats. They may lie in each other (Docker's json-file around
//! llama-server's own `--log-jsonl`), so the table is gone through again with
//! what was inside, a few times. What no format knows is left as it is.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::bounds::cut_at;

/// A line as llama-server wrote it, or as near to that as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwrapped<'a> {
    /// Its text, without colours.
    pub text: Cow<'a, str>,
    /// Which process or container wrote it, where the wrapper names one.
    pub source: Option<String>,
    /// llama-server's own time, in microseconds, where that stands beside the text.
    pub time: Option<u64>,
}

/// One layer taken off.
#[derive(Debug, Default)]
struct Peeled<'a> {
    text: Cow<'a, str>,
    source: Option<String>,
    time: Option<u64>,
    /// Whether the line goes on in the next piece of this stream; not known of most formats.
    piece: Option<Piece>,
}

/// A part of a line that was too long for its logging system.
#[derive(Clone, Copy, Debug)]
struct Piece {
    stream: Stream,
    is_last: bool,
}

#[derive(Clone, Copy, Debug)]
enum Stream {
    Out,
    Error,
}

/// Whatever puts something around a line: gives what is inside, if the line has its form.
type Format = for<'a> fn(&'a str) -> Option<Peeled<'a>>;

const FORMATS: [Format; 6] = [kubernetes, json, compose, pod, logfmt, syslog];
/// How many wrappers may lie in each other.
const MOST_LAYERS: usize = 4;
/// How far into a line a wrapper's own words may go.
const LONGEST_HEAD: usize = 200;
/// How much of a line Docker puts into one object: bytes that are none of a character become
/// more in it.
const DOCKER_PIECE: usize = 16 << 10;
/// The longest name of a source that is kept.
const LONGEST_SOURCE: usize = 128;

/// Takes the wrappers off a stream of lines.
#[derive(Debug, Default)]
pub struct Unwrapper {
    /// Whether the next piece of standard output, or of standard error, continues a line.
    continued: [bool; 2],
    /// The entry of `journalctl -o export` that has begun.
    entry: Option<Entry>,
}

impl Unwrapper {
    /// Takes one line, without its end, and hands on the lines that were in it, if any.
    pub fn take(&mut self, line: &[u8], mut each: impl FnMut(Unwrapped)) {
        if let Some(entry) = self.entry.take() {
            match entry.goes_on(line) {
                Next::Within(entry) => {
                    self.entry = Some(entry);
                    return;
                }
                Next::End(entry) => {
                    let message = String::from_utf8_lossy(&entry.message);
                    for text in message.lines() {
                        self.peel(text, entry.source(), &mut each);
                    }
                    return;
                }
                Next::Foreign => {}
            }
        }
        if line.starts_with(b"__CURSOR=") {
            self.entry = Some(Entry::default());
            return;
        }
        self.peel(valid(line), None, &mut each);
    }

    fn peel(&mut self, text: &str, source: Option<String>, each: &mut impl FnMut(Unwrapped)) {
        let mut line = Unwrapped {
            text: without_colours(text),
            source,
            time: None,
        };
        for _ in 0..MOST_LAYERS {
            let Some(peeled) = FORMATS.iter().find_map(|format| format(&line.text)) else {
                break;
            };
            if let Some(Piece { stream, is_last }) = peeled.piece {
                // What continues a line is no line, whatever it says.
                if std::mem::replace(&mut self.continued[stream as usize], !is_last) {
                    return;
                }
            }
            let text = without_colours(&peeled.text).into_owned();
            // The outermost wrapper is the one that whoever is logged cannot write.
            line.source = line.source.or(peeled.source.map(cut));
            line.time = peeled.time.or(line.time);
            line.text = Cow::Owned(text);
        }
        if line.time.is_some() {
            // llama-server's own object holds one line; what is behind that is quoted.
            let end = line.text.find('\n').unwrap_or(line.text.len());
            line.text = Cow::Owned(line.text[..end].to_owned());
        }
        if !line.text.contains('\n') {
            return each(line);
        }
        for text in line.text.lines() {
            each(Unwrapped {
                text: Cow::Borrowed(text),
                source: line.source.clone(),
                time: None,
            });
        }
    }
}

/// The text before the first byte that is none: a long line may have been cut within a character.
fn valid(line: &[u8]) -> &str {
    match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => line
            .get(..error.valid_up_to())
            .and_then(|line| std::str::from_utf8(line).ok())
            .unwrap_or_default(),
    }
}

fn cut(mut source: String) -> String {
    source.truncate(cut_at(&source, LONGEST_SOURCE).len());
    source
}

/// A text without its terminal colours (`ESC [ 32 m`).
fn without_colours(text: &str) -> Cow<'_, str> {
    if !text.contains('\x1b') {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        match rest.strip_prefix(['m', 'K']) {
            Some(rest) => plain.push_str(rest),
            None => plain.push_str(part),
        }
    }
    Cow::Owned(plain)
}

/// Kubernetes' CRI: `2026-11-24T20:12:22.123456789Z stderr F text`, `P` where the line goes on.
fn kubernetes(text: &str) -> Option<Peeled<'_>> {
    let mut parts = text.splitn(4, ' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    if !is_time(time) {
        return None;
    }
    Some(Peeled {
        text: parts.next().unwrap_or_default().into(),
        piece: Some(Piece {
            stream: stream_of(stream)?,
            is_last: match tag.split(':').next()? {
                "F" => true,
                "P" => false,
                _ => return None,
            },
        }),
        ..Peeled::default()
    })
}

fn stream_of(name: &str) -> Option<Stream> {
    match name {
        "stdout" => Some(Stream::Out),
        "stderr" => Some(Stream::Error),
        _ => None,
    }
}

/// One JSON object a line: Docker's json-file (`log`), `journalctl -o json` (`MESSAGE`),
/// llama-server's `--log-jsonl` (`msg`), and whoever else says `msg` or `message`.
fn json(text: &str) -> Option<Peeled<'_>> {
    if !text.starts_with('{') {
        return None;
    }
    let object: Object = serde_json::from_str(text).ok()?;
    let stream = object.stream.as_deref().and_then(stream_of);
    if let Some(log) = object.log {
        let line = log.strip_suffix('\n');
        return Some(Peeled {
            text: line.unwrap_or(&log).to_owned().into(),
            // A longer line comes in several objects, of which the last ends it. Others (Fluent Bit)
            // leave the line's end out.
            piece: stream.map(|stream| Piece {
                stream,
                is_last: line.is_some() || log.len() < DOCKER_PIECE,
            }),
            ..Peeled::default()
        });
    }
    let unit = object.container.or(object.unit).or(object.identifier);
    let source = match (unit, object.pid) {
        (unit, Some(pid)) => Some(format!("{}[{pid}]", unit.unwrap_or_default())),
        (unit, None) => unit,
    };
    let is_own = object.kind.as_deref() == Some("log") && object.has_level;
    Some(Peeled {
        text: object.message?.into(),
        source,
        time: object.time.filter(|_| is_own),
        piece: None,
    })
}

#[derive(Default)]
struct Object {
    log: Option<String>,
    message: Option<String>,
    stream: Option<String>,
    kind: Option<String>,
    has_level: bool,
    time: Option<u64>,
    container: Option<String>,
    unit: Option<String>,
    identifier: Option<String>,
    pid: Option<String>,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some(key) = map.next_key::<Cow<str>>()? {
                    let field = match &*key {
                        "log" => &mut object.log,
                        "MESSAGE" | "msg" | "message" => &mut object.message,
                        "stream" => &mut object.stream,
                        "type" => &mut object.kind,
                        "CONTAINER_NAME" => &mut object.container,
                        "_SYSTEMD_UNIT" => &mut object.unit,
                        "SYSLOG_IDENTIFIER" => &mut object.identifier,
                        "_PID" => &mut object.pid,
                        "time" => {
                            object.time = map.next_value::<Value>()?.number;
                            continue;
                        }
                        "level" => {
                            object.has_level = true;
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = map.next_value::<Value>()?.text;
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A value of which a text (journald gives one that has control characters as its bytes) or a
/// number is wanted.
#[derive(Default)]
struct Value {
    text: Option<String>,
    number: Option<u64>,
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value {
                    text: Some(text.to_owned()),
                    number: None,
                })
            }
            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value {
                    text: None,
                    number: Some(number),
                })
            }
            fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
                Ok(Value::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
                Ok(Value::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
                Ok(Value::default())
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut bytes = Vec::new();
                let mut is_text = true;
                while let Some(element) = seq.next_element::<Value>()? {
                    match element.number.and_then(|byte| u8::try_from(byte).ok()) {
                        Some(byte) => bytes.push(byte),
                        None => is_text = false,
                    }
                }
                let text = is_text.then(|| String::from_utf8_lossy(&bytes).into_owned());
                Ok(Value { text, number: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::default())
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// `docker compose logs`: `llama-1  | text`.
fn compose(text: &str) -> Option<Peeled<'_>> {
    let (name, rest) = text.split_once(" | ")?;
    let name = name.trim_end();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_name)).then(|| Peeled {
        // With `-t`, a time.
        text: without_time(rest).into(),
        source: Some(name.to_owned()),
        ..Peeled::default()
    })
}

/// `kubectl logs --prefix`: `[pod/NAME/CONTAINER] text`.
fn pod(text: &str) -> Option<Peeled<'_>> {
    let (name, rest) = text.strip_prefix("[pod/")?.split_once("] ")?;
    Some(Peeled {
        text: without_time(rest).into(),
        source: Some(name.to_owned()),
        ..Peeled::default()
    })
}

/// `time=… level=… msg="text"`, as Docker Model Runner's `/logs` and Ollama's log have it.
fn logfmt(text: &str) -> Option<Peeled<'_>> {
    let words = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("] ")?.1,
        None => text,
    };
    if !["time=", "ts=", "level="]
        .iter()
        .any(|key| words.starts_with(key))
    {
        return None;
    }
    let (_, quoted) = words.split_once(" msg=\"")?;
    Some(Peeled {
        text: unquoted(quoted)?.into(),
        ..Peeled::default()
    })
}

/// What Go quotes, up to the closing quote.
fn unquoted(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = text.chars();
    loop {
        match rest.next()? {
            '"' => return Some(plain),
            '\\' => match rest.next()? {
                'n' => plain.push('\n'),
                't' => plain.push('\t'),
                'r' => plain.push('\r'),
                escape @ ('x' | 'u' | 'U') => {
                    let digits = match escape {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let mut code: u32 = 0;
                    for _ in 0..digits {
                        let digit = rest.next()?.to_digit(16)?;
                        code = code.checked_mul(16)?.checked_add(digit)?;
                    }
                    plain.push(char::from_u32(code)?);
                }
                other => plain.push(other),
            },
            other => plain.push(other),
        }
    }
}

/// journald and syslog: `Nov 24 20:12:22 host llama-server[4711]: text`, and with other times.
fn syslog(text: &str) -> Option<Peeled<'_>> {
    let head = cut_at(text, LONGEST_HEAD);
    let end = head.find("]: ")?;
    let before = head.get(..end)?;
    let (name, pid) = before.rsplit_once('[')?;
    if pid.is_empty() || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut words: Vec<_> = name.split_whitespace().collect();
    let ident = words.pop()?;
    // Month, day, time and host; or one word of time, and perhaps the host.
    if words.len() > 4 || !words.first().is_none_or(|word| is_time_word(word)) {
        return None;
    }
    // journald leaves one character between the two: `llama-Qwen:[1351]: `.
    if name.ends_with(' ') || ident.contains('[') {
        return None;
    }
    words.retain(|word| !is_time_word(word));
    words.push(ident);
    Some(Peeled {
        text: text.get(end.checked_add(3)?..)?.into(),
        source: Some(format!("{}[{pid}]", words.join(" "))),
        ..Peeled::default()
    })
}

fn without_time(text: &str) -> &str {
    match text.split_once(' ') {
        Some((time, rest)) if is_time(time) => rest,
        _ => text,
    }
}

/// `2026-11-24T20:12:22.123456789Z`, and with an offset.
fn is_time(word: &str) -> bool {
    word.as_bytes().get(10) == Some(&b'T') && is_time_word(word)
}

/// A part of a date or a time.
fn is_time_word(word: &str) -> bool {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let is_part = |byte: u8| byte.is_ascii_digit() || b"-:.,+TZ[]".contains(&byte);
    MONTHS.contains(&word)
        || (word.bytes().any(|byte| byte.is_ascii_digit()) && word.bytes().all(is_part))
}

/// One entry of `journalctl -o export`: a field a line, and an empty line at its end. A text
/// that has control characters comes as the field's name, a line's end, its length in eight
/// bytes and its bytes.
#[derive(Debug, Default)]
struct Entry {
    message: Vec<u8>,
    unit: Option<String>,
    pid: Option<String>,
    /// The field whose bytes come next, and how many, once that is known.
    binary: Option<Binary>,
}

#[derive(Clone, Copy, Debug)]
struct Binary {
    is_message: bool,
    /// Bytes that are to come; `None` while the length itself is.
    left: Option<usize>,
}

enum Next {
    Within(Entry),
    End(Entry),
    /// The line is not of this format: no entry had begun.
    Foreign,
}

/// The longest binary field that is waited for.
const LONGEST_FIELD: usize = 1 << 20;

impl Entry {
    fn goes_on(mut self, line: &[u8]) -> Next {
        if let Some(binary) = self.binary {
            return self.binary_goes_on(binary, line);
        }
        if line.is_empty() {
            return Next::End(self);
        }
        let is_name =
            |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
        let length = line.iter().take_while(|byte| is_name(byte)).count();
        let (name, rest) = line.split_at(length);
        match (name, rest.strip_prefix(b"=")) {
            (b"", _) => return Next::Foreign,
            (b"MESSAGE", Some(value)) => self.message = value.to_vec(),
            (b"_PID", Some(value)) => self.pid = Some(valid(value).to_owned()),
            (b"_SYSTEMD_UNIT" | b"CONTAINER_NAME", Some(value)) => {
                self.unit = Some(valid(value).to_owned());
            }
            (_, Some(_)) => {}
            (_, None) if rest.is_empty() => {
                self.binary = Some(Binary {
                    is_message: name == b"MESSAGE",
                    left: None,
                });
            }
            (_, None) => return Next::Foreign,
        }
        Next::Within(self)
    }

    fn binary_goes_on(mut self, binary: Binary, line: &[u8]) -> Next {
        let (left, bytes) = match binary.left {
            Some(left) => (left, line),
            None => {
                let Some((length, bytes)) = line.split_first_chunk::<8>() else {
                    return Next::Foreign;
                };
                match usize::try_from(u64::from_le_bytes(*length)) {
                    Ok(length) if length <= LONGEST_FIELD => (length, bytes),
                    _ => return Next::Foreign,
                }
            }
        };
        if binary.is_message {
            if binary.left.is_some() {
                self.message.push(b'\n');
            }
            self.message.extend_from_slice(bytes);
            self.message
                .truncate(crate::requests::line_splitter::LONGEST_LINE);
        }
        // With the end of the line.
        let left = left.checked_sub(bytes.len().saturating_add(1));
        self.binary = left.map(|left| Binary {
            left: Some(left),
            ..binary
        });
        Next::Within(self)
    }

    fn source(&self) -> Option<String> {
        let unit = self.unit.as_deref().unwrap_or_default();
        let source = self.pid.as_ref().map(|pid| format!("{unit}[{pid}]"));
        source.or_else(|| self.unit.clone()).map(cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "0.05.446.571 I slot print_timing: id  1 | task 0 |       total time =    1430.48 ms /    67 tokens";

    fn unwrap(lines: &[impl AsRef<[u8]>]) -> Vec<(String, Option<String>, Option<u64>)> {
        let mut unwrapper = Unwrapper::default();
        let mut all = Vec::new();
        for line in lines {
            unwrapper.take(line.as_ref(), |line| {
                all.push((line.text.into_owned(), line.source, line.time));
            });
        }
        all
    }

    fn texts(lines: &[impl AsRef<[u8]>]) -> Vec<String> {
        unwrap(lines).into_iter().map(|(text, _, _)| text).collect()
    }

    #[test]
    fn every_wrapper_is_taken_off() {
        let quoted = LINE.replace('"', "\\\"");
        let bytes: Vec<_> = format!("\x1b[32m{LINE}\x1b[0m")
            .bytes()
            .map(|byte| byte.to_string())
            .collect();
        for (wrapped, source) in [
            (LINE.to_owned(), None),
            (
                format!(
                    "\x1b[34m0.05.446.571\x1b[0m \x1b[32mI \x1b[0m{}",
                    &LINE[15..]
                ),
                None,
            ),
            (
                format!(
                    r#"{{"log":"{quoted}\n","stream":"stderr","time":"2026-02-10T09:00:00.000000001Z"}}"#
                ),
                None,
            ),
            (format!(r#"{{"level":"info","msg":"{quoted}"}}"#), None),
            (
                format!(
                    r#"{{"_PID":"77","MESSAGE":"{quoted}","_SYSTEMD_UNIT":"llama.service","PRIORITY":"6"}}"#
                ),
                Some("llama.service[77]"),
            ),
            (
                format!(
                    r#"{{"MESSAGE":[{}],"SYSLOG_IDENTIFIER":"llama","_PID":"7"}}"#,
                    bytes.join(",")
                ),
                Some("llama[7]"),
            ),
            (
                format!("2026-11-24T20:12:22.123456789Z stderr F {LINE}"),
                None,
            ),
            (format!("llama-1  | {LINE}"), Some("llama-1")),
            (format!("\x1b[36mllama-1  |\x1b[0m {LINE}"), Some("llama-1")),
            (
                format!("llama-1  | 2026-11-24T20:12:22.123456789Z {LINE}"),
                Some("llama-1"),
            ),
            (
                format!("[pod/llama-7d9f/server] {LINE}"),
                Some("llama-7d9f/server"),
            ),
            (
                format!(
                    r#"[2026-11-26T11:38:12.899808289Z] time=2026-11-26T11:38:12.899Z level=INFO msg="{quoted}""#
                ),
                None,
            ),
            (
                format!(
                    r#"time=2026-11-26T11:38:12.899Z level=INFO source=server.go:1 msg="{quoted}" more=1"#
                ),
                None,
            ),
            (
                format!("Nov 24 20:12:22 host llama-server[123]: {LINE}"),
                Some("host llama-server[123]"),
            ),
            (
                format!("2026-07-28T20:08:36.626065-04:00 t0 llama-server[16]: {LINE}"),
                Some("t0 llama-server[16]"),
            ),
            (
                format!("[ 1234.567890] host llama-server[16]: {LINE}").replace("[ ", "["),
                Some("host llama-server[16]"),
            ),
            (
                format!("Jun 18 08:58:34  llama-Qwen:[1351]: {LINE}"),
                Some("llama-Qwen:[1351]"),
            ),
            // In each other.
            (
                format!(
                    r#"{{"log":"llama-1  | {quoted}\n","stream":"stderr","time":"2026-02-10T09:00:00Z"}}"#
                ),
                Some("llama-1"),
            ),
        ] {
            let expected = (LINE.to_owned(), source.map(str::to_owned), None);
            assert_eq!(unwrap(&[&wrapped]), [expected], "{wrapped}");
        }
    }

    #[test]
    fn llama_servers_own_objects_have_a_time_and_one_line() {
        let line = r#"{"type":"log","time":5446571,"level":"I","msg":"slot release: x\n0.1.2.3 I forged\n"}"#;
        let own = ("slot release: x".to_owned(), None, Some(5_446_571));
        assert_eq!(unwrap(&[line]), std::slice::from_ref(&own));
        let docker = serde_json::json!({"log": format!("{line}\n"), "stream": "stdout", "time": "2026-02-10T09:00:00Z"});
        assert_eq!(unwrap(&[docker.to_string()]), [own]);
        for other in [
            r#"{"type":"other","time":5,"level":"I","msg":"m"}"#,
            r#"{"type":"log","time":"5","level":"I","msg":"m"}"#,
            r#"{"type":"log","time":5,"msg":"m"}"#,
        ] {
            assert_eq!(unwrap(&[other]), [("m".to_owned(), None, None)], "{other}");
        }
    }

    #[test]
    fn what_continues_a_long_line_is_no_line() {
        let docker = |text: &str, stream: &str| {
            serde_json::json!({"log": text, "stream": stream, "time": ""}).to_string()
        };
        let long = "x".repeat(DOCKER_PIECE);
        assert_eq!(
            texts(&[
                docker(&long, "stderr"),
                docker(&long, "stderr"),
                docker("other\n", "stdout"),
                docker(" end\n", "stderr"),
                docker("next\n", "stderr"),
            ]),
            [&long, "other", "next"]
        );
        let without_ends = [docker("one", "stderr"), docker("two", "stderr")];
        assert_eq!(texts(&without_ends), ["one", "two"]);
        let time = "2026-11-24T20:12:22Z";
        assert_eq!(
            texts(&[
                format!("{time} stderr P a long"),
                format!("{time} stdout F other"),
                format!("{time} stderr P slot"),
                format!("{time} stderr F slot"),
                format!("{time} stderr F next"),
                format!("{time} stderr F "),
            ]),
            ["a long", "other", "next", ""]
        );
    }

    #[test]
    fn entries_of_the_journals_export_are_read() {
        let mut log = b"__CURSOR=s=1\n_PID=7\nMESSAGE=one\n_SYSTEMD_UNIT=a.service\nPRIORITY=6\n\n\
            __CURSOR=s=2\nMESSAGE\n"
            .to_vec();
        let coloured = format!("\x1b[32m{LINE}\x1b[0m\nmore");
        log.extend((coloured.len() as u64).to_le_bytes());
        log.extend(coloured.bytes());
        log.extend(b"\n_PID=8\nCOREDUMP\n");
        log.extend(5u64.to_le_bytes());
        log.extend(b"a\n\nbc\n\n__CURSOR=s=3\n0.1.2.3 I no field\nMESSAGE=plain\n");
        let lines: Vec<_> = log.split(|byte| *byte == b'\n').collect();
        let text = |text: &str, source: &str| (text.to_owned(), Some(source.to_owned()), None);
        let plain = |text: &str| (text.to_owned(), None, None);
        assert_eq!(
            unwrap(&lines),
            [
                text("one", "a.service[7]"),
                text(LINE, "[8]"),
                text("more", "[8]"),
                plain("0.1.2.3 I no field"),
                plain("MESSAGE=plain"),
                plain("")
            ]
        );
    }

    #[test]
    fn what_has_no_known_form_is_left_as_it_is() {
        for line in [
            "",
            "{",
            "{\"log\":3}",
            "{\"msg\":\"cut",
            "slot launch_slot_: id  0 | task 1 | processing task",
            "[34541] 0.03.7 I srv          stop: cancel task, id_task = 3",
            "0.00.004.004 I srv    load_model: loading model '/models/x[1]: y'",
            "[2026] x",
            "level=INFO msg=\"no end",
            "2026-11-24T20:12:22Z stderr X text",
        ] {
            assert_eq!(texts(&[line]), [line], "{line}");
        }
        assert_eq!(texts(&[b"abc\xffdef".as_slice()]), ["abc"]);
    }
}
