//! Names of devices.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;

use crate::error::FieldError;

/// Longest id in bytes.
const ID_MAX_LEN: usize = 64;

/// Checks the name of a device: letters, digits and `_`.
pub(crate) fn check_id(field: &'static str, id: &str) -> Result<(), FieldError> {
    if !(1..=ID_MAX_LEN).contains(&id.len()) {
        return Err(FieldError::new(field, format!("must be 1 to {ID_MAX_LEN} bytes, got {}", id.len())));
    }
    match id.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '_') {
        Some(c) => Err(FieldError::new(field, format!("must be letters, digits and `_`, got {c:?}"))),
        None => Ok(()),
    }
}

/// Says that two devices in the list `section` have the same value in a field, if they have one.
pub(crate) fn check_unique<T: Copy + Display + Eq + Hash>(
    section: &'static str,
    field: &'static str,
    values: impl Iterator<Item = Option<T>>,
) -> Result<(), FieldError> {
    let mut seen = HashMap::new();
    for (index, value) in values.enumerate().filter_map(|(index, value)| Some((index, value?))) {
        if let Some(first) = seen.insert(value, index) {
            let cause = format!("must be unique, but {section}[{first}] has {value} too");
            return Err(FieldError::new(format!("{section}[{index}].{field}"), cause));
        }
    }
    Ok(())
}
