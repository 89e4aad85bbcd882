//! Reads the header of a GGUF model file, without the vocabulary.
//!
//! The format is described in ggml's `docs/gguf.md`. Supports versions 2 and 3, little-endian:
//! those that llama.cpp loads on this machine. A file may be malicious, so every count and length
//! is checked against the rest of the file before memory is reserved.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bounds::deadline;

/// The most bytes of a header: a model with half a million merges has less.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// How long reading a header may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The most entries of a header; real ones have tens.
const MAX_ENTRIES: u64 = 65_536;
/// The most entries that are kept: some megabytes, with the limits of each.
const MAX_KEPT_ENTRIES: usize = 1024;
/// The most bytes of a key in the format.
const MAX_KEY_BYTES: u64 = 65_535;
/// The most bytes of a key that is kept.
const MAX_KEPT_KEY_BYTES: u64 = 256;
/// The most bytes of a string that is kept.
const MAX_KEPT_STRING_BYTES: u64 = 1024;
/// The longest array that is kept: one number per layer, and llama.cpp supports 512 layers.
const MAX_KEPT_ARRAY: u64 = 512;
/// How deep arrays may be nested.
const MAX_ARRAY_DEPTH: u32 = 4;
/// How many strings are skipped between two checks of the deadline.
const STRINGS_PER_TIME_CHECK: u64 = 1024;

/// Why the header of a model file cannot be read. The text follows the words "the model file".
#[derive(Debug)]
pub enum HeaderError {
    /// It cannot be read.
    Io(io::Error),
    /// It does not start like a GGUF file.
    NotGguf,
    /// An unknown version; a very large one is a small one of the other byte order.
    Version(u32),
    /// It ends within the header, or a length in it exceeds the rest of the file.
    Truncated,
    /// The header exceeds a limit.
    TooLarge,
    /// Reading took too long.
    Timeout,
    /// A value has an unknown type.
    UnknownType(u32),
    /// Arrays are nested too deep.
    TooDeep,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::Io(error) => write!(f, "cannot be read: {error}"),
            HeaderError::NotGguf => f.write_str("is not a GGUF file"),
            HeaderError::Version(version) if version & 0xffff == 0 && *version != 0 => {
                f.write_str("is a GGUF file of the other byte order")
            }
            HeaderError::Version(version) => write!(f, "is a GGUF file of version {version}"),
            HeaderError::Truncated => f.write_str("ends within its header"),
            HeaderError::TooLarge => f.write_str("has a header of more than 16 MiB"),
            HeaderError::Timeout => f.write_str("cannot be read within 5 s"),
            HeaderError::UnknownType(number) => {
                write!(f, "has a value of the unknown type {number}")
            }
            HeaderError::TooDeep => f.write_str("has arrays that are nested too deep"),
        }
    }
}

impl std::error::Error for HeaderError {}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> HeaderError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => HeaderError::Truncated,
            _ => HeaderError::Io(error),
        }
    }
}

/// A value of a header.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValue {
    /// An integer that is not negative.
    Integer(u64),
    /// Any other number.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A short string.
    String(String),
    /// A short array of integers or booleans (0 and 1), such as one number per layer.
    Array(Vec<u64>),
    /// A value that was not kept.
    Skipped,
}

/// The entries of a header that describe the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelHeader {
    pub(super) values: BTreeMap<String, HeaderValue>,
}

impl ModelHeader {
    /// Reads the header of a regular file.
    ///
    /// # Errors
    /// The file is not a supported GGUF file, or cannot be read.
    pub fn read(file: File) -> Result<ModelHeader, HeaderError> {
        let length = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let deadline = deadline(Instant::now(), READ_TIMEOUT);
        ModelHeader::parse(&mut reader, length, Some(deadline))
    }

    /// Parses a header from `source`, which holds `length` bytes.
    ///
    /// # Errors
    /// The header is invalid, exceeds a limit, or cannot be read.
    pub fn parse<R: Read + Seek>(
        source: &mut R,
        length: u64,
        deadline: Option<Instant>,
    ) -> Result<ModelHeader, HeaderError> {
        let mut parser = HeaderParser {
            source,
            position: 0,
            length,
            deadline,
        };
        parser.header()
    }

    /// A header from keys and values as text, as Docker Model Runner's API returns it.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> ModelHeader {
        let value = |text: &str| match text {
            "true" => HeaderValue::Bool(true),
            "false" => HeaderValue::Bool(false),
            _ => match (text.parse(), text.parse()) {
                (Ok(integer), _) => HeaderValue::Integer(integer),
                (_, Ok(float)) => HeaderValue::Float(float),
                _ => HeaderValue::String(text.to_owned()),
            },
        };
        let kept = texts.into_iter().take(MAX_KEPT_ENTRIES);
        let values = kept.map(|(key, text)| (key.to_owned(), value(text)));
        ModelHeader {
            values: values.collect(),
        }
    }

    /// The architecture: the prefix of the keys about the model.
    pub fn architecture(&self) -> Option<&str> {
        match self.values.get("general.architecture")? {
            HeaderValue::String(name) => Some(name),
            _ => None,
        }
    }

    /// The value of `ARCHITECTURE.key`.
    pub fn model_value(&self, key: &str) -> Option<&HeaderValue> {
        self.values.get(&format!("{}.{key}", self.architecture()?))
    }

    /// All keys `ARCHITECTURE.key`, without the architecture.
    pub fn model_keys(&self) -> impl Iterator<Item = &str> {
        let architecture = self.architecture().unwrap_or_default();
        let keys = self.values.keys();
        keys.filter_map(move |key| key.strip_prefix(architecture)?.strip_prefix('.'))
    }
}

