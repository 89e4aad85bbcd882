//! Lists of objects in JSON, read one object at a time and bounded.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::bounds::lenient::Object;

/// The most objects of a list that are looked at.
const MOST_LISTED: usize = 20_000;
/// The most objects of a list that are kept, where all of them are: a real server shows some
/// tens of models, and keeps a thousand requests.
const MOST_KEPT: usize = 1000;

/// Hands the objects of an array to `take` as they are read, the first [`MOST_LISTED`] of
/// them, and holds none. Gives whether there was an array, and not null.
pub struct Each<T, F> {
    take: F,
    what: PhantomData<T>,
}

impl<T, F: FnMut(T)> Each<T, F> {
    /// Hands them to `take`.
    pub fn new(take: F) -> Each<T, F> {
        Each {
            take,
            what: PhantomData,
        }
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> DeserializeSeed<'de> for Each<T, F> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> Visitor<'de> for Each<T, F> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<bool, A::Error> {
        for _ in 0..MOST_LISTED {
            match seq.next_element()? {
                Some(Object(object)) => (self.take)(object),
                None => return Ok(true),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(true)
    }
    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }
}

/// As [`Each`], for an object that has the array under `key`: `{"data":[…]}`. Gives whether
/// there is such a key; an empty list is null in what is written in Go.
pub struct EachIn<T, F> {
    key: &'static str,
    each: Each<T, F>,
}

impl<T, F: FnMut(T)> EachIn<T, F> {
    /// Hands those under `key` to `take`.
    pub fn new(key: &'static str, take: F) -> EachIn<T, F> {
        EachIn {
            key,
            each: Each::new(take),
        }
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> DeserializeSeed<'de> for EachIn<T, F> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> Visitor<'de> for EachIn<T, F> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with a list `{}`", self.key)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        // Only the first of that name counts.
        let mut each = Some(self.each);
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            match each.take_if(|_| key == self.key) {
                Some(each) => {
                    map.next_value_seed(each)?;
                    found = true;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// Takes the objects of a list and keeps the first [`MOST_KEPT`] of them.
pub fn keep<T>(list: &mut Vec<T>) -> impl FnMut(T) {
    |object| {
        if list.len() < MOST_KEPT {
            list.push(object);
        }
    }
}
