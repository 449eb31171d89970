//! JSON to configuration types, for hostile text and readable errors.
//!
//! serde_json alone lets the last of two equal keys win, takes an array for a struct, and forgets which field an error
//! belongs to. So the text is first read into a [`Value`] that refuses equal keys (errors there carry line and column),
//! and the value is then handed to the type's own `Deserialize` by a deserializer that remembers the path (errors there
//! carry the field). Nesting is bounded by serde_json's recursion limit in the first step.
//!
//! A member that is null counts as absent: many clients write all members that they know.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Number, Value};

use crate::error::{ConfigError, FieldError, one_line};

/// Reads JSON text in which no object has the same key twice.
pub(crate) fn parse(text: &[u8]) -> Result<Value, ConfigError> {
    serde_json::from_slice::<Unique>(text)
        .map(|unique| unique.0)
        .map_err(|error| ConfigError::Json(one_line(&error.to_string())))
}

/// Builds a `T`; an error names the path of the field at fault.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    let path = Path::default();
    T::deserialize(Tracked { value, path: &path }).map_err(|error| {
        let mut field = path.0.into_inner();
        if let Some(missing) = error.missing_field {
            push_key(&mut field, missing);
        }
        FieldError::new(field, error.cause)
    })
}

/// Why a value was refused; where is in the [`Path`].
#[derive(Debug)]
struct Error {
    cause: String,
    /// The field below the current path that should be there.
    missing_field: Option<&'static str>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(cause: T) -> Self {
        Error { cause: cause.to_string(), missing_field: None }
    }

    fn missing_field(field: &'static str) -> Self {
        Error { cause: "is required".to_owned(), missing_field: Some(field) }
    }
}

/// Path of the value being read. An error leaves it as it was at the point of failure.
#[derive(Default)]
struct Path(RefCell<String>);

impl Path {
    /// Runs `read` one step further down.
    fn step<T>(
        &self,
        push: impl FnOnce(&mut String),
        read: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let len = self.0.borrow().len();
        push(&mut self.0.borrow_mut());
        let value = read()?;
        self.0.borrow_mut().truncate(len);
        Ok(value)
    }
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// A value together with the path that led to it.
struct Tracked<'p> {
    value: Value,
    path: &'p Path,
}

impl<'de> Deserializer<'de> for Tracked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let path = self.path;
        match self.value {
            Value::Object(map) => visitor.visit_map(Entries { rest: map.into_iter(), next: None, path }),
            Value::Array(items) => visitor.visit_seq(Items { rest: items.into_iter().enumerate(), path }),
            scalar => scalar.deserialize_any(visitor).map_err(Error::custom),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let got = match self.value {
            Value::Object(_) => return self.deserialize_any(visitor),
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
        };
        Err(Error::custom(format_args!("must be an object, got {got}")))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.value.deserialize_enum(name, variants, visitor).map_err(Error::custom)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Entries<'p> {
    rest: serde_json::map::IntoIter,
    next: Option<(String, Value)>,
    path: &'p Path,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.next = self.rest.find(|(_, value)| !value.is_null());
        match &self.next {
            Some((key, _)) => seed.deserialize(key.as_str().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let path = self.path;
        let (key, value) = self.next.take().ok_or_else(|| Error::custom("value read before its key"))?;
        path.step(|text| push_key(text, &key), || seed.deserialize(Tracked { value, path }))
    }
}

struct Items<'p> {
    rest: std::iter::Enumerate<std::vec::IntoIter<Value>>,
    path: &'p Path,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let path = self.path;
        let Some((index, value)) = self.rest.next() else { return Ok(None) };
        path.step(
            |text| text.push_str(&format!("[{index}]")),
            || seed.deserialize(Tracked { value, path }).map(Some),
        )
    }
}

/// A JSON value in which no object has the same key twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Unique(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key `{key}`")));
            }
            let Unique(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        list: Vec<Inner>,
        note: Option<String>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        size: u8,
    }

    fn outer(text: &str) -> Result<Outer, String> {
        from_value(parse(text.as_bytes()).map_err(|e| e.to_string())?).map_err(|e| e.to_string())
    }

    #[test]
    fn a_well_formed_value_is_read() {
        let expected = Outer { list: vec![Inner { size: 1 }], note: None };
        assert_eq!(outer(r#"{"list": [{"size": 1}], "note": null}"#), Ok(expected));
    }

    #[test]
    fn an_error_names_the_path_through_objects_and_arrays() {
        let cases = [
            (
                r#"{"list": [{"size": 1}, {"size": 256}]}"#,
                "list[1].size: invalid value: integer `256`, expected u8",
            ),
            (r#"{"list": [{"size": 1}, {}]}"#, "list[1].size: is required"),
            (r#"{"list": [{"size": 1, "x": 1}]}"#, "list[0]: unknown field `x`, expected `size`"),
            (r#"{"list": [], "note": 1}"#, "note: invalid type: integer `1`, expected a string"),
            (r#"{"list": [[1]]}"#, "list[0]: must be an object, got an array"),
            (r#"{"note": "x"}"#, "list: is required"),
            ("[[]]", "must be an object, got an array"),
        ];
        for (text, message) in cases {
            assert_eq!(outer(text), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn equal_keys_are_refused_at_any_depth_however_they_are_spelled() {
        for text in [r#"{"a": 1, "a": 2}"#, r#"[{"b": {"a": 1, "\u0061": 2}}]"#] {
            let message = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(message.starts_with("invalid JSON: duplicate key `a` at line 1 column "), "{message}");
        }
        assert!(parse(br#"[{"a": 1}, {"a": 1}]"#).is_ok());
    }
}
