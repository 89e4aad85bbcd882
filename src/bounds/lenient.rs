//! Reads JSON values leniently: a value of the wrong type, or out of range, is unknown (`None`, or
//! empty), and the rest of the document is still read. Lists and texts are bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::bounds;

/// The most texts of one list, such as a command line, and the most bytes of all of them.
const LIST_LIMITS: (usize, usize) = (256, 8 << 10);
/// The most texts of one map, such as a model file's header, and the most bytes of all of them.
const MAP_LIMITS: (usize, usize) = (64, 4 << 10);

/// 2^53: up to here, an `f64` holds every whole number exactly.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// Whether `value` may be an amount: from 0 to 2^53.
pub fn is_measure(value: f64) -> bool {
    (0.0..=LARGEST).contains(&value)
}

/// Whether `value` may be a ratio: from 0 to 1.
pub fn is_ratio(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

/// Whether `value` may be a count: a whole number from 0 to 2^53.
pub fn is_count(value: f64) -> bool {
    is_measure(value) && value.fract() == 0.0
}

/// Whether `value` may be a number of requests at one time: a count below 2^31. A subtraction that
/// goes below 0 gives a number just below 2^32 or 2^64 in C++.
pub fn is_number_of_requests(value: f64) -> bool {
    is_count(value) && value < f64::from(1_u32 << 31)
}

/// Converts a JSON value; one of another type becomes the default.
trait Lenient<'de>: Sized {
    type Value: Default;

    fn number(self, _: f64) -> Self::Value {
        Self::Value::default()
    }
    fn text(self, _: &str) -> Self::Value {
        Self::Value::default()
    }
    fn boolean(self, _: bool) -> Self::Value {
        Self::Value::default()
    }
    fn array<A: SeqAccess<'de>>(self, array: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_seq(array)?;
        Ok(Self::Value::default())
    }
    fn object<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_map(object)?;
        Ok(Self::Value::default())
    }
}

struct LenientVisitor<T>(T);

impl<'de, T: Lenient<'de>> Visitor<'de> for LenientVisitor<T> {
    type Value = T::Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
    fn visit_bool<E>(self, value: bool) -> Result<T::Value, E> {
        Ok(self.0.boolean(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<T::Value, E> {
        Ok(self.0.number(value as f64))
    }
    fn visit_u64<E>(self, value: u64) -> Result<T::Value, E> {
        Ok(self.0.number(value as f64))
    }
    fn visit_f64<E>(self, value: f64) -> Result<T::Value, E> {
        Ok(self.0.number(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<T::Value, E> {
        Ok(self.0.text(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, array: A) -> Result<T::Value, A::Error> {
        self.0.array(array)
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T::Value, A::Error> {
        self.0.object(object)
    }
}

impl<'de, T: Lenient<'de>> DeserializeSeed<'de> for LenientVisitor<T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A number that satisfies this condition.
struct Number(fn(f64) -> bool);

impl Lenient<'_> for Number {
    type Value = Option<f64>;

    fn number(self, value: f64) -> Option<f64> {
        (self.0)(value).then_some(value)
    }
}

/// A count: see [`is_count`].
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    LenientVisitor(Number(is_count)).deserialize(deserializer)
}

/// A count that llama.cpp holds in an `int32_t`.
pub fn count_32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let is_count_32 = |value| is_count(value) && value <= f64::from(i32::MAX);
    LenientVisitor(Number(is_count_32)).deserialize(deserializer)
}

/// An amount: see [`is_measure`].
pub fn measure<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    LenientVisitor(Number(is_measure)).deserialize(deserializer)
}

/// A percentage from 0 to 100.
pub fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    LenientVisitor(Number(|value| (0.0..=100.0).contains(&value))).deserialize(deserializer)
}

/// A temperature in degrees Celsius, not below absolute zero.
pub fn celsius<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let is_temperature = |value: f64| value.is_finite() && value >= -273.15;
    LenientVisitor(Number(is_temperature)).deserialize(deserializer)
}

struct Text;

impl Lenient<'_> for Text {
    type Value = Option<String>;

    fn text(self, value: &str) -> Option<String> {
        Some(bounds::cut(value).to_owned())
    }
}

/// A text that is not empty, [cut](bounds::cut).
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = LenientVisitor(Text).deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

struct Boolean;

impl Lenient<'_> for Boolean {
    type Value = Option<bool>;

    fn boolean(self, value: bool) -> Option<bool> {
        Some(value)
    }
}

/// True or false.
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    LenientVisitor(Boolean).deserialize(deserializer)
}

/// An object. Without this type, serde also accepts an array for a struct.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct LenientObject<T, const OR_FIRST: bool>(PhantomData<T>);

impl<'de, T: DeserializeOwned, const OR_FIRST: bool> Lenient<'de> for LenientObject<T, OR_FIRST> {
    type Value = Option<T>;

    fn object<A: MapAccess<'de>>(self, object: A) -> Result<Option<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(Some)
    }
    fn array<A: SeqAccess<'de>>(self, mut array: A) -> Result<Option<T>, A::Error> {
        let first = if OR_FIRST {
            array.next_element()?
        } else {
            None
        };
        IgnoredAny.visit_seq(array)?;
        Ok(first)
    }
}

/// An object.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    LenientVisitor(LenientObject::<T, false>(PhantomData)).deserialize(deserializer)
}

/// An object, or the first object of an array.
pub fn object_or_first<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    LenientVisitor(LenientObject::<T, true>(PhantomData)).deserialize(deserializer)
}

/// How many more texts may be kept, and how many more bytes; `None` once a limit is exceeded.
struct TextBudget(Option<(usize, usize)>);

impl TextBudget {
    /// Whether one more text, with this many bytes, may be kept.
    fn spend(&mut self, bytes: usize) -> bool {
        let left = self
            .0
            .map(|(texts, left)| (texts.checked_sub(1), left.checked_sub(bytes)));
        self.0 = left.and_then(|(texts, left)| texts.zip(left));
        self.0.is_some()
    }
}

struct TextMap {
    is_wanted: fn(&str) -> bool,
}

impl<'de> Lenient<'de> for TextMap {
    type Value = Option<BTreeMap<String, String>>;

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut texts = BTreeMap::new();
        let mut budget = TextBudget(Some(MAP_LIMITS));
        while let Some(key) = object.next_key::<String>()? {
            if let Some(text) = object.next_value_seed(LenientVisitor(Text))?
                && (self.is_wanted)(&key)
                && budget.spend(key.len().saturating_add(text.len()))
            {
                texts.insert(key, text);
            }
        }
        Ok(budget.0.map(|_| texts))
    }
}

/// The texts of an object under wanted keys. `None` if there are more than 64, or they have more
/// than 4 KiB together: a part of them could be misread.
pub fn text_map<'de, D: Deserializer<'de>>(
    deserializer: D,
    is_wanted: fn(&str) -> bool,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    LenientVisitor(TextMap { is_wanted }).deserialize(deserializer)
}

struct Texts;

impl<'de> Lenient<'de> for Texts {
    type Value = Vec<String>;

    fn array<A: SeqAccess<'de>>(self, mut array: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        let mut budget = TextBudget(Some(LIST_LIMITS));
        while let Some(text) = array.next_element_seed(LenientVisitor(Text))? {
            texts.extend(text.filter(|text| budget.spend(text.len())));
        }
        Ok(budget.0.map(|_| texts).unwrap_or_default())
    }
}

/// The texts of an array. Empty if there are more than 256, or they have more than 8 KiB together:
/// a part of them could be misread.
pub fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    LenientVisitor(Texts).deserialize(deserializer)
}
