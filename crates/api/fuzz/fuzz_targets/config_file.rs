#![no_main]
//! Bytes to the reader of the config file. What it accepts must be valid and survive being written and read again; what
//! it refuses must give one line of bounded length.

use kindling_api::VmConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    match VmConfig::from_json(text) {
        Ok(config) => {
            assert_eq!(config.validate(), Ok(()));
            let written = serde_json::to_vec(&config).unwrap_or_default();
            match VmConfig::from_json(&written) {
                Ok(again) => assert_eq!(again, config),
                Err(error) => assert!(written.len() > kindling_api::CONFIG_MAX_LEN, "{error}"),
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.chars().any(char::is_control), "{message:?}");
            assert!(message.chars().count() < 1000, "{message}");
        }
    }
});
