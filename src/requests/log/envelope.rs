//! Removes the wrapper that a logging system has put around a line of llama-server.
//!
//! Tries a table of formats. They may be nested (Docker's json-file around llama-server's own
//! `--log-jsonl`), so the inner text is tried again, a few times. Lines in unknown formats are
//! unchanged.

use std::mem;

use serde_json::{Map, Value};

use crate::bounds;
use crate::requests::log::journal_export::{JournalEntry, Progress, process_name};

/// A line as llama-server wrote it, or as near to that as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwrapped {
    /// Its text, without colours.
    pub text: String,
    /// The process or container that wrote it, if the wrapper names it.
    pub origin: Option<String>,
    /// llama-server's own time, in microseconds, if the wrapper has it.
    pub time: Option<u64>,
    /// Which part of a longer line it is, if the wrapper reports it.
    piece: Option<Piece>,
}

/// A part of a line that was too long for its logging system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// 0 for standard output, 1 for standard error.
    stream: usize,
    is_last: bool,
}

/// Unwraps a line of one format; `None` if it has another format.
type Format = fn(&str) -> Option<Unwrapped>;

const FORMATS: [Format; 6] = [kubernetes, json, compose, pod, logfmt, syslog];
/// How deep wrappers may be nested.
const MAX_LAYERS: usize = 4;
/// How many bytes before the text syslog may write.
const MAX_SYSLOG_HEAD: usize = 200;
/// How many bytes of a line Docker puts into one object. Bytes that are not UTF-8 become more.
const DOCKER_PIECE_BYTES: usize = 16 << 10;

/// Takes the wrappers off a stream of lines.
#[derive(Debug, Default)]
pub struct Envelope {
    /// By stream, whether its next piece continues a line.
    is_continued: [bool; 2],
    /// The entry of `journalctl -o export` that has begun.
    entry: Option<JournalEntry>,
}

impl Envelope {
    /// Takes one line, without its end; returns the lines that were in it.
    pub fn take(&mut self, line: &[u8]) -> Vec<Unwrapped> {
        if let Some(mut entry) = self.entry.take() {
            match entry.take(line) {
                Progress::Continues => {
                    self.entry = Some(entry);
                    return Vec::new();
                }
                Progress::Ended => {
                    let message = String::from_utf8_lossy(&entry.message);
                    let lines = message.lines();
                    return lines
                        .flat_map(|text| self.unwrap(text, entry.origin()))
                        .collect();
                }
                Progress::Invalid => {}
            }
        }
        if line.starts_with(b"__CURSOR=") {
            self.entry = Some(JournalEntry::default());
            return Vec::new();
        }
        // PowerShell writes UTF-16, where each second byte of an ASCII character is zero.
        let line: Vec<u8> = line.iter().copied().filter(|byte| *byte != 0).collect();
        // A long line may have been cut within a character.
        let valid = line.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        self.unwrap(valid.trim_end_matches('\r'), None)
    }

    fn unwrap(&mut self, text: &str, origin: Option<String>) -> Vec<Unwrapped> {
        let mut line = Unwrapped {
            text: without_colours(text),
            origin,
            ..Unwrapped::default()
        };
        for _ in 0..MAX_LAYERS {
            let Some(inner) = FORMATS.iter().find_map(|format| format(&line.text)) else {
                break;
            };
            // The continuation of a line is not a line, whatever its text is.
            if let Some(Piece { stream, is_last }) = inner.piece
                && mem::replace(&mut self.is_continued[stream], !is_last)
            {
                return Vec::new();
            }
            let inner_origin = inner.origin.as_deref().map(bounds::cut);
            line = Unwrapped {
                text: without_colours(&inner.text),
                // What is logged cannot write into the outermost wrapper.
                origin: line.origin.or(inner_origin.map(str::to_owned)),
                time: inner.time.or(line.time),
                piece: None,
            };
        }
        if line.time.is_some() {
            // llama-server's own object holds one line; what follows is quoted.
            let end = line.text.find('\n').unwrap_or(line.text.len());
            line.text.truncate(end);
        }
        if !line.text.contains('\n') {
            return vec![line];
        }
        let lines = line.text.lines().map(|text| Unwrapped {
            text: text.to_owned(),
            origin: line.origin.clone(),
            ..Unwrapped::default()
        });
        lines.collect()
    }
}

/// A text without its terminal colours (`ESC [ 32 m`).
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        plain.push_str(rest.strip_prefix(['m', 'K']).unwrap_or(part));
    }
    plain
}

/// Kubernetes' CRI: `2026-11-24T20:12:22.123456789Z stderr F text`; `P` if the line continues.
fn kubernetes(text: &str) -> Option<Unwrapped> {
    let mut parts = text.splitn(4, ' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    if !is_timestamp(time) {
        return None;
    }
    let is_last = match tag.split(':').next()? {
        "F" => true,
        "P" => false,
        _ => return None,
    };
    Some(Unwrapped {
        text: parts.next().unwrap_or_default().to_owned(),
        piece: Some(Piece {
            stream: stream_index(stream)?,
            is_last,
        }),
        ..Unwrapped::default()
    })
}

fn stream_index(name: &str) -> Option<usize> {
    ["stdout", "stderr"]
        .iter()
        .position(|stream| *stream == name)
}