/// The file with the header of the model at `path`: for a split model, its first part.
pub fn first_part(path: &Path) -> PathBuf {
    let first = || {
        let name = path.file_name()?.to_str()?;
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let five = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        let first = format!("{stem}-00001-of-{count}.gguf");
        (five(part) && five(count)).then(|| path.with_file_name(first))
    };
    first().unwrap_or_else(|| path.to_owned())
}

struct HeaderParser<'a, R> {
    source: &'a mut R,
    position: u64,
    length: u64,
    deadline: Option<Instant>,
}

impl<R: Read + Seek> HeaderParser<'_, R> {
    fn header(&mut self) -> Result<ModelHeader, HeaderError> {
        if &self.array::<4>().map_err(|_| HeaderError::NotGguf)? != b"GGUF" {
            return Err(HeaderError::NotGguf);
        }
        let version = self.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(HeaderError::Version(version));
        }
        let _tensors = self.u64()?;
        let entries = self.u64()?;
        if entries > MAX_ENTRIES {
            return Err(HeaderError::TooLarge);
        }
        let mut header = ModelHeader::default();
        for _ in 0..entries {
            self.check_time()?;
            let length = self.u64()?;
            if length > MAX_KEY_BYTES {
                return Err(HeaderError::TooLarge);
            }
            let key = self.string(length)?;
            let keep = !key.starts_with("tokenizer.")
                && length <= MAX_KEPT_KEY_BYTES
                && header.values.len() < MAX_KEPT_ENTRIES;
            let kind = self.u32()?;
            let value = self.value(kind, keep)?;
            if keep {
                header.values.insert(key, value);
            }
        }
        Ok(header)
    }

    fn value(&mut self, kind: u32, keep: bool) -> Result<HeaderValue, HeaderError> {
        let signed = |number: i64| match u64::try_from(number) {
            Ok(number) => HeaderValue::Integer(number),
            Err(_) => HeaderValue::Float(number as f64),
        };
        Ok(match kind {
            0 => HeaderValue::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => signed(i8::from_le_bytes(self.array()?).into()),
            2 => HeaderValue::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => signed(i16::from_le_bytes(self.array()?).into()),
            4 => HeaderValue::Integer(self.u32()?.into()),
            5 => signed(i32::from_le_bytes(self.array()?).into()),
            6 => HeaderValue::Float(f32::from_le_bytes(self.array()?).into()),
            7 => HeaderValue::Bool(self.array()? != [0]),
            8 => {
                let length = self.u64()?;
                if keep && length <= MAX_KEPT_STRING_BYTES {
                    HeaderValue::String(self.string(length)?)
                } else {
                    self.skip(length)?;
                    HeaderValue::Skipped
                }
            }
            9 => return self.array_value(keep, 0),
            10 => HeaderValue::Integer(self.u64()?),
            11 => signed(i64::from_le_bytes(self.array()?)),
            12 => HeaderValue::Float(f64::from_le_bytes(self.array()?)),
            unknown => return Err(HeaderError::UnknownType(unknown)),
        })
    }

    fn array_value(&mut self, keep: bool, depth: u32) -> Result<HeaderValue, HeaderError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let width: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for index in 0..count {
                    if index.is_multiple_of(STRINGS_PER_TIME_CHECK) {
                        self.check_time()?;
                    }
                    let length = self.u64()?;
                    self.skip(length)?;
                }
                return Ok(HeaderValue::Skipped);
            }
            9 if depth == MAX_ARRAY_DEPTH => return Err(HeaderError::TooDeep),
            9 => {
                for _ in 0..count {
                    self.check_time()?;
                    self.array_value(false, depth.saturating_add(1))?;
                }
                return Ok(HeaderValue::Skipped);
            }
            unknown => return Err(HeaderError::UnknownType(unknown)),
        };
        let bytes = count.checked_mul(width).ok_or(HeaderError::Truncated)?;
        if !keep || count > MAX_KEPT_ARRAY {
            self.skip(bytes)?;
            return Ok(HeaderValue::Skipped);
        }
        self.end_of(bytes)?;
        let mut numbers = Vec::new();
        for _ in 0..count {
            match self.value(kind, false)? {
                HeaderValue::Integer(number) => numbers.push(Some(number)),
                HeaderValue::Bool(flag) => numbers.push(Some(flag.into())),
                _ => numbers.push(None),
            }
        }
        let numbers: Option<Vec<u64>> = numbers.into_iter().collect();
        Ok(numbers.map_or(HeaderValue::Skipped, HeaderValue::Array))
    }

    /// The position after the next `length` bytes, which must be within the file and the limit.
    fn end_of(&self, length: u64) -> Result<u64, HeaderError> {
        let end = self
            .position
            .checked_add(length)
            .ok_or(HeaderError::Truncated)?;
        if end > self.length {
            Err(HeaderError::Truncated)
        } else if end > MAX_HEADER_BYTES {
            Err(HeaderError::TooLarge)
        } else {
            Ok(end)
        }
    }

    fn skip(&mut self, length: u64) -> Result<(), HeaderError> {
        self.position = self.end_of(length)?;
        Ok(self.source.seek_relative(length as i64)?)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), HeaderError> {
        self.position = self.end_of(bytes.len() as u64)?;
        Ok(self.source.read_exact(bytes)?)
    }

    fn string(&mut self, length: u64) -> Result<String, HeaderError> {
        self.end_of(length)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn check_time(&self) -> Result<(), HeaderError> {
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(HeaderError::Timeout),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
