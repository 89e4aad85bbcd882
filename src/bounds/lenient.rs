//! JSON values read leniently: a value of another type, or out of range, is unknown, and the rest
//! of the document counts. Lists and texts are bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::bounds;

/// The most texts of one list, such as a command line, and their bytes altogether.
const MOST_TEXTS: (usize, usize) = (256, 8 << 10);
/// The most texts of one map, such as a model's header, and their bytes altogether.
const MOST_MAPPED: (usize, usize) = (64, 4 << 10);

/// The largest number up to which every whole one is exact: 2^53.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// Whether `value` is a finite number from 0 on.
pub fn is_measure(value: f64) -> bool {
    (0.0..=LARGEST).contains(&value)
}

/// Whether `value` is between 0 and 1.
pub fn is_ratio(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

/// Whether `value` is a whole number from 0 to 2^53.
pub fn is_count(value: f64) -> bool {
    is_measure(value) && value.fract() == 0.0
}

/// Any JSON value, as the scalar that it may be.
#[derive(Default)]
enum Scalar {
    Number(f64),
    Text(String),
    Flag(bool),
    #[default]
    Other,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(LenientVisitor(AnyScalar))
    }
}

struct AnyScalar;

impl Lenient<'_> for AnyScalar {
    type Value = Scalar;

    fn scalar(self, scalar: Scalar) -> Scalar {
        scalar
    }
}

fn number_where<'de, D: Deserializer<'de>>(
    deserializer: D,
    is_valid: impl Fn(f64) -> bool,
) -> Result<Option<f64>, D::Error> {
    Ok(match Scalar::deserialize(deserializer)? {
        Scalar::Number(value) if is_valid(value) => Some(value),
        _ => None,
    })
}

/// Reads a whole number from 0 to 2^53.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, is_count)
}

/// Reads a whole number that is an `int32_t` from 0 on.
pub fn count_32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, |value| {
        is_count(value) && value <= f64::from(i32::MAX)
    })
}

/// Reads a number from 0 to 2^53.
pub fn measure<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, is_measure)
}

/// Reads a number from 0 to 100.
pub fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, |value| (0.0..=100.0).contains(&value))
}

/// Reads a temperature in degrees Celsius.
pub fn celsius<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, |value| value.is_finite() && value >= -273.15)
}

/// Reads a text that is not empty.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Scalar::deserialize(deserializer)? {
        Scalar::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    })
}

/// Reads `true` or `false`.
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    Ok(match Scalar::deserialize(deserializer)? {
        Scalar::Flag(flag) => Some(flag),
        _ => None,
    })
}

/// An answer that must be an object: serde alone would take an array for a struct.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Strict<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Strict<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Strict(PhantomData))
    }
}

/// Takes an object, and anything else for none.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(ObjectOf {
        first_of_array: false,
        wanted: PhantomData,
    }))
}

/// Takes an object, or the first of an array of them, and anything else for none.
pub fn object_or_first<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(ObjectOf {
        first_of_array: true,
        wanted: PhantomData,
    }))
}

/// How a JSON value is read; a value of another type gives the default.
trait Lenient<'de>: Sized {
    type Value: Default;

    fn scalar(self, _: Scalar) -> Self::Value {
        Self::Value::default()
    }

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::Value::default())
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::Value::default())
    }
}

struct LenientVisitor<T>(T);

impl<'de, T: Lenient<'de>> Visitor<'de> for LenientVisitor<T> {
    type Value = T::Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T::Value, A::Error> {
        self.0.array(seq)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T::Value, A::Error> {
        self.0.object(map)
    }
    fn visit_bool<E>(self, value: bool) -> Result<T::Value, E> {
        Ok(self.0.scalar(Scalar::Flag(value)))
    }
    fn visit_i64<E>(self, value: i64) -> Result<T::Value, E> {
        Ok(self.0.scalar(Scalar::Number(value as f64)))
    }
    fn visit_u64<E>(self, value: u64) -> Result<T::Value, E> {
        Ok(self.0.scalar(Scalar::Number(value as f64)))
    }
    fn visit_f64<E>(self, value: f64) -> Result<T::Value, E> {
        Ok(self.0.scalar(Scalar::Number(value)))
    }
    fn visit_str<E>(self, value: &str) -> Result<T::Value, E> {
        Ok(self.0.scalar(Scalar::Text(bounds::cut(value).to_owned())))
    }
    fn visit_unit<E>(self) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
}

struct ObjectOf<T> {
    first_of_array: bool,
    wanted: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> Lenient<'de> for ObjectOf<T> {
    type Value = Option<T>;

    fn object<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
        T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some)
    }
    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<T>, A::Error> {
        let first = if self.first_of_array {
            seq.next_element()?
        } else {
            None
        };
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(first)
    }
}

/// The texts of an object by those of its keys that are `wanted`; other values are passed over.
/// None where there are more than [`MOST_MAPPED`]: a part of them could mean something else.
pub fn text_map<'de, D: Deserializer<'de>>(
    deserializer: D,
    wanted: fn(&str) -> bool,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(TextMap { wanted }))
}

struct TextMap {
    wanted: fn(&str) -> bool,
}

impl<'de> Lenient<'de> for TextMap {
    type Value = Option<BTreeMap<String, String>>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut texts = BTreeMap::new();
        let mut room = Room::new(MOST_MAPPED);
        while let Some(key) = map.next_key::<String>()? {
            let value: Scalar = map.next_value()?;
            if let Scalar::Text(text) = value
                && (self.wanted)(&key)
                && room.takes(key.len().saturating_add(text.len()))
            {
                texts.insert(key, text);
            }
        }
        Ok(Some(texts).filter(|_| !room.is_exceeded))
    }
}

/// The texts of an array; what is none of them, and any other value, is passed over. None of
/// them where there are more than [`MOST_TEXTS`]: a part of them could mean something else.
pub fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(Texts))
}

struct Texts;

impl<'de> Lenient<'de> for Texts {
    type Value = Vec<String>;

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        let mut room = Room::new(MOST_TEXTS);
        while let Some(scalar) = seq.next_element()? {
            if let Scalar::Text(text) = scalar
                && room.takes(text.len())
            {
                texts.push(text);
            }
        }
        if room.is_exceeded {
            texts = Vec::new();
        }
        Ok(texts)
    }
}

/// How much more may be kept.
struct Room {
    items: usize,
    bytes: usize,
    is_exceeded: bool,
}

impl Room {
    fn new((items, bytes): (usize, usize)) -> Room {
        Room {
            items,
            bytes,
            is_exceeded: false,
        }
    }

    /// Whether one more item of so many bytes may be kept.
    fn takes(&mut self, bytes: usize) -> bool {
        match (self.items.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(items), Some(bytes)) if !self.is_exceeded => {
                (self.items, self.bytes) = (items, bytes);
                true
            }
            _ => {
                self.is_exceeded = true;
                false
            }
        }
    }
}
