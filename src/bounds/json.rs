//! Limits a JSON text while it is read: the length of each string, and the nesting depth.
//!
//! A JSON parser holds each string as a whole, and a byte for each open level. This reader bounds
//! both.

use std::io::{self, BufRead, Read};
use std::mem;

/// No real server nests a document deeper. serde_json limits only the levels that it visits (128),
/// not those that it ignores.
const MAX_DEPTH: u32 = 256;
/// The longest character in bytes: a surrogate pair, each half an escape of six bytes.
const LONGEST_CHARACTER: usize = 12;

/// How much of each string is kept, in bytes as written: an escape counts with all its bytes.
#[derive(Clone, Copy, Debug)]
pub struct StringLimits {
    /// Bytes kept from its start.
    pub head: usize,
    /// Bytes kept from its end, or up to twice as many.
    pub tail: usize,
}

impl StringLimits {
    /// Enough for a label of which every character is escaped.
    pub const LABEL: StringLimits = StringLimits {
        head: 4 << 10,
        tail: 0,
    };
}

/// Reads the JSON text of `inner` without the middle of strings that are longer than the limits.
/// Valid JSON stays valid. Reading fails if the text is nested more than 256 levels deep.
pub struct LimitedJson<R> {
    inner: R,
    filter: JsonFilter,
    /// The output of the filter, and how much of it has been read.
    output: Vec<u8>,
    consumed: usize,
}

impl<R: BufRead> LimitedJson<R> {
    /// Limits the strings of what `inner` reads.
    pub fn new(inner: R, limits: StringLimits) -> LimitedJson<R> {
        LimitedJson {
            inner,
            filter: JsonFilter {
                limits,
                depth: 0,
                string: None,
            },
            output: Vec::new(),
            consumed: 0,
        }
    }
}

impl<R: BufRead> Read for LimitedJson<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.consumed == self.output.len() {
            self.output.clear();
            self.consumed = 0;
            let input = self.inner.fill_buf()?;
            if input.is_empty() {
                return Ok(0);
            }
            let length = input.len();
            self.filter.filter(input, &mut self.output)?;
            self.inner.consume(length);
        }
        let mut rest = self.output.get(self.consumed..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.consumed = self.consumed.saturating_add(count);
        Ok(count)
    }
}

struct JsonFilter {
    limits: StringLimits,
    depth: u32,
    /// The string at the current position, if there is one.
    string: Option<JsonString>,
}

impl JsonFilter {
    fn filter(&mut self, mut input: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        while let Some((&byte, rest)) = input.split_first() {
            input = match &mut self.string {
                None => {
                    self.read_outside(byte)?;
                    output.push(byte);
                    rest
                }
                Some(string) if byte == b'"' && !string.is_continued_by(byte) => {
                    output.append(&mut string.before_tail);
                    output.append(&mut string.tail);
                    output.push(byte);
                    self.string = None;
                    rest
                }
                Some(string) => string.read(input, self.limits, output),
            };
        }
        Ok(())
    }

    /// Reads a byte outside of strings.
    fn read_outside(&mut self, byte: u8) -> io::Result<()> {
        match byte {
            b'"' => self.string = Some(JsonString::default()),
            b'[' | b'{' if self.depth == MAX_DEPTH => {
                return Err(io::Error::other("is nested too deep"));
            }
            b'[' | b'{' => self.depth = self.depth.saturating_add(1),
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }
}

/// A string that has begun.
#[derive(Default)]
struct JsonString {
    /// The bytes of the current character so far.
    character: Vec<u8>,
    /// Bytes of the head that were written to the output.
    head: usize,
    /// Whether the head is full.
    is_long: bool,
    /// The last bytes: `tail`, and before it at least as many as the limit.
    before_tail: Vec<u8>,
    tail: Vec<u8>,
}

impl JsonString {
    /// Writes to `output` what the limits allow of the next bytes; returns the rest of `input`.
    fn read<'a>(
        &mut self,
        input: &'a [u8],
        limits: StringLimits,
        output: &mut Vec<u8>,
    ) -> &'a [u8] {
        let Some((&byte, rest)) = input.split_first() else {
            return input;
        };
        if !self.is_continued_by(byte) {
            // Copy plain bytes as a run, as long as all of them fit in the head.
            let room = match self.is_long {
                false => limits.head.saturating_sub(self.head),
                true if limits.tail == 0 => usize::MAX,
                true => 0,
            };
            let is_plain = |byte: &&u8| !matches!(byte, b'"' | b'\\');
            let length = input.iter().take(room).take_while(is_plain).count();
            if let Some((run, rest)) = input.split_at_checked(length)
                && let Some(last) = run.last()
            {
                if !self.is_long {
                    self.head = self.head.saturating_add(length);
                    output.extend_from_slice(run);
                }
                self.character = vec![*last];
                return rest;
            }
            self.character.clear();
            self.is_long |= self.head >= limits.head;
            if self.tail.len() >= limits.tail {
                self.before_tail = mem::take(&mut self.tail);
            }
        }
        self.character.push(byte);
        if !self.is_long {
            self.head = self.head.saturating_add(1);
            output.push(byte);
        } else if limits.tail > 0 {
            self.tail.push(byte);
        }
        rest
    }

    /// Whether `byte` continues the current character: an escape, a surrogate pair or UTF-8.
    /// Invalid bytes may be cut anywhere.
    fn is_continued_by(&self, byte: u8) -> bool {
        let is_whole =
            |escape: &[u8]| escape.len() == if escape.get(1) == Some(&b'u') { 6 } else { 2 };
        let halves = self.character.split_at_checked(6);
        let (first, second) = halves.unwrap_or((&self.character, &[]));
        match first {
            [b'\\', ..] if !is_whole(first) => true,
            // The first half of a pair.
            [
                b'\\',
                b'u',
                b'd' | b'D',
                b'8' | b'9' | b'a' | b'b' | b'A' | b'B',
                ..,
            ] => {
                if second.is_empty() {
                    byte == b'\\'
                } else {
                    !is_whole(second)
                }
            }
            [b'\\', ..] => false,
            _ => byte & 0xc0 == 0x80 && self.character.len() < LONGEST_CHARACTER,
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
    fn text_within_the_limits_is_unchanged() {
        let text = r#" {"a\"b": ["\\", "12345678", 1.5e3, null, {"ü": "\ud83e"}], "": ""} "#;
        for size in 1..20 {
            assert_eq!(limited(text, SHORT, size).unwrap(), text);
        }
    }

    #[test]
    fn a_long_string_is_cut_between_characters() {
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
    fn the_end_of_a_long_string_is_kept_if_the_limits_say_so() {
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
        // The limit falls on every position of every sequence of pieces.
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
    fn invalid_utf_8_is_cut_too() {
        let text = [b"\"".as_slice(), &[0x80; 100_000], b"\""].concat();
        for limits in [SHORT, ENDS] {
            let mut kept = Vec::new();
            let mut reader = LimitedJson::new(text.as_slice(), limits);
            reader.read_to_end(&mut kept).unwrap();
            assert!(kept.len() < 100, "{}", kept.len());
        }
    }

    #[test]
    fn text_that_is_nested_too_deep_is_an_error() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(limited(&nested(256), SHORT, 100).is_ok());
        assert!(limited(&nested(257), SHORT, 100).is_err());
        assert!(limited(&format!("[{}]", "[],".repeat(1000)), SHORT, 100).is_ok());
        // Brackets in strings do not count.
        assert!(limited(&format!("\"{}\"", "[".repeat(1000)), SHORT, 100).is_ok());
    }
}
