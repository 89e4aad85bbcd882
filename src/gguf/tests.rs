use std::io::Cursor;

use super::*;

/// Writes headers as the format's description has them.
#[derive(Default)]
struct Writer {
    entries: u64,
    body: Vec<u8>,
}

impl Writer {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Writer {
        Writer::text(&mut self.body, key);
        self.body.extend(kind.to_le_bytes());
        self.body.extend(value);
        self.entries += 1;
        self
    }

    fn string(self, key: &str, value: &str) -> Writer {
        let mut bytes = Vec::new();
        Writer::text(&mut bytes, value);
        self.raw(key, 8, &bytes)
    }

    fn number(self, key: &str, value: u32) -> Writer {
        self.raw(key, 4, &value.to_le_bytes())
    }

    fn numbers(self, key: &str, values: &[i32]) -> Writer {
        let mut bytes = Vec::from(5u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    fn strings(self, key: &str, values: &[&str]) -> Writer {
        let mut bytes = Vec::from(8u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            Writer::text(&mut bytes, value);
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

fn parse(bytes: &[u8]) -> Result<Header, Error> {
    Header::parse(&mut Cursor::new(bytes), bytes.len() as u64, None)
}

fn sample() -> Writer {
    Writer::default()
        .string("general.architecture", "llama")
        .number("llama.block_count", 3)
        .numbers("llama.attention.head_count_kv", &[1, 0, 2])
        .strings("tokenizer.ggml.tokens", &["<s>", "a", "b"])
        .raw("llama.rope.freq_base", 6, &1e4f32.to_le_bytes())
        .raw("general.flag", 7, &[1])
}

#[test]
fn the_values_of_a_header_are_read_and_its_vocabulary_is_not_kept() {
    let header = parse(&sample().finish()).unwrap();
    assert_eq!(header.architecture(), Some("llama"));
    assert_eq!(header.of_model("block_count"), Some(&Value::Number(3)));
    let heads = header.of_model("attention.head_count_kv");
    assert_eq!(heads, Some(&Value::List(vec![1, 0, 2])));
    assert_eq!(header.of_model("rope.freq_base"), Some(&Value::Float(1e4)));
    assert!(header.model_keys().all(|key| !key.contains("tokens")));
    assert_eq!(header.values.len(), 5);
}

#[test]
fn a_file_cut_anywhere_in_its_header_is_an_error() {
    let whole = sample().finish();
    for length in 0..whole.len() {
        assert!(parse(&whole[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn a_header_whose_every_byte_is_damaged_in_turn_never_panics() {
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
fn lying_counts_and_lengths_are_errors_and_reserve_nothing() {
    let huge = [u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 32, 1 << 24];
    for length in huge {
        let text = Writer::default().raw("a", 8, &length.to_le_bytes());
        assert!(parse(&text.finish()).is_err(), "a text of {length}");
        for kind in [0u32, 2, 4, 8, 9, 10] {
            let mut list = Vec::from(kind.to_le_bytes());
            list.extend(length.to_le_bytes());
            let list = Writer::default().raw("a", 9, &list);
            assert!(parse(&list.finish()).is_err(), "{length} of {kind}");
        }
        let mut entries = Vec::from(*b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0");
        entries.extend(length.to_le_bytes());
        assert!(parse(&entries).is_err(), "{length} entries");
        let mut key = Writer::default().number("k", 1).finish();
        key[24..32].copy_from_slice(&length.to_le_bytes());
        assert!(parse(&key).is_err(), "a key of {length}");
    }
}

#[test]
fn lists_nested_deep_are_refused() {
    let mut nested = Vec::new();
    for _ in 0..100_000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    let file = Writer::default().raw("a", 9, &nested).finish();
    assert!(matches!(parse(&file), Err(Error::Nested)));
}

#[test]
fn what_is_no_gguf_of_ours_is_told_apart() {
    assert!(matches!(parse(b""), Err(Error::NotGguf)));
    assert!(matches!(parse(b"GGML\x03\0\0\0"), Err(Error::NotGguf)));
    let version = |version: u32| {
        let mut bytes = Vec::from(*b"GGUF");
        bytes.extend(version.to_le_bytes());
        bytes
    };
    assert!(matches!(parse(&version(1)), Err(Error::Version(1))));
    let mut older = sample().finish();
    older[4] = 2;
    assert_eq!(parse(&older).unwrap(), parse(&sample().finish()).unwrap());
    let big_endian = parse(&version(3u32.swap_bytes())).unwrap_err();
    assert!(big_endian.to_string().contains("byte order"));
    let unknown = Writer::default().raw("a", 13, &[]).finish();
    assert!(matches!(parse(&unknown), Err(Error::Type(13))));
}

#[test]
fn a_header_without_end_is_refused_at_its_limit() {
    let filler = vec![b'x'; 1 << 20];
    let filler = std::str::from_utf8(&filler).unwrap();
    let mut writer = Writer::default();
    for index in 0..17 {
        writer = writer.string(&format!("general.{index}"), filler);
    }
    assert!(matches!(parse(&writer.finish()), Err(Error::TooLong)));
}

#[test]
fn what_is_kept_of_a_hostile_header_is_little() {
    let mut writer = Writer::default();
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
    let long = Writer::default()
        .raw("a", 9, &list)
        .number(&"k".repeat(300), 1);
    let header = parse(&long.finish()).unwrap();
    assert_eq!(header.values.get("a"), Some(&Value::Other));
    assert_eq!(header.values.len(), 1);
}

#[test]
fn a_deadline_that_has_passed_ends_the_reading() {
    let bytes = sample().finish();
    let past = Some(Instant::now() - Duration::from_secs(1));
    let late = Header::parse(&mut Cursor::new(&bytes), bytes.len() as u64, past);
    assert!(matches!(late, Err(Error::TooSlow)));
}

#[test]
fn a_split_file_is_told_by_its_first_part() {
    let part = Path::new("/m/a-b-00003-of-00012.gguf");
    assert_eq!(first_part(part), Path::new("/m/a-b-00001-of-00012.gguf"));
    for whole in ["/m/a.gguf", "/m/a-1-of-2.gguf", "/m/a-00001-of-00002.bin"] {
        assert_eq!(first_part(Path::new(whole)), Path::new(whole));
    }
}

#[test]
fn a_header_told_in_words_is_one() {
    let told = [
        ("general.architecture", "llama"),
        ("llama.block_count", "32"),
        ("llama.rope.freq_base", "10000.5"),
        ("llama.flag", "true"),
    ];
    let header = Header::from_texts(told);
    assert_eq!(header.of_model("block_count"), Some(&Value::Number(32)));
    assert_eq!(
        header.of_model("rope.freq_base"),
        Some(&Value::Float(10000.5))
    );
    assert_eq!(header.of_model("flag"), Some(&Value::Flag(true)));
}
