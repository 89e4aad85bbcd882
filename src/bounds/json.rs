//! Limits a JSON text while it is read: the length of each string, and the depth.
//!
//! A JSON parser holds a whole string before anybody sees it, and a byte for each level that is
//! open. Behind this reader neither can be larger than the limits, whatever comes in.

use std::io::{self, BufRead, Read};
use std::mem;

/// Beyond this many levels no answer of any server goes; the parser itself visits 128.
const MAX_DEPTH: u32 = 256;
/// An escape is six bytes at most, and a surrogate pair is two of them.
const LONGEST_CHARACTER: usize = 12;

/// How much of each string is kept, in bytes as they are written: escapes count as they stand.
#[derive(Clone, Copy, Debug)]
pub struct StringLimits {
    /// At its beginning.
    pub head: usize,
    /// At its end, up to twice as much.
    pub tail: usize,
}

impl StringLimits {
    /// Enough for a label, even if all of it is escaped.
    pub const LABEL: StringLimits = StringLimits {
        head: 4 << 10,
        tail: 0,
    };
}

/// Reads the JSON text of `inner`, less the middle of strings that are longer than the limits.
/// What was valid JSON stays valid.
///
/// Reading fails where it is nested too deep.
pub struct LimitedJson<R> {
    inner: R,
    filter: Filter,
    /// What the filter let through, and how much of it has been read.
    passed: Vec<u8>,
    read: usize,
}

impl<R: BufRead> LimitedJson<R> {
    /// Limits the strings of what `inner` reads.
    pub fn new(inner: R, limits: StringLimits) -> LimitedJson<R> {
        LimitedJson {
            inner,
            filter: Filter {
                limits,
                depth: 0,
                string: None,
            },
            passed: Vec::new(),
            read: 0,
        }
    }
}

impl<R: BufRead> Read for LimitedJson<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.passed.len() {
            self.passed.clear();
            self.read = 0;
            let input = self.inner.fill_buf()?;
            if input.is_empty() {
                return Ok(0);
            }
            let length = input.len();
            self.filter.pass(input, &mut self.passed)?;
            self.inner.consume(length);
        }
        let mut rest = self.passed.get(self.read..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.read = self.read.saturating_add(count);
        Ok(count)
    }
}

struct Filter {
    limits: StringLimits,
    depth: u32,
    /// The string that is being read.
    string: Option<JsonString>,
}

/// A string, and what was seen of it so far.
#[derive(Default)]
struct JsonString {
    /// Bytes that were let through.
    passed: usize,
    /// The escape that has begun, as far as it goes.
    escape: Vec<u8>,
    /// Whether the last character was the first half of a surrogate pair.
    is_half: bool,
    /// Whether the head is full.
    is_long: bool,
    /// The end of it: what came before `tail`, and at least as much as the limit says.
    before_tail: Vec<u8>,
    tail: Vec<u8>,
}

impl Filter {
    fn pass(&mut self, mut input: &[u8], passed: &mut Vec<u8>) -> io::Result<()> {
        while !input.is_empty() {
            let rest = match &mut self.string {
                Some(string) => match string.pass(input, self.limits, passed) {
                    Some(rest) => {
                        self.string = None;
                        rest
                    }
                    None => &[],
                },
                None => self.pass_outside(input, passed)?,
            };
            input = rest;
        }
        Ok(())
    }

    /// Lets through what is no string, and gives what follows.
    fn pass_outside<'a>(&mut self, input: &'a [u8], passed: &mut Vec<u8>) -> io::Result<&'a [u8]> {
        let mut outside = input.iter();
        for byte in outside.by_ref() {
            match byte {
                b'"' => {
                    self.string = Some(JsonString::default());
                    break;
                }
                b'[' | b'{' if self.depth == MAX_DEPTH => {
                    return Err(io::Error::other("is nested too deep"));
                }
                b'[' | b'{' => self.depth = self.depth.saturating_add(1),
                b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        let rest = outside.as_slice();
        let length = input.len().saturating_sub(rest.len());
        passed.extend(input.iter().take(length));
        Ok(rest)
    }
}

