//! What tells a letter of this link from all others.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a code.
const CODE: usize = 32;

/// Puts a code before a letter's text, and takes it away again.
#[derive(Clone)]
pub(super) struct Seal(Hmac<Sha256>);

impl Seal {
    pub(super) fn new(token: &str) -> Self {
        Self(Hmac::new_from_slice(token.as_bytes()).expect("HMAC takes keys of any length"))
    }

    /// A letter for this place.
    pub(super) fn close(&self, place: &str, text: &[u8]) -> Vec<u8> {
        let code = self.over(place, text).finalize().into_bytes();
        [&code[..], text].concat()
    }

    /// The text of a letter that was written for this place by who has the token.
    pub(super) fn open(&self, place: &str, mut letter: Vec<u8>) -> Option<Vec<u8>> {
        let text = letter.split_off(letter.len().min(CODE));
        self.over(place, &text).verify_slice(&letter).ok()?;
        Some(text)
    }

    fn over(&self, place: &str, text: &[u8]) -> Hmac<Sha256> {
        let mut code = self.0.clone();
        code.update(place.as_bytes());
        // No place has it.
        code.update(&[0]);
        code.update(text);
        code
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_good_as_it_was_written_in_its_place_and_for_its_token_alone() {
        let seal = Seal::new("token");
        let letter = seal.close("up/a.1", b"text");
        assert_eq!(seal.open("up/a.1", letter.clone()).as_deref(), Some(&b"text"[..]));
        assert_eq!(seal.open("up/a.2", letter.clone()), None, "another number");
        assert_eq!(seal.open("down/a/a.1", letter.clone()), None, "another direction");
        assert_eq!(Seal::new("tokem").open("up/a.1", letter.clone()), None, "another token");
        for index in 0..letter.len() {
            let mut torn = letter.clone();
            torn[index] ^= 1;
            assert_eq!(seal.open("up/a.1", torn), None, "{index}");
            assert_eq!(seal.open("up/a.1", letter[..index].to_vec()), None, "{index}");
        }
    }
}
