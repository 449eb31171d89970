//! The document: any JSON value, changed by the host as a whole or by merge patches (RFC 7396), and read by the guest by
//! JSON pointers (RFC 6901).

use std::io;

use serde_json::{Map, Value};

use crate::Error;

/// Most bytes of the document as JSON, unless the host says otherwise.
pub const DEFAULT_LIMIT: usize = 51_200;

/// Most levels that the document can have: what `serde_json` reads has no more.
pub const MAX_DEPTH: usize = 128;

/// How a guest gets a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// As it is.
    Json,
    /// An object as the list of its keys, a string as its characters; there is no text of anything else.
    Text,
}

/// Why a guest does not get a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// There is none at this path.
    NotFound,
    /// There is no text of it.
    NoText,
}

#[derive(Debug)]
pub(crate) struct Store {
    /// `None` until there is one.
    document: Option<Value>,
    limit: usize,
}

impl Store {
    pub fn new(limit: usize) -> Self {
        Self { document: None, limit }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn document(&self) -> Option<&Value> {
        self.document.as_ref()
    }

    pub fn put(&mut self, document: Value) -> Result<(), Error> {
        check_depth(&document)?;
        let bytes = json_bytes(&document);
        if bytes > self.limit {
            return Err(Error::TooLarge { bytes, limit: self.limit });
        }
        self.document = Some(document);
        Ok(())
    }

    pub fn patch(&mut self, patch: Value) -> Result<(), Error> {
        // First, so that merging need not look.
        check_depth(&patch)?;
        let mut document = self.document.clone().ok_or(Error::Empty)?;
        merge(&mut document, patch);
        self.put(document)
    }

    /// What a guest reads at `path`, in which more than one slash in a row counts as one, and one at the end as none.
    pub fn read(&self, path: &str, format: Format) -> Result<String, ReadError> {
        let pointer: String =
            path.split('/').filter(|key| !key.is_empty()).flat_map(|key| ["/", key]).collect();
        let document = self.document.as_ref().unwrap_or(&Value::Null);
        let value = document.pointer(&pointer).ok_or(ReadError::NotFound)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Text, Value::String(text)) => Ok(text.clone()),
            (Format::Text, Value::Object(object)) => Ok(list(object)),
            (Format::Text, _) => Err(ReadError::NoText),
        }
    }
}

/// The keys of an object, one a line, with a slash behind those of objects.
fn list(object: &Map<String, Value>) -> String {
    let line = |(key, value): (&String, &Value)| match value {
        Value::Object(_) => format!("{key}/"),
        _ => key.clone(),
    };
    object.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// RFC 7396, 2. `patch` has a bounded depth, which is that of the recursion.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn check_depth(value: &Value) -> Result<(), Error> {
    if is_within(value, MAX_DEPTH) { Ok(()) } else { Err(Error::TooDeep) }
}

/// Whether a value has at most so many levels, below which nobody looks.
fn is_within(value: &Value, levels: usize) -> bool {
    let fits = |inner: &Value| levels.checked_sub(1).is_some_and(|levels| is_within(inner, levels));
    match value {
        Value::Array(values) => values.iter().all(fits),
        Value::Object(object) => object.values().all(fits),
        _ => true,
    }
}

