//! Model files: the header of a GGUF file, and nothing behind it.
//!
//! The format is described in ggml's `docs/gguf.md`. Versions 2 and 3 are read,
//! little-endian as every model that llama.cpp can load here. A file is taken
//! to be hostile: every count and length is checked against what the file still
//! holds before anything is reserved for it.

pub mod kv_cache;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bounds::deadline;

/// Where a header must have ended: that of a model with half a million merges does.
pub const LONGEST_HEADER: u64 = 16 << 20;
/// How long reading a header may take.
pub const LONGEST_READ: Duration = Duration::from_secs(5);
/// The most entries that a header may have; real ones have some tens.
const MOST_ENTRIES: u64 = 65_536;
/// The most entries that are kept. With the limits of each they take some megabytes at most.
const MOST_KEPT: usize = 1024;
/// The longest key that the format allows.
const LONGEST_KEY: u64 = 65_535;
/// The longest key that is kept.
const LONGEST_KEPT_KEY: u64 = 256;
/// The longest text that is kept.
const LONGEST_TEXT: u64 = 1024;
/// The longest list of numbers that is kept: one a layer, of which llama.cpp takes 512.
const LONGEST_LIST: u64 = 512;
/// How deep lists may be nested.
const DEEPEST_LIST: u32 = 4;
/// How many strings are skipped between two looks at the clock.
const STRINGS_A_LOOK: u64 = 1024;

/// What is wrong with a file.
#[derive(Debug)]
pub enum Error {
    /// It cannot be read.
    Io(io::Error),
    /// It does not begin as a GGUF file does.
    NotGguf,
    /// A version that is not read; a very large one is a small one of the other byte order.
    Version(u32),
    /// It ends before its header does, or says that something is longer than the rest of it.
    Truncated,
    /// Its header is longer than any real one.
    TooLong,
    /// Reading it takes too long.
    TooSlow,
    /// A value of a type that there is not.
    Type(u32),
    /// Lists in lists in lists.
    Nested,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "cannot be read: {error}"),
            Error::NotGguf => f.write_str("is not a GGUF file"),
            Error::Version(version) if version & 0xffff == 0 && *version != 0 => {
                f.write_str("is a GGUF file of the other byte order")
            }
            Error::Version(version) => write!(f, "is a GGUF file of version {version}"),
            Error::Truncated => f.write_str("ends before its header does"),
            Error::TooLong => f.write_str("has a header of more than 16 MiB"),
            Error::TooSlow => f.write_str("cannot be read within 5 s"),
            Error::Type(number) => write!(f, "has a value of the unknown type {number}"),
            Error::Nested => f.write_str("has lists nested too deep"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::Io(error),
        }
    }
}

/// One value of a header, as far as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number that is not negative.
    Number(u64),
    /// Any other number.
    Float(f64),
    /// Yes or no.
    Flag(bool),
    /// A short text.
    Text(String),
    /// A list of whole numbers (or flags, as 0 and 1), one a layer.
    List(Vec<u64>),
    /// Something that is there and was not kept.
    Other,
}

/// What the header of a model file says of the model; nothing of its vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    values: BTreeMap<String, Value>,
}

impl Header {
    /// Reads the header of `file`, a regular file, within the limits above.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(file: File) -> Result<Header, Error> {
        let length = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(64 << 10, file);
        Header::parse(
            &mut reader,
            length,
            Some(deadline(Instant::now(), LONGEST_READ)),
        )
    }

    /// Reads a header from `source`, which holds `length` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse<R: Read + Seek>(
        source: &mut R,
        length: u64,
        deadline: Option<Instant>,
    ) -> Result<Header, Error> {
        let mut parser = Parser {
            source,
            at: 0,
            length,
            deadline,
        };
        parser.header()
    }

    /// A header that was told in words, as Docker Model Runner tells it.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Header {
        let value = |text: &str| match text {
            "true" => Value::Flag(true),
            "false" => Value::Flag(false),
            _ => match (text.parse(), text.parse()) {
                (Ok(number), _) => Value::Number(number),
                (_, Ok(float)) => Value::Float(float),
                _ => Value::Text(text.to_owned()),
            },
        };
        let kept = texts.into_iter().take(MOST_KEPT);
        Header {
            values: kept
                .map(|(key, text)| (key.to_owned(), value(text)))
                .collect(),
        }
    }

    /// The architecture, which the keys about the model begin with.
    pub fn architecture(&self) -> Option<&str> {
        match self.values.get("general.architecture")? {
            Value::Text(name) => Some(name),
            _ => None,
        }
    }

    /// What the header says of `ARCHITECTURE.key`.
    pub fn of_model(&self, key: &str) -> Option<&Value> {
        let architecture = self.architecture()?;
        self.values.get(&format!("{architecture}.{key}"))
    }

    /// The keys that begin with `ARCHITECTURE.`, without it.
    pub fn model_keys(&self) -> impl Iterator<Item = &str> {
        let architecture = self.architecture().unwrap_or_default();
        self.values
            .keys()
            .filter_map(move |key| key.strip_prefix(architecture)?.strip_prefix('.'))
    }
}

