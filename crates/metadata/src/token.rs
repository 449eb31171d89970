//! Session tokens: the moment at which each ends, encrypted and authenticated by a key that only this process ever has.
//! So there is nothing to remember for a token, and none outlives the process, by a snapshot for example.

use std::time::Duration;

use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};

/// Bytes of the key.
pub(crate) const KEY_BYTES: usize = 32;

/// How long a token may be asked to last, in seconds.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 1..=21_600;

/// Hexadecimal digits of a token: its number, the encrypted moment, and what authenticates both.
const DIGITS: usize = 64;

pub(crate) struct Tokens {
    cipher: Aes256Gcm,
    /// How many there have been: the next one's number, and so a nonce that no other has.
    issued: u64,
}

impl Tokens {
    pub fn new(key: [u8; KEY_BYTES]) -> Self {
        Self { cipher: Aes256Gcm::new(&key.into()), issued: 0 }
    }

    /// A token that ends `ttl` seconds after `now`; `None` when that is out of its range.
    pub fn issue(&mut self, now: Duration, ttl: u64) -> Option<String> {
        if !TTL_SECONDS.contains(&ttl) {
            return None;
        }
        let end = now.checked_add(Duration::from_secs(ttl))?;
        let mut sealed = u64::try_from(end.as_nanos()).ok()?.to_be_bytes();
        let number = self.issued;
        self.issued = number.checked_add(1)?;
        let tag =
            self.cipher.encrypt_inout_detached(&nonce(number), b"", sealed.as_mut_slice().into()).ok()?;
        let head = u128::from(number) << 64 | u128::from(u64::from_be_bytes(sealed));
        Some(format!("{head:032x}{:032x}", u128::from_be_bytes(tag.into())))
    }

    /// Whether `token` was issued here and has not ended.
    pub fn is_valid(&self, now: Duration, token: &str) -> bool {
        self.end(token).is_some_and(|end| now < end)
    }

    fn end(&self, token: &str) -> Option<Duration> {
        if token.len() != DIGITS || !token.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let (head, tag) = token.split_at_checked(DIGITS / 2)?;
        let [head, tag] = [head, tag].map(|digits| u128::from_str_radix(digits, 16).ok());
        let (head, tag) = (head?, tag?.to_be_bytes());
        let mut sealed = (head as u64).to_be_bytes();
        // Compares the tag in a time that does not depend on it.
        self.cipher
            .decrypt_inout_detached(
                &nonce((head >> 64) as u64),
                b"",
                sealed.as_mut_slice().into(),
                &tag.into(),
            )
            .ok()?;
        Some(Duration::from_nanos(u64::from_be_bytes(sealed)))
    }
}

fn nonce(number: u64) -> aes_gcm::Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    if let Some(end) = nonce.last_chunk_mut() {
        *end = number.to_be_bytes();
    }
    nonce.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_millis(1_234);

    fn tokens() -> Tokens {
        Tokens::new([7; KEY_BYTES])
    }

    #[test]
    fn a_token_is_valid_until_its_end() {
        let mut tokens = tokens();
        for ttl in [1, 60, 21_600] {
            let token = tokens.issue(START, ttl).unwrap();
            let end = START + Duration::from_secs(ttl);
            assert!(tokens.is_valid(START, &token));
            assert!(tokens.is_valid(end - Duration::from_nanos(1), &token));
            assert!(!tokens.is_valid(end, &token));
            assert!(!tokens.is_valid(end * 2, &token));
        }
    }

    #[test]
    fn lifetimes_out_of_range_are_refused() {
        for ttl in [0, 21_601, u64::MAX] {
            assert_eq!(tokens().issue(START, ttl), None, "{ttl}");
        }
    }

    #[test]
    fn a_token_that_was_changed_in_any_bit_is_not_valid() {
        let mut tokens = tokens();
        let token = tokens.issue(START, 60).unwrap();
        assert_eq!(token.len(), 64);
        for at in 0..token.len() {
            let digit = u8::from_str_radix(&token[at..=at], 16).unwrap();
            for bit in 0..4 {
                let other = format!("{}{:x}{}", &token[..at], digit ^ 1 << bit, &token[at + 1..]);
                assert!(!tokens.is_valid(START, &other), "{other}");
            }
        }
    }

    #[test]
    fn what_is_no_token_is_not_valid() {
        let mut tokens = tokens();
        let token = tokens.issue(START, 60).unwrap();
        let long = format!("{token}0");
        let signed = format!("+{}", &token[1..]);
        let umlauts = "ä".repeat(32);
        for other in ["", "0", &token[1..], &long, &signed, &umlauts, &"g".repeat(64), &"0".repeat(64)] {
            assert!(!tokens.is_valid(START, other), "{other}");
        }
    }

    #[test]
    fn tokens_differ_and_those_of_another_key_are_not_valid() {
        let mut tokens = tokens();
        let [first, second] = [60, 60].map(|ttl| tokens.issue(START, ttl).unwrap());
        assert_ne!(first, second);
        assert!(tokens.is_valid(START, &first) && tokens.is_valid(START, &second));
        assert!(!Tokens::new([8; KEY_BYTES]).is_valid(START, &first));
    }
}
