//! Names of devices.

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

/// Says that two devices in the list `section` have the same id.
pub(crate) fn check_unique<'a>(
    section: &'static str,
    field: &'static str,
    ids: impl Iterator<Item = &'a str>,
) -> Result<(), FieldError> {
    let mut seen = std::collections::HashMap::new();
    for (index, id) in ids.enumerate() {
        if let Some(first) = seen.insert(id, index) {
            let cause = format!("must be unique, but {section}[{first}] is called {id:?} too");
            return Err(FieldError::new(format!("{section}[{index}].{field}"), cause));
        }
    }
    Ok(())
}