/// The file that tells of the model at `path`: of a split one, its first part.
pub fn first_part(path: &Path) -> PathBuf {
    let first = || {
        let name = path.file_name()?.to_str()?;
        let (rest, of) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let five = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        (five(part) && five(of)).then(|| path.with_file_name(format!("{stem}-00001-of-{of}.gguf")))
    };
    first().unwrap_or_else(|| path.to_owned())
}

struct Parser<'a, R> {
    source: &'a mut R,
    at: u64,
    length: u64,
    deadline: Option<Instant>,
}

impl<R: Read + Seek> Parser<'_, R> {
    fn header(&mut self) -> Result<Header, Error> {
        if &self.array::<4>().map_err(|_| Error::NotGguf)? != b"GGUF" {
            return Err(Error::NotGguf);
        }
        let version = self.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(Error::Version(version));
        }
        let _tensors = self.u64()?;
        let entries = self.u64()?;
        if entries > MOST_ENTRIES {
            return Err(Error::TooLong);
        }
        let mut header = Header::default();
        for _ in 0..entries {
            self.look_at_the_clock()?;
            let length = self.u64()?;
            if length > LONGEST_KEY {
                return Err(Error::TooLong);
            }
            let key = String::from_utf8_lossy(&self.bytes(length)?).into_owned();
            let kind = self.u32()?;
            let wanted = !key.starts_with("tokenizer.")
                && length <= LONGEST_KEPT_KEY
                && header.values.len() < MOST_KEPT;
            let value = self.value(kind, wanted, 0)?;
            if wanted {
                header.values.insert(key, value);
            }
        }
        Ok(header)
    }

    fn value(&mut self, kind: u32, wanted: bool, depth: u32) -> Result<Value, Error> {
        let whole = |number: i64| match u64::try_from(number) {
            Ok(number) => Value::Number(number),
            Err(_) => Value::Float(number as f64),
        };
        Ok(match kind {
            0 => Value::Number(self.array::<1>()?[0].into()),
            1 => whole(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Number(u16::from_le_bytes(self.array()?).into()),
            3 => whole(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Number(self.u32()?.into()),
            5 => whole(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Flag(self.array::<1>()?[0] != 0),
            8 => {
                let length = self.u64()?;
                if wanted && length <= LONGEST_TEXT {
                    Value::Text(String::from_utf8_lossy(&self.bytes(length)?).into_owned())
                } else {
                    self.skip(length)?;
                    Value::Other
                }
            }
            9 => return self.list(wanted, depth),
            10 => Value::Number(self.u64()?),
            11 => whole(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            unknown => return Err(Error::Type(unknown)),
        })
    }

    fn list(&mut self, wanted: bool, depth: u32) -> Result<Value, Error> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let width: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for index in 0..count {
                    if index % STRINGS_A_LOOK == 0 {
                        self.look_at_the_clock()?;
                    }
                    let length = self.u64()?;
                    self.skip(length)?;
                }
                return Ok(Value::Other);
            }
            9 if depth == DEEPEST_LIST => return Err(Error::Nested),
            9 => {
                for _ in 0..count {
                    self.look_at_the_clock()?;
                    self.list(false, depth.saturating_add(1))?;
                }
                return Ok(Value::Other);
            }
            unknown => return Err(Error::Type(unknown)),
        };
        let length = count.checked_mul(width).ok_or(Error::Truncated)?;
        if !wanted || count > LONGEST_LIST {
            self.skip(length)?;
            return Ok(Value::Other);
        }
        self.have(length)?;
        let mut list = Vec::new();
        let mut whole = true;
        for _ in 0..count {
            match self.value(kind, false, depth)? {
                Value::Number(number) => list.push(number),
                Value::Flag(flag) => list.push(flag.into()),
                _ => whole = false,
            }
        }
        Ok(if whole {
            Value::List(list)
        } else {
            Value::Other
        })
    }

    /// Makes sure that the file holds `length` more bytes, and that they still are of its header.
    fn have(&self, length: u64) -> Result<u64, Error> {
        let end = self.at.checked_add(length).ok_or(Error::Truncated)?;
        if end > self.length {
            Err(Error::Truncated)
        } else if end > LONGEST_HEADER {
            Err(Error::TooLong)
        } else {
            Ok(end)
        }
    }

    fn skip(&mut self, length: u64) -> Result<(), Error> {
        let end = self.have(length)?;
        // At most the limit of a header.
        self.source.seek_relative(length as i64)?;
        self.at = end;
        Ok(())
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, Error> {
        let end = self.have(length)?;
        let mut bytes = vec![0; length as usize];
        self.source.read_exact(&mut bytes)?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let end = self.have(N as u64)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.at = end;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn look_at_the_clock(&self) -> Result<(), Error> {
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(Error::TooSlow),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
