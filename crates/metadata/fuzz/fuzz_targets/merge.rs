#![no_main]
//! The host puts and patches what it likes. Input: a byte that the limit comes from, and JSON texts, each ended by a byte 0xff: the
//! first is put, the others are patches. Checked: what comes out is what the standard's algorithm gives, or nothing has
//! changed; no document is larger than its limit; and every value in it can be read by its path.

use std::time::Instant;

use kindling_metadata::{Error, Service, Version, answer};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// RFC 7396, 2, word by word.
fn merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut target = match target {
        Value::Object(target) => target,
        _ => Default::default(),
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let old = target.remove(name).unwrap_or(Value::Null);
            target.insert(name.clone(), merge_patch(old, value));
        }
    }
    Value::Object(target)
}

/// Reads all values by their paths, as far as a request can have them.
fn read_all(service: &Service, value: &Value, path: &str) {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    if is_plain && !path.contains("//") && !path.ends_with('/') && path.len() < 1_000 {
        let request = format!("GET {path}/ HTTP/1.1\r\nAccept: application/json\r\n\r\n");
        let Some(answer) = answer(service, Instant::now(), request.as_bytes()) else {
            unreachable!("{request}")
        };
        let text = String::from_utf8_lossy(&answer.bytes);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
        assert_eq!(body, Some(value.to_string().as_str()), "{path}");
    }
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let key = key.replace('~', "~0").replace('/', "~1");
                read_all(service, value, &format!("{path}/{key}"));
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                read_all(service, value, &format!("{path}/{index}"));
            }
        }
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((limit, data)) = data.split_first() else { return };
    let limit = 4 * usize::from(*limit);
    let Ok(service) = Service::new(limit) else { unreachable!() };
    service.configure(Version::V1, false);
    let mut is_put = false;
    for text in data.split(|byte| *byte == 0xff).take(8) {
        let Ok(value) = serde_json::from_slice::<Value>(text) else { continue };
        let before = service.get();
        let (result, expected) = if is_put {
            (service.patch(value.clone()), merge_patch(before.clone(), &value))
        } else {
            (service.put(value.clone()), value)
        };
        let bytes = expected.to_string().len();
        match result {
            Ok(()) => {
                assert_eq!(service.get(), expected);
                assert!(bytes <= limit);
                is_put = true;
            }
            Err(Error::TooLarge { bytes: said, limit: most }) => {
                assert_eq!((said, most), (bytes, limit));
                assert!(bytes > limit);
                assert_eq!(service.get(), before);
            }
            // What was parsed is not too deep, and after a put there is something to patch.
            Err(error) => unreachable!("{error}"),
        }
    }
    if is_put {
        read_all(&service, &service.get(), "");
    }
});
