//! Reads JSON lists of objects one object at a time, so that a list of any length needs little
//! memory.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::bounds::lenient::Object;

/// The most objects of a list that are read.
const MAX_READ: usize = 20_000;
/// The most objects that are kept if a whole list is: a real server lists tens of models, and keeps
/// a thousand requests.
pub const MAX_KEPT: usize = 1000;

/// Passes the first 20,000 objects of an array to `on_object`, and ignores the others. With a
/// `key`, the array is under it in an object: `{"data": […]}`.
///
/// Its value is whether there is such a list. Null counts as no list without a key, and as an empty
/// list under a key, because programs in Go write it so.
pub struct ListVisitor<T, F> {
    key: Option<&'static str>,
    on_object: F,
    object: PhantomData<T>,
}

impl<T: DeserializeOwned, F: FnMut(T)> ListVisitor<T, F> {
    /// The list itself, or the one under `key`.
    pub fn new(key: Option<&'static str>, on_object: F) -> ListVisitor<T, F> {
        ListVisitor {
            key,
            on_object,
            object: PhantomData,
        }
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> DeserializeSeed<'de> for ListVisitor<T, F> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        match self.key {
            None => deserializer.deserialize_option(self),
            Some(_) => deserializer.deserialize_map(self),
        }
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> Visitor<'de> for ListVisitor<T, F> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_none<E>(self) -> Result<bool, E> {
        Ok(false)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_seq(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<bool, A::Error> {
        for _ in 0..MAX_READ {
            match list.next_element()? {
                Some(Object(object)) => (self.on_object)(object),
                None => return Ok(true),
            }
        }
        IgnoredAny.visit_seq(list)?;
        Ok(true)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        // If the key is present twice, the first one counts.
        let mut list = Some(ListVisitor::new(None, self.on_object));
        while let Some(key) = map.next_key::<String>()? {
            match list.take_if(|_| self.key == Some(key.as_str())) {
                Some(list) => drop(map.next_value_seed(list)?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(list.is_none())
    }
}