/// Bytes of a value as JSON without white space.
fn json_bytes(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        // No value fails, and if one did, it would be too large for anybody.
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store(document: Value) -> Store {
        let mut store = Store::new(DEFAULT_LIMIT);
        store.put(document).unwrap();
        store
    }

    /// So many levels of arrays, and a number.
    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |value, _| json!([value]))
    }

    #[test]
    fn a_merge_patch_does_what_the_standard_lists() {
        // RFC 7396, appendix A.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut store = store(target.clone());
            store.patch(patch.clone()).unwrap();
            assert_eq!(store.document(), Some(&result), "{target} with {patch}");
        }
    }

    #[test]
    fn the_limit_is_that_of_the_compact_document_and_a_refused_change_changes_nothing() {
        let mut store = Store::new(20);
        store.put(json!({"a": "0123456789ab"})).unwrap();
        for result in [store.put(json!({"a": "0123456789abc"})), store.patch(json!({"b": 1}))] {
            assert!(matches!(result, Err(Error::TooLarge { bytes: 21 | 26, limit: 20 })), "{result:?}");
        }
        assert_eq!(store.document(), Some(&json!({"a": "0123456789ab"})));
        store.patch(json!({"a": null, "b": 1})).unwrap();
        assert_eq!(store.document(), Some(&json!({"b": 1})));
    }

    #[test]
    fn nothing_is_patched_before_something_is_put() {
        let mut store = Store::new(DEFAULT_LIMIT);
        assert!(matches!(store.patch(json!({"a": 1})), Err(Error::Empty)));
        assert_eq!(store.document(), None);
        store.put(Value::Null).unwrap();
        store.patch(json!({"a": 1})).unwrap();
        assert_eq!(store.document(), Some(&json!({"a": 1})));
    }

    #[test]
    fn what_nests_too_deep_is_refused() {
        let mut store = store(json!({}));
        store.put(nested(MAX_DEPTH)).unwrap();
        assert!(matches!(store.put(nested(MAX_DEPTH + 1)), Err(Error::TooDeep)));
        assert!(matches!(store.patch(nested(MAX_DEPTH + 1)), Err(Error::TooDeep)));
        assert_eq!(store.document(), Some(&nested(MAX_DEPTH)));
    }

    #[test]
    fn a_guest_reads_every_json_value_but_text_of_strings_and_objects_only() {
        let store = store(json!({
            "name": "a \"b\"", "none": "", "number": -12.5, "yes": true, "nothing": null,
            "list": ["x", {"y": 1}], "object": {"z": {}, "a": [], "m": "n"},
        }));
        for (path, json, text) in [
            ("/name", Ok(r#""a \"b\"""#), Ok("a \"b\"")),
            ("/none", Ok(r#""""#), Ok("")),
            ("/number", Ok("-12.5"), Err(ReadError::NoText)),
            ("/yes", Ok("true"), Err(ReadError::NoText)),
            ("/nothing", Ok("null"), Err(ReadError::NoText)),
            ("/list", Ok(r#"["x",{"y":1}]"#), Err(ReadError::NoText)),
            ("/list/0", Ok(r#""x""#), Ok("x")),
            ("/list/1", Ok(r#"{"y":1}"#), Ok("y")),
            ("/list/2", Err(ReadError::NotFound), Err(ReadError::NotFound)),
            ("/list/00", Err(ReadError::NotFound), Err(ReadError::NotFound)),
            ("/list/-", Err(ReadError::NotFound), Err(ReadError::NotFound)),
            ("/object", Ok(r#"{"a":[],"m":"n","z":{}}"#), Ok("a\nm\nz/")),
            ("/object/z", Ok("{}"), Ok("")),
            ("/name/x", Err(ReadError::NotFound), Err(ReadError::NotFound)),
            ("/missing", Err(ReadError::NotFound), Err(ReadError::NotFound)),
        ] {
            assert_eq!(store.read(path, Format::Json).as_deref(), json.as_deref(), "{path}");
            assert_eq!(store.read(path, Format::Text).as_deref(), text.as_deref(), "{path}");
        }
    }

    #[test]
    fn slashes_too_many_do_not_matter_and_slashes_in_keys_are_escaped() {
        let store = store(json!({"a": {"b": "c"}, "d/e": "f", "g~h": "i", "j k": "l", "%6d": "n"}));
        for path in ["/a/b", "/a/b/", "//a///b//", "a/b"] {
            assert_eq!(store.read(path, Format::Text).as_deref(), Ok("c"), "{path}");
        }
        assert_eq!(store.read("/d~1e", Format::Text).as_deref(), Ok("f"));
        assert_eq!(store.read("/g~0h", Format::Text).as_deref(), Ok("i"));
        assert_eq!(store.read("/%6d", Format::Text).as_deref(), Ok("n"));
        assert_eq!(store.read("/m", Format::Text), Err(ReadError::NotFound));
        assert_eq!(store.read("/j%20k", Format::Text), Err(ReadError::NotFound));
        for path in ["", "/", "//"] {
            assert_eq!(store.read(path, Format::Text).as_deref(), Ok("%6d\na/\nd/e\ng~h\nj k"), "{path:?}");
        }
    }

    #[test]
    fn before_anything_is_put_a_guest_reads_null() {
        let store = Store::new(DEFAULT_LIMIT);
        assert_eq!(store.read("/", Format::Json).as_deref(), Ok("null"));
        assert_eq!(store.read("/", Format::Text), Err(ReadError::NoText));
        assert_eq!(store.read("/latest", Format::Json), Err(ReadError::NotFound));
    }
}