impl JsonString {
    /// Lets through what the limits say; gives what follows the string, if it has ended.
    fn pass<'a>(
        &mut self,
        mut input: &'a [u8],
        limits: StringLimits,
        passed: &mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        while let Some((first, rest)) = input.split_first() {
            if !self.escape.is_empty() {
                self.escape.push(*first);
                if self.escape_is_whole() {
                    self.end_escape(limits, passed);
                }
                input = rest;
                continue;
            }
            match first {
                b'"' => {
                    passed.append(&mut self.before_tail);
                    passed.append(&mut self.tail);
                    passed.push(b'"');
                    return Some(rest);
                }
                b'\\' => {
                    self.escape.push(b'\\');
                    input = rest;
                }
                _ => {
                    let is_plain = |byte: &&u8| !matches!(**byte, b'"' | b'\\');
                    let length = input.iter().take_while(is_plain).count();
                    let (run, rest) = input.split_at_checked(length)?;
                    self.pass_run(run, limits, passed);
                    input = rest;
                }
            }
        }
        None
    }

    /// Takes bytes among which no quotation mark and no escape stands.
    fn pass_run(&mut self, run: &[u8], limits: StringLimits, passed: &mut Vec<u8>) {
        let room = limits.head.saturating_sub(self.passed);
        if !self.is_long && run.len() <= room {
            self.passed = self.passed.saturating_add(run.len());
            self.is_half = false;
            passed.extend_from_slice(run);
        } else if self.is_long && limits.tail == 0 {
            // None of it is kept.
        } else {
            for byte in run {
                self.pass_character(&[*byte], limits, passed);
                self.is_half = false;
            }
        }
    }

    fn escape_is_whole(&self) -> bool {
        let length = if self.escape.get(1) == Some(&b'u') {
            6
        } else {
            2
        };
        self.escape.len() == length
    }

    fn end_escape(&mut self, limits: StringLimits, passed: &mut Vec<u8>) {
        let escape = mem::take(&mut self.escape);
        self.pass_character(&escape, limits, passed);
        self.is_half = matches!(
            escape.as_slice(),
            [
                b'\\',
                b'u',
                b'd' | b'D',
                b'8' | b'9' | b'a'..=b'b' | b'A'..=b'B',
                ..,
            ]
        );
    }

    /// Takes an escape, or one byte.
    fn pass_character(&mut self, bytes: &[u8], limits: StringLimits, passed: &mut Vec<u8>) {
        let is_continuation = bytes.first().is_some_and(|first| first & 0xc0 == 0x80);
        let is_boundary = !self.is_half && !is_continuation;
        // What is no character at all may be cut anywhere.
        let is_full = |length: usize, limit: usize| {
            length >= limit && (is_boundary || length.saturating_sub(limit) >= LONGEST_CHARACTER)
        };
        self.is_long = self.is_long || is_full(self.passed, limits.head);
        if !self.is_long {
            self.passed = self.passed.saturating_add(bytes.len());
            passed.extend_from_slice(bytes);
        } else if limits.tail > 0 {
            if is_full(self.tail.len(), limits.tail) {
                self.before_tail = mem::take(&mut self.tail);
            }
            self.tail.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::io::BufReader;

    const SHORT: StringLimits = StringLimits { head: 8, tail: 0 };
    const ENDS: StringLimits = StringLimits { head: 8, tail: 8 };

    /// `text` through the limits, with buffers of `size` bytes.
    fn limited(text: &str, limits: StringLimits, size: usize) -> io::Result<String> {
        let mut limited = String::new();
        let reader = BufReader::with_capacity(size, text.as_bytes());
        LimitedJson::new(reader, limits).read_to_string(&mut limited)?;
        Ok(limited)
    }

    #[test]
    fn what_is_within_the_limits_stays_as_it_is() {
        let text = r#" {"a\"b": ["\\", "12345678", 1.5e3, null, {"ü": "\ud83e"}], "": ""} "#;
        for size in 1..20 {
            assert_eq!(limited(text, SHORT, size).unwrap(), text);
        }
    }

    #[test]
    fn a_long_string_is_cut_where_a_character_ends() {
        for (string, short, ends) in [
            ("123456789", "12345678", "123456789"),
            ("1234567ü9", "1234567ü", "1234567ü9"),
            (r"1234567\n9", r"1234567\n", r"1234567\n9"),
            (r"123456\\\\\\", r"123456\\", r"123456\\\\\\"),
            (
                r"12345\ud83e\udd99890",
                r"12345\ud83e\udd99",
                r"12345\ud83e\udd99890",
            ),
            (
                "abcdefghijklmnopqrstuvwxyz",
                "abcdefgh",
                "abcdefghijklmnopqrstuvwxyz".split_at(8).0,
            ),
        ] {
            for size in 1..20 {
                let text = format!(r#"["{string}","next",{{"{string}":1}}]"#);
                let expected = format!(r#"["{short}","next",{{"{short}":1}}]"#);
                assert_eq!(limited(&text, SHORT, size).unwrap(), expected);
                let both = limited(&text, ENDS, size).unwrap();
                assert!(both.starts_with(&format!(r#"["{ends}"#)), "{both}");
            }
        }
    }

    #[test]
    fn the_end_of_a_long_string_is_kept_where_it_is_wanted() {
        let text = format!("\"begin {} end of it\"", "middle ".repeat(1000));
        for size in [1, 7, 100, 10_000] {
            let kept = limited(&text, ENDS, size).unwrap();
            assert!(
                kept.starts_with("\"begin mi") && kept.ends_with("end of it\""),
                "{kept}"
            );
            assert!(kept.len() < 8 + 2 * 8 + 4, "{kept}");
        }
    }

    #[test]
    fn any_valid_text_stays_valid() {
        let pieces = [
            "a",
            "ü",
            "模",
            "🦙",
            "\\n",
            "\\\"",
            "\\\\",
            "\\u00fc",
            "\\ud83e\\udd99",
        ];
        // Every sequence of pieces meets the limit at every place in turn.
        for first in pieces {
            for second in pieces {
                for lead in 0..12 {
                    let string = "x".repeat(lead) + &(first.to_owned() + second).repeat(9);
                    let text = format!("[\"{string}\"]");
                    for limits in [SHORT, ENDS] {
                        let limited = limited(&text, limits, 5).unwrap();
                        let value: Result<Value, _> = serde_json::from_str(&limited);
                        assert!(value.is_ok(), "{text}: {limited}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_text_is_cut_as_well() {
        let text = [b"\"".as_slice(), &[0x80; 100_000], b"\""].concat();
        for limits in [SHORT, ENDS] {
            let mut kept = Vec::new();
            let mut reader = LimitedJson::new(text.as_slice(), limits);
            reader.read_to_end(&mut kept).unwrap();
            assert!(kept.len() < 100, "{}", kept.len());
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_refused() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(limited(&nested(256), SHORT, 100).is_ok());
        assert!(limited(&nested(257), SHORT, 100).is_err());
        assert!(limited(&format!("[{}]", "[],".repeat(1000)), SHORT, 100).is_ok());
        // Brackets in strings are none.
        assert!(limited(&format!("\"{}\"", "[".repeat(1000)), SHORT, 100).is_ok());
    }
}
