use std::io::Cursor;

use super::*;

/// Writes headers as the format's description has them.
#[derive(Default)]
struct HeaderWriter {
    entries: u64,
    body: Vec<u8>,
}

impl HeaderWriter {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> HeaderWriter {
        HeaderWriter::text(&mut self.body, key);
        self.body.extend(kind.to_le_bytes());
        self.body.extend(value);
        self.entries += 1;
        self
    }

    fn string(self, key: &str, value: &str) -> HeaderWriter {
        let mut bytes = Vec::new();
        HeaderWriter::text(&mut bytes, value);
        self.raw(key, 8, &bytes)
    }

    fn number(self, key: &str, value: u32) -> HeaderWriter {
        self.raw(key, 4, &value.to_le_bytes())
    }

    fn numbers(self, key: &str, values: &[i32]) -> HeaderWriter {
        let mut bytes = Vec::from(5u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    fn strings(self, key: &str, values: &[&str]) -> HeaderWriter {
        let mut bytes = Vec::from(8u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            HeaderWriter::text(&mut bytes, value);
        }
        self.raw(key, 9, &bytes)
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::from(*b"GGUF");
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(self.entries.to_le_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

fn parse(bytes: &[u8]) -> Result<ModelHeader, HeaderError> {
    ModelHeader::parse(&mut Cursor::new(bytes), bytes.len() as u64, None)
}

fn sample() -> HeaderWriter {
    HeaderWriter::default()
        .string("general.architecture", "llama")
        .number("llama.block_count", 3)
        .numbers("llama.attention.head_count_kv", &[1, 0, 2])
        .strings("tokenizer.ggml.tokens", &["<s>", "a", "b"])
        .raw("llama.rope.freq_base", 6, &1e4f32.to_le_bytes())
        .raw("general.flag", 7, &[1])
}

#[test]
fn values_are_read_and_the_vocabulary_is_skipped() {
    let header = parse(&sample().finish()).unwrap();
    assert_eq!(header.architecture(), Some("llama"));
    assert_eq!(
        header.model_value("block_count"),
        Some(&HeaderValue::Integer(3))
    );
    let heads = header.model_value("attention.head_count_kv");
    assert_eq!(heads, Some(&HeaderValue::Array(vec![1, 0, 2])));
    assert_eq!(
        header.model_value("rope.freq_base"),
        Some(&HeaderValue::Float(1e4))
    );
    assert!(header.model_keys().all(|key| !key.contains("tokens")));
    assert_eq!(header.values.len(), 5);
}

#[test]
fn a_truncated_header_is_an_error() {
    let whole = sample().finish();
    for length in 0..whole.len() {
        assert!(parse(&whole[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn a_damaged_header_never_panics() {
    let whole = sample().finish();
    for index in 0..whole.len() {
        for damage in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[index] = damage;
            let _ = parse(&damaged);
        }
    }
}

#[test]
fn counts_and_lengths_beyond_the_file_are_errors() {
    let huge = [u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 32, 1 << 24];
    for length in huge {
        let text = HeaderWriter::default().raw("a", 8, &length.to_le_bytes());
        assert!(parse(&text.finish()).is_err(), "a text of {length}");
        for kind in [0u32, 2, 4, 8, 9, 10] {
            let mut list = Vec::from(kind.to_le_bytes());
            list.extend(length.to_le_bytes());
            let list = HeaderWriter::default().raw("a", 9, &list);
            assert!(parse(&list.finish()).is_err(), "{length} of {kind}");
        }
        let mut entries = Vec::from(*b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0");
        entries.extend(length.to_le_bytes());
        assert!(parse(&entries).is_err(), "{length} entries");
        let mut key = HeaderWriter::default().number("k", 1).finish();
        key[24..32].copy_from_slice(&length.to_le_bytes());
        assert!(parse(&key).is_err(), "a key of {length}");
    }
}

#[test]
fn deeply_nested_arrays_are_refused() {
    let mut nested = Vec::new();
    for _ in 0..100_000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    let file = HeaderWriter::default().raw("a", 9, &nested).finish();
    assert!(matches!(parse(&file), Err(HeaderError::TooDeep)));
}

#[test]
fn other_formats_versions_and_types_are_refused() {
    assert!(matches!(parse(b""), Err(HeaderError::NotGguf)));
    assert!(matches!(
        parse(b"GGML\x03\0\0\0"),
        Err(HeaderError::NotGguf)
    ));
    let version = |version: u32| {
        let mut bytes = Vec::from(*b"GGUF");
        bytes.extend(version.to_le_bytes());
        bytes
    };
    assert!(matches!(parse(&version(1)), Err(HeaderError::Version(1))));
    let mut older = sample().finish();
    older[4] = 2;
    assert_eq!(parse(&older).unwrap(), parse(&sample().finish()).unwrap());
    let big_endian = parse(&version(3u32.swap_bytes())).unwrap_err();
    assert!(big_endian.to_string().contains("byte order"));
    let unknown = HeaderWriter::default().raw("a", 13, &[]).finish();
    assert!(matches!(parse(&unknown), Err(HeaderError::UnknownType(13))));
}

#[test]
fn a_header_beyond_the_limit_is_refused() {
    let filler = vec![b'x'; 1 << 20];
    let filler = std::str::from_utf8(&filler).unwrap();
    let mut writer = HeaderWriter::default();
    for index in 0..17 {
        writer = writer.string(&format!("general.{index}"), filler);
    }
    assert!(matches!(
        parse(&writer.finish()),
        Err(HeaderError::TooLarge)
    ));
}

#[test]
fn little_is_kept_of_a_hostile_header() {
    let mut writer = HeaderWriter::default();
    // A list of bytes takes eight times its length once it is read.
    let mut list = Vec::from(0u32.to_le_bytes());
    list.extend(512u64.to_le_bytes());
    list.extend([7; 512]);
    for index in 0..5000 {
        writer = writer.raw(&format!("general.{index}"), 9, &list);
    }
    let header = parse(&writer.finish()).unwrap();
    assert_eq!(header.values.len(), 1024);
    list[4..12].copy_from_slice(&513u64.to_le_bytes());
    list.push(7);
    let long = HeaderWriter::default()
        .raw("a", 9, &list)
        .number(&"k".repeat(300), 1);
    let header = parse(&long.finish()).unwrap();
    assert_eq!(header.values.get("a"), Some(&HeaderValue::Skipped));
    assert_eq!(header.values.len(), 1);
}

#[test]
fn reading_stops_at_the_deadline() {
    let bytes = sample().finish();
    let past = Some(Instant::now() - Duration::from_secs(1));
    let late = ModelHeader::parse(&mut Cursor::new(&bytes), bytes.len() as u64, past);
    assert!(matches!(late, Err(HeaderError::Timeout)));
}

#[test]
fn the_header_of_a_split_model_is_in_its_first_part() {
    let part = Path::new("/m/a-b-00003-of-00012.gguf");
    assert_eq!(first_part(part), Path::new("/m/a-b-00001-of-00012.gguf"));
    for whole in ["/m/a.gguf", "/m/a-1-of-2.gguf", "/m/a-00001-of-00002.bin"] {
        assert_eq!(first_part(Path::new(whole)), Path::new(whole));
    }
}

#[test]
fn a_header_is_built_from_texts() {
    let texts = [
        ("general.architecture", "llama"),
        ("llama.block_count", "32"),
        ("llama.rope.freq_base", "10000.5"),
        ("llama.flag", "true"),
    ];
    let header = ModelHeader::from_texts(texts);
    assert_eq!(
        header.model_value("block_count"),
        Some(&HeaderValue::Integer(32))
    );
    assert_eq!(
        header.model_value("rope.freq_base"),
        Some(&HeaderValue::Float(10000.5))
    );
    assert_eq!(header.model_value("flag"), Some(&HeaderValue::Bool(true)));
}