/// One JSON object a line: Docker's json-file (`log`), `journalctl -o json` (`MESSAGE`),
/// llama-server's `--log-jsonl` (`msg`), and others that write `msg` or `message`.
fn json(text: &str) -> Option<Unwrapped> {
    if !text.starts_with('{') {
        return None;
    }
    let object: Map<String, Value> = serde_json::from_str(text).ok()?;
    let field = |key: &str| text_of(object.get(key)?);
    if let Some(log) = field("log") {
        let line = log.strip_suffix('\n');
        let stream = field("stream").and_then(|stream| stream_index(&stream));
        return Some(Unwrapped {
            text: line.unwrap_or(&log).to_owned(),
            // The last object of a longer line ends it. Others (Fluent Bit) write no line ends.
            piece: stream.map(|stream| Piece {
                stream,
                is_last: line.is_some() || log.len() < DOCKER_PIECE_BYTES,
            }),
            ..Unwrapped::default()
        });
    }
    let units = ["CONTAINER_NAME", "_SYSTEMD_UNIT", "SYSLOG_IDENTIFIER"];
    let is_own = field("type").as_deref() == Some("log") && object.contains_key("level");
    let time = object.get("time").and_then(Value::as_u64);
    Some(Unwrapped {
        text: ["MESSAGE", "msg", "message"].into_iter().find_map(field)?,
        origin: process_name(units.into_iter().find_map(field), field("_PID")),
        time: time.filter(|_| is_own),
        piece: None,
    })
}

/// A string; journald writes one that has control characters as an array of its bytes.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(bytes) => {
            let bytes: Option<Vec<_>> = bytes
                .iter()
                .map(|byte| u8::try_from(byte.as_u64()?).ok())
                .collect();
            Some(String::from_utf8_lossy(&bytes?).into_owned())
        }
        _ => None,
    }
}

/// `docker compose logs`: `llama-1  | text`; with `-t`, a time before the text.
fn compose(text: &str) -> Option<Unwrapped> {
    let (name, rest) = text.split_once(" | ")?;
    let name = name.trim_end();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_name)).then(|| named(name, rest))
}

/// `kubectl logs --prefix`: `[pod/NAME/CONTAINER] text`.
fn pod(text: &str) -> Option<Unwrapped> {
    let (name, rest) = text.strip_prefix("[pod/")?.split_once("] ")?;
    Some(named(name, rest))
}

/// A line with its origin in front, and optionally a time.
fn named(origin: &str, rest: &str) -> Unwrapped {
    let text = match rest.split_once(' ') {
        Some((time, text)) if is_timestamp(time) => text,
        _ => rest,
    };
    Unwrapped {
        text: text.to_owned(),
        origin: Some(origin.to_owned()),
        ..Unwrapped::default()
    }
}

/// `time=… level=… msg="text"`, as Docker Model Runner's `/logs` and Ollama's log have it.
fn logfmt(text: &str) -> Option<Unwrapped> {
    let words = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("] ")?.1,
        None => text,
    };
    let keys = ["time=", "ts=", "level="];
    if !keys.iter().any(|key| words.starts_with(key)) {
        return None;
    }
    Some(Unwrapped {
        text: unquote(words.split_once(" msg=\"")?.1)?,
        ..Unwrapped::default()
    })
}

/// The text up to the closing quote, with Go's escapes resolved.
fn unquote(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = text.chars();
    loop {
        let character = match rest.next()? {
            '"' => return Some(plain),
            '\\' => match rest.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'x' => code_point(&mut rest, 2)?,
                'u' => code_point(&mut rest, 4)?,
                'U' => code_point(&mut rest, 8)?,
                other => other,
            },
            other => other,
        };
        plain.push(character);
    }
}

fn code_point(rest: &mut std::str::Chars, digits: usize) -> Option<char> {
    let mut code: u32 = 0;
    for _ in 0..digits {
        let digit = rest.next()?.to_digit(16)?;
        code = code.checked_mul(16)?.checked_add(digit)?;
    }
    char::from_u32(code)
}

/// journald and syslog: `Nov 24 20:12:22 host llama-server[4711]: text`, and with other times.
fn syslog(text: &str) -> Option<Unwrapped> {
    let (head, _) = bounds::cut_at(text, MAX_SYSLOG_HEAD).split_once("]: ")?;
    let (name, pid) = head.rsplit_once('[')?;
    if pid.is_empty() || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut words: Vec<_> = name.split_whitespace().collect();
    let identifier = words.pop()?;
    // Month, day, time and host; or one word of time, and perhaps the host.
    if words.len() > 4 || !words.first().is_none_or(|word| is_time_word(word)) {
        return None;
    }
    // journald leaves one character between the two: `llama-Qwen:[1351]: `.
    if name.ends_with(' ') || identifier.contains('[') {
        return None;
    }
    words.retain(|word| !is_time_word(word));
    words.push(identifier);
    Some(Unwrapped {
        text: text.get(head.len()..)?.strip_prefix("]: ")?.to_owned(),
        origin: Some(format!("{}[{pid}]", words.join(" "))),
        ..Unwrapped::default()
    })
}

/// `2026-11-24T20:12:22.123456789Z`, and with an offset.
fn is_timestamp(word: &str) -> bool {
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

#[cfg(test)]
mod tests;
